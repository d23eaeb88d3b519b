"""Learned step size quantization (LSQ; Esser et al., 2020), one step per bitwidth."""

from __future__ import annotations

import math

from torch import Tensor

from mebqat_lite.bits import FULL, WIDTHS
from mebqat_lite.quantizers.base import Params, Quantizer, Site, register
from mebqat_lite.quantizers.functions import TINY, integer_range, step_clip


class LSQ(Quantizer):
    """Learned step size quantization, where a layer learns one step per bitwidth for its weights and for its input.

    ``w2`` is the step of two-bit weights, ``a4`` that of four-bit activations. A step that a training pass does not
    use gets no gradient, so the bitwidths do not disturb one another.
    """

    signed_inputs = True
    clips_at_zero = True
    step_lr = 0.01  # Adam moves all values by about the learning rate, which is too much for small steps
    widths = tuple(bits for bits in WIDTHS if 1 < bits < FULL)  # bitwidths with a step
    weight_widths = activation_widths = (*widths, FULL)

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Start each step at 2 mean|v| / sqrt(p), where v are the weights or the input, and p is the highest code.

        This is the start of LSQ (Esser et al., 2020, section 2.1). Layers that are not quantized learn no steps.
        """
        if site.role != "body":
            return {}
        steps = {}
        for bits in self.widths:
            p_w, p_a = integer_range(bits, True)[1], self.highest(bits, site)
            steps[f"w{bits}"] = 2 * w.detach().abs().mean() / math.sqrt(p_w)
            steps[f"a{bits}"] = w.new_tensor(2 * site.mean_abs / math.sqrt(p_a))
        return {name: step.clamp_min(TINY) for name, step in steps.items()}

    def step(self, kind: str, bits: int, params: Params) -> Tensor:
        """Return the step, a scalar, of the weights (``kind="w"``) or of the activations (``kind="a"``) at ``bits``."""
        return params[f"{kind}{bits}"]

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute s clip(round(w / s), -2^(b-1), 2^(b-1) - 1) with the step s.

        The gradient of the step is scaled by 1 / sqrt(N p), where N is the number of weights and p the highest code
        (Esser et al., 2020, section 2.2).
        """
        low, high = integer_range(bits, signed=True)
        return step_clip(w, self.step("w", bits, params), low, high, 1 / math.sqrt(w.numel() * high))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute s clip(round(x / s), 0, 2^b - 1) with the step s, or with signed codes if the input is signed.

        The gradient of the step is scaled by 1 / sqrt(N p), where N is the number of `features`.
        """
        low, high = integer_range(bits, site.signed)[0], self.highest(bits, site)
        return step_clip(x, self.step("a", bits, params), low, high, 1 / math.sqrt(self.features(x) * high))

    def features(self, x: Tensor) -> int:
        """Return the number of features of one sample of ``x``, (batch, ...)."""
        return x[0].numel()

    def highest(self, bits: int, site: Site) -> int:
        """Return the highest code of an activation: 2^b - 1, or 2^(b-1) - 1 if the input is signed."""
        return integer_range(bits, site.signed)[1]

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """The weights are multiples of the learned step; code 0 stands for the lowest, -2^(b-1) steps."""
        return self.step("w", bits, params).detach().abs().clamp_min(TINY), float(2 ** (bits - 1))

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """The activations are multiples of the learned step."""
        step = self.step("a", bits, params).detach().abs().clamp_min(TINY)
        return step, integer_range(bits, site.signed)[0], self.highest(bits, site)


register("lsq", LSQ())
