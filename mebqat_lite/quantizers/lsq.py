"""Learned step size quantization (LSQ; Esser et al., 2020), one step per bitwidth."""

from __future__ import annotations

import math

from torch import Tensor

from mebqat_lite.bits import FULL, WIDTHS
from mebqat_lite.quantizers.base import Params, Quantizer, Site, check_listed, register
from mebqat_lite.quantizers.functions import TINY, integer_range, step_clip


class LSQ(Quantizer):
    """Learned step size: each layer learns one step per bitwidth for its weights, and one for its input.

    ``w2`` is the step of two-bit weights, ``a4`` that of four-bit activations. A step that a training pass does not use
    gets no gradient, so the bitwidths do not disturb one another.
    """

    signed_inputs = True
    clips_at_zero = True
    step_lr = 0.01  # steps are that much smaller than weights, and Adam moves all numbers alike
    widths = tuple(bits for bits in WIDTHS if 1 < bits < FULL)  # that have a step

    def check(self, bits: int) -> None:
        """Refuse bits that have no step."""
        super().check(bits)
        check_listed(self, bits)

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Start each step at 2 mean|.| / sqrt(p), with p the highest code: of the weights, and of the layer's input."""
        if site.role != "body":
            return {}
        steps = {}
        for bits in self.widths:
            p_w, p_a = integer_range(bits, True)[1], integer_range(bits, site.signed)[1]
            steps[f"w{bits}"] = 2 * w.detach().abs().mean() / math.sqrt(p_w)
            steps[f"a{bits}"] = w.new_tensor(2 * site.mean_abs / math.sqrt(p_a))
        return {name: step.clamp_min(TINY) for name, step in steps.items()}

    def step(self, kind: str, bits: int, params: Params) -> Tensor:
        """The step of the weights (``kind`` is ``w``) or of the activations (``a``) at ``bits``, a scalar."""
        return params[f"{kind}{bits}"]

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(w / s), -2^(b-1), 2^(b-1) - 1), gradient scale 1 / sqrt(N p) with N weights."""
        low, high = integer_range(bits, signed=True)
        return step_clip(w, self.step("w", bits, params), low, high, 1 / math.sqrt(w.numel() * high))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(x / s), 0, 2^b - 1), signed if the input is; gradient scale 1 / sqrt(N p) with N features."""
        low, high = integer_range(bits, site.signed)
        grad_scale = 1 / math.sqrt(self.features(x) * high)
        return step_clip(x, self.step("a", bits, params), low, self.highest(bits, site), grad_scale)

    def features(self, x: Tensor) -> int:
        """N for activations, (batch, ...): the features of one sample."""
        return x[0].numel()

    def highest(self, bits: int, site: Site) -> int:
        """The highest code of an activation: 2^b - 1, or 2^(b-1) - 1 where the input is signed."""
        return integer_range(bits, site.signed)[1]

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Multiples of the learned step, two's complement."""
        return self.step("w", bits, params).detach(), float(2 ** (bits - 1))

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Multiples of the learned step."""
        return self.step("a", bits, params).detach(), integer_range(bits, site.signed)[0], self.highest(bits, site)


register("lsq", LSQ())
