"""The widgets' pure functions against independent arithmetic, and the widgets without a browser."""

import asyncio
import base64
import importlib
import logging
import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib

import ipywidgets
import numpy as np
import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.course.widgets import explorer as explorer_widget
from mebqat_lite.course.widgets import playground, svg
from mebqat_lite.course.widgets.base import Live
from mebqat_lite.course.widgets.explorer import DIAGONAL, SHIPPED, Explorer
from mebqat_lite.course.widgets.explorer import compute as explore
from mebqat_lite.course.widgets.explorer import picture as map_picture
from mebqat_lite.course.widgets.playground import CHOICES, CLIPS, compute, describe, picture
from mebqat_lite.datasets.base import Data

EXPLORER = importlib.import_module("mebqat_lite.course.widgets.explorer")
WEIGHTS = 0.2 * torch.randn(3000, generator=torch.Generator().manual_seed(1))
ACTIVATIONS = torch.randn(3000, generator=torch.Generator().manual_seed(2)).abs()


def svg_of(html: str) -> ET.Element:
    """The parsed picture in a widget's HTML."""
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def alternative_text(html: str) -> str:
    root = svg_of(html)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title is not None and title.text == root.get("aria-label")
    return title.text


# ---------------------------------------------------------------- the drawing


def test_a_figure_is_well_formed_and_has_an_alternative_text():
    plot = svg.Plot((10, 10, 100, 50), (0, 1), (0, 1))
    plot.axes('x < "y" & z (%)', "y", [(0, "0"), (1, "1")], [(0.5, "<half>")])
    plot.line([0, 0.5, 1], [0, math.nan, 1], svg.Style(svg.BLUE, "3 2", "star"))
    plot.stairs([0, 0.5, 1], [0.2, 0.8], svg.Style(svg.BLACK))
    plot.bars([0, 0.5, 1], [0.2, 0.8], svg.LIGHT)
    drawing = svg.figure(120, 90, 'all of <it> & "more"', *plot.parts)
    assert alternative_text(drawing) == 'all of <it> & "more"'
    assert 'fill="#fff"' in drawing and "nan" not in drawing


def test_numbers_are_rounded_and_have_no_negative_zero():
    assert [svg.num(v) for v in (1 / 3, -0.001, 2.0, 1234.567, 100)] == ["0.33", "0", "2", "1234.57", "100"]


def test_points_outside_an_area_are_drawn_on_its_border():
    plot = svg.Plot((10, 20, 100, 50), (0, 1), (0, 1))
    assert plot.at(0.5, 0.5) == (60, 45)
    assert plot.at(-3, 9) == (10, 20) and plot.at(2, -math.inf) == (110, 70)


@pytest.mark.parametrize("shape", ["circle", *svg.OUTLINES])
def test_every_marker_shape_is_one_element(shape):
    ET.fromstring(svg.marker(1, 2, svg.Style(svg.BLACK, shape=shape), hollow=True))


def test_a_gray_image_holds_its_pixels():
    pixels = torch.arange(6).reshape(2, 3).div(5).tolist()
    link = ET.fromstring(svg.gray_image(0, 0, 30, pixels)).get("href")
    png = base64.b64decode(link.removeprefix("data:image/png;base64,"))
    length = struct.unpack(">I", png[33:37])[0]
    assert struct.unpack(">II", png[16:24]) == (3, 2) and png[37:41] == b"IDAT"
    assert zlib.decompress(png[41 : 41 + length]) == bytes([0, 255, 204, 153, 0, 102, 51, 0])


# ---------------------------------------------------------------- playground: the numbers


def independent(x: np.ndarray, name: str, bits: int, clip: float) -> np.ndarray:
    """The quantizers once more, in numpy and float64."""
    count, spread = 2**bits, clip * x.std(ddof=1)
    if name == "uniform":
        step = spread / (count // 2 - 1)
        return step * np.clip(np.round(x / step), -count // 2, count // 2 - 1)
    if name == "dorefa_activation":
        return np.round(np.clip(x, 0, 1) * (count - 1)) / (count - 1)
    if name == "pact":
        return np.round(np.clip(x / spread, 0, 1) * (count - 1)) / (count - 1) * spread
    v = (np.tanh(x) / np.abs(np.tanh(x)).max() + 1) / 2
    if name == "dorefa":
        code = np.round(v * (count - 1)) / (count - 1)
    else:
        code = (np.minimum(np.floor(v * count), count - 1) + 0.5 * (name == "sat_centred")) / count
    out = 2 * code - 1 if name != "dorefa" or bits > 1 else np.sign(x)
    return out * (x @ out) / (out @ out)  # the factor of least squared error


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_playground_error_is_that_of_independent_arithmetic(name, bits):
    values = ACTIVATIONS if CHOICES[name].kind == "activation" else WEIGHTS
    result, x = compute(values, name, bits, clip=2.2), values.double().numpy()
    out = independent(x, name, bits, 2.2)
    mse = np.mean((out - x) ** 2)
    assert result.mse == pytest.approx(mse, rel=1e-3)
    assert result.sqnr_db == pytest.approx(10 * np.log10(np.mean(x**2) / mse), abs=0.01)
    assert len(result.levels) == len(np.unique(out.round(7))) <= 2**bits


@pytest.mark.parametrize("name", CHOICES)
def test_rounding_and_clipping_error_add_up(name):
    values = ACTIVATIONS if CHOICES[name].kind == "activation" else WEIGHTS
    for bits in (2, 5):
        result = compute(values, name, bits, clip=1.4)
        squares = (result.outputs - result.values).double().square()
        beyond = (values < result.limits[0]) | (values > result.limits[1])
        assert result.errors.total == pytest.approx(float(squares.mean()), rel=1e-6)
        assert result.errors.clipping == pytest.approx(float((squares * beyond).mean()), rel=1e-6)
        assert result.clipped == pytest.approx(100 * float(beyond.sum()) / len(values))
        assert result.by_bits[bits] == result.errors


def test_clipped_share_of_a_uniform_grid_is_known():
    x = torch.linspace(-1, 1, 2001)
    result = compute(x, "uniform", 8, clip=0.5 / float(x.std()))  # levels from -0.5039 to 0.5
    assert result.limits == pytest.approx((-0.5 * 128 / 127, 0.5))
    assert result.clipped == pytest.approx(100 * (500 + 496) / 2001, abs=0.06)


def test_the_curves_hold_what_compute_gives_there():
    result = compute(WEIGHTS, "uniform", 4, clip=3.0)
    assert list(result.by_bits) == list(range(2, 9)) and list(result.by_clip) == CLIPS
    assert result.by_bits[6] == compute(WEIGHTS, "uniform", 6, clip=3.0).errors
    assert result.by_clip[1.0] == compute(WEIGHTS, "uniform", 4, clip=1.0).errors
    assert compute(WEIGHTS, "dorefa", 4).by_clip == {} and compute(WEIGHTS, "dorefa", 4).clip is None


@pytest.mark.parametrize("name", [name for name, choice in CHOICES.items() if not choice.quantizer.one_bit])
def test_one_bit_is_a_message_where_it_is_not_defined(name):
    result = compute(WEIGHTS, name, 1)
    assert "not defined" in result.message and 1 not in result.by_bits and result.levels == []
    assert "not defined" in alternative_text(picture(result)) and "not defined" in describe(result)


def test_one_bit_of_dorefa_is_the_sign_times_the_mean():
    result = compute(WEIGHTS, "dorefa", 1)
    mean = float(WEIGHTS.abs().mean())
    assert result.levels == pytest.approx([-mean, mean]) and result.factor == pytest.approx(1)


@pytest.mark.parametrize("values", [torch.zeros(9), torch.tensor([1.0, math.nan]), torch.ones(1)])
def test_values_without_a_spread_are_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        compute(values, "uniform", 4)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("against", ["bits", "clip"])
def test_the_playground_picture_is_well_formed_and_deterministic(name, against):
    for values in (WEIGHTS, ACTIVATIONS, torch.tensor([-1.0, 0.0, 1.0])):
        for bits in (1, 2, 8):
            drawing = picture(compute(values, name, bits), against)
            assert CHOICES[name].title in alternative_text(drawing)
            assert not re.search(r"nan|inf\b|\d\.\d{3}", re.sub(r">[^<]*<|aria-label=.*?\" ", "><", drawing))
            assert drawing == picture(compute(values, name, bits), against)


# ---------------------------------------------------------------- playground: the widget


def test_every_control_of_the_playground_changes_the_picture():
    live = playground(WEIGHTS)
    moves = {"bits": 5, "clip": 2.0, "against": "clip", "quantizer": "pact"}
    for name, value in moves.items():
        before = live.picture.value
        live.controls[name].value = value
        assert live.picture.value != before and live.error.value == ""
        alternative_text(live.picture.value)


def test_the_clip_is_greyed_out_for_a_quantizer_without_one():
    live = playground(WEIGHTS)
    for name, choice in CHOICES.items():
        live.controls["quantizer"].value = name
        assert live.controls["clip"].disabled == live.controls["against"].disabled != choice.has_clip


def test_the_playground_says_in_place_that_one_bit_is_missing():
    live = playground(WEIGHTS)
    live.controls["bits"].value = 1
    assert "One bit is not defined" in live.picture.value and live.error.value == ""


def test_the_playground_starts_with_a_quantizer_that_suits_the_sign():
    assert playground(WEIGHTS).controls["quantizer"].value == "uniform"
    assert playground(ACTIVATIONS).controls["quantizer"].value == "pact"


def test_the_playground_takes_any_shape_and_size(monkeypatch):
    sizes = []
    module = importlib.import_module("mebqat_lite.course.widgets.playground")
    monkeypatch.setattr(module, "compute", lambda x, *rest: sizes.append(len(x)) or compute(x, *rest))
    playground(torch.randn(41, 1000, requires_grad=True))
    playground(torch.nn.Parameter(torch.randn(4, 3, 3, 3)))
    assert sizes == [math.ceil(41000 / 3), 108]


# ---------------------------------------------------------------- explorer


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
    assert (model.setting.bits, model.setting.norm_stats) == (mq.FP, "running")


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


def test_the_shipped_models_are_there_and_work():
    paths = [mq.paths.shipped("checkpoints", f"{name}.safetensors") for name in SHIPPED.values()]
    if not all(path.is_file() for path in paths):
        pytest.fail("the explorer's checkpoints are not shipped")
    live = explorer_widget()
    assert list(live.curves) == list(SHIPPED) and live.controls["method"].value == "MEBQAT"
    assert min(map(min, live.curves.values())) > 50 and live.error.value == ""


# ---------------------------------------------------------------- what they share


def test_an_exception_in_a_callback_is_shown_in_place_and_logged(caplog):
    slider = ipywidgets.IntSlider(1, 0, 5)
    live = Live({"n": slider}, lambda n: f"<svg>{6 // n}</svg>")
    with caplog.at_level(logging.ERROR):
        slider.value = 0
    assert 'class="mq-error"' in live.error.value and live.picture.value == ""
    assert "ZeroDivisionError: integer division or modulo by zero" in live.error.value
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    slider.value = 3
    assert live.error.value == "" and live.picture.value == "<svg>2</svg>"


def test_the_words_of_an_error_are_escaped():
    live = Live({}, lambda: {}["<b>"])
    assert "KeyError: &#x27;&lt;b&gt;&#x27;" in live.error.value


def test_a_change_made_while_drawing_is_drawn_once_afterwards():
    first, second, seen = ipywidgets.IntText(0), ipywidgets.IntText(0), []

    def render(a: int, b: int) -> str:
        second.value = first.value * 10
        seen.append((a, b))
        return f"{a} {b}"

    live = Live({"a": first, "b": second}, render)
    first.value = 2
    assert seen == [(0, 0), (2, 0), (2, 20)] and live.picture.value == "2 20"


def test_the_package_needs_no_ipywidgets_until_a_widget_is_asked_for():
    code = "import sys, mebqat_lite; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys; sys.modules['ipywidgets'] = None; import mebqat_lite.course.widgets"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "mebqat_lite[lab]"' in run.stderr.splitlines()[-1]
