"""The benchmarks run, and their page shows what was stored."""

import itertools
import json

import pytest
import torch

from benchmarks import accuracy, deploy, paint, steps, timing, zoo
from benchmarks.__main__ import BENCHMARKS, block, main
from mebqat_lite import paths
from mebqat_lite.bits import Bits, parse_all
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.jobs import Variant
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.methods import METHODS
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
    few = {"cifar-preact_resnet20": 2, "cifar-in-turn": 3, "cifar-quantizers": 3}
    few["glyphs-pn-dedicated"] = 1  # it has 72 networks a seed
    seeds = experiment.seeds if isinstance(experiment.seeds, int) else len(experiment.seeds)
    assert seeds >= few.get(name, 5 if name.startswith(("digits", "cifar")) else 3)
    parse_all(experiment.pairs), parse_all(experiment.listed)


def test_an_experiment_runs_and_is_shown(tmp_path, monkeypatch):
    setup = Setup(options={"widths": (4, 4, 4, 4)}, recipe=Recipe(steps=1, warm_steps=1, batch_size=16))
    tiny = accuracy.Experiment("Tiny", setup, ("mebqat", "qat"), ("W2A2", "FP"), ("W2A2",), 2)
    monkeypatch.setitem(accuracy.EXPERIMENTS, "tiny", tiny)
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("before\n<!-- accuracy -->\nold\n<!-- /accuracy -->\nafter\n")
    accuracy.store("tiny", accuracy.run("tiny", workers=1))
    text, stored = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "accuracy" / "tiny.json").read_text())
    assert text == f"before\n<!-- accuracy -->\n{accuracy.block('tiny', stored)}<!-- /accuracy -->\nafter\n"
    assert "### Tiny" in text and "2 seeds" in text and f"{stored['accuracy']['mebqat']['W2A2']['mean']:.1f} ±" in text


def test_the_page_shows_the_stored_accuracies():
    page = (FOLDER / "README.md").read_text()
    stored = sorted((FOLDER / "accuracy").glob("*.json"))
    assert stored and {path.stem for path in stored} <= set(accuracy.EXPERIMENTS)
    for path in stored:
        assert accuracy.block(path.stem, json.loads(path.read_text())) in page, path.name


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


# --- what the page says in words -----------------------------------------------------------------------------------

FORMS = {"dorefa": "mebqat", "sat": "mebqat+sandwich=False", "lsq": "mebqat+sandwich=False"}


def stored(name):
    return json.loads((FOLDER / "accuracy" / f"{name}.json").read_text())


def gap(name, variant, group="all", part="val"):
    """Whether a variant's mean is above (1) or below (-1) the first's, or shows no difference (0)."""
    cell = stored(name)["means"][part]["minus_first"][group][variant]
    return 0 if abs(cell["mean"]) <= cell["ci95"] else 1 if cell["mean"] > 0 else -1


def test_mebqat_costs_no_accuracy_on_the_digits():
    for part, name in itertools.product(("val", "test"), ("digits-steps", "digits-backprops")):
        found = stored(name)["paired"][part]
        assert len(found) == 5 and all(abs(cell["mean"]) < 1 for cell in found.values())
    assert stored("digits-backprops")["paired"]["test"]["W1A1"]["mean"] < 0
    found = stored("digits-steps")
    for part in ("val", "test"):
        for other in ("adabits", "any_precision_hard", "any_precision_soft", "any_precision_recursive"):
            assert gap("digits-steps", other, "listed", part) == gap("digits-steps", other, "off_list", part) == 0
        assert gap("digits-steps", "ptq_mse", "off_list", part) == 0
        assert gap("digits-steps", "ptq_mse", "listed", part) == -1
    assert set(found["qat_lr"]["qat"]) == set(found["paired"]["val"])


def test_on_cifar_a_dedicated_network_is_better():
    for part in ("val", "test"):
        assert gap("cifar", "adabits", "all", part) == 0 and gap("cifar", "any_precision_recursive", "all", part) == -1
        found = stored("cifar")["paired"][part]
        assert set(found) == {"W1A1", "W2A2", "W4A4"} and all(-6 < cell["mean"] < -3.5 for cell in found.values())
        small = "cifar-preact_resnet20"
        assert gap(small, "adabits", "all", part) == 0
        assert len(stored(small)["paired"][part]) == 4 and all(
            c["mean"] < 0 for c in stored(small)["paired"][part].values()
        )
    assert gap("cifar", "ptq_mse", "off_list", "test") == 0 and gap("cifar", "ptq_mse", "listed", "test") == -1


def test_what_the_ablations_say():
    assert gap("digits-sat", "mebqat", "listed") == 1 and gap("digits-lsq", "mebqat") == 0
    low = stored("digits-sat")["validation"]
    assert low["mebqat"]["W2A2"]["mean"] > low["mebqat+sandwich=False"]["W2A2"]["mean"] and Recipe().sandwich
    for quantizer, form in FORMS.items():
        name = f"digits-{quantizer}"
        assert gap(name, f"{form}+warm_steps=0+steps=375") == (1 if quantizer == "sat" else 0)
        assert gap(name, f"{form}+teacher='next'") == 0
        helps = quantizer == "sat"
        cold, where = f"{form}+warm_steps=0+steps=850", f"cifar-{quantizer}"
        assert gap(where, cold) == (0 if quantizer == "lsq" else -1)
        assert gap(where, f"{form}+teacher='next'") == helps
        if quantizer != "dorefa":
            low = stored(where)["validation"]
            assert gap(where, "mebqat") == 0 and low["mebqat"]["W2A2"]["mean"] > low[form]["W2A2"]["mean"] + 3
    assert gap("cifar-dorefa", "mebqat+exclude=(3,5,7)") == 0
    assert gap("digits-dorefa", "mebqat+exclude=(3,5,7)", "held_out") >= 0


def test_what_helps_new_classes():
    name, paper = "glyphs-pn-ablations", accuracy.PAPER_PN
    found = stored(name)["validation"]
    cold = next(variant for variant in found if "warm_steps=0" in variant)
    assert gap(name, cold) == -1 and -4 < stored(name)["means"]["val"]["minus_first"]["all"][cold]["mean"] < -2.5
    ends, ours = "mebqat_pn+teacher='labels'", "mebqat_pn"
    low = [found[variant]["W2A2"]["mean"] for variant in (paper, ends, ours)]
    assert low[0] + 1 < low[1] < low[2] and gap(name, ours) == 1
    full = [found[variant]["FP"]["mean"] for variant in (paper, ends, ours)]
    assert max(full) - min(full) < 0.2
    assert gap(name, f"{ends}+exclude=(3,5,7)", "held_out") == 0
    assert METHODS["mebqat_pn"].teacher == "fp" and Recipe().sandwich and get("glyphs-pn").recipe.warm_steps > 0


def test_new_classes_at_two_bits():
    found, means = stored("glyphs-pn")["validation"], {}
    for name in ("mebqat_pn", "pn_ptq_mse", "pn"):
        means[name] = {pair: cell["mean"] for pair, cell in found[name].items()}
    ours, rounded = means["mebqat_pn"], means["pn_ptq_mse"]
    assert round(ours["W2A2"]) == 86 and all(87 <= ours[pair] < 88 for pair in ("W4A4", "W8A8", "FP"))
    assert round(rounded["W2A2"]) == 77 and all(0 < ours[pair] - rounded[pair] < 1 for pair in ("W4A4", "W8A8", "FP"))
    assert round(ours["FP"] - rounded["FP"], 1) == pytest.approx(0.5, abs=0.2)
    assert ours["W2A2"] - means["pn"]["W2A2"] > 18
    for name, part in (("glyphs-pn", "val"), ("glyphs-pn", "test"), ("omniglot-pn", "test")):
        gaps = [cell["mean"] for cell in stored(name)["paired"][part].values()]
        assert len(gaps) == 2 and all(-2.05 < gap < -1.25 for gap in gaps)
    on_test = stored("glyphs-pn")["accuracy"]
    assert all(
        3 < on_test[name][pair]["mean"] - found[name][pair]["mean"] < 5 for name in found for pair in found[name]
    )


def test_new_classes_by_adapting_weights():
    found = stored("glyphs-maml")["validation"]
    low = {name: row["W2A2"]["mean"] for name, row in found.items()}
    full = {name: row["FP"]["mean"] for name, row in found.items() if "FP" in row}
    assert round(low["mebqat_maml"]) == 84 and round(full["mebqat_maml"]) == 89 and round(full["fomaml"]) == 86
    assert round(low["fomaml_ptq_mse"]) == 81 and round(low["fomaml_ptq_lsq"]) == 75
    assert stored("glyphs-maml")["paired"]["val"]["W2A2"]["mean"] == pytest.approx(-2.1, abs=0.2)
    taught = "mebqat_maml+teacher='fp'"
    assert low[taught] - low["mebqat_maml"] == pytest.approx(1.4, abs=0.1) and full[taught] > full["mebqat_maml"]
    assert METHODS["mebqat_maml"].teacher == "labels"


def test_new_classes_of_omniglot():
    found = stored("omniglot-pn")["accuracy"]["mebqat_pn"]
    assert [round(found[pair]["mean"]) for pair in ("W2A2", "W4A4", "FP")] == [87, 88, 88]


def test_one_image_alone_is_classified_as_in_a_large_batch():
    other = []
    for path in (FOLDER / "accuracy").glob("*.json"):
        if not path.stem.startswith(("glyphs", "omniglot")):  # there a query alone is a test of the learners
            alone = json.loads(path.read_text())["alone"]
            assert alone and all(alone.values())
            other += [(path.stem, n, b, share) for n, row in alone.items() for b, share in row.items() if share < 100]
    assert other == [("glyph-classes", "qat+lr=0.05", "W1A1", 99.5)]  # one of 200 images, in one of five seeds


def test_the_digits_reach_what_was_asked_of_them():
    found = stored("digits-steps")["validation"]["mebqat"]
    assert found["W1A1"]["mean"] >= 96 and found["W2A2"]["mean"] >= 98 and found["FP"]["mean"] >= 98.3


def sheet(name):
    """A stored sheet of the frozen benchmark, which the page shows."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    shown = (FOLDER / "README.md").read_text().split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    assert shown == f"```text\n{frozen.text(found)}\n{found['machine']}\n```\n"
    assert found["set"]["checksum"] == frozen.CHECKSUMS["glyphs-20way"]
    return found


def test_the_regret_against_a_network_for_each_pair_is_the_stored_one():
    found = sheet("regret")
    ours, rounded = (found["regret"][row] for row in ("mebqat_pn", "pn_ptq_mse"))
    assert len(found["accuracy"]["pn_qat"]) == len(ours["pairs"]) == 72
    assert round(ours["mean"], 1) == 1.6 and ours["worst"] < 2.3 and round(rounded["worst"], 1) == 10.9
    gaps = [found["accuracy"]["pn_qat"][p]["mean"] - found["accuracy"]["mebqat_pn"][p]["mean"] for p in ours["pairs"]]
    by_rounding = {
        Bits.parse(pair): found["accuracy"]["pn_qat"][pair]["mean"] - found["accuracy"]["pn_ptq_mse"][pair]["mean"]
        for pair in rounded["pairs"]
    }
    from_four = [gap for pair, gap in by_rounding.items() if min(pair.w, pair.a) >= 4]
    assert min(from_four) > 1.45 and max(from_four) < 2.25
    assert max(gaps) == pytest.approx(ours["worst"]) and min(gaps) > 1.15


def test_the_frozen_sheet_is_the_stored_one():
    found = sheet("frozen")
    assert len(found["accuracy"]["mebqat_pn"]) == 73
    every = [cell["mean"] for cell in found["accuracy"]["mebqat_pn"].values()]
    assert min(every) > 89.9 and max(every) < 91.3
    matrix = [value for row in found["enrolment"]["mebqat_pn"].values() for value in row.values()]
    assert len(matrix) == 25 and max(matrix) - min(matrix) < 1.4 and min(matrix) > 89.75


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
