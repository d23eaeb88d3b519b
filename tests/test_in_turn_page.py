"""What benchmarks/README.md says in words of MEBQAT in turn is what the stored experiments hold."""

import json

from benchmarks import adapt, one_set
from benchmarks.accuracy import CORRECTED, FOLDER, LOW, RATES
from mebqat_lite.experiments.setups import SETUPS
from mebqat_lite.quantizers import QUANTIZERS

OURS = "mebqat_in_turn+lr=0.05"


def stored(name, folder="accuracy"):
    return json.loads((FOLDER / folder / f"{name}.json").read_text())


def mean(found, name, bits, part="validation"):
    return found[part][name][bits]["mean"]


def minus(found, name, part="val", group="all"):
    """The paired difference of a variant and the first one: above (1), below (-1), or not told apart (0)."""
    cell = found["means"][part]["minus_first"][group][name]
    return 0 if abs(cell["mean"]) <= cell["ci95"] else 1 if cell["mean"] > 0 else -1


def test_the_rates_were_chosen_on_other_seeds():
    found = stored("glyph-classes-rates")
    for name in ("mebqat_in_turn", "mebqat", "qat"):
        sums = {rate: sum(mean(found, f"{name}+lr={rate}", bits) for bits in LOW) for rate in RATES}
        assert max(sums, key=sums.get) == 0.05
    sums = {rate: sum(mean(found, f"ptq_mse+lr={rate}", bits) for bits in ("W2A2", "W4A4")) for rate in RATES}
    assert max(sums, key=sums.get) == 0.03


def test_glyph_classes():
    found = stored("glyph-classes")
    gaps = {bits: mean(found, OURS, bits) - mean(found, "qat+lr=0.05", bits) for bits in LOW}
    assert -9 < gaps["W1A1"] < -6 and -5 < gaps["W2A2"] < -3 and -2 < gaps["W4A4"] < -1
    four = {bits: mean(found, f"{OURS}+steps=5700", bits) - mean(found, "qat+lr=0.05", bits) for bits in LOW}
    assert all(gap > -2 for gap in four.values()) and four["W4A4"] > 0
    for part in ("val", "test"):
        assert minus(found, "ptq_mse", part) == minus(found, "mebqat+lr=0.05", part) == -1
        assert minus(found, f"{OURS}+steps=2700", part) == minus(found, f"{OURS}+steps=5700", part) == 1
    assert minus(found, f"{CORRECTED}+lr=0.05") == 0
    assert mean(found, "ptq_mse", "W8A8") > mean(found, OURS, "W8A8")
    backprops = {name: row["backprops"] for name, row in found["costs"].items()}
    assert backprops.pop("qat+lr=0.05") == 300 + 3 * 1200
    assert {backprops.pop(f"{OURS}+steps={steps}") for steps in (2700, 5700)} == {3000, 6000}
    assert set(backprops.values()) == {1500}


def test_trials():
    found = stored("glyph-classes-trials")
    names = [name for name in found["accuracy"] if name != OURS]
    assert found["seeds"] == 5 and len(names) == 6 and all(minus(found, name) == 0 for name in names)


def test_other_quantizers():
    for name, seeds, ours in (("glyph-classes-quantizers", 5, OURS), ("cifar-quantizers", 3, "mebqat_in_turn")):
        found = stored(name)
        gaps = found["means"]["val"]["minus_first"]["all"]
        assert found["seeds"] == seeds and len(found["validation"][ours]) == 7
        for quantizer in ("lsq", "double_rounding"):
            other = f"{ours}+quantizer={quantizer}"
            wanted = 3 if quantizer == "double_rounding" and seeds == 5 else 2
            assert minus(found, other) == 1 and round(gaps[other]["mean"]) == wanted
            if seeds == 5:
                assert round(mean(found, other, "FP") - mean(found, ours, "FP")) == 5
    found = stored("glyphs-pn-quantizers")
    assert found["setup"]["recipe"]["quantizer"] == "lsq"
    assert minus(found, "mebqat_pn_in_turn+quantizer=double_rounding") == 0
    lost = found["means"]["val"]["minus_first"]["all"]["mebqat_pn_in_turn+quantizer=dorefa"]
    assert minus(found, "mebqat_pn_in_turn+quantizer=dorefa") == round(lost["mean"]) == -1
    quantizers = {SETUPS[name].recipe.quantizer for name in ("digits", "digits-wide", "glyph-classes", "paint")}
    assert quantizers == {"dorefa"} and not QUANTIZERS["double_rounding"].one_bit and QUANTIZERS["dorefa"].one_bit


def test_maml_in_turn():
    found = stored("glyphs-maml-in-turn")
    assert {row["each"] for row in found["costs"].values()} == {4000} and found["seeds"] == 3
    ours, paper = (found["validation"][name] for name in ("mebqat_maml_in_turn", "mebqat_maml"))
    assert set(ours) == {"W2A2", "W4A4", "FP"} and minus(found, "mebqat_maml_in_turn") == 0
    for bits in ours:  # the larger interval alone holds the difference of the means
        assert abs(ours[bits]["mean"] - paper[bits]["mean"]) < max(ours[bits]["ci95"], paper[bits]["ci95"])
    assert SETUPS["glyphs-maml"].method == "mebqat_maml"


def test_cifar10():
    found = stored("cifar-in-turn")
    gaps = {bits: mean(found, "mebqat_in_turn", bits) - mean(found, "qat", bits) for bits in LOW}
    assert -5 < gaps["W1A1"] < -4 and -4 < gaps["W2A2"] < -3 and -3 < gaps["W4A4"] < -1
    over_all = {name: cell["mean"] for name, cell in found["means"]["val"]["minus_first"]["all"].items()}
    assert over_all["mebqat"] < over_all["mebqat+lr=0.02"] < -4 and minus(found, "mebqat+lr=0.02") == -1
    assert minus(found, "ptq_mse") == minus(found, CORRECTED) == minus(found, f"{CORRECTED}+lr=0.02") == 0
    rounded = {b: mean(found, "ptq_mse", b) - mean(found, "mebqat_in_turn", b) for b in ("W1A1", "W2A2", "W8A8", "FP")}
    assert rounded["W1A1"] < -23 and rounded["W2A2"] < -10 and 2 < min(rounded["W8A8"], rounded["FP"]) < 3


def test_prototypical_networks():
    found = stored("glyphs-pn-in-turn")
    gaps = found["paired"]["val"]
    assert found["rivals"] == ["mebqat_pn_in_turn", "pn_qat"] and len(gaps) == 5
    assert all(-0.6 < gap["mean"] < 0 for gap in gaps.values())
    assert all(abs(gaps[bits]["mean"]) <= gaps[bits]["ci95"] for bits in ("W2A2", "W3A3", "W4A4"))
    assert minus(found, "mebqat_pn") == -1 and minus(found, "mebqat_pn_in_turn+quantizer=lsq_corrected") == 0
    ours, rounded = (found["validation"][name] for name in ("mebqat_pn_in_turn", "pn_ptq_mse"))
    assert 5.5 < ours["W2A2"]["mean"] - rounded["W2A2"]["mean"] < 6.5
    assert all(abs(ours[bits]["mean"] - rounded[bits]["mean"]) < 0.5 for bits in ("W4A4", "W8A8", "FP"))


def test_the_page_shows_what_was_stored():
    page = (FOLDER / "README.md").read_text()
    for module, name in ((adapt, "adapt"), (one_set, "one_set")):
        found = stored(name, ".")
        assert f"<!-- {name} -->\n```text\n{module.text(found)}\n```\n<!-- /{name} -->" in page


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
            {k: mean(found, adapt.variant(start, k, found["rates"][start]), bits) for k in (0, *adapt.STEPS)}
            for start in ("mebqat_in_turn", "fp", "ptq_mse")
        )
        assert ours[30] > full[100] and (bits == "W4A4" or ours[30] > rounded[100])
        dedicated = mean(found, adapt.DEDICATED, bits)
        assert ours[0] < ours[300] and 0 < dedicated - ours[300] < 3.5
