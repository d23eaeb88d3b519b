"""Layers whose bitwidth is run-time state: convolution and linear, made by class swap.

All quantized layers of a model share one `Setting`. Switching bits changes that one object and builds nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, FULL, Bits
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.switching.inputs import QuantizedInput
from mebqat_lite.switching.setting import Setting


class QuantizedLayer(nn.Module):
    """Mixin that goes before a convolution or linear class; `convert.quantize` sets the attributes."""

    setting: Setting
    quantizer: Quantizer
    site: Site
    quant: nn.ParameterDict
    shared_input: QuantizedInput
    weight: Tensor

    @property
    def bits(self) -> Bits:
        """The bits in force in this layer: an edge layer keeps its activations and has its own weight bits."""
        bits = self.setting.of(self.site.name)
        if self.site.role != "body":
            return FP if bits == FP else Bits(self.quantizer.edge_bits, FULL)
        blocked = self.site.signed and not self.quantizer.signed_inputs
        return Bits(bits.w, FULL) if blocked else bits

    def forward(self, x: Tensor) -> Tensor:
        """The layer at the bits in force; at FP exactly the float layer."""
        bits = self.bits
        return self.apply_weight(self.shared_input(x, bits.a, self), self.quantized_weight(bits.w))

    @property
    def leader(self) -> QuantizedLayer:
        """The layer whose activation quantizer serves this layer's input."""
        return self.__dict__["leading"] or self

    @property
    def clips_at_zero(self) -> bool:
        """Whether the layer takes negative inputs for zero at the bits in force."""
        return self.bits.a < FULL and self.quantizer.clips_at_zero and not self.site.signed

    def quantized_weight(self, bits: int) -> Tensor:
        """Fake-quantized weights at ``bits``; kept between calls while ``setting.keep_weights``."""
        if bits == FULL and (self.quantizer.float_weights or self.site.role != "body"):
            return self.weight
        if not self.setting.keep_weights:
            return self.quantizer.weight(self.weight, bits, self.quant, self.site)
        kept: dict[int, Tensor] = self.__dict__.setdefault("kept", {})
        if bits not in kept:
            kept[bits] = self.quantizer.weight(self.weight, bits, self.quant, self.site)
        return kept[bits]

    def apply_weight(self, x: Tensor, w: Tensor) -> Tensor:
        """The layer's own arithmetic with the weights ``w``."""
        return self._conv_forward(x, w, self.bias)  # type: ignore[operator]

    def _load_from_state_dict(self, state: dict, prefix: str, local: dict, strict: bool, *rest: list) -> None:
        """Learned steps are additional: a float checkpoint, which has none, loads and leaves them as they are; clips
        of single bitwidths in the file, which the layer lacks, are made.
        """
        start = f"{prefix}quant.alpha"
        for key in [key for key in state if key.startswith(start) and "alpha" in self.quant]:
            self.quant.setdefault(
                key.removeprefix(f"{prefix}quant."), nn.Parameter(self.quant["alpha"].detach().clone())
            )
        for name, value in self.quant.items():
            state.setdefault(f"{prefix}quant.{name}", value.detach())
        super()._load_from_state_dict(state, prefix, local, strict, *rest)


class QuantConv1d(QuantizedLayer, nn.Conv1d):
    """A one-dimensional convolution at any bitwidth."""


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A two-dimensional convolution at any bitwidth."""


class QuantConv3d(QuantizedLayer, nn.Conv3d):
    """A three-dimensional convolution at any bitwidth."""


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer at any bitwidth."""

    def apply_weight(self, x: Tensor, w: Tensor) -> Tensor:
        """x w^T + bias."""
        return F.linear(x, w, self.bias)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}
