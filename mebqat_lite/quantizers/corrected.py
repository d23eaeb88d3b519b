"""Weight-bias correction (Banner et al., 2019, section 3): quantized weights keep each channel's mean and spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers.base import Params, Quantizer, Site, get, register
from mebqat_lite.quantizers.functions import wide


class Corrected(Quantizer):
    """A mixin for a quantizer class, whose quantized weights q are corrected to (q - mean q) std w / std q + mean w.

    Mean and standard deviation are those of each output channel, and no gradient flows into them: the gradient of q
    is multiplied by std w / std q. If all q of a channel are equal, this factor is 1. Only the layers whose bits are
    switched are corrected: the first and the last layer keep the weights that the other quantizer gives them, and
    32-bit weights and all activations are those of the other quantizer, too.
    """

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute (code - zero) step with the step and the zero of `weight_grid`, one of each per output channel."""
        if bits == FULL or site.role != "body":
            return super().weight(w, bits, params, site)
        q = super().weight(wide(w), bits, params, site)
        codes, factor, step, zero = self._correct(q, w, bits, params, site)
        straight = q * factor  # only for its gradient
        return ((codes - zero) * step + (straight - straight.detach())).to(w.dtype)

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float | Tensor]:
        """Return the step and the zero of each output channel, both (out, 1, ...); the zero is any number."""
        if site.role != "body":
            return super().weight_grid(w, bits, params, site)
        _, _, step, zero = self._correct(super().weight(wide(w), bits, params, site), w, bits, params, site)
        return step, zero

    @torch.no_grad()
    def _correct(
        self, q: Tensor, w: Tensor, bits: int, params: Params, site: Site
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the codes of ``q``, (out, in, ...), and std w / std q, the new step and the new zero per channel."""
        w, dims = wide(w), list(range(1, w.dim()))
        step, zero = super().weight_grid(w, bits, params, site)
        step = step + (step == 0)  # avoids 0 / 0 if all weights are zero
        codes = (q / step + zero).round()
        spread, mean = torch.std_mean(codes, dims, correction=0, keepdim=True)
        wanted, center = torch.std_mean(w, dims, correction=0, keepdim=True)
        new = wanted / (spread + (spread == 0))
        new = torch.where((spread > 0) & (new > 0), new, step)
        return codes, new / step, new, mean - center / new


def corrected(name: str) -> Quantizer:
    """Make a quantizer with corrected weights from the registered one ``name``, and register it.

    Its name is that of the other one and ``_corrected``; all that `Corrected` does not change is that of the other.

    Raises:
        ValueError: no quantizer ``name`` is registered, or it is corrected already or has no `weight_grid`.
    """
    original = get(name)[1]
    if isinstance(original, Corrected):
        raise ValueError(f"{name} is corrected already")
    if type(original).weight_grid is Quantizer.weight_grid:
        raise ValueError(f"{name} defines no weight_grid(), which the correction needs")
    return register(f"{name}_corrected", _made(type(original), vars(original)))


def _made(kind: type[Quantizer], options: Mapping[str, Any]) -> Quantizer:
    """Make a corrected quantizer of a class, with the attributes ``options``."""
    both = type(f"Corrected{kind.__name__}", (Corrected, kind), {"__reduce__": _parts})
    made: Quantizer = object.__new__(both)
    vars(made).update(options)
    return made


def _parts(made: Quantizer) -> tuple:
    """Say how a copy is made, because Python does not find a class that was made in a function by its name."""
    return _made, (type(made).__bases__[1], vars(made))


for _name in ("dorefa", "sat", "lsq"):
    corrected(_name)
