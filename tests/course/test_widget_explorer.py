"""The explorer: its numbers against a plain loop, and the widget without a browser."""

import asyncio
import importlib
import math

import pytest
import torch
from drawings import alternative_text, svg_of

import mebqat_lite as mq
from mebqat_lite.course.widgets import explorer as explorer_widget
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.explorer import DIAGONAL, SHIPPED, Explorer
from mebqat_lite.course.widgets.explorer import _styles as explorer_styles
from mebqat_lite.course.widgets.explorer import compute as explore
from mebqat_lite.course.widgets.explorer import picture as map_picture
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure.looks import LOOKS
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


def test_every_control_of_the_explorer_changes_the_picture(data):
    live = Explorer({"one": small_model(data), "two": small_model(data, "least_squares")}, data)
    moves = [("w", 4), ("a", 1), ("w", 32), ("a", 32), ("method", "one"), ("first", 50)]
    for name, value in moves:
        before = live.picture.value
        live.controls[name].value = value
        assert svg_of(live.picture.value) is not None and live.picture.value != before
        assert live.error.value == ""
    assert alternative_text(live.picture.value).startswith("one at FP: accuracy")
    assert "test images 50 to 59" in live.picture.value


def test_a_pair_outside_the_candidates_runs_and_says_so(data):
    live = Explorer({"net": small_model(data)}, data)
    for w, a in ((32, 4), (1, 4), (3, 1)):
        live.controls["w"].value, live.controls["a"].value = w, a
        assert f"W{w}A{a} is not one of the 75 pairs: no method trained for it" in live.picture.value
        assert "test images)" in live.picture.value
    live.controls["a"].value = 3
    assert "75 pairs" not in live.picture.value


def test_the_curves_are_measured_for_real(data):
    live = Explorer({"net": small_model(data)}, data)
    frame = mq.grid(small_model(data), data.test, DIAGONAL, norm_stats="recalibrated", calibration=data.train.images)
    assert live.curves["net"] == pytest.approx(frame["mean"].tolist())
    assert live.progress.layout.display == "none"


def test_a_quantizer_without_one_bit_has_no_point_there(data):
    live = Explorer({"lsq": small_model(data, "lsq")}, data)
    assert math.isnan(live.curves["lsq"][0]) and not any(map(math.isnan, live.curves["lsq"][1:]))
    live.controls["w"].value = 1
    assert "ValueError: lsq defines no 1-bit values" in live.error.value
    live.controls["w"].value = 3
    assert live.error.value == "" and "<svg" in live.picture.value


def test_wrong_answers_are_marked_by_shape_and_colour(data):
    result = explore(small_model(data), data, "FP")
    wrong = sum(a != b for a, b in zip(result.predictions, result.labels, strict=True))
    drawing = map_picture(result, "net", {}, data.test)
    frames = [rect.get("stroke") for rect in svg_of(drawing).iter("{http://www.w3.org/2000/svg}rect")]
    assert 0 < wrong <= 10 and frames.count(svg.VERMILION) == wrong
    assert f"{wrong} of the 10 images shown are classified wrongly" in alternative_text(drawing)


def test_in_a_kernel_the_curves_grow_beside_the_controls(data):
    async def kernel() -> Explorer:
        live = Explorer({"net": small_model(data)}, data)
        assert live.curves["net"] == [] and "<svg" in live.picture.value
        live.controls["w"].value = 5
        await asyncio.wait_for(live._task, 60)
        return live

    live = asyncio.run(kernel())
    assert len(live.curves["net"]) == len(DIAGONAL) and "W5A2" in live.picture.value


def test_a_failure_beside_the_controls_is_shown_and_stays(data, monkeypatch):
    def broken(model, data):
        raise RuntimeError("no curve")
        yield

    monkeypatch.setattr(EXPLORER, "diagonal", broken)
    live = Explorer({"net": small_model(data)}, data)
    live.controls["w"].value = 3
    assert "RuntimeError: no curve" in live.error.value and "<svg" in live.picture.value


@pytest.mark.slow
def test_the_shipped_models_are_there_and_work():
    paths = [mq.paths.shipped("checkpoints", f"{name}.safetensors") for name in SHIPPED.values()]
    if not all(path.is_file() for path in paths):
        pytest.fail("the explorer's checkpoints are not shipped")
    live = explorer_widget()
    assert list(live.curves) == list(SHIPPED) and live.controls["method"].value == "MEBQAT"
    assert min(map(min, live.curves.values())) > 50 and live.error.value == ""


def test_the_shipped_networks_have_the_looks_of_their_methods():
    styles = explorer_styles({title: [] for title in SHIPPED}, "MEBQAT")
    names = {title: file.rpartition("-")[2] for title, file in SHIPPED.items()}
    assert {title: style.colour for title, style in styles.items()} == {t: LOOKS[n]["color"] for t, n in names.items()}
    assert styles["MEBQAT"].width > max(style.width for title, style in styles.items() if title != "MEBQAT")
