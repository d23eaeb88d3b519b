"""A network at a pair: its numbers against a plain loop, and its answers under the images."""

import importlib
import math

import pytest
import torch
from drawings import svg_of

import mebqat_lite as mq
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.explorer import compute as explore
from mebqat_lite.course.widgets.explorer import image_panel
from mebqat_lite.datasets.base import Data
from mebqat_lite.switching.state import setting_of

EXPLORER = importlib.import_module("mebqat_lite.course.widgets.explorer")


@pytest.fixture(scope="module")
def data() -> Data:
    whole = mq.datasets.digits()
    few = torch.arange(100)
    return Data("few", whole.train.take(few), whole.val, whole.test.take(few), whole.classes)


def small_model(data: Data, quantizer: str = "dorefa") -> torch.nn.Module:
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=data.train.images)


@pytest.mark.parametrize("bits", ["W2A2", "FP", "W32A4", "W3A1"])
def test_explorer_accuracy_is_that_of_a_plain_loop(data, bits):
    result = explore(small_model(data), data, bits, first_image=20)
    model = mq.recalibrate(small_model(data), data.train.images, bits).eval()
    with mq.at(model, bits, "recalibrated"), torch.no_grad():
        answers = torch.cat([model(image[None]).argmax(1) for image in data.test.images])  # one by one
    right = sum(a == b for a, b in zip(answers.tolist(), data.test.labels.tolist(), strict=True))
    assert (result.correct, result.total, result.accuracy) == (right, 100, pytest.approx(right))
    assert result.predictions == answers[20:30].tolist()
    assert result.labels == data.test.labels[20:30].tolist()
    assert result.milliseconds > 0 and str(result.bits) == bits


def test_packed_bytes_are_counted_from_the_weights(data):
    result = explore(small_model(data), data, "W3A2")
    body, edges = 3 * 4 * 4 * 9, 4 * 9 + 10 * 4  # weights: three convolutions; first convolution, linear layer
    assert result.packed_fp == 4 * (body + edges + 10)
    assert result.packed == 3 * math.ceil(4 * 4 * 9 * 3 / 8) + 4 * (edges + 10)


def test_statistics_are_measured_once_for_a_pair_and_the_model_is_left_as_it_was(data, monkeypatch):
    model = small_model(data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explore(model, data, "W2A2")
    monkeypatch.setattr(EXPLORER, "recalibrate", lambda *args: pytest.fail("measured again"))
    explore(model, data, "W2A2")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert (setting_of(model).bits, setting_of(model).norm_stats) == (mq.FP, "running")


def test_wrong_answers_are_marked_by_shape_and_colour(data):
    result = explore(small_model(data), data, "FP")
    wrong = sum(a != b for a, b in zip(result.predictions, result.labels, strict=True))
    drawing = svg.figure(800, 362, "answers", image_panel(result, data.test))
    frames = [rect.get("stroke") for rect in svg_of(drawing).iter("{http://www.w3.org/2000/svg}rect")]
    assert 0 < wrong <= 10 and frames.count(svg.VERMILION) == wrong
    assert drawing.count("says ") == drawing.count("true ") == 10
