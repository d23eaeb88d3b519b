"""The pure fake-quantization functions, with their gradients.

The derivative of rounding is zero almost everywhere, so nothing could be learned through it. Each function therefore
defines its own backward pass with the straight-through estimator, which treats rounding as the identity. None of the
functions can be differentiated twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TINY = 1e-8  # the smallest value that a step or a clip may have


def q_b(u: Tensor, bits: int) -> Tensor:
    """Round values to the nearest of 2^bits evenly spaced levels from 0 to 1 (DoReFa, Zhou et al., 2016, equation 5).

    u: values in [0, 1], of any shape. With b bits the levels are k / (2^b - 1), k = 0, ..., 2^b - 1. This function
    has no straight-through gradient; the functions below that round like it have one.
    """
    levels = 2**bits - 1
    return u.mul(levels).round_().div_(levels)


def codes(v: Tensor, bits: int, form: str) -> Tensor:
    """Turn values into codes, the whole numbers 0, ..., 2^bits - 1, which are returned as floats.

    v: values in [0, 1], of any shape. `unit_grid` says which weight a code stands for.

    The form ``round`` (DoReFa) computes round((2^b - 1) v). The forms ``floor`` and ``centred`` (AdaBits) both
    compute min(floor(2^b v), 2^b - 1), but their codes stand for different weights.
    """
    if form == "round":
        return v.mul(2**bits - 1).round_()
    return v.mul(2**bits).floor_().clamp_(max=2**bits - 1)


def unit_grid(bits: int, form: str) -> tuple[float, float]:
    """Return the pair (step, zero): a code from `codes` stands for the weight (code - zero) step, which is in [-1, 1].

    ``round``: the weights 2 q_b(v) - 1, from -1 to 1; none of them is 0, since the zero lies between two codes.
    ``floor``: the weights 2 code / 2^b - 1, from -1 to 1 - step.
    ``centred``: the weights of ``floor`` plus half a step, which makes them symmetric about 0.
    """
    if form == "round":
        return 2 / (2**bits - 1), (2**bits - 1) / 2
    return 2 / 2**bits, 2 ** (bits - 1) - (0.5 if form == "centred" else 0.0)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in a type in which sums and codes are precise: bfloat16 and float16 become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Compute step clip(round(x / step), low, high), of the shape and type of ``x``, without a gradient of its own.

    step: a scalar, or a tensor that broadcasts to the shape of ``x``.
    """
    return wide(x).div(step).clamp_(low, high).round_().mul_(step).to(x.dtype)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Compute sum(a b) for two tensors of the same shape.

    If both have the same dense memory layout, this is a dot product, which needs no memory for the products.
    """
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    if not dense or a.stride() != b.stride():
        return (a * b).sum()
    flat = (a.numel(),), (1,)  # in memory order
    return torch.dot(a.as_strided(*flat), b.as_strided(*flat))


def unit_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    """Squash weights of any shape into [0, 1]: return (tanh(w) / peak + 1) / 2 and the scalar peak = max|tanh(w)|."""
    t = wide(w).tanh()
    peak = t.abs().amax()
    peak += peak == 0  # avoids 0 / 0 if all weights are zero
    return t.div(peak * 2).add_(0.5).clamp_(0, 1), peak  # float errors may leave [0, 1]


class _TanhWeight(Function):
    """Compute scale step (code(v) - zero) with v = (u + 1) / 2 and u = tanh(w) / max|tanh(w)|, see `unit_weight`.

    The backward pass treats rounding as the identity, and differentiates the tanh and the maximum. It computes the
    tanh again, which takes less memory than keeping it: the weights are there anyway.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, bits: int, form: str) -> Tensor:
        v, peak = unit_weight(w)
        ctx.save_for_backward(w, peak, scale)
        step, zero = unit_grid(bits, form)
        return codes(v, bits, form).sub_(zero).mul_(scale * step).to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, peak, scale = ctx.saved_tensors
        t = wide(w).tanh()
        grad_t = wide(grad) * (scale / peak)  # the gradient of t for a constant peak
        sign = t.div(peak).trunc_()  # -1 or 1 where |t| is the peak, else 0; ties share its gradient
        grad_t -= sign.mul_(inner_product(grad_t, t) / peak / inner_product(sign, sign).clamp_min_(1))
        return torch.ops.aten.tanh_backward.grad_input(grad_t, t, grad_input=grad_t).to(grad.dtype), None, None, None


class _Sign(Function):
    """Compute sign(w) mean|w|, where the sign of zero is plus; the backward pass is the identity."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.copysign(wide(w).abs().mean(), w + 0.0).to(w.dtype)  # + 0.0 turns -0.0 into 0.0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _UnitClip(Function):
    """Compute q_b(clip(x, 0, 1)); the backward pass lets the gradient through where x is in (0, 1).

    It keeps one byte a value, which says whether the value is inside, and not the values themselves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        if ctx.needs_input_grad[0]:
            inside = torch.ops.aten.hardtanh_backward(x, x, 0.0, 1.0).to(torch.bool)  # x inside, else 0
            # As bytes, which become floats faster than a bool; up to PyTorch 2.11 this view cannot be compiled.
            ctx.save_for_backward(inside if torch.compiler.is_compiling() else inside.view(torch.int8))
        levels = 2**bits - 1
        return wide(x).clamp(0, 1).mul_(levels).round_().div_(levels).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.ops.aten.threshold_backward(grad, ctx.saved_tensors[0].to(grad.dtype), 0), None


class _StepClip(Function):
    """Compute out = step clip(round(x / step), low, high).

    The backward pass uses d out / dx = 1 inside the clip and 0 outside. For the step it uses
    d out / dstep = round(x / step) - x / step inside (LSQ, Esser et al., 2020, equation 3), or 0 inside with
    ``inside=False`` (PACT); outside it is low or high. The gradient of the step is multiplied by ``grad_scale``.

    An optimizer may move a learned step below zero; the step is then taken as its absolute value.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, grad_scale: float, inside: bool) -> Tensor:
        out = fake_quantize(x, wide(step).abs().clamp_min_(TINY), low, high)
        ctx.save_for_backward(x, step, out)
        ctx.low, ctx.high, ctx.grad_scale, ctx.inside = low, high, grad_scale, inside
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, out = ctx.saved_tensors
        size, v = max(abs(float(step)), TINY), wide(x)
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, ctx.low * size, ctx.high * size)
        if v is not x:  # the type of ``out`` is too narrow for its codes
            out = fake_quantize(v, wide(step).abs().clamp_min_(TINY), ctx.low, ctx.high)
        # d out / dstep is out / step, which is the code, everywhere; inside the clip, where grad_x is not 0, x / step
        # is subtracted from it (LSQ), or the code itself, which leaves 0 (PACT). This is done value by value: the
        # difference of two sums, each of which is large, would be rounding error.
        parts = (grad * out).addcmul_(grad_x, x if ctx.inside else out, value=-1)
        grad_step = parts.sum() * math.copysign(ctx.grad_scale / size, float(step))
        return grad_x, grad_step.to(step.dtype).reshape(step.shape), None, None, None, None


def tanh_weight(w: Tensor, bits: int, scale: Tensor | float = 1.0, form: str = "round") -> Tensor:
    """Squash weights by tanh, divide them by their maximum, and round them to 2^bits levels in [-scale, scale].

    w: weights of any shape. ``form="round"`` is DoReFa (Zhou et al., 2016, equation 9), ``"floor"`` and
    ``"centred"`` are AdaBits (Jin et al., 2020), see `codes`. No gradient flows into ``scale``.
    """
    return _TanhWeight.apply(w, torch.as_tensor(scale, dtype=wide(w).dtype, device=w.device), bits, form)


def sign_weight(w: Tensor) -> Tensor:
    """Quantize weights to one bit: each becomes plus or minus the mean of ``|w|`` over the whole tensor.

    w: weights of any shape; a weight of 0 counts as positive. The gradient passes through unchanged, as in MEBQAT.
    """
    return _Sign.apply(w)


def unit_activation(x: Tensor, bits: int) -> Tensor:
    """Quantize activations of any shape as DoReFa does, to q_b(clip(x, 0, 1)).

    The gradient passes straight through where x is in (0, 1), and is 0 elsewhere.
    """
    return _UnitClip.apply(x, bits)


def step_clip(x: Tensor, step: Tensor, low: int, high: int, grad_scale: float = 1.0, inside: bool = True) -> Tensor:
    """Quantize to step clip(round(x / step), low, high) with a learnable ``step`` (LSQ; Esser et al., 2020).

    x: values of any shape; step: a scalar tensor. The gradient of the step is equation 3 of LSQ times ``grad_scale``.
    With ``inside=False`` values inside the clip do not contribute to it, as in PACT.
    """
    return _StepClip.apply(x, step, low, high, grad_scale, inside)


def pact_activation(x: Tensor, alpha: Tensor, bits: int, sat: bool = True) -> Tensor:
    """Quantize activations to alpha q_b(clip(x / alpha, 0, 1)) with a learnable clip ``alpha``, a scalar tensor.

    The derivative with respect to alpha is 1 where x >= alpha. Below alpha it is q_b(x / alpha) - x / alpha (SAT), or
    0 with ``sat=False`` (plain PACT).
    """
    # A learnable clip alpha is the same as a learnable step alpha / (2^bits - 1).
    levels = 2**bits - 1
    return step_clip(x, wide(alpha) / levels, 0, levels, inside=sat)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest code of b bits: -2^(b-1) and 2^(b-1) - 1 if signed, otherwise 0 and 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
