"""The pure fake-quantization functions, with their gradients.

Rounding has no useful derivative, so each function brings its own backward pass, the straight-through estimator: one
fused pass forward, one backward, nothing twice differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TINY = 1e-8  # steps and clips never fall below it


def q_b(u: Tensor, bits: int) -> Tensor:
    """Round ``u`` in [0, 1] to the nearest of 2^bits levels k / (2^bits - 1). No gradient of its own."""
    levels = 2**bits - 1
    return u.mul(levels).round_().div_(levels)


def codes(v: Tensor, bits: int, form: str) -> Tensor:
    """The codes 0 .. 2^bits - 1, still floats, of ``v`` in [0, 1]; the levels that they mean: `unit_grid`.

    ``round``: round((2^b - 1) v) (DoReFa). ``floor`` and ``centred``: min(floor(2^b v), 2^b - 1) (AdaBits).
    """
    if form == "round":
        return v.mul(2**bits - 1).round_()
    return v.mul(2**bits).floor_().clamp_(max=2**bits - 1)


def unit_grid(bits: int, form: str) -> tuple[float, float]:
    """Step and zero of 2^bits levels of [-1, 1]: a code means (code - zero) step.

    ``round``: 2 q_b - 1, the zero is a half-integer. ``floor``: 2 code / 2^b - 1; ``centred``: half a step more.
    """
    if form == "round":
        return 2 / (2**bits - 1), (2**bits - 1) / 2
    return 2 / 2**bits, 2 ** (bits - 1) - (0.5 if form == "centred" else 0.0)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """sum(a b) of two tensors of one shape, without the products in between where both lie in memory alike."""
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    if not dense or a.stride() != b.stride():
        return (a * b).sum()
    flat = (a.numel(),), (1,)  # in memory order
    return torch.dot(a.as_strided(*flat), b.as_strided(*flat))


class _TanhWeight(Function):
    """scale step (code((u + 1) / 2) - zero), u = tanh(w) / max|tanh(w)|: gradient through tanh and the maximum."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, bits: int, form: str) -> Tensor:
        t = w.tanh()
        peak = t.abs().amax()
        peak += peak == 0  # all-zero weights stay finite
        ctx.save_for_backward(t, peak, scale)
        v = t.div(peak * 2).add_(0.5).clamp_(0, 1)  # (u + 1) / 2; the clamp guards the last float digit
        step, zero = unit_grid(bits, form)
        return codes(v, bits, form).sub_(zero).mul_(scale * step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        t, peak, scale = ctx.saved_tensors
        grad_t = grad * (scale / peak)  # d out / dt at a constant maximum
        grad_peak = inner_product(grad_t, t) / peak  # minus d out / d peak, which is spread over the maxima
        sign = t.div(peak).trunc_()  # of the maxima; 0 elsewhere
        grad_t -= sign * (grad_peak / sign.abs().sum().clamp_min_(1))
        return torch.ops.aten.tanh_backward(grad_t, t), None, None, None


class _Sign(Function):
    """sign(w) mean|w| with the identity as gradient; the sign of zero is plus."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.copysign(w.abs().mean(), w + 0.0)  # + 0.0 turns -0.0 into 0.0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _UnitClip(Function):
    """q_b(clip(x, 0, 1)); the gradient passes inside (0, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x)
        levels = 2**bits - 1
        return x.clamp(0, 1).mul_(levels).round_().div_(levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, 0.0, 1.0), None


class _StepClip(Function):
    """step clip(round(x / step), low, high).

    d out / dx is 1 inside the clip, else 0. d out / dstep is low or high outside and round(x / step) - x / step
    inside (LSQ, equation 3); with ``inside=False`` 0 inside (PACT). It is multiplied by ``grad_scale``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, grad_scale: float, inside: bool) -> Tensor:
        out = x.div(step).clamp_(low, high).round_().mul_(step)
        ctx.save_for_backward(x, step, out)
        ctx.low, ctx.high, ctx.grad_scale, ctx.inside = low, high, grad_scale, inside
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, out = ctx.saved_tensors
        size = float(step)
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, ctx.low * size, ctx.high * size)
        # Everywhere out / step is the code; inside, where grad_x is grad, the code loses x / step (or itself).
        lost = inner_product(grad_x, x if ctx.inside else out)
        grad_step = (inner_product(grad, out) - lost) * (ctx.grad_scale / size)
        return grad_x, grad_step.reshape(step.shape), None, None, None, None


def tanh_weight(w: Tensor, bits: int, scale: Tensor | float = 1.0, form: str = "round") -> Tensor:
    """Weights squashed by tanh, normalised by their maximum and rounded to 2^bits levels of [-scale, scale].

    DoReFa (Zhou et al., 2016, equation 9) with ``form="round"``, AdaBits (Jin et al., 2020) with ``"floor"``
    or ``"centred"``. ``scale`` is a constant to the gradient.
    """
    return _TanhWeight.apply(w, torch.as_tensor(scale, dtype=w.dtype, device=w.device), bits, form)


def sign_weight(w: Tensor) -> Tensor:
    """One-bit weights: sign(w) mean|w|, where the sign is never 0; the gradient is the identity."""
    return _Sign.apply(w)


def unit_activation(x: Tensor, bits: int) -> Tensor:
    """DoReFa activations: q_b(clip(x, 0, 1)), straight-through inside (0, 1)."""
    return _UnitClip.apply(x, bits)


def step_clip(x: Tensor, step: Tensor, low: int, high: int, grad_scale: float = 1.0, inside: bool = True) -> Tensor:
    """step clip(round(x / step), low, high) with a learnable scalar ``step`` (LSQ, Esser et al., 2020, eq. 1-3).

    ``inside=False`` drops the gradient of the step inside the clip, which is PACT's.
    """
    return _StepClip.apply(x, step, low, high, grad_scale, inside)


def pact_activation(x: Tensor, alpha: Tensor, bits: int, sat: bool = True) -> Tensor:
    """alpha q_b(clip(x / alpha, 0, 1)): a learnable clip is a learnable step alpha / (2^bits - 1).

    d / dalpha is 1 where x >= alpha; inside it is q_b(x / alpha) - x / alpha (SAT) or 0 (plain PACT).
    """
    levels = 2**bits - 1
    return step_clip(x, alpha / levels, 0, levels, inside=sat)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of a ``bits``-bit integer: -2^(b-1) .. 2^(b-1) - 1, or 0 .. 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
