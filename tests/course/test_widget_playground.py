"""The quantizer playground: its numbers against independent arithmetic, and the widget without a browser."""

import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from mebqat_lite.course.widgets.playground import CHOICES, CLIPS, compute, describe, inputs_of, picture, playground, say
from mebqat_lite.measure import looks
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.state import set_bits

WEIGHTS = 0.2 * torch.randn(3000, generator=torch.Generator().manual_seed(1))
ACTIVATIONS = torch.randn(3000, generator=torch.Generator().manual_seed(2)).abs()


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
    assert "not defined" in say(result) and "not defined" in describe(result)


def test_one_bit_of_dorefa_is_the_sign_times_the_mean():
    result = compute(WEIGHTS, "dorefa", 1)
    mean = float(WEIGHTS.abs().mean())
    assert result.levels == pytest.approx([-mean, mean]) and result.factor == pytest.approx(1)


@pytest.mark.parametrize("values", [torch.zeros(9), torch.tensor([1.0, math.nan]), torch.ones(1)])
def test_values_without_a_spread_are_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        compute(values, "uniform", 4)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_stairs_are_the_outputs_of_evenly_spaced_inputs(name, bits):
    values = ACTIVATIONS if CHOICES[name].kind == "activation" else WEIGHTS
    result = compute(values, name, bits, clip=2.2)
    gaps, reach = result.inputs.diff(), float(result.inputs.abs().max())
    assert float(gaps.max() - gaps.min()) < 1e-3 * float(gaps.mean())
    assert 6.3 * result.unit < reach or (
        CHOICES[name].form and reach == pytest.approx(float(values.abs().max()), rel=1e-2)
    )
    at = torch.searchsorted(result.inputs, values).clamp(1, len(result.inputs) - 1)
    low, high = (result.stairs[at - k] for k in (1, 0))  # at the inputs on both sides of each value
    within = (values >= result.inputs[0]) & (values <= result.inputs[-1])
    slack = 1e-5 * result.unit
    assert bool(((low - slack <= result.outputs) & (result.outputs <= high + slack))[within].all())


def test_nothing_is_flat_where_nothing_is_clipped():
    result = compute(WEIGHTS, "uniform", 8, clip=6.0)
    free = (result.inputs > result.limits[0]) & (result.inputs < result.limits[1])
    step = 6 * result.unit / 127
    assert float((result.stairs - result.inputs)[free].abs().max()) <= step / 2 + 1e-6
    assert float(result.inputs[free].max()) > 1.4 * float(WEIGHTS.max())  # also where there are no values


# ---------------------------------------------------------------- playground: the picture


def drawn(*moves: tuple[str, int, float]) -> np.ndarray:
    """The pixels of a picture that was moved, drawn anew as a whole."""
    made = picture()
    for name, bits, clip in moves:
        made.update(compute(ACTIVATIONS if CHOICES[name].kind == "activation" else WEIGHTS, name, bits, clip))
    canvas = FigureCanvasAgg(made.figure)
    canvas.draw()
    plt.close(made.figure)
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


MOVES = st.tuples(st.sampled_from(list(CHOICES)), st.integers(1, 8), st.integers(2, 60).map(lambda n: n / 10))


@given(st.lists(MOVES, min_size=2, max_size=3))
@settings(max_examples=5, deadline=None)
def test_the_picture_shows_the_last_result_whatever_was_shown_before(moves):
    assert np.array_equal(drawn(*moves), drawn(moves[-1]))


@pytest.mark.parametrize("moves", [("uniform", 8, 6.0), ("sat", 2, 3.0), ("pact", 1, 3.0)])
def test_the_picture_fits_the_page_in_letters_that_can_be_read(moves):
    made, (name, bits, clip) = picture(), moves
    made.update(compute(ACTIVATIONS if name == "pact" else WEIGHTS, name, bits, clip))
    made.figure.canvas.draw()
    drawn = made.figure.get_tightbbox()
    assert drawn.x0 > -0.02 and drawn.x1 < looks.PAGE + 0.02
    assert min(text.get_fontsize() for text in made.figure.findobj(Text) if text.get_text()) >= looks.SMALLEST
    plt.close(made.figure)


def test_the_live_picture_is_the_still_one():
    live = playground(WEIGHTS, ACTIVATIONS)
    for name, value in (("quantizer", "pact"), ("bits", 3), ("clip", 1.5)):
        live.controls[name].value = value
    shown = np.asarray(Image.open(io.BytesIO(live.pictures[0].value)))
    assert np.array_equal(shown, drawn(("pact", 3, 1.5)))


def test_the_picture_in_words_has_its_numbers():
    result, made = compute(WEIGHTS, "uniform", 4, 2.5), picture()
    words = made.update(result)
    assert words == (
        "uniform signed (LSQ grid), bitwidth 4, clip 2.5 standard deviations: 16 levels in use, "
        f"error {result.sqnr_db:.1f} dB below the signal"
    )
    assert f"{result.clipped:.1f} % of the values clipped" in describe(result)
    plt.close(made.figure)


# ---------------------------------------------------------------- playground: the widget


@pytest.fixture
def live():
    return playground(WEIGHTS, ACTIVATIONS)


def test_every_control_of_the_playground_changes_the_picture(live):
    for name, value in {"bits": 5, "clip": 2.0, "quantizer": "pact"}.items():
        before = live.pictures[0].value, live.pictures[0].alt
        live.controls[name].value = value
        assert live.pictures[0].value != before[0] and live.pictures[0].alt != before[1] and live.error.value == ""


def test_each_quantizer_is_shown_what_it_quantizes(live):
    for name, choice in CHOICES.items():
        live.controls["quantizer"].value = name
        shown = {"weight": WEIGHTS, "activation": ACTIVATIONS}[choice.kind]
        assert live.result.quantizer == name and torch.equal(live.result.values, shown)


def test_the_clip_can_be_moved_only_where_there_is_one(live):
    for name, choice in CHOICES.items():
        live.controls["quantizer"].value = name
        assert live.controls["clip"].disabled != choice.has_clip
        assert bool(live.pictures[0].area) == choice.has_clip


@pytest.mark.parametrize(
    ("name", "share"), [("uniform", (2.0 + 6.4) / 12.8), ("uniform", 4.4 / 12.8), ("pact", 2.0 / 6.4)]
)
def test_the_clip_is_dragged_to_where_the_pointer_is_on_either_side(live, name, share):
    live.controls["quantizer"].value = name
    live.pictures[0].point = [share, 0.9]
    assert live.controls["clip"].value == live.result.clip == 2.0 and live.error.value == ""


def test_arrow_keys_move_the_clip_as_far_as_its_slider_goes(live):
    picture = live.pictures[0]
    picture.steps = [1, 0]
    assert live.result.clip == 3.1
    picture.steps = [1, -5]
    assert live.result.clip == 2.6
    picture.steps = [500, -5]
    assert live.result.clip == CLIPS[-1]


def test_the_playground_says_in_place_that_one_bit_is_missing(live):
    live.controls["bits"].value = 1
    assert "One bit is not defined" in live.words.value and "not defined" in live.pictures[0].alt
    assert live.error.value == ""


def test_the_playground_takes_any_shape_and_size():
    live = playground(torch.randn(41, 1000, requires_grad=True), torch.nn.Parameter(torch.rand(4, 3, 3, 3)))
    assert len(live.result.values) == math.ceil(41000 / 5)
    live.controls["quantizer"].value = "pact"
    assert len(live.result.values) == 108


def test_what_a_layer_reads_is_taken_at_full_precision():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 3), torch.nn.Conv2d(2, 2, 3)
    )
    images = torch.randn(5, 1, 9, 9, generator=torch.Generator().manual_seed(3))
    model = quantize(net, "dorefa", sample=images).train()
    set_bits(model, "W1A1")
    hooks = len(model.get_submodule("2")._forward_pre_hooks)
    read = inputs_of(model, "2", images)
    assert torch.allclose(read, torch.relu(model.get_submodule("0")(images)), atol=1e-6) and not read.requires_grad
    assert model.training and len(model.get_submodule("2")._forward_pre_hooks) == hooks
