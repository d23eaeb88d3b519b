"""What quantized values keep for their backward pass: of an activation one byte, of a weight nothing but itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mebqat_lite.quantizers.functions import tanh_weight, unit_activation

NEXT_TO_ONE = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
EDGES = [0.0, -0.0, 1.0, NEXT_TO_ONE, 1e-45, -1e-45, 0.5, -1.0, 2.0, math.inf, -math.inf, math.nan]


def gradient(x, grad, bits):
    x = x.clone().requires_grad_()
    unit_activation(x, bits).backward(grad)
    return x.grad


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    arrays.arrays("float32", 12, elements=st.floats(-2, 3, width=32) | st.sampled_from(EDGES)),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 16),
)
def test_the_gradient_passes_strictly_inside_the_clip(values, dtype, bits):
    x, grad = torch.tensor(values).to(dtype), torch.linspace(-3, 3, 12).to(dtype)
    assert torch.equal(gradient(x, grad, bits), torch.ops.aten.hardtanh_backward(grad, x, 0.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", EDGES)
def test_a_long_row_has_the_gradient_of_the_clip_too(value, dtype):
    """PyTorch computes long rows in groups of values, where a NaN gets another gradient than at the end of a row."""
    x = torch.full((101,), value, dtype=dtype)
    grad = torch.linspace(-3, 3, 101, dtype=dtype)
    assert torch.equal(gradient(x, grad, 2), torch.ops.aten.hardtanh_backward(grad, x, 0.0, 1.0))


@pytest.mark.parametrize("value", EDGES)
def test_an_infinite_gradient_stays_outside(value):
    x, grad = torch.tensor([value]), torch.tensor([math.inf])
    assert torch.equal(gradient(x, grad, 2), torch.ops.aten.hardtanh_backward(grad, x, 0.0, 1.0))


def test_one_byte_is_kept_for_each_value():
    x, kept = torch.rand(4, 8, 16, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        unit_activation(x, 4)
    assert [t.untyped_storage().nbytes() for t in kept] == [x.numel()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["round", "floor", "centred"])
def test_of_weights_nothing_is_kept_but_the_weights(form, dtype):
    w, kept = torch.randn(8, 4, 3, 3, dtype=dtype).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tanh_weight(w, 4, form=form)
    assert [t.data_ptr() == w.data_ptr() for t in kept if t.numel() > 1] == [True]


@pytest.mark.parametrize("values", [[0.5, -2.0, 1.0], [2.0, -2.0, 0.1, 2.0], [0.0, 0.0]])
def test_the_gradient_of_weights_that_share_the_maximum(values):
    """It is that of (tanh(w) / max|tanh(w)| + 1) / 2 times 2, where several largest values share the maximum's part."""
    w = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    grad = torch.linspace(-1, 2, len(values), dtype=torch.float64)
    (found,) = torch.autograd.grad(tanh_weight(w, 3), w, grad)
    t = w.tanh()
    peak = t.abs().amax()
    (wanted,) = torch.autograd.grad(t / (peak + (peak == 0)), w, grad)
    torch.testing.assert_close(found, wanted)
