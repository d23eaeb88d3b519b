"""The how-to notebooks and the appendices as they are stored; names, commands and messages of two pages are real."""

import argparse
import importlib
import json
import re
import shlex
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lesson_form import MOST_LINES
from lessons import code, markdown, read, source
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import mebqat_lite as mq
from mebqat_lite import cli, datasets, files
from mebqat_lite.cli import doctor, training
from mebqat_lite.course import stored
from mebqat_lite.course.exercises import lesson_01
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.deploy import onnx_graph
from mebqat_lite.experiments import setups
from mebqat_lite.paths import shipped

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "notebooks" / name for name in ("GLOSSARY.md", "TROUBLESHOOTING.md")]
HOWTOS = sorted(path for kind in ("appendix", "howto") for path in (ROOT / "notebooks").glob(f"{kind}_*.ipynb"))
TAG = "nbval-check-output"
pytestmark = pytest.mark.usefixtures("one_thread")


def words(name: str) -> str:
    return (ROOT / "notebooks" / name).read_text(encoding="utf-8")


# --- the notebooks ---------------------------------------------------------------------------------------------


@pytest.fixture(params=HOWTOS, ids=lambda path: path.stem)
def howto(request):
    return read(request.param.stem)


def test_there_are_two_howtos_and_two_appendices():
    appendices = ["appendix_02_learned_clips_and_steps", "appendix_authors_code"]
    assert [path.stem for path in HOWTOS] == [*appendices, "howto_your_own_model", "howto_your_own_quantizer"]


def test_it_ran_from_top_to_bottom_within_the_seconds_that_it_names(howto):
    assert [cell["execution_count"] for cell in code(howto)] == list(range(1, len(code(howto)) + 1))
    promised = re.search(r"runs in under (\d+) seconds", "".join(howto["cells"][0]["source"]))
    assert howto["metadata"]["mebqat_lite"]["seconds"] < int(promised[1]) <= 75


def test_cells_are_short_and_the_notebook_is_small(howto):
    assert max(len(cell["source"]) for cell in code(howto)) <= MOST_LINES
    assert len(code(howto)) <= 20 and len(json.dumps(howto)) < 500_000


@pytest.mark.parametrize("howto", HOWTOS[2:], ids=lambda path: path.stem, indirect=True)
def test_a_howto_begins_with_ten_lines_from_start_to_files(howto):
    recipes = [cell for cell in code(howto) if {"fit", "save_packed", "export_onnx"} <= names_in(cell)]
    assert recipes[0] in code(howto)[:5]
    assert len([line for line in recipes[0]["source"] if line.strip()]) <= 10


def names_in(cell: dict) -> set[str]:
    return set(re.findall(r"\w+", source(cell)))


def test_outputs_are_clean(howto):
    text = json.dumps([cell["outputs"] for cell in code(howto)])
    assert not re.search(r"/(root|home|tmp|Users|work|private|var)/", text)
    assert "Warning" not in text and '"stderr"' not in text and '"error"' not in text
    assert not re.search(r"<[\w.]+ (object )?at 0x", text)


def test_figures_have_alternative_text(howto):
    images = [o for cell in code(howto) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert images and all(o["metadata"]["image/png"].get("alt") for o in images)


@pytest.mark.parametrize("howto", HOWTOS[1:], ids=lambda path: path.stem, indirect=True)  # the first one trains
def test_most_text_is_checked_by_nbval(howto):
    cells = [cell for cell in code(howto) if any(o["output_type"] == "stream" for o in cell["outputs"])]
    checked = [cell for cell in cells if TAG in cell["metadata"].get("tags", [])]
    assert len(checked) >= min(5, len(cells))


def test_links_of_the_notebook_lead_somewhere(howto):
    for target in links("\n".join(markdown(howto))):
        assert (ROOT / "notebooks" / target).exists(), target


# --- links and names -------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if not target.startswith("https://")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    found = links(page.read_text(encoding="utf-8"))
    assert found and all((page.parent / target).exists() for target in found)


def dotted(text: str) -> list[str]:
    """Names in backticks that begin with the package, also where something follows: ``mq.METHODS["qat"]``."""
    return re.findall(r'`((?:mq|mebqat_lite)\.[A-Za-z_][\w.]*\w(?:\["\w+"\])?)', text)


def resolve(name: str) -> object:
    """The thing that a dotted name names; a module comes before a function of the same name."""
    plain, _, key = name.partition("[")
    parts = ["mebqat_lite", *plain.split(".")[1:]]
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
            break
        except ModuleNotFoundError:
            continue
    for part in parts[count:]:
        found = getattr(found, part)
    return found[json.loads(key.rstrip("]"))] if key else found  # type: ignore[index]


@pytest.mark.parametrize("page", [path.name for path in PAGES])
def test_every_name_in_the_pages_is_there(page):
    for name in dotted(words(page)):
        resolve(name)


def test_this_test_sees_names():
    assert len(set(dotted(words("GLOSSARY.md")))) > 50
    assert dotted('`mq.METHODS["qat"]`, `mq.at(model)`') == ['mq.METHODS["qat"]', "mq.at"]
    assert resolve("mebqat_lite.measure.summary.packed_bytes") and resolve('mq.METHODS["qat"]')
    for wrong in ("mq.bitz", "mebqat_lite.learners.ProtoNets", 'mq.METHODS["qatt"]'):
        with pytest.raises((AttributeError, KeyError)):
            resolve(wrong)


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows but the heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in table if not set(row[0]) <= set("-") and row[0] not in ("word", "symbol", "symptom")]


def test_the_glossary_says_for_every_word_its_code_and_its_lesson():
    found = rows(words("GLOSSARY.md"))
    assert len(found) > 60 and len({row[0] for row in found}) == len(found)
    for row in found:
        assert len(row) == 4 and row[0] and dotted(" ".join(row[1:3])), row
        assert row[3] in [f"{number:02}" for number in range(9)], row


# --- commands --------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The words of every ``mebqat-lite ...`` of the how-tos and of troubleshooting."""
    text = words("TROUBLESHOOTING.md") + "\n".join("\n".join(markdown(read(path.stem))) for path in HOWTOS)
    return [shlex.split(line) for line in re.findall(r"`mebqat-lite ([^`]+)`", text)]


def test_the_commands_are_those_of_the_command_line(capsys):
    parser = cli.parser()
    [choices] = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    used = {word for line in commands() for word in line[:2] if not word.startswith("-")} & set(choices)
    assert {"doctor", "train", "evaluate", "compare"} <= used
    for line in commands():
        arguments = parser.parse_args(line)  # an unknown command or option would exit
        if hasattr(arguments, "set"):
            training.setup_of(arguments)
        for name in getattr(arguments, "methods", "mebqat").split(","):
            plain, *options = name.split("+")
            assert plain in mq.METHODS
            setups.get("digits").recipe.with_options(**dict(option.split("=") for option in options))


def test_targets_of_make_and_extras_exist():
    text, makefile = words("TROUBLESHOOTING.md"), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make (\w+)", text))
    assert targets >= {"lab"} and targets <= set(re.findall(r"(?m)^(\w+):", makefile))
    extras = {part for found in re.findall(r"(?:\.|mebqat_lite)\[([\w,]+)\]", text) for part in found.split(",")}
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"(?m)^{extra} = \[", pyproject) for extra in extras)
    assert "mebqat_lite needs Python 3.11 or newer" in makefile
    cures = [cure for _, _, cure in doctor.CHECKS]
    assert "`pip install --upgrade torch torchvision` (both at once)".replace("`", "") in cures and doctor.LAB in text
    kernelapp = importlib.import_module("ipykernel.kernelspec")
    assert {"user", "name"} <= set(re.findall(r"--(\w+)", text)) and hasattr(kernelapp, "InstallIPythonKernelSpecApp")


# --- messages --------------------------------------------------------------------------------------------------

KINDS = r"\w*(?:Error|Warning|NoSuchKernel): |\[(?:not attempted|try again)\] |float: |quantized; "


def quoted() -> list[str]:
    """The messages in backticks of the page."""
    spans = re.findall(r"(?:`` (.+?) ``)|`([^`]+)`", words("TROUBLESHOOTING.md"))
    return [text for pair in spans for text in pair if re.match(KINDS, text)]


class Odd(nn.Module):
    """Layers that are not quantized, each for another reason."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older form is deprecated, and in use
            self.normed = nn.utils.weight_norm(nn.Linear(8, 8))
        self.signed, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.last(self.signed(self.normed(self.first(x))))


@pytest.fixture(scope="module")
def digits():
    return datasets.digits()


@pytest.fixture
def scene(digits, tmp_path, monkeypatch, home):
    """Actions by name; each raises, warns or returns the message that the page quotes."""
    net = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "dorefa", sample=digits.train.images[:32])
    lsq = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "lsq", sample=digits.train.images[:32])
    few = digits.val.images[:4]
    nothing = Split(torch.full((9, 1, 8, 8), torch.nan), torch.zeros(9).long())
    loud = Data("loud", nothing, nothing, nothing, ("a", "b"))
    sets = mq.give_norm_sets(mq.quantize(mq.models.digit_net(), sample=few), "W2A2")
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
    mine = mq.save_model(mq.quantize(own, sample=few), tmp_path / "mine.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(mine.read_bytes()[:99])
    save_file({"weight": torch.zeros(2)}, tmp_path / "float.safetensors")
    training = tmp_path / "run.training"
    tiny = {"steps": 1, "progress": False, "path": training}
    mq.fit(net, digits, "mebqat", **tiny)
    for size, name in ((8, "a"), (9, "b")):
        place = tmp_path / "photos" / name
        place.mkdir(parents=True)
        Image.new("L", (size, size)).save(place / "1.png")

    def at(model, bits, norm_stats):
        with mq.at(model.eval(), bits, norm_stats):
            model(few)

    def without_ipywidgets():
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.startswith("mebqat_lite.course.widgets")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "ipywidgets", None)
            importlib.import_module("mebqat_lite.course.widgets")

    def changed():
        mq.recalibrate(lsq, few, "W2A2")
        with torch.no_grad():
            lsq.body[0][0].weight.mul_(2)
        at(lsq, "W2A2", "recalibrated")

    def repeated():
        with mq.at(lsq, "W2A2"):
            loss = checkpoint(lsq, few, use_reentrant=False).sum()
        loss.backward()

    def threads():
        with mq.at(net, "W2A2"), ThreadPoolExecutor(1) as pool:
            pool.submit(mq.set_bits, net, "FP").result()

    def flipped():
        content = bytearray(mine.read_bytes())
        content[-9] ^= 1
        (tmp_path / "flipped.safetensors").write_bytes(content)
        mq.load_model(tmp_path / "flipped.safetensors", own)

    def no_comparisons():
        with monkeypatch.context() as patch:
            patch.setattr(stored, "checkout", lambda: tmp_path)
            stored.comparisons()

    def two_runs():
        with files.locked(tmp_path / "out.safetensors"), files.locked(tmp_path / "out.safetensors"):
            pass

    shifted = datasets.digits(seed=1)
    return {
        "changed": changed,
        "repeated": repeated,
        "threads": threads,
        "several": lambda: mq.set_bits(nn.ModuleList([net, lsq]), "W2A2"),
        "flipped": flipped,
        "two runs": two_runs,
        "no statistics": lambda: at(net, "W2A4", "recalibrated"),
        "no set": lambda: at(sets, "W3A3", "running"),
        "no sample": lambda: mq.quantize(nn.Linear(2, 2)),
        "not quantized": lambda: mq.set_bits(nn.Linear(2, 2), "W2A2"),
        "no layer": lambda: mq.quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), sample=few),
        "one bit": lambda: mq.set_bits(lsq, "W1A1"),
        "nine bits": lambda: mq.set_bits(lsq, "W9A9"),
        "four": lambda: mq.set_bits(net, "four"),
        "labels": lambda: mq.fit(mq.models.digit_net(classes=3), digits, "fp", steps=1, progress=False),
        "no comparisons": no_comparisons,
        "no folder": lambda: datasets.load(f"folder:{tmp_path / 'absent'}"),
        "sizes": lambda: datasets.load(f"folder:{tmp_path / 'photos'}"),
        "no file": lambda: mq.load_model(tmp_path / "absent.safetensors"),
        "cut": lambda: mq.load_model(tmp_path / "cut.safetensors"),
        "float": lambda: mq.load_model(tmp_path / "float.safetensors"),
        "own": lambda: mq.load_model(mine),
        "misfit": lambda: mq.load_model(mine, nn.Linear(2, 2)),
        "kind": lambda: mq.load_model(training),
        "quantizer": lambda: mq.quantize(nn.Linear(2, 2), "mine", sample=few),
        "run": lambda: mq.fit(net, digits, "mebqat", **{**tiny, "steps": 2}),
        "images": lambda: mq.fit(net, shifted, "mebqat", **tiny),
        "qat": lambda: mq.fit(net, digits, "qat", steps=1, progress=False),
        "nan": lambda: mq.fit(net, loud, "fp", steps=1, batch_size=4, progress=False),
        "network": lambda: datasets.load("cifar10"),
        "memory": lambda: torch.empty(2**60),
        "kernel": lambda: importlib.import_module("jupyter_client.kernelspec").get_kernel_spec("absent"),
        "widgets": without_ipywidgets,
        "onnx": lambda: onnx_graph.need("onnx_that_is_absent"),
        "module": lambda: importlib.import_module("mebqat_lite_absent"),
        "summary": lambda: mq.summary(mq.quantize(Odd(), sample=torch.randn(4, 8))),
        "dots": lambda: lesson_01.fake_quantize.check(lambda x, step, low, high: ...).line,
        "wrong": lambda: lesson_01.fake_quantize.check(lambda x, step, low, high: x, seed=0).line,
    }


def said(action) -> str:
    """What an action raises, with its type, or warns, or returns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            returned = action()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "\n".join([*(f"UserWarning: {warning.message}" for warning in caught), str(returned)])


# A message of an installation that is broken: tests/cli/test_doctor.py breaks one and reads it.
ELSEWHERE = {"RuntimeError: operator torchvision::nms does not exist": ROOT / "tests" / "cli" / "test_doctor.py"}


def pattern(message: str) -> re.Pattern:
    """``…`` stands for anything."""
    return re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)


def test_every_quoted_message_is_really_produced(scene):
    produced = {name: said(action) for name, action in scene.items()}
    produced["module"] = produced["module"].replace("mebqat_lite_absent", "mebqat_lite")
    messages = quoted()
    assert len(messages) > 30
    for message in messages:
        if message in ELSEWHERE:
            assert message.partition(": ")[2] in ELSEWHERE[message].read_text()
        else:
            assert any(pattern(message).search(text) for text in produced.values()), message
    used = [name for name, text in produced.items() if any(pattern(message).search(text) for message in messages)]
    assert used == list(produced)  # an action that the page does not quote is not worth its seconds


def test_running_statistics_are_what_collapses_at_few_bits(digits):
    net, _ = mq.load_model(shipped("checkpoints", "digits-wide-mebqat.safetensors"))
    mq.recalibrate(net, digits.train.images, "W2A2")
    assert mq.accuracy(net, digits.val, "W2A2", "running") < 50
    assert mq.accuracy(net, digits.val, "W2A2", "recalibrated") > 95


def test_bytes_are_refused_by_a_network_and_taken_by_the_package(digits):
    whole = Split((digits.val.images * 255).byte(), digits.val.labels)
    net = mq.quantize(mq.models.digit_net(), sample=whole.images)
    with pytest.raises(RuntimeError):
        net(whole.images)
    assert net(whole.take(torch.arange(4)).images).shape == (4, 10)
    mq.accuracy(net, whole, "FP")


def test_keep_nothing_quantizes_a_single_layer(digits):
    net = mq.quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), sample=digits.train.images[:8], keep=[])
    assert "1 of 1 layers quantized" in mq.summary(net)
