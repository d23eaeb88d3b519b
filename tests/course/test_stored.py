"""The stored comparisons, as a lesson reads them."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite import paths
from mebqat_lite.course import stored
from mebqat_lite.measure.intervals import interval

FOUND = stored.comparisons()


def test_all_files_are_read_by_their_names():
    folder = paths.checkout() / "benchmarks" / "accuracy"
    assert sorted(FOUND) == sorted(path.stem for path in folder.glob("*.json"))
    assert FOUND["digits-total"]["budget"] == "total"


def test_without_the_files_the_message_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "checkout", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="no stored comparisons: they are in benchmarks/accuracy"):
        stored.comparisons()


def test_accuracies_are_the_means_of_the_pairs_that_are_asked_for():
    digits = FOUND["digits-backprops"]
    found = stored.accuracies(digits, ["ptq_mse", "qat"], ["W8A8", "W1A1", "FP"])
    means = digits["accuracy"]
    assert found == {
        "ptq_mse": {bits: means["ptq_mse"][bits]["mean"] for bits in ("W1A1", "W8A8", "FP")},
        "qat": {bits: means["qat"][bits]["mean"] for bits in ("W1A1", "W8A8")},  # it has no FP
    }
    assert len(stored.accuracies(digits, ["ptq_mse"])["ptq_mse"]) == 75


def test_what_was_not_measured_is_left_out_and_an_unknown_method_refused():
    digits = copy.deepcopy(FOUND["digits-total"])
    digits["accuracy"]["qat"]["W2A2"]["mean"] = None  # as JSON writes NaN
    assert "W2A2" not in stored.accuracies(digits, ["qat"])["qat"]
    with pytest.raises(KeyError, match="adabits"):
        stored.accuracies(digits, ["adabits"])


def test_the_best_at_a_pair_is_the_best_of_all_methods_that_were_measured_there():
    digits = FOUND["digits-backprops"]
    found = stored.best(digits)
    assert len(found) == 75
    for bits in ("W1A1", "FP"):
        measured = [row[bits]["mean"] for row in digits["accuracy"].values() if bits in row]
        assert found[bits] == max(measured)
    assert found["W1A1"] == digits["accuracy"]["qat"]["W1A1"]["mean"]


def test_how_far_in_turn_is_ahead_is_what_the_page_says():
    found = {name: stored.ahead(FOUND[name], "mebqat") for name in ("digits-backprops", "glyph-classes", "cifar")}
    written = {name: f"{cell['mean']:+.1f} ±{cell['ci95']:.1f}" for name, cell in found.items()}
    summary = (paths.checkout() / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name, row in (("digits-backprops", "digits "), ("glyph-classes", "glyph classes"), ("cifar", "CIFAR-10, Conv")):
        [line] = [line for line in summary.splitlines() if line.startswith(row) and "±" in line]
        assert written[name] in line
    with pytest.raises(KeyError, match="qat"):
        stored.ahead(FOUND["digits-wide"], "qat")


SCORES = st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=4, max_size=4)


@settings(deadline=None)  # the quantile is searched for once
@given(SCORES)
def test_the_interval_of_a_difference_of_means_over_pairs_is_at_most_as_wide_as_said(scores):
    """Two methods at two pairs, four seeds: the bound against the paired interval of the seeds themselves."""
    rows = {"one": dict(zip("ab", scores[:2], strict=True)), "other": dict(zip("ab", scores[2:], strict=True))}
    table = {name: {pair: interval(values) for pair, values in row.items()} for name, row in rows.items()}
    found = stored.minus({"accuracy": table, "seeds": 4}, "one", "other", ["a", "b"])
    means = {name: [sum(values) / 2 for values in zip(*row.values(), strict=True)] for name, row in rows.items()}
    true = interval([a - b for a, b in zip(means["one"], means["other"], strict=True)])
    assert found["mean"] == pytest.approx(true["mean"], abs=1e-9) and found["ci95"] >= true["ci95"] - 1e-9
    assert found["n"] == 4


def test_the_bound_at_a_single_pair_is_that_of_both_intervals():
    digits = FOUND["digits-backprops"]
    found = stored.minus(digits, "ptq_mse", "mebqat_in_turn", ["W1A1"])
    assert found["ci95"] > digits["means"]["test"]["minus_first"]["all"]["ptq_mse"]["ci95"]
    with pytest.raises(KeyError, match="W3A8"):
        stored.minus(digits, "ptq_mse", "qat", ["W3A8"])


def test_a_sheet_is_that_of_the_shipped_networks():
    stored_there = json.loads(paths.shipped("checkpoints", "glyphs.json").read_text(encoding="utf-8"))["glyphs-5way"]
    table = stored.sheet("glyphs-5way")
    assert list(table) == list(stored_there["accuracy"])
    for method, row in table.items():
        for pair, cell in row.items():
            known = stored_there["accuracy"][method][pair]
            assert cell == {"mean": known["mean"], "ci95": known["ci95_episodes"], "n": 600}
            assert 0 < cell["ci95"] < 2 < cell["mean"]
    with pytest.raises(KeyError):
        stored.sheet("glyphs-6way")
