"""Scale-adjusted training (AdaBits; Jin et al., 2020)."""

from __future__ import annotations

import math

from torch import Tensor

from mebqat_lite.bits import nearest
from mebqat_lite.quantizers.base import Params, Quantizer, Site, register
from mebqat_lite.quantizers.functions import TINY, pact_activation, tanh_weight, unit_grid, wide


class SAT(Quantizer):
    """Scale-adjusted training, the quantizer of AdaBits: rounded-down weights, activations with a learned clip.

    ``form`` is how weights are rounded, ``"floor"`` or ``"centred"`` (see `unit_grid`). ``gradient`` is that of the
    clip, ``"sat"`` or ``"pact"`` (see `pact_activation`). The first and the last layer have 8-bit weights. All
    bitwidths share one clip, unless `give_clips` in `switching.convert` gives some their own (the switchable clip of
    AdaBits).

    Raises:
        ValueError: an unknown ``form`` or ``gradient``.
    """

    edge_bits = 8
    clips_at_zero = True

    def __init__(self, form: str = "floor", gradient: str = "sat") -> None:
        if form not in ("floor", "centred") or gradient not in ("sat", "pact"):
            raise ValueError(f"sat has form floor or centred and gradient sat or pact, not {form}, {gradient}")
        self.form, self.gradient = form, gradient

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Start the clip alpha at 8 in each layer whose input is quantized."""
        return {} if site.role != "body" or site.signed else {"alpha": w.new_tensor(8.0)}

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Quantize weights to 2^bits levels in [-1, 1].

        The last layer, if it is linear, is then rescaled to the standard deviation 1 / sqrt(out_features), because no
        batch norm follows it.
        """
        out = tanh_weight(wide(w), bits, form=self.form)
        return (out * self._rescaling(out) if site.role == "last" and w.dim() == 2 else out).to(w.dtype)

    @staticmethod
    def _rescaling(out: Tensor) -> Tensor:
        """Compute the factor 1 / (sqrt(out_features) std) of weights (out_features, in_features), without gradient."""
        spread = out.detach().std()
        return 1 / (math.sqrt(out.shape[0]) * (spread + (spread == 0)))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute alpha q_b(clip(x / alpha, 0, 1)).

        If bitwidths have their own clips, alpha is that of the nearest bitwidth.
        """
        return pact_activation(x, self._clip(bits, params), bits, sat=self.gradient == "sat")

    @staticmethod
    def _clip(bits: int, params: Params) -> Tensor:
        widths = [int(name[5:]) for name in params if name[5:]]  # alpha2, alpha4, ...
        return params[f"alpha{nearest(bits, widths)}" if widths else "alpha"]

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """The weights are multiples of 2 / 2^b, or of a rescaled step in the last layer.

        Because 2 / 2^b is a power of two, the rescaled step too gives the weights back to the last digit.
        """
        step, zero = unit_grid(bits, self.form)
        if site.role == "last" and w.dim() == 2:
            return self._rescaling(tanh_weight(wide(w), bits, form=self.form)).detach() * step, zero
        return w.new_tensor(step), zero

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """The activations are multiples of alpha / (2^b - 1)."""
        levels = 2**bits - 1
        return (self._clip(bits, params).detach() / levels).abs().clamp_min(TINY), 0, levels


register("sat", SAT())
register("sat_centred", SAT("centred"))
register("sat_pact", SAT(gradient="pact"))
