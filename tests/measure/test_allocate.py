"""Bits for each layer: what is measured, what it costs, and the choices, compared with every choice there is."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mebqat_lite as mq
from mebqat_lite.bits import Bits
from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.measure.allocate import front, greedy, prices, scores, solve, total
from mebqat_lite.measure.costs import bit_operations, by_layer
from mebqat_lite.switching.state import setting_of

IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = ["W1A1", "W2A2", "W4A4"]
MIXED = {"body.0.0": "W4A4", "body.1.0": "W1A1", "body.2.0": "W2A2"}


def net(quantizer="dorefa"):
    """A small network whose answers vary with the bits."""
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 6, 6, 6)), quantizer, sample=IMAGES)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, -0.3, 0.6)
    return model.eval()


@pytest.fixture(scope="module")
def split():
    with torch.no_grad():
        labels = mq.recalibrate(net(), IMAGES, "FP")(IMAGES).argmax(1)
    labels[::4] = (labels[::4] + 1) % 10
    return Split(IMAGES, labels)


# ---------------------------------------------------------------- the choices


@st.composite
def tables(draw, most=60):
    """Losses and prices of up to four layers at up to four pairs."""
    layers, pairs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = {"min_size": layers * pairs, "max_size": layers * pairs}
    losses = draw(st.lists(st.integers(-20, 20), **size))
    costs = draw(st.lists(st.integers(1, most), **size))
    names = [f"layer.{i}" for i in range(layers)], [f"W{2 + i}A{2 + i}" for i in range(pairs)]
    return tuple(pd.DataFrame(np.reshape(one, (layers, pairs)), *names) for one in (losses, costs))


def everything(losses, costs):
    """The cost and the loss of every allocation."""
    for picks in itertools.product(range(losses.shape[1]), repeat=len(losses)):
        rows = range(len(losses))
        yield (
            sum(costs.values[i, p] for i, p in zip(rows, picks, strict=True)),
            sum(losses.values[i, p] for i, p in zip(rows, picks, strict=True)),
        )


@settings(max_examples=150, deadline=None)
@given(tables(), st.floats(0, 1))
def test_solve_finds_the_least_loss_that_fits(both, share):
    losses, costs = both
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    budget = least + int(share * (most - least))
    chosen = solve(losses, costs, budget)
    assert list(chosen) == list(losses.index) and total(chosen, costs) <= budget
    assert total(chosen, losses) == min(loss for cost, loss in everything(losses, costs) if cost <= budget)


@settings(max_examples=60, deadline=None)
@given(tables(most=10**13), st.floats(0, 1))
def test_solve_never_exceeds_a_large_budget(both, share):
    losses, costs = both
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    budget = int(least) + int(share * float(most - least))
    assert sum(int(costs.at[layer, str(pair)]) for layer, pair in solve(losses, costs, budget).items()) <= budget


@settings(max_examples=100, deadline=None)
@given(tables(), st.floats(0, 1))
def test_greedy_pays_less_at_each_step_and_stops_where_the_budget_is_met(both, share):
    losses, costs = both
    budget = costs.min(axis=1).sum() + int(share * (costs.max(axis=1).sum() - costs.min(axis=1).sum()))
    path = greedy(lambda found: [-total(one, losses) for one in found], costs, budget)
    paid = [total(one, costs) for one in path]
    assert paid[0] == costs.max(axis=1).sum() and all(a > b for a, b in itertools.pairwise(paid))
    assert paid[-1] <= budget and all(cost > budget for cost in paid[:-1])
    assert all(sum(a[layer] != b[layer] for layer in a) == 1 for a, b in itertools.pairwise(path))


def test_greedy_gives_up_what_costs_least_and_of_equal_prices_the_lowest():
    costs = pd.DataFrame({"W2A2": [1, 1], "W2A8": [1, 1], "W8A8": [4, 2]}, index=["a", "b"])
    worth = {Bits(8, 8): 0, Bits(2, 8): -3, Bits(2, 2): -9}
    path = greedy(lambda found: [worth[one["a"]] + 0.5 * worth[one["b"]] for one in found], costs, 3)
    assert path == [{"a": Bits(8, 8), "b": Bits(8, 8)}, {"a": Bits(2, 8), "b": Bits(8, 8)}]  # 3 / 3 against 1.5 / 1


@pytest.mark.parametrize("budget", [0, -1, 3, float("nan")])
def test_a_budget_that_nothing_fits_is_answered_with_the_least(budget):
    table = pd.DataFrame({"W2A2": [2, 2], "W4A4": [4, 4]}, index=["a", "b"])
    for choose in (lambda: solve(table, table, budget), lambda: greedy(lambda found: [0] * len(found), table, budget)):
        with pytest.raises(ValueError, match="the cheapest pairs of these layers cost 4 together"):
            choose()


def test_a_loss_that_is_not_known_is_refused():
    table = pd.DataFrame({"W2A2": [2.0], "W4A4": [np.nan]}, index=["a"])
    with pytest.raises(ValueError, match="a loss is not finite"):
        solve(table, table.fillna(1), 5)


# ---------------------------------------------------------------- what things cost


def test_prices_are_the_costs_of_the_layers_whose_bits_can_be_chosen():
    model, fixed = net(), {}
    for unit in ("bytes", "bitops"):
        table = prices(model, IMAGES[0], PAIRS, unit)
        assert list(table.index) == list(MIXED) and list(table.columns) == PAIRS
        for setting in (*PAIRS, MIXED):
            frame = by_layer(model, IMAGES[0], setting)
            assert frame[unit][~frame.edge].sum() == total(setting, table)
            fixed.setdefault(unit, set()).add(frame[unit][frame.edge].sum())
    weights = {"bytes": [4 * 6 * 9, 36 * 9, 36 * 9], "bitops": [4 * 6 * 9 * 64, 36 * 9 * 16, 36 * 9 * 16]}
    assert prices(model, IMAGES[0], PAIRS, "bitops").W2A2.tolist() == [4 * one for one in weights["bitops"]]
    assert prices(model, IMAGES[0], PAIRS, "bytes").W4A4.tolist() == [4 * -(-one // 8) for one in weights["bytes"]]
    assert fixed == {"bytes": {4 * (36 + 60)}, "bitops": {1024 * (36 * 64 + 60)}}  # the same whatever is chosen
    with pytest.raises(ValueError, match="no unit 'kilos'; choose one of bytes, bitops"):
        prices(model, IMAGES[0], PAIRS, "kilos")


@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq", "least_squares"])
def test_bytes_are_those_of_the_integers_in_a_packed_file(quantizer, tmp_path):
    from safetensors import safe_open

    model, pair = net(quantizer), "W3A3"
    mq.save_packed(model, tmp_path / "p", pair, calibration=IMAGES)
    frame = by_layer(model, IMAGES[0], pair)
    with safe_open(str(tmp_path / "p"), "pt") as file:
        stored = [name for name in sorted(file.keys()) if name.startswith("codes/")]
        sizes = {name.split("/")[1]: file.get_tensor(name).numel() for name in stored}
    assert sizes == {layer: row.bytes for layer, row in frame.iterrows() if row.w < 32} and len(sizes) >= 3
    assert frame.edge.tolist() == [True, False, False, False, True]


def test_a_layer_that_runs_twice_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.last(F.relu(self.middle(F.relu(self.middle(F.relu(self.first(x)))))))

    model = mq.quantize(Twice(), "dorefa", sample=torch.rand(4, 8))
    frame = by_layer(model, torch.rand(8), "W2A4")
    assert (frame.bytes["middle"], frame.bitops["middle"]) == (16, 2 * 64 * 8)
    assert bit_operations(model, torch.rand(8), "W2A4") == 2 * 64 * 8 + 2 * 64 * 1024


# ---------------------------------------------------------------- what is measured


def everything_of(model):
    setting = setting_of(model)
    then = dict(setting.measured_with.then)
    return (
        setting.now,
        setting.keep_weights,
        model.training,
        then,
        {k: v.clone() for k, v in model.state_dict().items()},
    )


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({layer: st.sampled_from(PAIRS) for layer in MIXED}), min_size=1, max_size=4),
    st.sampled_from(["", "W2A2", "W4A4,FP"]),
    st.sampled_from(["score", "KL"]),
    st.booleans(),
)
def test_scores_leave_nothing_behind_and_give_each_setting_its_own_statistics(split, found, known, metric, training):
    model = net().train(training)
    if known:
        mq.recalibrate(model, IMAGES[:20], known)
    with mq.at(model, MIXED, "batch"):
        before = everything_of(model)
        got = scores(model, split, found, metric=metric, calibration=IMAGES)
        after = everything_of(model)
    assert before[:4] == after[:4] and before[4].keys() == after[4].keys()
    assert all(torch.equal(before[4][name], after[4][name]) for name in after[4])
    for one, value in zip(found, got, strict=True):
        alone = mq.recalibrate(net(), IMAGES, [one, "FP"])
        if metric == "score":
            assert value == mq.accuracy(alone, split, one, "recalibrated")
            continue
        with torch.no_grad(), mq.at(alone, "FP", "recalibrated"):
            p = alone(IMAGES).log_softmax(1)
        with torch.no_grad(), mq.at(alone, one, "recalibrated"):
            q = alone(IMAGES).log_softmax(1)
        assert value == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), abs=1e-6)


def test_kl_is_zero_at_full_precision_and_looks_at_no_label(split):
    pairs, model = ["FP", "W1A1", "W4A4"], net()
    found = scores(model, split, pairs, metric="KL", calibration=IMAGES)
    assert found[0] == pytest.approx(0, abs=1e-7) and found[1] > found[2] > 0
    other = Split(IMAGES, torch.zeros(48, dtype=torch.int64))
    assert scores(model, other, pairs, metric="KL", calibration=IMAGES) == found
    with pytest.raises(ValueError, match="no metric 'kl'; choose score or KL"):
        scores(model, split, pairs, metric="kl")
    with pytest.raises(DataError, match="the metric KL is for classes"):
        scores(model, Split(IMAGES, torch.rand(48, 10)), pairs, metric="KL")


def test_without_calibration_images_the_statistics_of_the_model_are_used(split):
    model = mq.recalibrate(net(), IMAGES, PAIRS)
    mq.set_norm_stats(model, "recalibrated")
    assert scores(model, split, PAIRS) == scores(net(), split, PAIRS, calibration=IMAGES)
    assert scores(model, split, PAIRS, norm_stats="batch") == [mq.accuracy(model, split, b, "batch") for b in PAIRS]


def test_sensitivity_of_several_pairs_beside_a_low_rest(split):
    model, how = net(), {"metric": "KL", "calibration": IMAGES}
    frame = mq.sensitivity(model, split, PAIRS, rest="W2A2", **how)
    assert frame.index.tolist() == [(layer, pair) for layer in MIXED for pair in PAIRS]
    assert list(frame.columns) == ["KL", "loss"] and frame.attrs["measure"] == "KL from FP (nats)"
    whole = scores(model, split, ["W2A2"], **how)[0]
    for (layer, pair), row in frame.iterrows():
        alone = scores(model, split, [{"*": "W2A2", layer: pair}], **how)[0]
        assert row["KL"] == pytest.approx(alone, abs=1e-7)
        assert row["loss"] == row["KL"] - whole
    assert (frame.loss.unstack().W2A2 == 0).all()
    assert mq.sensitivity(model, split, "W1A1", calibration=IMAGES).attrs["measure"] == "accuracy (%)"


def test_the_front_shows_costs_proxy_and_measurement(split):
    model = net()
    losses = mq.sensitivity(model, split, PAIRS, rest="W2A2", metric="KL", calibration=IMAGES).loss.unstack()
    frame = front(model, split, {"low": "W1A1", "mixed": MIXED}, losses, calibration=IMAGES)
    for name, setting in (("low", "W1A1"), ("mixed", MIXED)):
        costs = by_layer(model, IMAGES[0], setting)
        row = frame.loc[name]
        assert (row["bytes"], row["bitops"]) == (costs.bytes.sum(), bit_operations(model, IMAGES[0], setting))
        assert (row["bytes inside"], row["bitops inside"]) == tuple(costs[~costs.edge][["bytes", "bitops"]].sum())
        assert row["summed losses"] == total(setting, losses)
        assert row["accuracy"] == scores(model, split, [setting], calibration=IMAGES)[0]


def test_networks_with_norm_sets_have_none_for_a_map(split):
    model = mq.give_norm_sets(net(), "W2A2,W4A4")
    assert np.isnan(scores(model, split, [MIXED], calibration=IMAGES)[0])
    losses = mq.sensitivity(model, split, ["W2A2", "W4A4"], rest="W2A2", calibration=IMAGES).loss.unstack()
    with pytest.raises(ValueError, match="norm set"):
        solve(losses, prices(model, IMAGES[0], ["W2A2", "W4A4"]), 10**6)
