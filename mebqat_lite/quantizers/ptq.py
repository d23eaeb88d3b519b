"""Post-training quantization (PTQ): steps are chosen from trained weights and calibration images, without training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mebqat_lite.bits import WIDTHS
from mebqat_lite.quantizers import (
    TINY,
    Params,
    Quantizer,
    Site,
    fake_quantize,
    integer_range,
    register,
    wide,
)

SAMPLES = 20_000  # activation values that the search for a step looks at


def mse_step(x: Tensor, low: int, high: int, tries: int = 50) -> Tensor:
    """Find the step with the least mean squared error for each row of ``x``, (rows, values); returns (rows, 1).

    The search starts from the smallest step that clips nothing. It tries ``tries`` evenly spaced fractions of that
    step, and then as many between the neighbours of the best fraction.
    """
    most = torch.maximum(x.amax(1, keepdim=True) / max(high, 1), x.amin(1, keepdim=True) / min(low, -1))
    coarse = torch.linspace(1 / tries, 1, tries).to(x)
    best = _best_fraction(x, most, coarse.expand(len(x), tries), low, high)  # (rows, 1)
    fine = best + torch.linspace(-1, 1, tries).to(x) / tries  # (rows, tries)
    best = _best_fraction(x, most, fine.clamp_min(0.1 / tries), low, high)
    return (most * best).clamp_min(TINY)


def _best_fraction(x: Tensor, most: Tensor, fractions: Tensor, low: int, high: int) -> Tensor:
    """Choose for each row the fraction of the step ``most`` that has the least squared error.

    x: (rows, values); most: (rows, 1); fractions: (rows, tries). Returns (rows, 1).
    """
    errors = [
        (fake_quantize(x, (most * fraction[:, None]).clamp_min(TINY), low, high) - x).square().mean(1)
        for fraction in fractions.unbind(1)
    ]
    return fractions.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))


class _Straight(Function):
    """Take the value ``q`` for ``x``; the gradient passes to ``x`` where it is in (low, high), and is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


def _fixed_step(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Compute `fake_quantize` with a straight-through gradient for ``x``, and none for the step."""
    step = step.detach()
    return _Straight.apply(x, fake_quantize(x.detach(), step, low, high), low * wide(step), high * wide(step))


class LeastSquares(Quantizer):
    """Uniform quantizer with the steps of least squared error: one per output channel, and one per layer input.

    At one bit a weight is sign(w) times the mean ``|w|`` of its channel, and an activation is 0 or the step s. Steps
    are chosen once and never trained. The gradient of weights and activations passes straight through inside the
    clip, and for all one-bit weights; so a network can be trained on with the steps that it has.
    """

    one_bit = True
    signed_inputs = True
    clips_at_zero = True
    weight_widths = activation_widths = WIDTHS

    def learns(self, name: str) -> bool:
        """Return False, because the steps are never trained."""
        return False

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Choose the steps of every bitwidth: ``w<bits>``, (out, 1, ...), and ``a<bits>``, a scalar."""
        if site.role != "body":
            return {}
        rows = wide(w.detach()).flatten(1)  # (out, in * height * width)
        shape = (-1, *[1] * (w.dim() - 1))
        sample = torch.ones(1, 1) if x is None else _subsample(x)
        steps = {}
        for bits in WIDTHS[:-1]:
            by_mean = bits == 1 or x is None
            w_step = rows.abs().mean(1) if by_mean else mse_step(rows, *integer_range(bits, True))
            steps[f"w{bits}"] = w_step.reshape(shape).to(w)
            steps[f"a{bits}"] = mse_step(sample, *_input_range(bits, site)).reshape(()).to(w)
        return steps

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute s clip(round(w / s), -2^(b-1), 2^(b-1) - 1) with a step s for each output channel."""
        if bits == 1:
            return _Straight.apply(w, torch.copysign(params["w1"], w + 0.0).detach(), -math.inf, math.inf)
        return _fixed_step(w, params[f"w{bits}"], *integer_range(bits, signed=True))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute s clip(round(x / s), 0, 2^b - 1), or with signed codes if the input is signed and bits > 1."""
        return _fixed_step(x, params[f"a{bits}"], *_input_range(bits, site))

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """The weights are multiples of their channel's step; at one bit they are minus or plus that step."""
        step = params[f"w{bits}"].detach()
        return (2 * step, 0.5) if bits == 1 else (step, float(2 ** (bits - 1)))

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """The activations are multiples of the step."""
        return params[f"a{bits}"].detach(), *_input_range(bits, site)


def _input_range(bits: int, site: Site) -> tuple[int, int]:
    """Return the lowest and highest code of a layer's input; at one bit they are 0 and 1 even if it is signed."""
    return integer_range(bits, site.signed and bits > 1)


def _subsample(x: Tensor) -> Tensor:
    """Choose at most `SAMPLES` values of ``x`` at random, with a fixed seed; returns (1, values)."""
    flat = x.detach().float().flatten()
    chosen = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return flat[chosen.to(flat.device)][None]


register("least_squares", LeastSquares())
