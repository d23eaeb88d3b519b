"""The decision calculator of lesson 07: stored accuracies, counted costs, what was not measured, and the view."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mebqat_lite as mq
from mebqat_lite.course import stored
from mebqat_lite.course.widgets import decision_calculator, decisions
from mebqat_lite.course.widgets.decisions import DELIVERED, TITLES, Weights, compute, describe, picture, say, still
from mebqat_lite.measure.intervals import interval

FOUND = stored.comparisons()
RESULTS = {name: FOUND[f"digits-{name}"] for name in ("steps", "backprops", "total")}
FIVE = DELIVERED["five pairs"]
SIZES = Weights(100, {1: 10, 2: 20, 3: 30, 4: 40, 5: 50, 6: 60, 7: 70, 8: 80, 16: 160, 32: 320})


def offers(pairs, budget="backprops", packed=True, at_worst=False, results=RESULTS):
    return compute(results, SIZES, pairs, budget, packed, at_worst).offers


# --- accuracies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", RESULTS)
def test_a_single_pair_is_the_cell_of_the_file(budget):
    for pair, at_worst in itertools.product(("W1A1", "W8A8"), (True, False)):
        for name, offer in offers([pair], budget, at_worst=at_worst).items():
            cell = (RESULTS[budget]["accuracy"].get(name) or RESULTS["backprops"]["accuracy"][name])[pair]
            assert (offer.accuracy, offer.half, offer.is_bound) == (cell["mean"], cell["ci95"], False)


def test_all_pairs_have_the_interval_that_was_stored():
    for name in ("ptq_mse", "mebqat", "mebqat_in_turn"):
        offer, row = offers(DELIVERED["all 75"])[name], RESULTS["backprops"]["accuracy"][name]
        assert offer.accuracy == pytest.approx(np.mean([cell["mean"] for cell in row.values()]), abs=1e-3)
        assert offer.half == RESULTS["backprops"]["means"]["test"]["all"][name]["ci95"] and not offer.is_bound


def test_the_worst_pair_is_named():
    for name, offer in offers(FIVE, at_worst=True).items():
        row = RESULTS["backprops"]["accuracy"][name]
        assert offer.accuracy == min(row[pair]["mean"] for pair in FIVE) == row[offer.worst]["mean"]
        assert offer.half == row[offer.worst]["ci95"] and not offer.is_bound


@settings(deadline=None)
@given(arrays(float, st.tuples(st.integers(2, 6), st.integers(3, 5)), elements=st.floats(0, 100, width=32)))
def test_the_interval_of_a_mean_over_pairs_is_bounded(values):
    """``values`` are accuracies, (seeds, pairs)."""
    pairs = FIVE[: values.shape[1]]
    row = {pair: interval(column.tolist()) for pair, column in zip(pairs, values.T, strict=True)}
    accuracy = {"qat": row | {"FP": row[pairs[0]]}}  # one more than those that are delivered
    result = RESULTS["backprops"] | {"accuracy": RESULTS["backprops"]["accuracy"] | accuracy}
    offer, true = offers(pairs, results={"backprops": result})["qat"], interval(values.mean(1).tolist())
    assert offer.is_bound and offer.accuracy == pytest.approx(true["mean"], abs=1e-6)
    assert offer.half >= true["ci95"] - 1e-6


def test_what_was_not_measured_is_said():
    for at_worst in (True, False):
        decision = compute(RESULTS, SIZES, DELIVERED["3 to 8 bits"], "backprops", True, at_worst)
        offer = decision.offers["qat"]
        assert np.isnan(offer.accuracy) and offer.measured == 3 and offer.backprops == 300 + 36 * 1200
        assert "QAT measured at 3 of 36 pairs only, 43,500 back-propagations" in say(decision)
        assert "nan" not in say(decision) + describe(decision)
    assert all(offers(["W3A5"], at_worst=at_worst)["qat"].measured == 0 for at_worst in (True, False))


# --- budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", RESULTS)
def test_five_pairs_cost_what_the_comparison_counted(budget):
    costs = RESULTS[budget]["costs"]
    for name, offer in offers(FIVE, budget).items():
        assert offer.backprops == costs.get(name, RESULTS["backprops"]["costs"][name])["backprops"]


def test_one_network_is_trained_once_and_others_for_each_pair():
    one, two, five = (offers(FIVE[:count]) for count in (1, 2, 5))
    assert one["mebqat"].backprops == five["mebqat"].backprops
    assert five["qat"].backprops - two["qat"].backprops == 3 * (two["qat"].backprops - one["qat"].backprops) > 0


def test_one_network_is_the_same_where_it_trained_as_long_and_nowhere_else():
    assert "ptq_mse" not in RESULTS["total"]["accuracy"]
    assert offers(FIVE, "total")["ptq_mse"] == offers(FIVE)["ptq_mse"]
    assert "ptq_mse" not in offers(FIVE, "total", results={name: RESULTS[name] for name in ("steps", "total")})
    other = RESULTS["backprops"] | {"setup": {"data": "others"}}
    assert "ptq_mse" not in offers(FIVE, "total", results=RESULTS | {"backprops": other})
    without = {name: row for name, row in RESULTS["total"]["accuracy"].items() if name != "qat"}
    assert "qat" not in offers(FIVE, "total", results=RESULTS | {"total": RESULTS["total"] | {"accuracy": without}})


# --- bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "packed", "one", "apart"),
    [
        (["W2A2"], True, 120, 120),
        (["W2A2"], False, 420, 420),
        (["W2A2", "W2A8"], True, 120, 240),  # the same codes
        (["W1A1", "W4A4"], True, 150, 250),
        (["W1A1", "W4A4"], False, 420, 840),
        (["W8A8", "W16A16", "W7A7", "W6A6"], True, 420, 770),  # floats are fewer bytes than 470
        (["W4A4", "FP"], True, 420, 560),
    ],
)
def test_bytes(pairs, packed, one, apart):
    found = offers(pairs, packed=packed)
    assert found["qat"].bytes == apart
    assert found["ptq_mse"].bytes == found["mebqat"].bytes == found["mebqat_in_turn"].bytes == one


def test_weights_are_counted_as_by_the_package():
    net = mq.quantize(mq.models.digit_net(), "dorefa", sample=(data := mq.datasets.digits()).train.images[:64])
    sizes = decisions.weights(net, data.test.images[0])
    for pair in ("W1A1", "W4A4", "W8A8", "FP"):
        whole = int(mq.costs.by_layer(net, data.test.images[0], pair).bytes.sum())
        assert sizes.total(mq.Bits.parse(pair).w) == whole


# --- the picture -----------------------------------------------------------------------------------------------

POSITIONS = list(itertools.product(DELIVERED.values(), RESULTS, (True, False), (True, False)))


@pytest.fixture(scope="module")
def drawing():
    return picture(RESULTS, SIZES)


@pytest.mark.parametrize(("pairs", "budget", "packed", "at_worst"), POSITIONS)
def test_the_figure_shows_what_was_computed(drawing, pairs, budget, packed, at_worst):
    found = compute(RESULTS, SIZES, pairs, budget, packed, at_worst)
    assert drawing.update(found) == say(found) == drawing.figure.get_label()
    for axes, name in zip(drawing.figure.axes, ("accuracy", "backprops", "bytes"), strict=True):
        marks = [line for line in axes.lines if line.get_markersize() == 6.5]
        drawn, right = [line.get_xdata()[0] for line in marks], [getattr(o, name) for o in found.offers.values()]
        assert drawn == pytest.approx(right, nan_ok=True)
        low, high = axes.get_xlim()
        assert all(low < value < high for value in right if not np.isnan(value))
    bars = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "|"]
    for bar, offer in zip(bars, found.offers.values(), strict=True):
        ends = [offer.accuracy - offer.half, offer.accuracy + offer.half]
        assert list(bar.get_xdata()) == ([] if np.isnan(offer.accuracy) else ends)


def test_methods_that_were_not_trained_are_said(drawing):
    found = compute({"total": RESULTS["total"]}, SIZES, FIVE, "total", True, False)
    assert list(found.offers) == [name for name in TITLES if name != "ptq_mse"]
    drawing.update(found)
    words = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert words.count("not trained with this budget") == 1


def test_a_bound_is_not_called_the_interval():
    for pairs, is_bound in ((FIVE, True), (["W1A1"], False)):
        found = compute(RESULTS, SIZES, pairs, "backprops", True, False)
        assert ("true intervals may be narrower" in say(found)) == is_bound
        assert ("is at most so wide" in describe(found)) == is_bound


def test_a_still_figure_carries_its_words():
    words = still(RESULTS, SIZES, "all 75", "total", packed=False, at_worst=True).get_label()
    assert words.startswith("worst of K = 75 pairs, what is equal: total, as floats. FP + PTQ-MSE 28.3 ±2.0 at W1A1")


# --- the widget ------------------------------------------------------------------------------------------------


def test_every_control_changes_the_picture_at_every_position(monkeypatch):
    live = decision_calculator(RESULTS, SIZES)
    assert all(control.description for control in live.controls.values())
    monkeypatch.setattr(live.drawings[0]._canvas, "draw", lambda *args: pytest.fail("the whole figure is drawn again"))
    values = [list(DELIVERED), list(RESULTS), (True, False), (True, False)]
    pictures = set()
    for position in itertools.product(*values):
        for control, value in zip(live.controls.values(), position, strict=True):
            control.value = value
        assert live.error.value == "" and live.pictures[0].alt == say(live.result)
        pictures.add(live.pictures[0].value)
    assert len(pictures) == len(POSITIONS)
