"""Where the network of a job starts: from the common FP network, from another job's, or from its own beginning."""

from dataclasses import replace

import pytest
import torch

from mebqat_lite import datasets, fit, load_model, quantize
from mebqat_lite.experiments.compare import compare, list_jobs
from mebqat_lite.experiments.jobs import Job, Variant, run_job, starts_alone, train_start
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import SweepError
from mebqat_lite.loop import Costs
from mebqat_lite.methods import calibration
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import plan_of

SETUP = Setup(
    data="digits,count=100,val=20,test=20",
    options={"widths": (4, 4, 4, 4)},
    recipe=Recipe(steps=3, warm_steps=4, batch_size=32, lr=0.03),
)
QUIET = {"seeds": 1, "workers": 1, "progress": False, "engine": "serial"}


def untrained(data, quantizer="dorefa"):
    torch.manual_seed(0)
    return quantize(SETUP.build(data), quantizer, sample=calibration(data))


def same(one, two):
    mine, theirs = dict(one.named_parameters()), dict(two.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def saved(folder, name):
    return load_model(folder / f"{name}-seed0.safetensors")[0]


def compared(folder, names, **options):
    return compare(SETUP, names, pairs=["W2A2", "FP"], listed=["W2A2"], folder=folder, **QUIET, **options)


def backprops(outcome):
    return {name: row["backprops"] for name, row in outcome["costs"].items()}


@pytest.mark.parametrize("budget", ["backprops", "total"])
def test_the_network_that_is_only_quantized_is_trained_as_long_as_the_others(tmp_path, budget):
    names = ["mebqat", "mebqat_in_turn", "mebqat+m=6", "ptq_mse", "ptq_naive", "fp", "mebqat+warm_steps=8"]
    outcome = compared(tmp_path, names, budget=budget)
    assert set(backprops(outcome).values()) == {4 + 3 * 4}
    data = datasets.load(SETUP.data, 0)
    model = untrained(data)
    fit(model, data, "fp", SETUP.recipe, steps=16, warm_steps=0, seed=0, progress=False)
    assert same(saved(tmp_path, "fp"), model) and same(saved(tmp_path, "ptq_naive"), model)
    ours = saved(tmp_path, "ptq_mse")
    assert plan_of(ours).quantizer == "least_squares"
    assert all(torch.equal(ours.get_parameter(n), p) for n, p in model.named_parameters())
    assert not same(saved(tmp_path, "start-fp"), model)


def test_with_equal_steps_the_common_network_is_quantized(tmp_path):
    outcome = compared(tmp_path, ["mebqat", "fp", "ptq_naive"], budget="steps")
    assert backprops(outcome) == {"mebqat": 4 + 12, "fp": 4, "ptq_naive": 4}
    assert same(saved(tmp_path, "fp"), saved(tmp_path, "start-fp"))


def test_a_job_may_have_a_warm_start_of_its_own(tmp_path):
    train_start(SETUP, 0, tmp_path)
    outcome = run_job(SETUP, Job("mebqat+warm_steps=8", 0), ["FP"], tmp_path, "backprops")
    assert outcome.costs == Costs(8 + 2, 8 + 2 * 4, 8 + 2 * 4)  # four steps more at FP leave two of four pairs
    data = datasets.load(SETUP.data, 0)
    model = untrained(data)
    fit(model, data, "mebqat", SETUP.recipe, steps=2, warm_steps=8, seed=0, progress=False)
    assert same(saved(tmp_path, "mebqat+warm_steps-8"), model)


def test_a_job_may_start_from_the_network_of_another(tmp_path):
    """It has its own number of steps under any budget, and its costs are those of both."""
    names = ["qat+start=mebqat_in_turn+steps=5", "mebqat_in_turn", "mebqat"]
    outcome = compared(tmp_path, names, budget="backprops")
    assert backprops(outcome) == {names[0]: 16 + 5, "mebqat_in_turn": 16, "mebqat": 16}
    model, data = saved(tmp_path, "mebqat_in_turn"), datasets.load(SETUP.data, 0)
    how = {"steps": 5, "warm_steps": 0, "bits": "W2A2", "seed": 0, "progress": False}
    fit(model, data, "qat", SETUP.recipe, **how)
    assert same(saved(tmp_path, "qat+start-mebqat_in_turn+steps-5_w2a2"), model)


def test_steps_that_were_learned_before_are_kept(tmp_path):
    setup = replace(SETUP, recipe=SETUP.recipe.with_options(quantizer="lsq"))
    names = ["qat+start=mebqat+steps=1+lr=0.0", "qat+start=fp+steps=1+lr=0.0", "mebqat", "fp"]
    compare(setup, names, pairs=["W2A2"], listed=["W2A2"], folder=tmp_path, **QUIET)
    for start in ("mebqat", "fp"):
        assert same(saved(tmp_path, f"qat+start-{start}+steps-1+lr-0.0_w2a2"), saved(tmp_path, start))
    data = datasets.load(SETUP.data, 0)
    fresh = quantize(saved(tmp_path, "fp"), "lsq", sample=calibration(data))
    assert same(fresh, saved(tmp_path, "fp"))  # the steps of the FP network were measured after its training
    assert not same(untrained(data, "lsq"), fresh)


def test_qat_with_a_pair_of_its_own_is_measured_at_all_pairs(tmp_path):
    name = "qat+bits=W4A4"
    assert list_jobs([name, "qat"], ["W2A2", "W8A8"], [0])[0] == Job(name, 0)
    outcome = compared(tmp_path, [name, "mebqat"])
    assert set(outcome["accuracy"][name]) == {"W2A2", "FP"} and outcome["costs"][name]["models"] == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qat+start=mebqad", "no method 'mebqad'; known: fp, "),
        ("ptq_mse+start=mebqat", "only a method that trains, without warm_steps, can start from mebqat"),
        ("qat+start=mebqat_pn", "only a method that trains, without warm_steps, can start from mebqat_pn"),
        ("qat+start=mebqat+warm_steps=3", "only a method that trains, without warm_steps, can start from mebqat"),
    ],
)
def test_what_cannot_be_a_start_is_named(name, text):
    with pytest.raises(ValueError, match=text):
        Variant.parse(name)


def test_the_network_to_start_from_must_be_part_of_the_comparison(tmp_path):
    with pytest.raises(ValueError, match="starts from mebqat: add that to the methods of the comparison"):
        compared(tmp_path, ["qat+start=mebqat"])


def test_a_start_that_failed_is_named(tmp_path):
    names = ["mebqat+lr=1e30", "mebqat", "qat+start=mebqat_in_turn+steps=1", "mebqat_in_turn"]
    (tmp_path / "mebqat_in_turn-seed0.safetensors").mkdir()
    with pytest.raises(SweepError, match=r"qat\+start-mebqat_in_turn\+steps-1_w2a2-seed0: the network that they start"):
        compared(tmp_path, names[1:], retries=0)


def test_which_jobs_train_their_network_from_the_beginning():
    cold = replace(SETUP, recipe=SETUP.recipe.with_options(warm_steps=0))
    table = {
        ("mebqat", "steps"): (False, True),
        ("mebqat", "backprops"): (False, True),
        ("mebqat+warm_steps=4", "steps"): (True, True),
        ("ptq_mse", "steps"): (False, False),
        ("ptq_mse", "total"): (True, True),
        ("qat+start=mebqat", "steps"): (False, False),
    }
    for (name, budget), found in table.items():
        assert tuple(starts_alone(setup, Variant.parse(name), budget) for setup in (SETUP, cold)) == found


def test_break_even_counts_the_start_of_those_that_use_it(tmp_path):
    """Both take 16 back-propagations for one pair, so one network for all pairs pays from the second pair on."""
    outcome = compared(tmp_path, ["mebqat", "qat+warm_steps=0"], budget="backprops")
    assert backprops(outcome) == {"mebqat": 16, "qat+warm_steps=0": 16} and outcome["break_even"] == 2


def test_models_that_share_a_budget_share_their_warm_starts(tmp_path):
    names, how = ["qat", "qat+warm_steps=0", "qat+warm_steps=2"], {"pairs": ["FP"], "listed": ["W2A2", "W4A4"], **QUIET}
    outcome = compare(SETUP, names, folder=tmp_path, budget="total", **how)
    assert set(backprops(outcome).values()) == {16}


def test_a_warm_start_that_takes_the_whole_budget_is_refused(tmp_path):
    with pytest.raises(SweepError, match="warm_steps take 40 back-propagations, but the budget is 16: give fewer"):
        compared(tmp_path, ["mebqat_in_turn", "mebqat_in_turn+warm_steps=40"], budget="backprops", retries=0)


def test_a_rate_of_its_own_is_kept_beside_searched_ones(tmp_path):
    outcome = compared(tmp_path, ["qat+lr=0.5", "qat"], qat_lrs=(0.01, 0.1))
    assert set(outcome["qat_lr"]) == {"qat"}
    _, extra = load_model(tmp_path / "qat_w2a2-lr0.01-seed0.safetensors")
    assert extra["setup"]["recipe"]["lr"] == 0.01
    _, extra = load_model(tmp_path / "qat+lr-0.5_w2a2-seed0.safetensors")
    assert extra["setup"]["recipe"]["lr"] == 0.5


def test_a_method_with_a_network_for_each_pair_cannot_be_a_start(tmp_path):
    with pytest.raises(ValueError, match="qat has one network for each pair: start from a method with one for all"):
        compared(tmp_path, ["qat", "mebqat+start=qat+steps=1"])


def test_pairs_are_checked_only_where_they_are_used(tmp_path):
    setup = replace(SETUP, recipe=SETUP.recipe.with_options(quantizer="lsq"))
    compare(setup, ["mebqat"], pairs=["W2A2"], listed=["W1A1"], folder=tmp_path, **QUIET)  # nothing is listed
    for name in ("qat", "qat+bits=W1A1"):
        with pytest.raises(ValueError, match=r"^qat.*: lsq defines no 1-bit values"):
            compare(setup, [name], pairs=["W2A2"], listed=["W1A1"], folder=tmp_path, **QUIET)
