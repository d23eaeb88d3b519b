"""The stored comparisons, as a lesson reads them."""

import copy
import json

import pytest

from mebqat_lite import paths
from mebqat_lite.course import stored

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
