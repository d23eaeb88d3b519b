"""Lesson 03's norm policies: the numbers against independent arithmetic, and the widget without a browser."""

import importlib
import xml.etree.ElementTree as ET

import pytest
import torch
import torch.nn.functional as F

import mebqat_lite as mq
from mebqat_lite.course.widgets.norm_policies import (
    LAYERS,
    POLICIES,
    SHIPPED,
    compute,
    describe,
    norm_policies,
    picture,
)
from mebqat_lite.paths import shipped

ROOM = importlib.import_module("mebqat_lite.course.widgets.norm_policies")


@pytest.fixture(scope="module")
def data():
    return mq.datasets.digits()


@pytest.fixture
def net():
    return mq.load_model(shipped("checkpoints", "digits-wide-mebqat.safetensors"))[0]


def title_of(html: str) -> str:
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title.text == root.get("aria-label")
    return title.text


@pytest.mark.parametrize("bits", ["W2A2", "FP"])
def test_accuracies_are_those_of_the_package(net, data, bits):
    found = compute(net, data, bits).accuracy
    for policy in ("running", "recalibrated", "batch"):
        assert found[policy] == pytest.approx(mq.accuracy(net, data.test, bits, policy))
    hits = 0.0
    for c in range(10):
        part = mq.datasets.base.Split(data.test.images[data.test.labels == c], data.test.labels[data.test.labels == c])
        hits += mq.accuracy(net, part, bits, "batch") / 100 * len(part.labels)
    assert found["one_class"] == pytest.approx(100 * hits / len(data.test.labels))


def test_what_arrives_at_the_norm_is_what_the_layer_before_computes(net, data):
    result = compute(net, data, "W2A2", "recalibrated")
    assert result.layer == "body.0.1"
    with torch.no_grad(), mq.at(net, "W2A2", "recalibrated"):
        layer, features = net.body[0][0], net.stem(data.test.images).clamp(0, 1)
        codes = (features * 3).round() / 3
        x = F.conv2d(codes, layer.quantized_weight(2), padding=1).double()
    assert torch.allclose(result.arrives[0].double(), x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(result.arrives[1].double(), x.std((0, 2, 3), correction=0), atol=1e-5)


def test_what_the_norm_uses_is_that_of_the_policy(net, data):
    norm = net.body[0][1]
    kept = compute(net, data, "W2A2", "running")
    assert torch.equal(kept.used, torch.stack([norm.running_mean, norm.running_var.sqrt()]))
    measured = compute(net, data, "W2A2", "recalibrated")
    assert torch.equal(measured.used[0], norm.get_buffer("stats_W2A2")[0])
    batch = compute(net, data, "W2A2", "batch")
    assert torch.equal(batch.used, batch.arrives) and batch.ratio == 1 and batch.shift == 0
    zeros = compute(net, data, "W2A2", "one_class")
    assert torch.equal(zeros.arrives, batch.arrives) and 0 < zeros.shift < 0.2


def test_one_class_differs_most_in_the_deepest_layer(net, data):
    shifts = [compute(net, data, "W2A2", "one_class", layer).shift for layer in LAYERS]
    assert shifts == sorted(shifts) and shifts[-1] > 2 * shifts[0]


def test_the_lesson_holds_on_the_shipped_network(net, data):
    result = compute(net, data, "W2A2", "running")
    assert result.ratio > 3 and result.accuracy["running"] < 30 and result.accuracy["one_class"] < 50
    assert min(result.accuracy["recalibrated"], result.accuracy["batch"]) > 95


def test_it_leaves_the_model_as_it_was_and_measures_once(net, data, monkeypatch):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hooks = len(net.body[0][1]._forward_pre_hooks)
    compute(net, data, "W2A2")
    monkeypatch.setattr(ROOM, "recalibrate", lambda *args: pytest.fail("measured again"))
    compute(net, data, "W2A2", "batch")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert len(net.body[0][1]._forward_pre_hooks) == hooks


def test_an_unknown_policy_is_refused(net, data):
    with pytest.raises(ValueError, match="choose one of running, recalibrated, batch, one_class"):
        compute(net, data, "W2A2", "mine")


def test_the_picture_says_what_it_shows(net, data):
    for policy, name in POLICIES.items():
        result = compute(net, data, "W1A1", policy)
        words = title_of(picture(result, "net"))
        assert f"statistics {name}: accuracy {result.accuracy[policy]:.1f} %" in words
        assert all(f"{value:.1f} %" in describe(result, "net") for value in result.accuracy.values())


def test_every_control_of_the_widget_changes_the_picture():
    live = norm_policies()
    moves = [("bits", 3), ("bits", 1), ("bits", 32), ("bits", 4), *(("policy", kind) for kind in [*POLICIES][1:])]
    moves += [("layer", name) for name in LAYERS[1:]]
    moves += [("network", name) for name in [*SHIPPED][1:]]
    for name, value in moves:
        before = live.picture.value
        live.controls[name].value = value
        assert live.picture.value != before and live.error.value == ""
        title_of(live.picture.value)


def test_a_network_for_one_pair_keeps_its_own_statistics(data):
    net, _ = mq.load_model(shipped("checkpoints", "digits-wide-qat_w4a4.safetensors"))
    at_home, away = compute(net, data, "W4A4").accuracy, compute(net, data, "W1A1").accuracy
    assert at_home["running"] > 95 and away["running"] < 60 < away["recalibrated"] < 95
