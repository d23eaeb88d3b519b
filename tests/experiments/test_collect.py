"""What is made of the outcomes of jobs: chosen rates, break-even, means and the report."""

import copy

import numpy as np
import pytest
import scipy.stats

from mebqat_lite.experiments.collect import break_even, choose_rates, collect, means
from mebqat_lite.experiments.jobs import Job, Outcome
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Costs, Run
from mebqat_lite.measure.results import report
from mebqat_lite.recipe import Recipe

SETUP = Setup(recipe=Recipe(steps=3, warm_steps=4, batch_size=32, lr=0.03))


def outcome(variant, seed, test, val=None, bits="", lr=0.0, backprops=10):
    accuracy = {"test": test, "val": test if val is None else val}
    return Outcome(Job(variant, seed, bits, lr), accuracy, copy.deepcopy(accuracy), {}, Costs(1, 1, backprops), 100)


def search(lr, seed, val, test, bits="W2A2", variant="qat"):
    return outcome(variant, seed, {bits: test}, {bits: val}, bits, lr)


def test_rates_are_chosen_by_mean_validation_over_the_seeds_and_never_by_test():
    """By the first seed 0.1 would win, by the best single run too, and by test accuracy 0.3."""
    tried = {0.1: [(95, 50), (60, 50)], 0.03: [(80, 40), (81, 40)], 0.3: [(70, 99), (70, 99)]}
    found = [search(lr, seed, *runs[seed]) for lr, runs in tried.items() for seed in (0, 1)]
    other = [search(lr, seed, 10 * lr, -lr, "W4A4") for lr in tried for seed in (0, 1)]
    variant = [search(lr, seed, -lr, lr, variant="qat+steps=9") for lr in tried for seed in (0, 1)]
    rest = [outcome("mebqat", seed, {"W2A2": 1.0}) for seed in (0, 1)]
    kept, rates = choose_rates([*found, *other, *variant, *rest])
    assert rates == {"qat": {"W2A2": 0.03, "W4A4": 0.3}, "qat+steps=9": {"W2A2": 0.03}}
    assert kept == [*found[2:4], *other[4:6], *variant[2:4], *rest]


def test_without_a_search_every_outcome_stays():
    found = [outcome("qat", 0, {"W2A2": 1.0}, bits="W2A2"), outcome("mebqat", 0, {"W2A2": 1.0})]
    assert choose_rates(found) == (found, {})


@pytest.mark.parametrize(
    ("once", "each", "start", "pairs"),
    [(16, 4, 0, 5), (15, 4, 0, 4), (3, 4, 0, 1), (30, 10, 0, 4), (20, 4, 4, 5), (16, 2, 4, 7), (16, 16, 0, 2)],
)
def test_break_even_is_the_first_number_of_pairs_at_which_one_training_costs_less(once, each, start, pairs):
    assert once < start + pairs * each and (pairs == 1 or once >= start + (pairs - 1) * each)
    assert break_even(once, each, start) == pairs


VALUES = {  # the seeds of each row in another order
    "adabits": {"W2A2": {0: 50.0, 1: 60.0}, "W3A3": {1: 10.0, 0: 30.0}, "W2A5": {0: 1.0, 1: 2.0}, "FP": {1: 90, 0: 80}},
    "mebqat": {"W2A2": {1: 55.0, 0: 53.0}, "W3A3": {0: 50.0, 1: 57.0}, "W2A5": {1: 9.0, 0: 5.0}, "FP": {0: 81, 1: 95}},
    "qat": {"W2A2": {0: 70.0, 1: 70.0}},
}


def test_means_go_over_listed_other_and_held_out_pairs_and_differences_seed_by_seed():
    found = means(VALUES, ["W2A2", "W4A4", "FP"], {3, 5})
    groups = {"all": ["W2A2", "W3A3", "W2A5", "FP"], "listed": ["W2A2", "FP"], "off_list": ["W3A3", "W2A5"]}
    groups["held_out"] = groups["off_list"]
    assert list(found) == ["minus_first", *groups] and list(found["minus_first"]) == list(groups)
    for group, pairs in groups.items():
        runs = {n: [np.mean([VALUES[n][b][seed] for b in pairs]) for seed in (0, 1)] for n in ("adabits", "mebqat")}
        gaps = np.subtract(runs["mebqat"], runs["adabits"])
        assert set(found[group]) == set(runs), "qat measured one pair only"
        for cell, values in [(found[group][n], runs[n]) for n in runs] + [
            (found["minus_first"][group]["mebqat"], gaps)
        ]:
            half = scipy.stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
            assert cell == pytest.approx({"mean": np.mean(values), "ci95": half, "n": 2}, rel=1e-12)
        assert set(found["minus_first"][group]) == {"mebqat"}


def test_a_held_out_width_may_be_that_of_weights_or_of_activations_alone():
    one = {"mebqat": {"W2A5": {0: 1.0}, "W5A2": {0: 2.0}, "W2A2": {0: 40.0}}}
    assert means(one, ["W2A2"], {5})["held_out"]["mebqat"]["mean"] == 1.5
    assert "held_out" not in means(one, ["W2A2"]) and "held_out" not in means(one, ["W2A2"], {7})
    assert "off_list" not in means(one, list(one["mebqat"]))


def test_dedicated_networks_at_more_pairs_do_not_say_which_pairs_count():
    more = VALUES | {"qat": {f"W{w}A{w}": {0: 70.0, 1: 70.0} for w in range(2, 9)}}
    assert means(more, ["FP"], several={"adabits", "mebqat"}) == means(VALUES, ["FP"])
    assert set(means(more, ["FP"])["all"]) == {"qat"}
    assert set(collected(["W2A2", "W4A4", "W5A5", "W8A8"])["means"]["test"]["all"]) == {"mebqat", "adabits"}


def test_differences_are_against_the_variant_named_first():
    turned = {name: VALUES[name] for name in ("mebqat", "adabits", "qat")}
    one, two = means(VALUES, ["FP"])["minus_first"], means(turned, ["FP"])["minus_first"]
    assert one["all"]["mebqat"]["mean"] == -two["all"]["adabits"]["mean"] != 0


def collected(dedicated=("W2A2",)):
    """Two seeds of three variants; under their own policies other numbers, and none off adabits' list."""
    names, rng, found = ("mebqat", "adabits", "qat"), np.random.default_rng(0), []
    for seed in (0, 1):
        for name in names[:2]:
            row = {b: float(rng.integers(20, 99)) for b in ("W2A2", "W3A3", "FP")}
            found.append(outcome(name, seed, row, backprops=70))
            if name == "adabits":
                found[-1].native["test"]["W3A3"] = float("nan")
        found += [outcome("qat", seed, {pair: 33.0}, bits=pair, backprops=20) for pair in dedicated]
    for each in found:
        each.native["test"]["W2A2"] = each.native["test"].get("W2A2", 0) + 0.5
        each.alone = {"W2A2": 100.0 - each.job.seed / 4}
    start = Run("fp", SETUP.recipe, Costs(4, 4, 4))
    return {"budget": "steps", **collect(SETUP, names, [start], found)}


def test_the_report_says_both_policies_means_differences_costs_and_the_break_even():
    result = collected()
    text = report(result, ["W2A2", "W3A3", "FP"])
    assert "test images, 2 seeds, norm statistics recalibrated, budget: equal steps" in text
    assert "own policy (mebqat batch, adabits running, qat running)" in text
    assert "of a network, its FP start included: mebqat 74, adabits 74, qat 24\n" in text
    equal = {name: {"models": 1, "backprops": 74, "each": 74} for name in ("mebqat", "adabits")}
    dedicated = {"qat": {"models": 3, "backprops": 4 + 3 * 70, "each": 74}}
    told = report(result | {"costs": equal | dedicated}, ["W2A2"])
    assert "of each network, its FP start included: 74; qat took 214 for 3 networks\n" in told
    assert "mebqat takes fewer than qat from 4 delivered pairs on." in text
    assert "at least 99.75 % of the predictions" in text
    first, _, second = text.partition("\nNorm statistics of each")
    for block, accuracy in ((first, result["accuracy"]), (second, result["native"]["accuracy"])):
        cell = f"{accuracy['mebqat']['W2A2']['mean']:.1f} ±{accuracy['mebqat']['W2A2']['ci95']:.1f}"
        assert cell in block
    gap = result["paired"]["test"]["W2A2"]
    assert f"mebqat - qat, paired, recalibrated: W2A2 {gap['mean']:+.1f} ±{gap['ci95']:.1f}" in text
    assert "Mean over" not in text, "all that was measured is in the tables"
    (row,) = [line for line in second.splitlines() if line.startswith("adabits")]
    assert row.split()[-3] == "-" and row.count("±") == 2  # W3A3 is off its list
    means_of, lines = result["means"]["test"], report(result, ["W2A2"]).split("\nMean over all pairs")[1].splitlines()
    assert lines[1].split() == ["all", "listed", "off_list"]
    for line, cells in [
        (lines[2], {group: means_of[group]["mebqat"] for group in ("all", "listed", "off_list")}),
        (lines[6], {group: means_of["minus_first"][group]["adabits"] for group in ("all", "listed", "off_list")}),
    ]:
        assert line.split()[1::2] == [f"{cell['mean']:.1f}" for cell in cells.values()]


def test_the_report_has_no_break_even_and_no_differences_where_there_is_no_qat():
    result = collected()
    result |= {"break_even": None, "paired": {"test": {}, "val": {}}}
    text = report(result, ["W2A2"])
    assert "takes fewer" not in text and "mebqat - qat" not in text


def test_the_report_of_validation_shows_validation():
    result = collected()
    result["validation"]["mebqat"]["W2A2"] = {"mean": 12.3, "ci95": 0.4, "n": 2}
    assert "12.3 ±0.4" in report(result, ["W2A2"], "val") and "12.3" not in report(result, ["W2A2"])
    assert "val images" in report(result, ["W2A2"], "val")
