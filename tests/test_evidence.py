"""What benchmarks/README.md says in words of accuracy is what the stored experiments hold."""

import json

import pytest

from benchmarks import adapt, allocations, front_page, gpu, one_set, summary, widgets
from benchmarks.accuracy import FOLDER, block, tables
from benchmarks.experiments import EXPERIMENTS, LOW, OURS, RATES
from benchmarks.machine import images
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.setups import SETUPS
from mebqat_lite.quantizers import QUANTIZERS

PAGE = (FOLDER / "README.md").read_text()
STORED = sorted((FOLDER / "accuracy").glob("*.json"))


def stored(name, folder="accuracy"):
    return json.loads((FOLDER / folder / f"{name}.json").read_text())


def section(name):
    return PAGE.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def mean(found, name, bits, part="accuracy"):
    return found[part][name][bits]["mean"]


def told(cell):
    """Whether a difference is above zero (1), below (-1), or not told apart from it (0)."""
    return 0 if abs(cell["mean"]) <= cell["ci95"] else 1 if cell["mean"] > 0 else -1


def minus(found, name, part="test", group="all"):
    return found["means"][part]["minus_first"][group][name]


def rounded(cells):
    return {key: round(cell["mean"]) for key, cell in cells.items()}


# --- what the pages show ---------------------------------------------------------------------------------------------


def test_the_tables_are_those_that_are_stored():
    assert STORED and {path.stem for path in STORED} <= set(EXPERIMENTS)
    assert (FOLDER / "TABLES.md").read_text() == tables()


def test_the_page_shows_the_summary_and_what_other_commands_stored():
    assert section("summary") == f"```text\n{summary.text()}\n```\n"
    assert section("gpu") == f"```text\n{gpu.block(stored('gpu', '.'))}\n```\n"
    assert section("front-page") == f"```text\n{front_page.block(stored('front_page', '.'))}\n```\n"
    assert section("widgets") == f"```text\n{widgets.block(stored('widgets', '.'))}\n```\n"
    for module, name in ((adapt, "adapt"), (one_set, "one_set"), (allocations, "allocations")):
        assert section(name) == f"```text\n{module.text(stored(name, '.'))}\n```\n"


def test_the_page_names_the_experiments_that_are_not_measured():
    missing = [name for name in EXPERIMENTS if not (FOLDER / "accuracy" / f"{name}.json").exists()]
    missing.remove("glyphs-pn-dedicated")
    line = [line for line in PAGE.splitlines() if line.startswith("Of these experiments")]
    assert [[f"`{name}`" in words for name in EXPERIMENTS] for words in line] == (
        [[name in missing for name in EXPERIMENTS]] if missing else []
    )


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_each_network_got_the_same_back_propagations(path):
    found = json.loads(path.read_text())
    if found["budget"] == "backprops" and "trials" not in path.stem and path.stem != "glyph-classes":
        assert len({row["each"] for row in found["costs"].values()}) == 1


@pytest.mark.parametrize("path", [path for path in STORED if path.stem.startswith("cifar")], ids=lambda path: path.stem)
def test_a_table_says_that_its_images_are_a_copy(path):
    found = json.loads(path.read_text())
    assert found["images"] == images("folder:somewhere") and block(path.stem, found).count(found["images"]) == 1


def test_no_page_says_that_there_is_no_difference():
    assert "no difference" not in PAGE and "no difference" not in tables()


# --- what the page says in words -------------------------------------------------------------------------------------


def test_digits():
    found = stored("digits-backprops")
    assert found["seeds"] == 5 and round(minus(found, "ptq_mse")["mean"]) == -2
    low = {bits: round(mean(found, "ptq_mse", bits)) for bits in ("W1A1", "W2A2", "W4A4", "W8A8", "FP")}
    assert low == {"W1A1": 28, "W2A2": 82, "W4A4": 99, "W8A8": 99, "FP": 99}
    others = ("mebqat", "adabits", "any_precision_soft", "any_precision_recursive")
    assert all(told(minus(found, name)) == 0 for name in others)
    gaps = found["paired"]["test"]
    assert {bits: told(cell) for bits, cell in gaps.items()} == {
        "W1A1": -1,
        "W2A2": -1,
        "W3A3": 0,
        "W4A4": 0,
        "W8A8": 0,
    }
    assert [round(gaps[bits]["mean"]) for bits in ("W1A1", "W2A2")] == [-3, -1]
    assert found["accuracy"]["any_precision_hard"] == found["accuracy"]["adabits"]


def test_digits_at_other_budgets():
    found = stored("digits-steps")
    assert [round(mean(found, name, "W1A1")) for name in ("mebqat", "mebqat_in_turn")] == [94, 93]
    assert [found["costs"][name]["backprops"] for name in ("mebqat", "mebqat_in_turn")] == [5100, 1500]
    assert told(minus(found, "mebqat")) == 0
    shared = stored("digits-total")
    assert len(shared["paired"]["test"]) == 5 and not any(map(told, shared["paired"]["test"].values()))
    assert shared["costs"]["qat"]["backprops"] == shared["costs"]["mebqat_in_turn"]["backprops"]


def test_the_wide_net():
    found = stored("digits-wide")
    assert len(found["paired"]["test"]) == 5 and not any(map(told, found["paired"]["test"].values()))
    gaps = {b: mean(found, "ptq_mse", b) - mean(found, "mebqat_in_turn", b) for b in ("W3A3", "W4A4", "W8A8", "FP")}
    assert all(abs(gap) < 0.5 for gap in gaps.values()) and round(mean(found, "ptq_mse", "W1A1")) == 67


def test_the_rates_were_chosen_on_other_seeds():
    found, chosen = stored("glyph-classes-rates"), stored("glyph-classes")
    assert not set(EXPERIMENTS["glyph-classes-rates"].seeds) & set(range(chosen["seeds"]))
    for name in ("mebqat_in_turn", "mebqat", "qat"):
        sums = {rate: sum(mean(found, f"{name}+lr={rate}", b, "validation") for b in LOW) for rate in RATES}
        assert max(sums, key=sums.get) == 0.05
    sums = {rate: sum(mean(found, f"ptq_mse+lr={rate}", b, "validation") for b in ("W2A2", "W4A4")) for rate in RATES}
    assert max(sums, key=sums.get) == SETUPS["glyph-classes"].recipe.lr == 0.03


def test_glyph_classes():
    found = stored("glyph-classes")
    assert round(minus(found, "mebqat+lr=0.05")["mean"]) == -5 and round(minus(found, "ptq_mse")["mean"]) == -3
    assert told(minus(found, "mebqat+lr=0.05")) == told(minus(found, "ptq_mse")) == -1
    ahead = {bits: round(mean(found, "ptq_mse", bits) - mean(found, OURS, bits)) for bits in ("W8A8", "FP")}
    assert ahead == {"W8A8": 1, "FP": 4}
    gaps = found["paired"]["test"]
    assert rounded(gaps) == {"W1A1": -8, "W2A2": -4, "W4A4": -2} and {told(cell) for cell in gaps.values()} == {-1}
    four = {bits: mean(found, f"{OURS}+steps=5700", bits) - mean(found, "qat+lr=0.05", bits) for bits in LOW}
    assert all(gap > -2 for gap in four.values())
    backprops = {name: row["backprops"] for name, row in found["costs"].items()}
    assert backprops.pop("qat+lr=0.05") == 300 + 3 * 1200
    assert {backprops.pop(f"{OURS}+steps={steps}") for steps in (2700, 5700)} == {3000, 6000}
    assert set(backprops.values()) == {1500}


def test_trials_and_other_quantizers_on_glyph_classes():
    found = stored("glyph-classes-trials")
    cells = dict(found["means"]["val"]["minus_first"]["all"])
    fewer = cells.pop(f"{OURS}+exclude=(3,5,7)")
    assert found["seeds"] == 5 and len(cells) == 5 and not any(map(told, cells.values()))
    assert fewer["mean"] == pytest.approx(0.7, abs=0.05) and told(fewer) == 1 and "W3A3" in found["validation"][OURS]
    found = stored("glyph-classes-quantizers")
    assert found["seeds"] == 5 and len(found["validation"][OURS]) == 7
    for quantizer, wanted in (("lsq", 2), ("double_rounding", 3)):
        other = f"{OURS}+quantizer={quantizer}"
        assert told(minus(found, other, "val")) == 1 and round(minus(found, other, "val")["mean"]) == wanted
        assert round(mean(found, other, "FP", "validation") - mean(found, OURS, "FP", "validation")) == 5
    quantizers = {SETUPS[name].recipe.quantizer for name in ("digits", "digits-wide", "glyph-classes", "paint")}
    assert quantizers == {"dorefa"} and not QUANTIZERS["double_rounding"].one_bit and QUANTIZERS["dorefa"].one_bit


def test_cifar10():
    found = stored("cifar")
    names = ("mebqat+lr=0.02", "mebqat", "adabits", "any_precision_recursive")
    cells = {name: minus(found, name) for name in names}
    assert {told(cell) for cell in cells.values()} == {-1} and told(minus(found, "ptq_mse")) == 0
    assert rounded(cells) == {"mebqat+lr=0.02": -3, "mebqat": -3, "adabits": -2, "any_precision_recursive": -5}
    behind = {b: mean(found, "ptq_mse", b) - mean(found, "mebqat_in_turn", b) for b in found["accuracy"]["mebqat"]}
    assert [round(behind[bits], -1) for bits in ("W1A1", "W2A2")] == [-20, -10]
    assert all(3 <= behind[bits] <= 4 for bits in ("W4A4", "W8A8", "FP"))
    gaps = found["paired"]["test"]
    assert rounded(gaps) == {"W1A1": -5, "W2A2": -4, "W4A4": -3} and {told(cell) for cell in gaps.values()} == {-1}


def test_trials_and_other_quantizers_on_cifar10():
    found = stored("cifar-trials")
    cells = dict(found["means"]["val"]["minus_first"]["all"])
    paper = {name: cells.pop(name) for name in list(cells) if name.partition("+")[0] == "mebqat"}
    assert found["seeds"] == 3 and len(cells) == 5 and not any(map(told, cells.values()))
    assert len(paper) == 3 and {told(cell) for cell in paper.values()} == {-1}
    assert set(rounded(paper).values()) == {-3, -4}
    found = stored("cifar-quantizers")
    cells = found["means"]["val"]["minus_first"]["all"]
    sat = {name: cell for name, cell in cells.items() if "sat" in name}
    assert found["seeds"] == 3 and len(found["validation"]["mebqat_in_turn"]) == 7
    assert len(cells) == 5 and not any(told(cell) for name, cell in cells.items() if name not in sat)
    assert sorted(rounded(sat).values()) == [-5, -4] and {told(cell) for cell in sat.values()} == {-1}


def test_other_quantizers_for_new_classes():
    found = stored("glyphs-pn-quantizers")
    cells = found["means"]["val"]["minus_first"]["all"]
    assert found["seeds"] == 3 and {name.rpartition("=")[2]: told(cell) for name, cell in cells.items()} == {
        "double_rounding": 1,
        "dorefa": -1,
        "lsq_corrected": 0,
    }
    gaps = {name.rpartition("=")[2]: round(cell["mean"], 1) for name, cell in cells.items()}
    assert gaps["double_rounding"] == 0.1 and round(gaps["dorefa"]) == -1


def test_preact_resnet20():
    found = stored("cifar-preact_resnet20")
    cells = {name: minus(found, name) for name in ("mebqat", "adabits", "any_precision_recursive")}
    assert rounded(cells) == {"mebqat": -4, "adabits": -4, "any_precision_recursive": -5}
    assert {told(cell) for cell in cells.values()} == {-1} and told(minus(found, "ptq_mse")) == 0
    behind = {b: mean(found, "ptq_mse", b) - mean(found, "mebqat_in_turn", b) for b in found["accuracy"]["mebqat"]}
    assert [round(behind[bits]) for bits in ("W1A1", "W2A2")] == [-26, -10]
    assert {round(behind[bits]) for bits in ("W4A4", "W8A8", "FP")} == {4}
    gaps = found["paired"]["test"]
    assert rounded(gaps) == {"W1A1": -5, "W2A2": -3, "W4A4": -4} and {told(cell) for cell in gaps.values()} == {-1}


def test_prototypical_networks():
    found, ours = stored("glyphs-pn"), "mebqat_pn_in_turn"
    assert [round(mean(found, ours, bits)) for bits in ("W2A2", "FP")] == [92, 93]
    assert round(minus(found, "mebqat_pn")["mean"]) == -2 and told(minus(found, "mebqat_pn")) == -1
    gaps = found["paired"]["test"]
    assert len(gaps) == 7 and {bits for bits, cell in gaps.items() if told(cell)} == {"W2A2"}
    assert gaps["W2A2"]["mean"] == pytest.approx(-0.5, abs=0.05)
    assert round(mean(found, "pn_ptq_mse", "W2A2")) == 86 and told(minus(found, "pn_ptq_mse")) == 0


def test_maml():
    found = stored("glyphs-maml")
    assert found["seeds"] == 3 and [round(mean(found, "mebqat_maml", bits)) for bits in ("W2A2", "FP")] == [87, 91]
    assert [round(mean(found, name, "W2A2")) for name in ("fomaml", "fomaml_ptq_mse")] == [78, 87]
    assert found["accuracy"]["fomaml"] == found["accuracy"]["fomaml_ptq_lsq"]
    others = ("fomaml_ptq_mse", "mebqat_maml_in_turn", "mebqat_maml+teacher='fp'")
    assert not any(told(minus(found, name)) for name in others)
    gap = found["paired"]["test"]["W2A2"]
    assert told(gap) == round(gap["mean"]) == -1


def test_omniglot():
    found, ours = stored("omniglot-pn"), "mebqat_pn_in_turn"
    assert [round(mean(found, ours, bits)) for bits in ("W2A2", "W4A4", "W8A8", "FP")] == [88, 90, 90, 90]
    assert rounded({name: minus(found, name) for name in ("mebqat_pn", "pn_ptq_mse")}) == {
        "mebqat_pn": -2,
        "pn_ptq_mse": -1,
    }
    assert told(minus(found, "mebqat_pn")) == told(minus(found, "pn_ptq_mse")) == -1
    gap = found["paired"]["test"]["W2A2"]
    assert told(gap) == round(gap["mean"]) == -1


def test_one_image_alone_is_classified_as_in_a_large_batch():
    other, on_gpu = [], {}
    for path in STORED:
        if not path.stem.startswith(("glyphs", "omniglot")):  # there a query alone is a test of the learners
            found = json.loads(path.read_text())
            assert found["alone"] and all(found["alone"].values())
            cells = [(path.stem, n, b, share) for n, row in found["alone"].items() for b, share in row.items()]
            if "NVIDIA" in found["machine"]:
                on_gpu[path.stem] = cells
            else:
                other += [cell for cell in cells if cell[3] < 100]
    cells = on_gpu.pop("cifar-preact_resnet20")
    few = [share for *_, bits, share in cells if bits != "FP"]
    assert not on_gpu and (min(few), max(few)) == (75, 99.5)
    assert {share for *_, bits, share in cells if bits == "FP"} == {100}
    assert other == [("glyph-classes", "qat+lr=0.05", "W1A1", 99.5)]  # one of 200 images, in one of five seeds


def test_the_frozen_sheet_is_the_stored_one():
    found, ours = stored("frozen", "."), "mebqat_pn_in_turn"
    assert section("frozen") == f"```text\n{frozen.text(found)}\n{found['machine']}\n```\n"
    assert found["set"]["checksum"] == frozen.CHECKSUMS["glyphs-20way"]
    assert len(found["accuracy"][ours]) == 73 and len(found["accuracy"]["pn_qat"]) == 12
    matrix = [value for row in found["enrolment"][ours].values() for value in row.values()]
    assert len(matrix) == 25 and min(matrix) > 90.85 and max(matrix) < 93.05 and max(matrix) - min(matrix) < 2
    table = found["enrolment"][ours]  # table[pair of the support][pair of the queries]
    assert table["FP"]["W2A2"] >= table["W2A2"]["W2A2"]
    regret = found["regret"][ours]
    assert len(regret["pairs"]) == 12 and round(regret["mean"], 1) == 0.3 and round(regret["worst"], 1) == 0.7


def test_speed_on_a_gpu():
    sections = stored("gpu", ".")["sections"]
    rates = {  # images per second, of our steps and of plain ones
        (name.removeprefix("speed/"), method): row["images_per_second"]
        for name, section in sections.items()
        for method, row in section.items()
        if name.startswith("speed/") and isinstance(row, dict)
    }
    gains = {"amp": {}, "compile": {}}
    for (name, method), (ours, plain) in rates.items():
        net, _, how = name.partition("+")
        if how:
            before = rates[net, method]
            gains[how] |= {(net, method): ours / before[0], (net, f"plain beside {method}"): plain / before[1]}
    assert len(gains["amp"]) == 8 and max(gains["amp"].values()) < 1
    faster = {key: round(100 * gain) - 100 for key, gain in gains["compile"].items() if gain > 1}
    assert len(gains["compile"]) == 8
    assert faster == {("resnet20", "mebqat"): 7, ("resnet20", "mebqat_in_turn"): 35}
    assert round(sections["maml"]["vectorized over serial, 16 tasks"]["ratio"], 2) == 0.36


def test_one_set_of_running_statistics():
    rows = {
        name: {bits: cell["mean"] for bits, cell in row.items()}
        for name, row in stored("one_set", ".")["accuracy"].items()
    }
    lost = {
        name: {bits: rows[f"{name}, recalibrated"][bits] - mean for bits, mean in rows[f"{name}, running"].items()}
        for name in ("dorefa", "dorefa_corrected")
    }
    assert min(lost["dorefa"].values()) > 60
    quantized = [bits for bits in lost["dorefa"] if bits not in ("W1A1", "FP")]
    assert all(2.5 < lost["dorefa_corrected"][bits] < 6 for bits in quantized)
    assert min(lost["dorefa_corrected"][bits] for bits in ("W1A1", "FP")) > 15


def test_adapting_to_a_pair():
    found = stored("adapt", ".")
    for bits in LOW:
        ours, full, rounded = (
            {
                k: mean(found, adapt.variant(start, k, found["rates"][start]), bits, "validation")
                for k in (0, *adapt.STEPS)
            }
            for start in ("mebqat_in_turn", "fp", "ptq_mse")
        )
        assert ours[30] > full[100] and (bits == "W4A4" or ours[30] > rounded[100])
        dedicated = mean(found, adapt.DEDICATED, bits, "validation")
        assert ours[0] < ours[300] and 0 < dedicated - ours[300] < 3.5


def test_bits_for_each_layer():
    found = stored("allocations", ".")
    one, drawn, ptq = "one network", "one network, layers drawn", "FP + PTQ"
    bitops, sizes = found["budgets"]["bitops"], found["budgets"]["bytes"]
    gains = {budget: cells["test gain"] for budget, cells in bitops[one].items()}
    assert [round(gains[budget]["mean"]) for budget in ("1.5x", "2x", "3x")] == [4, 7, 12]
    assert [told(gains[budget]) for budget in ("1.5x", "2x", "3x", "4x")] == [1, 1, 1, 0]
    assert not any(told(cells["test gain"]) for cells in sizes[one].values())
    for budgets, budget, gain, reads in ((bitops, "3x", 30, (50, 83)), (sizes, "1.5x", 24, (78, 86))):
        assert round(budgets[ptq][budget]["test gain"]["mean"]) == gain
        assert tuple(round(budgets[name][budget]["test searched"]["mean"]) for name in (ptq, one)) == reads
    for budgets in (bitops, sizes):
        for budget, cells in budgets[drawn].items():
            assert cells["test searched"]["mean"] - budgets[one][budget]["test searched"]["mean"] < 2
    traps = found["pitfalls"].values()
    assert found["seeds"] == 3 and found["drawn"] == 50
    assert sorted(round(row["optimism"]["mean"]) for row in traps) == [4, 5, 7]
    assert sorted(told(row["optimism"]) for row in traps) == [0, 0, 1]
    assert {round(cell["mean"], 1) for row in traps for key, cell in row.items() if "rank" in key} == {0.8, 0.9}
