"""The straight-through widget: its numbers against independent arithmetic, and the view without a browser."""

import importlib
import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mebqat_lite.course.widgets import straight_through
from mebqat_lite.course.widgets.ste import BITS, CHOICES, RANGE, H, compute, describe, picture, slopes

STE = importlib.import_module("mebqat_lite.course.widgets.ste")
CLIP = 1.37
GRID = (np.arange(-2.493, 2.5, 0.0417)).tolist()  # no value at the middle of two levels


def alternative_text(html: str) -> str:
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title is not None and title.text == root.get("aria-label")
    return title.text


def independent(name: str, bits: int, clip: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs and both gradients, from the papers' formulas, in numpy."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if name == "lsq" else (0, 2**bits - 1)
    step = (1.0 if name == "dorefa" else clip) / high
    u = x / step
    code, inside = np.clip(np.round(u), low, high), (u > low) & (u < high)
    size = np.where(inside, code - u, code)  # LSQ, equation 3
    if name in ("sat", "pact"):
        size = np.where(inside, (code - u) / high if name == "sat" else 0, x > 0)
    return step * code, inside.astype(float), size


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bits", [b for b in BITS if b > 1])
def test_outputs_and_gradients_are_those_of_the_formulas(name, bits):
    clip = 1.0 if name == "dorefa" else CLIP
    found, x = slopes(name, bits, clip, GRID), np.array(GRID)
    out, grad_x, grad_size = independent(name, bits, clip, x)
    np.testing.assert_allclose(found.out, out, atol=1e-12)
    np.testing.assert_array_equal(found.grad_x, grad_x)
    if name == "dorefa":
        assert found.grad_size.isnan().all()
    else:
        np.testing.assert_allclose(found.grad_size, grad_size, atol=1e-9)


@pytest.mark.parametrize("name", ["sat", "pact", "lsq"])
def test_the_finite_difference_is_the_code_and_neither_gradient(name):
    found = slopes(name, 3, CLIP, GRID)
    per_code = 1 if name == "lsq" else 7
    step = CLIP / (3 if name == "lsq" else 7)
    apart = np.abs(np.array(GRID) / step % 1 - 0.5) > 0.01  # from the jumps
    codes = (found.out / step).round().numpy()
    np.testing.assert_allclose(found.slope_size[apart], codes[apart] / per_code, atol=1e-6)
    np.testing.assert_allclose(found.slope_x[apart], 0, atol=1e-9)
    inside = found.grad_x.numpy() == 1
    assert (found.slope_size - found.grad_size).abs().numpy()[inside & apart].max() > 0.5


def test_at_a_jump_the_finite_difference_is_the_step_over_2h():
    found = slopes("dorefa", 2, 1.0, [0.5, 0.4])
    assert found.slope_x.tolist() == pytest.approx([1 / 3 / (2 * H), 0])
    assert found.grad_x.tolist() == [1, 1]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bits", [2, 5])
def test_straight_lines_between_the_points_of_the_curve_are_exact(name, bits):
    result = compute(name, bits, CLIP)
    curve = result.curve
    assert (curve.x[0], curve.x[-1]) == RANGE and (curve.x.diff() > 0).all()
    x = np.array(GRID)
    apart = np.abs(x[:, None] - curve.x.numpy()).min(1) > 1e-3  # from the breaks
    out, grad_x, grad_size = (values[apart] for values in independent(name, bits, CLIP, x))
    for values, right in ((curve.out, out), (curve.grad_x, grad_x), (curve.grad_size, grad_size)):
        if not values.isnan().any():
            np.testing.assert_allclose(np.interp(x[apart], curve.x, values), right, atol=1e-6)


@pytest.mark.parametrize("name", ["sat", "pact", "lsq"])
def test_one_bit_is_a_message_where_it_is_not_defined(name):
    result = compute(name, 1)
    assert "not defined" in result.message and result.curve is None
    assert "not defined" in alternative_text(picture(result)) and "not defined" in describe(result)
    assert compute("dorefa", 1).message == ""


def test_dorefa_has_its_own_clip():
    assert compute("dorefa", 3, 2.0).clip == 1.0 and compute("dorefa", 3, 2.0).step == pytest.approx(1 / 7)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("differences", [False, True])
def test_the_picture_is_well_formed_and_deterministic(name, differences):
    for bits in BITS:
        result = compute(name, bits, CLIP, -0.7)
        drawing = picture(result, differences)
        words = alternative_text(drawing)
        assert f"{CHOICES[name].title}, {bits} bits" in words and ("shown" in words) == differences
        plain = re.sub(r">[^<]*<|aria-label=.*?\" ", "><", drawing)
        assert not re.search(r"nan|inf\b|\d\.\d{3}", plain)
        assert drawing == picture(compute(name, bits, CLIP, -0.7), differences)


def test_every_position_of_every_control_changes_the_picture():
    live = straight_through()
    moves = {"bits": [1, 3, 4, 5, 6], "clip": [0.4, 1.4, 1.6], "x": [-2.5, 0.0, 0.65, 2.5]}
    moves |= {"differences": ["shown", "hidden"], "quantizer": ["pact", "lsq", "dorefa", "sat"]}
    for name, values in moves.items():
        for value in values:
            before = live.picture.value
            live.controls[name].value = value
            assert live.picture.value != before and live.error.value == ""
            alternative_text(live.picture.value)


def test_the_clip_is_greyed_out_for_a_quantizer_without_one():
    live = straight_through()
    for name, choice in CHOICES.items():
        live.controls["quantizer"].value = name
        assert live.controls["clip"].disabled == (choice.size == "")


def test_the_numbers_under_the_picture_are_those_of_the_input():
    live = straight_through()
    live.controls["x"].value = 0.6  # 1.5 q(0.4) = 0.5, and q(0.4) - 0.4 = -0.067
    assert "output 0.500; gradient to x 1, finite difference 0" in live.picture.value
    assert "gradient to α -0.067, finite difference 0.3333" in live.picture.value


def test_it_answers_quickly():
    compute("sat", 2)  # PyTorch's first backward pass is slow
    STE._curve.cache_clear()
    started = time.process_time()
    result = compute("sat", 6, CLIP)
    assert len(picture(result, True)) > 1000
    assert time.process_time() - started < 0.2  # 25 ms where it was written
