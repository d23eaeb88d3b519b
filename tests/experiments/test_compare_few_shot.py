"""Comparisons of methods that learn new classes."""

from dataclasses import replace

import pytest
import torch
from tiny_few_shot import TINY, made

from mebqat_lite import datasets, files, load_model
from mebqat_lite.experiments.collect import base_of
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import own_method
from mebqat_lite.experiments.setups import SETUPS
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.measure.saved import episodes_for, learns_new_classes


def compared(folder, names, setup="tiny-pn", **options):
    fixed = {"pairs": ("W2A2", "FP"), "listed": ("W2A2",), "seeds": 1, "workers": 1, "progress": False}
    return compare(replace(TINY[setup], data="made", episodes=4), names, folder=folder, **{**fixed, **options})


def test_few_shot_methods_are_compared(elsewhere):
    names = ["pn", "pn_ptq_mse", "pn_qat", "mebqat_pn"]
    found = compared(elsewhere / "c", names)
    assert found["rivals"] == ("mebqat_pn", "pn_qat") and list(found["accuracy"]) == names
    assert {"accuracy", "validation", "paired", "means", "native", "costs", "break_even", "setup"} <= set(found)
    assert {name: list(row) for name, row in found["accuracy"].items()} == {
        name: ["W2A2"] if name == "pn_qat" else ["W2A2", "FP"] for name in names
    }
    for part, key in (("test", "accuracy"), ("val", "validation")):
        gap = found[key]["mebqat_pn"]["W2A2"]["mean"] - found[key]["pn_qat"]["W2A2"]["mean"]
        assert found["paired"][part]["W2A2"]["mean"] == pytest.approx(gap)
    backprops = {name: cost["backprops"] for name, cost in found["costs"].items()}
    assert backprops == dict.fromkeys(names, 6)  # all start cold: no warm steps
    assert found["alone"] == {name: {} for name in names} and found["native"]["norm_stats"]["pn"] == "batch"
    assert found["break_even"] == 2


def test_the_accuracy_that_a_compared_model_states_is_that_of_its_file(elsewhere):
    compared(elsewhere / "c", ["mebqat_pn"])
    model, extra = load_model(elsewhere / "c" / "mebqat_pn-seed0.safetensors")
    learner, asked, _ = episodes_for(model, extra)
    stated = extra["accuracy"]["test"]
    scores = episode_scores(model, learner, asked, list(stated), count=4, norm_stats="recalibrated")
    assert list(stated) == ["W2A2", "FP"] and scores.mean(1).tolist() == pytest.approx(list(stated.values()))
    start = files.read(elsewhere / "c" / "start-pn-seed0.safetensors", "model")[1]["extra"]
    assert start["method"] == "pn" and learns_new_classes(start)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["support", "recalibrated"])
def test_maml_methods_are_compared(elsewhere, policy, monkeypatch):
    monkeypatch.setitem(TINY, "tiny-maml", replace(TINY["tiny-maml"], norm_stats=policy))
    names = ["fomaml_ptq_mse", "fomaml_ptq_lsq", "fomaml_qat", "mebqat_maml"]
    found = compared(elsewhere / "c", names, "tiny-maml")
    assert found["rivals"] == ("mebqat_maml", "fomaml_qat") and list(found["paired"]["test"]) == ["W2A2"]
    assert found["costs"]["mebqat_maml"]["backprops"] == 4 and found["norm_stats"] == policy


@pytest.mark.parametrize("names", [["mebqat", "mebqat_pn"], ["pn_qat", "mebqat_maml"], ["fp", "fomaml"]])
def test_methods_of_two_kinds_cannot_be_compared(elsewhere, names):
    with pytest.raises(ValueError, match=r"these methods start from .*: compare methods that share their start"):
        compared(elsewhere / "c", names)
    assert not (elsewhere / "c").exists()


def test_the_method_that_all_start_from():
    assert [base_of(names) for names in (["mebqat"], ["mebqat_pn+m=2", "pn"], ["fomaml_qat"])] == ["fp", "pn", "fomaml"]


def test_budgets_count_the_steps_of_the_set_up_s_own_method():
    assert own_method(SETUPS["glyphs-pn"], "pn") == "mebqat_pn_in_turn"
    assert (
        own_method(SETUPS["digits"], "fp") == "mebqat_in_turn" and own_method(SETUPS["digits-wide"], "fp") == "mebqat"
    )
    others = {base: own_method(SETUPS["digits"], base) for base in ("pn", "fomaml")}
    assert others == {"pn": "mebqat_pn", "fomaml": "mebqat_maml"}  # a method of another kind counts its own steps


def test_a_part_that_is_empty_is_not_measured(elsewhere, monkeypatch):
    whole = made()
    bare = replace(whole, val=whole.val.select(torch.tensor([], dtype=torch.int64)))
    monkeypatch.setitem(datasets.DATASETS, "made", lambda seed=0: bare)
    found = compared(elsewhere / "c", ["pn", "mebqat_pn"])
    assert found["validation"] == {"pn": {}, "mebqat_pn": {}}
    assert set(found["accuracy"]["mebqat_pn"]) == {"W2A2", "FP"}


def test_a_network_of_a_middle_pair_has_no_row_at_the_ends(elsewhere):
    found = compared(elsewhere / "c", ["pn_qat"], pairs=("W3A3",), listed=("W3A3",))
    assert list(found["accuracy"]["pn_qat"]) == ["W3A3"] and found["native"]["accuracy"] == {"pn_qat": {}}
