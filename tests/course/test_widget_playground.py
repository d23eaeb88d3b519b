"""The quantizer playground: its numbers against independent arithmetic, and the widget without a browser."""

import importlib
import math
import re

import numpy as np
import pytest
import torch
from drawings import alternative_text

from mebqat_lite.course.widgets import playground
from mebqat_lite.course.widgets.playground import CHOICES, CLIPS, compute, describe, picture

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
