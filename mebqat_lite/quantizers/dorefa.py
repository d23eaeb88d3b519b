"""DoReFa (Zhou et al., 2016), in the scaled form of Any-Precision."""

from __future__ import annotations

import torch
from torch import Tensor

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers.base import Params, Quantizer, Site, register
from mebqat_lite.quantizers.functions import TINY, sign_weight, tanh_weight, unit_activation, unit_grid, wide


class DoReFa(Quantizer):
    """DoReFa in the scaled form of Any-Precision: weights squashed by tanh times mean|w|, activations in [0, 1].

    At full precision the network is the plain float model. With ``fp_tanh=True`` it keeps the tanh and the scale
    there too, as Any-Precision does. These are two different networks: weights trained for one do not suit the other.
    """

    one_bit = True
    clips_at_zero = True

    def __init__(self, fp_tanh: bool = False) -> None:
        self.float_weights = not fp_tanh

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute mean|w| (2 q_b((u + 1) / 2) - 1) with u = tanh(w) / max|tanh(w)|, see `tanh_weight`.

        One bit gives sign(w) mean|w|, and 32 bits, with ``fp_tanh`` only, give mean|w| u.
        """
        if bits == 1:
            return sign_weight(w)
        scale = wide(w.detach()).abs().mean()
        if bits < FULL:
            return tanh_weight(w, bits, scale)
        t = w.tanh()
        return t * (scale / t.abs().max().clamp_min(TINY))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute q_b(clip(x, 0, 1))."""
        return unit_activation(x, bits)

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """The weights are odd multiples of mean|w| / (2^b - 1), so the zero lies halfway between two codes."""
        step, zero = unit_grid(bits, "round")
        return wide(w.detach()).abs().mean() * step, zero

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """The activations are multiples of 1 / (2^b - 1)."""
        levels = 2**bits - 1
        return torch.tensor(1 / levels, dtype=torch.float64), 0, levels


register("dorefa", DoReFa())
register("dorefa_fp_tanh", DoReFa(fp_tanh=True))
