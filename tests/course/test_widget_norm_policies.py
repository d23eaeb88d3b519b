"""Lesson 03's norm policies: the numbers against independent arithmetic, and the widget without a browser."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from digits import network
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.course.widgets.norm_policies import (
    CHANNELS,
    LAYERS,
    POLICIES,
    SHIPPED,
    Bench,
    ChannelResult,
    compute,
    describe,
    norm_policies,
    picture,
    say,
    still,
)
from mebqat_lite.switching.convert import requantize

ROOM = importlib.import_module("mebqat_lite.course.widgets.norm_policies")


@pytest.fixture(scope="module")
def data():
    return mq.datasets.digits()


@pytest.fixture(scope="module")
def bench(data):
    return Bench(network("mebqat"), data)


@pytest.fixture(scope="module")
def live():
    return norm_policies()


@pytest.mark.parametrize("bits", ["W2A2", "FP"])
def test_accuracies_are_those_of_the_package(bench, data, bits):
    found = compute(bench, bits).accuracy
    for policy in ("running", "recalibrated", "batch"):
        assert found[policy] == pytest.approx(mq.accuracy(bench.model, data.test, bits, policy))
    fixed = requantize(network("mebqat"), "dorefa_corrected", data.train.images[:512])
    assert found["corrected"] == pytest.approx(mq.accuracy(fixed, data.test, bits, "running"))
    hits = 0.0
    for c in range(10):
        part = mq.datasets.base.Split(data.test.images[data.test.labels == c], data.test.labels[data.test.labels == c])
        hits += mq.accuracy(bench.model, part, bits, "batch") / 100 * len(part.labels)
    assert found["one_class"] == pytest.approx(100 * hits / len(data.test.labels))


@pytest.mark.parametrize("channel", [0, 7])
def test_what_arrives_at_the_norm_is_what_the_layer_before_computes(bench, data, channel):
    result = compute(bench, "W2A2", "recalibrated", "body.0.1", channel)
    net = bench.model
    with torch.no_grad(), mq.at(net, "W2A2", "recalibrated"):
        codes = (net.stem(data.test.images).clamp(0, 1) * 3).round() / 3
        x = F.conv2d(codes, net.body[0][0].quantized_weight(2), padding=1)[:, channel]
    assert torch.allclose(result.values, x.flatten(), atol=1e-5)
    assert result.arrives == pytest.approx((float(x.mean()), float(x.std(correction=0))), abs=1e-5)


def test_what_the_norm_uses_is_that_of_the_policy(bench):
    norm = bench.model.body[0][1]
    kept, measured = compute(bench, "W2A2", "running", channel=5), compute(bench, "W2A2", "recalibrated", channel=5)
    assert kept.used == pytest.approx((float(norm.running_mean[5]), float(norm.running_var[5]) ** 0.5), abs=1e-3)
    mean, var = norm.get_buffer("stats_W2A2")[:, 5]
    assert measured.used == pytest.approx((float(mean), float(var) ** 0.5), abs=1e-3)
    assert compute(bench, "W2A2", "corrected", channel=5).used == kept.used
    batch, zeros = compute(bench, "W2A2", "batch"), compute(bench, "W2A2", "one_class")
    assert batch.used == pytest.approx(batch.arrives, abs=1e-3) and torch.equal(zeros.values, batch.values)
    assert zeros.used != pytest.approx(batch.used, abs=1e-3)


@given(st.floats(-3, 3), st.floats(0.2, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_what_leaves_has_the_spread_and_the_mean_that_ratio_and_shift_say(mean, deviation, seed):
    values = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * 1.7 - 0.4
    found = ChannelResult(mq.Bits(2, 2), "running", {}, "body.0.1", 0, values, (mean, deviation), (-1.0, 1.0))
    left = found.leaves.double()
    assert float(left.std(correction=0)) == pytest.approx(1 / found.ratio, rel=1e-4)
    assert float(left.mean()) == pytest.approx(-found.shift / found.ratio, abs=1e-4)


def test_a_batch_of_one_class_misleads_the_deepest_norm_most(bench):
    def shift(layer):
        found = [compute(bench, "W2A2", "one_class", layer, channel).shift for channel in range(CHANNELS)]
        return sum(abs(value) for value in found) / CHANNELS

    shifts = [shift(layer) for layer in LAYERS]
    assert shifts[-1] > 1.3 * max(shifts[:-1])


def test_the_lesson_holds_on_the_shipped_networks(bench, data):
    found = compute(bench, "W2A2").accuracy
    assert max(found["running"], found["one_class"]) < 20 < 93 < min(found[k] for k in ("recalibrated", "corrected"))
    sensor = Bench(network("qat_w1a1"), data)
    here, away = compute(sensor, "W1A1", channel=3), compute(sensor, "W8A8", channel=3)
    assert here.accuracy["running"] > 94 and away.accuracy["running"] < 11 and away.accuracy["recalibrated"] > 90
    assert here.ratio == pytest.approx(1, abs=0.05) and away.ratio > 2.5
    assert away.accuracy["corrected"] < 40  # its statistics were not kept at full precision


def test_the_axis_holds_what_arrives_at_any_bitwidth(bench):
    low, high = compute(bench, "W2A2", channel=4).reach
    for bits in ("W1A1", "W3A3", "W8A8", "FP"):
        values = compute(bench, bits, "batch", channel=4).values
        assert compute(bench, bits, channel=4).reach == (low, high)
        assert float(((values > low) & (values < high)).double().mean()) > 0.98


def test_it_leaves_the_model_as_it_was_and_measures_once(data, monkeypatch):
    net = network("mebqat")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hooks = len(net.body[0][1]._forward_pre_hooks)
    bench = Bench(net, data)
    compute(bench, "W2A2")
    monkeypatch.setattr(ROOM, "recalibrate", lambda *args: pytest.fail("measured again"))
    compute(bench, "W2A2", "recalibrated")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert len(net.body[0][1]._forward_pre_hooks) == hooks


def test_an_unknown_policy_is_refused(bench):
    with pytest.raises(ValueError, match="choose one of running, recalibrated, corrected, batch, one_class"):
        compute(bench, "W2A2", "mine")


# ---------------------------------------------------------------- the picture


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bars_are_as_long_as_the_accuracies_and_the_lines_as_wide_as_the_deviations(bench, policy):
    result, drawing = compute(bench, "W1A1", policy), picture()
    words = drawing.update(result)
    arrives, leaves, bars = drawing.figure.axes
    assert [bar.get_width() for bar in bars.patches] == list(result.accuracy.values())
    own, used = (line.get_xdata() for line in arrives.lines)
    assert (own[1], own[2] - own[1]) == pytest.approx(result.arrives)
    assert (used[1], used[2] - used[1]) == pytest.approx(result.used)
    left = leaves.lines[0].get_xdata()
    assert left[2] - left[1] == pytest.approx(1 / result.ratio, rel=1e-4)
    assert f"statistics {POLICIES[policy]}: accuracy {result.accuracy[policy]:.1f} %" in words == say(result)
    assert f"{result.accuracy[policy]:.1f} %" in describe(result)
    assert [text.get_weight() for text in bars.texts] == ["bold" if kind == policy else "normal" for kind in POLICIES]


def test_a_still_figure_carries_its_words(bench):
    result = compute(bench, "W2A2")
    assert still(result).get_label() == say(result)


# ---------------------------------------------------------------- the widget


def test_every_control_changes_picture_and_words(live):
    moves = [("bits", 3), ("bits", 1), ("bits", 32), ("bits", 8), *(("policy", kind) for kind in [*POLICIES][1:])]
    moves += [("layer", name) for name in LAYERS[1:]] + [("channel", 0), ("channel", 11)]
    moves += [("network", name) for name in [*SHIPPED][1:]]
    for name, value in moves:
        before = live.pictures[0].value, live.pictures[0].alt
        live.controls[name].value = value
        assert live.pictures[0].value != before[0] and live.pictures[0].alt != before[1] and live.error.value == ""


def test_a_bar_is_chosen_by_pointer_and_by_keys(live):
    touch = live.pictures[0]
    for index, kind in enumerate(POLICIES):
        touch.point = [0.5, 1 - (index + 0.75) / (len(POLICIES) + 0.15)]
        assert live.result.policy == live.controls["policy"].value == kind
    touch.steps = [0, 1]
    assert live.result.policy == "batch"
    touch.steps = [0, -9]
    assert live.result.policy == "one_class" and live.error.value == ""


def test_the_channels_are_those_of_the_norms(bench):
    for layer in LAYERS:
        assert bench.norm("running", layer).num_features == CHANNELS
