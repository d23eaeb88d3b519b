"""What a quantized activation keeps for its backward pass: one byte a value, and the gradient is the clip's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mebqat_lite.quantizers.functions import unit_activation

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
