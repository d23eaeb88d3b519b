"""The benchmarks run, and their page shows what was stored."""

import json

import pytest
import torch

from benchmarks import accuracy, allocations, deploy, frozen, paint, steps, timing, zoo
from benchmarks.__main__ import BENCHMARKS, block, main
from benchmarks.experiments import Experiment
from mebqat_lite import paths
from mebqat_lite.bits import parse_all
from mebqat_lite.experiments.jobs import Variant
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.recipe import Recipe

ROOT = paths.checkout()

FOLDER = ROOT / "benchmarks"


def test_the_page_shows_the_stored_results():
    stored = json.loads((FOLDER / "results.json").read_text())
    assert set(stored["measured"]) == set(BENCHMARKS)
    assert f"<!-- measured -->\n{block(stored)}\n<!-- /measured -->" in (FOLDER / "README.md").read_text()


def test_a_ratio_is_the_median_of_pairs_after_a_warm_up(monkeypatch):
    times = {"ours": iter([2, 4, 9, 3, 6]), "plain": iter([1, 1, 3, 1, 1])}  # ratios 2 4 3 3 6
    calls = []
    monkeypatch.setattr(timing, "seconds", lambda work: float(next(times[work()])))
    found = timing.ratio(lambda: calls.append(1) or "ours", lambda: "plain", runs=5, warmup=2)
    assert (found["ratio"], found["runs"], found["seconds"], len(calls)) == (3, 5, [4, 1], 2 + 5)
    assert 2 <= found["spread"][0] <= 3 <= found["spread"][1] <= 6


@pytest.mark.parametrize("name", steps.CASES)
def test_both_sides_take_the_same_batch_and_update_the_network(name):
    case = steps.CASES[name]
    assert steps.batch(case).images.shape == case.shape
    if name.startswith("digits"):
        steps.mebqat_step(case)()
        steps.plain_step(case)()
    assert "identity" not in QUANTIZERS


def test_an_unknown_benchmark_is_answered_with_the_known(capsys):
    assert main(["speed"]) == 2
    assert "mebqat_step/digits" in capsys.readouterr().err


@pytest.mark.parametrize("name", accuracy.EXPERIMENTS)
def test_an_experiment_can_be_run(name):
    experiment = accuracy.EXPERIMENTS[name]
    assert len({Variant.parse(variant).name for variant in experiment.names}) == len(experiment.names)
    seeds = experiment.seeds if isinstance(experiment.seeds, int) else len(experiment.seeds)
    assert seeds >= (1 if name == "glyphs-pn-dedicated" else 3)  # that one has 72 networks a seed
    parse_all(experiment.pairs), parse_all(experiment.listed)


def test_an_experiment_runs_and_is_shown(tmp_path, monkeypatch):
    setup = Setup(options={"widths": (4, 4, 4, 4)}, recipe=Recipe(steps=1, warm_steps=1, batch_size=16))
    tiny = Experiment("Tiny", setup, ("mebqat", "qat"), ("W2A2", "FP"), ("W2A2",), 2)
    monkeypatch.setitem(accuracy.EXPERIMENTS, "tiny", tiny)
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    accuracy.store("tiny", accuracy.run("tiny", workers=1))
    text, stored = (tmp_path / "TABLES.md").read_text(), json.loads((tmp_path / "accuracy" / "tiny.json").read_text())
    assert text == f"{accuracy.HEAD}\n{accuracy.block('tiny', stored)}"
    assert "## Tiny" in text and "2 seeds" in text and f"{stored['accuracy']['mebqat']['W2A2']['mean']:.1f} ±" in text


def test_a_sheet_leaves_out_networks_of_an_older_experiment(tmp_path):
    kept = ["mebqat_pn-seed0", "mebqat_pn_in_turn-seed2", "pn_qat_w2a2-seed1", "pn_qat_w4a4-lr0.01-seed0"]
    for name in [*kept, "start-pn-seed0", "mebqat_pn_in_turn+quantizer-lsq_corrected-seed0", "fomaml-seed0"]:
        (tmp_path / f"{name}.safetensors").touch()
    assert [path.stem for path in frozen.networks("glyphs-pn", tmp_path)] == sorted(kept)


def test_peak_memory_counts_what_is_held_at_a_time():
    def hold(count):
        return lambda: [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(count)]

    def one_after_the_other():
        for _ in range(5):
            torch.empty(1 << 20, dtype=torch.uint8)

    assert [steps.peak_bytes(work) >> 20 for work in (hold(1), hold(5), one_after_the_other)] == [1, 5, 1]


def test_paintings_are_measured_shown_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(paint, "FOLDER", tmp_path)
    monkeypatch.setattr(paint, "ALL", ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "W32A8", "FP"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("before\n<!-- paint -->\nold\n<!-- /paint -->\nafter\n")
    small = Setup("paint", "coordinate_net", {"width": 8}, Recipe(steps=1, warm_steps=1, batch_size=64))
    paint.store(paint.run(seeds=1, workers=1, setup=small))
    text, stored = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "paint.json").read_text())
    assert text == f"before\n<!-- paint -->\n{paint.block(stored)}<!-- /paint -->\nafter\n"
    assert stored["measure"] == "PSNR (dB)" and (tmp_path / "paint.png").stat().st_size > 10_000
    assert {cost["backprops"] for cost in stored["costs"].values()} == {1 + 4} and "each with 5 back" in text


def test_what_the_page_says_of_the_paintings():
    found = json.loads((FOLDER / "paint.json").read_text())
    assert f"<!-- paint -->\n{paint.block(found)}<!-- /paint -->" in (FOLDER / "README.md").read_text()
    rows, whole = found["accuracy"], found["means"]["test"]["all"]
    lowest = {name: row["all pairs"]["mean"] for name, row in found["worst"].items()}
    ahead = {name: lowest["mebqat_in_turn"] - mean for name, mean in lowest.items()}
    assert ahead["mebqat"] > 1 and ahead["qat+bits=W1A1"] > 5
    assert min(ahead[name] for name in ("ptq_naive", "ptq_mse", "qat+bits=W4A4")) > 10
    assert all(len(row) == 75 for row in rows.values()) and {c["backprops"] for c in found["costs"].values()} == {2000}
    assert rows["qat+bits=W4A4"]["W4A4"]["mean"] > 5 + rows["mebqat_in_turn"]["W4A4"]["mean"]
    assert whole["qat+bits=W4A4"]["mean"] > whole["mebqat_in_turn"]["mean"]
    assert rows["ptq_mse"]["W8A8"]["mean"] > 5 + rows["mebqat_in_turn"]["W8A8"]["mean"]
    for name in ("qat+bits=W1A1", "qat+bits=W4A4"):
        row = {bits: cell["mean"] for bits, cell in rows[name].items()}
        assert abs(row["W8A32"] - row["FP"]) < 0.5 and row["W8A8"] > 4 + row["W8A32"]
    assert rows["ptq_naive"]["W8A32"]["mean"] > 20 + rows["ptq_naive"]["W8A8"]["mean"]


def test_the_worst_pair_is_that_of_the_lowest_mean():
    row = {"W1A1": 30.0, "W2A2": 25.0, "W16A16": 24.5, "W32A8": 21.0, "FP": 22.0}
    found = paint.worst({bits: {"mean": mean, "ci95": 1.0, "n": 3} for bits, mean in row.items()})
    assert found["all pairs"] == {"bits": "W32A8", "mean": 21.0, "ci95": 1.0, "n": 3}
    assert found["weights of 16 bits or fewer"] == {"bits": "W16A16", "mean": 24.5, "ci95": 1.0, "n": 3}


# --- deployment ---------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_measured_and_all_of_it_agrees():
    stored = json.loads((deploy.FOLDER / "deploy.json").read_text())
    page = (deploy.FOLDER / "README.md").read_text()
    assert f"<!-- deploy -->\n{deploy.block(stored)}\n<!-- /deploy -->" in page
    found = stored["onnx"]["found"]
    shipped = {file.stem for file in paths.shipped("checkpoints").glob("digits-wide-*.safetensors")}
    assert set(found["agreement"]) == shipped and found["agreement"]["digits-wide-mebqat"]["pairs"] == 75
    assert min(row["lowest"] for row in found["agreement"].values()) >= 99.9
    assert min(found["few_shot"]["share"].values()) >= 99.9
    for row in found["files"]:  # smaller and no faster, least so if weights are unpacked at load
        ratios = {key: cell["ratio"] for key, cell in row["times"].items()}
        assert 1 < ratios["1"] < 1.5 < ratios["1 plain"] and 1 < ratios["64"] < 1.5 < ratios["64 plain"]
        assert row["bytes"][0] < 0.6 * row["bytes"][1]


@pytest.mark.slow
def test_a_section_is_measured_shown_and_kept_beside_the_others(tmp_path, monkeypatch, capsys):
    assert deploy.main(["speed"]) == 2 and "there are packed, onnx" in capsys.readouterr().err
    found = deploy.agreements("digits-wide-qat_w2a2", tmp_path)
    assert found == {"pairs": 1, "images": 540, "lowest": 100.0, "disagreements": {}}
    monkeypatch.setattr(deploy, "FOLDER", tmp_path)
    monkeypatch.setattr(deploy, "SECTIONS", {"a": (dict, lambda found: "A"), "b": (dict, lambda found: "B")})
    (tmp_path / "README.md").write_text("before\n<!-- deploy -->\nold\n<!-- /deploy -->\nafter\n")
    assert deploy.main(["a", "--store"]) == deploy.main(["b", "--store"]) == 0
    stored, text = json.loads((tmp_path / "deploy.json").read_text()), (tmp_path / "README.md").read_text()
    assert (
        set(stored) == {"a", "b"}
        and text == f"before\n<!-- deploy -->\n{deploy.block(stored)}\n<!-- /deploy -->\nafter\n"
    )
    assert deploy.block(stored).count("```text") == 2


# --- networks of torchvision --------------------------------------------------------------------------------------


def test_the_page_shows_what_the_networks_of_torchvision_did():
    stored = json.loads((zoo.FOLDER / "zoo.json").read_text())
    assert f"<!-- zoo -->\n{zoo.block(stored)}\n<!-- /zoo -->" in (zoo.FOLDER / "README.md").read_text()
    assert set(zoo.NETWORKS.split()) <= set(stored["found"])
    for name, row in stored["found"].items():
        assert row["fp"] and max(row["levels"]) <= 4 and row["packed"]["equal"], name
        assert {"same_class", "difference", "float64"} <= set(row["onnx"]), name  # there is a file, so it was compared
        assert row["layers"]["kept"] == 2 and row["layers"]["float_inputs"]["lsq"] == 0


@pytest.mark.slow
def test_networks_are_tried_shown_and_kept_beside_the_others(tmp_path, monkeypatch, capsys):
    assert zoo.main(["lenet"]) == 2 and "torchvision has no network lenet" in capsys.readouterr().err
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    (tmp_path / "README.md").write_text("before\n<!-- zoo -->\nold\n<!-- /zoo -->\nafter\n")
    zoo.store({"lenet": "MemoryError: it is too large"})
    assert zoo.main(["squeezenet1_1", "--store"]) == 0
    text, stored = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "zoo.json").read_text())
    assert text == f"before\n<!-- zoo -->\n{zoo.block(stored)}\n<!-- /zoo -->\nafter\n"
    assert set(stored["found"]) == {"lenet", "squeezenet1_1"} and "MemoryError: it is too large" in text
    row = stored["found"]["squeezenet1_1"]
    assert row["layers"] == {
        "quantized": 24,
        "kept": 2,
        "skipped": {},
        "float_inputs": {"dorefa": 0, "lsq": 0},
    }
    assert row["fp"] and row["levels"] == [3, 4] and row["packed"]["equal"] and row["onnx"]["same_class"] == 100


def test_a_network_that_fails_has_its_error_in_its_row():
    def fails():
        raise ValueError("no way\nwhatever")

    row = {"parameters": 2e6, "fp": False, "layers": {"quantized": 5, "kept": 2, "skipped": {"own": 3, "why": 4}}}
    row["layers"]["float_inputs"] = {"dorefa": 6, "lsq": 0}
    row |= {"levels": zoo.attempt(lambda: [4, 4]), "packed": zoo.attempt(fails), "onnx": zoo.attempt(fails)}
    shown = " ".join(zoo.line("net", row).split())
    assert shown == "net 2.0 M 5 2 7 6 other ValueError: no way ValueError: no way"


# ---------------------------------------------------------------- bits for each layer


@pytest.fixture(scope="module")
def allocated():
    recipe = Recipe(steps=4, warm_steps=2, batch_size=16)
    data, pairs = "digits,count=100,val=60,test=60", ("W1A1", "W1A32", "W2A2", "W4A4")
    return allocations.run(2, allocations.Case(data, recipe, layers=2, pairs=pairs, drawn=4))


def test_allocations_are_searched_measured_and_shown(allocated, tmp_path, monkeypatch):
    monkeypatch.setattr(allocations, "FOLDER", tmp_path)
    (tmp_path / "README.md").write_text("before\n<!-- allocations -->\n<!-- /allocations -->\nafter\n")
    allocations.store(allocated)
    page, stored = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "allocations.json").read_text())
    assert (
        page
        == f"before\n<!-- allocations -->\n```text\n{allocations.text(stored)}\n```\n<!-- /allocations -->\nafter\n"
    )
    assert page.count("FP + PTQ, searched") == 4 and "2 seeds" in page and "4 random allocations" in page
    for unit, networks in stored["budgets"].items():
        assert list(networks) == list(allocations.METHODS)
        for cells in (cells for network in networks.values() for cells in network.values()):
            for part in ("val", "test"):
                gain = cells[f"{part} searched"]["mean"] - cells[f"{part} uniform"]["mean"]
                assert (
                    cells[f"{part} gain"]["mean"] == pytest.approx(gain, abs=2e-4) and cells[f"{part} gain"]["n"] == 2
                )
        assert [f"{times:g}x" for times in allocations.BUDGETS[unit]] == list(cells_of(networks))


def cells_of(networks):
    return next(iter(networks.values()))


def test_allocations_are_chosen_and_confirmed_on_other_images():
    split = allocations.datasets.load("glyph_classes").val
    search, confirm = allocations.every(split, 2), allocations.every(split, 2, 1)
    few = allocations.every(search, allocations.FEW // 2)
    assert len(few.labels) == 160 and len(search.labels) == len(confirm.labels) == 1600
    assert all(len(part.labels.unique()) == 32 for part in (few, search, confirm))
    assert torch.equal(torch.stack([search.labels, confirm.labels], 1).flatten(), split.labels)
