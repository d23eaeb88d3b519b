"""Double Rounding (Huang et al., 2025): 8-bit integers with a learned step, from which fewer bits are rounded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers.base import NESTED, Params, Site, register
from mebqat_lite.quantizers.functions import TINY, _StepClip, integer_range, wide
from mebqat_lite.quantizers.lsq import LSQ


def halved(codes: Tensor, bits: int) -> Tensor:
    """Round signed 8-bit codes to ``bits`` bits: clip(round(code / 2^(8-b)), -2^(b-1), 2^(b-1) - 1), halves to even."""
    return (codes / 2 ** (NESTED - bits)).round_().clamp_(*integer_range(bits, signed=True))


class _TwiceRounded(_StepClip):
    """Compute step W_b, where W_b are the codes of `halved`, and W_8 = clip(round(x / s), -128, 127).

    The step is 2^(8-b) s. The backward pass, which is inherited, is that of LSQ at b bits, with the codes W_b in place
    of round(x / step). So d out / dx is 1 inside (-2^(b-1), 2^(b-1) - 1) steps, where neither clip changes x, and 0
    outside; d out / dstep is W_b - x / step inside, and the end code outside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, grad_scale: float, bits: int) -> Tensor:
        size = wide(step).abs().clamp_min_(TINY)
        whole = x.div(size / 2 ** (NESTED - bits)).clamp_(*integer_range(NESTED, signed=True)).round_()
        out = halved(whole, bits) * size
        ctx.save_for_backward(x, step, out)
        ctx.low, ctx.high, ctx.grad_scale, ctx.inside = low, high, grad_scale, True
        return out


class DoubleRounding(LSQ):
    """LSQ whose weights have one step s for all bitwidths, and nested integers (Double Rounding; Huang et al., 2025).

    The 8-bit weights are s W_8, and those of b bits are 2^(8-b) s W_b, where W_b is W_8 rounded again (`halved`). So
    one file of 8-bit integers serves 2 to 8 bits, and there are no weights of 16 bits. Activations are those of LSQ.
    """

    weight_widths = (*range(2, NESTED + 1), FULL)

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Start ``w8``, the step s of the weights, at mean|w| / 32, and the steps of activations as LSQ does.

        So the step of 2-bit weights starts at 2 mean|w|, as in LSQ, and 8-bit weights reach 4 mean|w|.
        """
        steps = super().parameters(w, x, site)
        start = {"w8": steps["w2"] / 2 ** (NESTED - 2)} if steps else {}
        return start | {name: step for name, step in steps.items() if name.startswith("a")}

    def step(self, kind: str, bits: int, params: Params) -> Tensor:
        """Return the step at ``bits``, a scalar: 2^(8-b) s for the weights."""
        return params["w8"] * 2 ** (NESTED - bits) if kind == "w" else super().step(kind, bits, params)

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute 2^(8-b) s W_b with W_b = clip(round(W_8 / 2^(8-b)), -2^(b-1), 2^(b-1) - 1).

        The gradient passes to w inside the clip. That of s is 2^(8-b) W_b - w / s inside the clip and 2^(8-b) times
        the end code outside, times 1 / sqrt(N p) as in LSQ.
        """
        low, high = integer_range(bits, signed=True)
        scale = 1 / math.sqrt(w.numel() * high)
        return _TwiceRounded.apply(wide(w), self.step("w", bits, params), low, high, scale, bits).to(w.dtype)

    def cut(self, codes: Tensor, bits: int) -> Tensor:
        """Round 8-bit codes, 0 to 255, to codes of ``bits`` bits."""
        return (halved(codes - 2 ** (NESTED - 1), bits) + 2 ** (bits - 1)).to(torch.int32)


register("double_rounding", DoubleRounding())
