"""Convolution and linear layers whose bitwidth can be switched at run time.

`convert.quantize` makes them from float layers by changing their class. All quantized layers of a model share one
`Setting`, so switching the bitwidth changes one object and builds nothing.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, FULL, Bits
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.switching.inputs import QuantizedInput
from mebqat_lite.switching.setting import Setting


class QuantizedLayer(nn.Module):
    """Mixin for a convolution or linear class; `convert.quantize` sets its attributes."""

    setting: Setting
    quantizer: Quantizer
    site: Site
    quant: nn.ParameterDict
    shared_input: QuantizedInput
    weight: Tensor

    @property
    def bits(self) -> Bits:
        """The current bits of this layer."""
        return self.runs_at(self.setting.of(self.site.name))

    def runs_at(self, bits: Bits) -> Bits:
        """Return the bits at which this layer runs if it is given ``bits``.

        Except at FP, the first and the last layer have weights of `Quantizer.edge_bits`; their inputs are never
        quantized. A signed input is not quantized either, if the quantizer cannot represent negative values.
        """
        if self.site.role != "body":
            return FP if bits == FP else Bits(self.quantizer.edge_bits, FULL)
        blocked = self.site.signed and not self.quantizer.signed_inputs
        return Bits(bits.w, FULL) if blocked else bits

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer at the current bits on ``input``, (batch, channels, ...); at FP it is the float layer."""
        self.setting.check_pass(self)
        bits = self.bits
        return self.apply_weight(self.shared_input(input, bits.a, self), self.quantized_weight(bits.w))

    @property
    def leader(self) -> QuantizedLayer:
        """The layer whose quantizer quantizes this layer's input: itself, unless several layers read one tensor."""
        return self.__dict__["leading"] or self

    @property
    def clips_at_zero(self) -> bool:
        """Whether the layer clips negative inputs to zero at the current bits."""
        return self.bits.a < FULL and self.quantizer.clips_at_zero and not self.site.signed

    def quantized_weight(self, bits: int) -> Tensor:
        """Return the layer's weights, fake-quantized to ``bits``: (out, in, kernel, kernel), or (out, in) if linear.

        While ``setting.keep_weights`` is on, the weights of each bitwidth are computed once and reused.
        """
        if bits == FULL and (self.quantizer.float_weights or self.site.role != "body"):
            return self.weight
        if not self.setting.keep_weights:
            return self.quantizer.weight(self.weight, bits, self.quant, self.site)
        kept: dict[int, Tensor] = self.__dict__.setdefault("kept", {})
        if bits not in kept:
            kept[bits] = self.quantizer.weight(self.weight, bits, self.quant, self.site)
        return kept[bits]

    def apply_weight(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply the layer to ``x`` with the weights ``w`` instead of its own."""
        return self._conv_forward(x, w, self.bias)  # type: ignore[operator]

    def _load_from_state_dict(self, state: dict, prefix: str, local: dict, strict: bool, *rest: list) -> None:
        """Load a state dict of a quantized or of a float layer.

        A float state dict has no learned steps. If it brings other weights, the steps of the weights start anew from
        them, and a warning says that those of the activations still have to. If the file has a clip for a bitwidth
        (`convert.give_clips`) and the layer has none, the clip is added.
        """
        start = f"{prefix}quant.alpha"
        for key in [key for key in state if key.startswith(start) and "alpha" in self.quant]:
            self.quant.setdefault(
                key.removeprefix(f"{prefix}quant."), nn.Parameter(self.quant["alpha"].detach().clone())
            )
        if any(f"{prefix}quant.{name}" not in state for name in self.quant):
            for name, value in self._steps_for(state.get(f"{prefix}weight")).items():
                state.setdefault(f"{prefix}quant.{name}", value.detach())
        super()._load_from_state_dict(state, prefix, local, strict, *rest)

    def _steps_for(self, weight: Tensor | None) -> dict[str, Tensor]:
        """The learned values with which ``weight`` is loaded: those of weights start from it, the others stay."""
        own = dict(self.quant.items())
        if weight is None or not own or weight.shape != self.weight.shape:
            return own
        weight = weight.to(self.weight)
        if torch.equal(weight, self.weight) or self.site.role != "body":
            return own
        warnings.warn(
            "weights were loaded into a quantized model without its steps, but its activation steps were measured with "
            "others: "
            "measure them again by quantize(model, quantizer, sample=images)",
            stacklevel=2,
        )
        fresh = self.quantizer.parameters(weight, weight.new_ones(1), self.site)  # of an input that is not known
        return own | {name: value for name, value in fresh.items() if name.startswith("w")}


class QuantConv1d(QuantizedLayer, nn.Conv1d):
    """A one-dimensional convolution at any bitwidth."""


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A two-dimensional convolution at any bitwidth."""


class QuantConv3d(QuantizedLayer, nn.Conv3d):
    """A three-dimensional convolution at any bitwidth."""


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer at any bitwidth."""

    def apply_weight(self, x: Tensor, w: Tensor) -> Tensor:
        """Compute x w^T + bias for ``x``, (batch, in), and ``w``, (out, in)."""
        return F.linear(x, w, self.bias)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}
