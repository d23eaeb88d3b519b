"""Quantize the input of a layer once for all layers that read it, and skip a ReLU that this makes redundant."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers import Quantizer, Site


class Reader(Protocol):
    """The part of `layers.QuantizedLayer` that this module needs to know."""

    quantizer: Quantizer
    quant: nn.ParameterDict
    site: Site
    weight: Tensor

    @property
    def leader(self) -> Reader:
        """The layer whose quantizer quantizes this layer's input."""
        ...

    @property
    def clips_at_zero(self) -> bool:
        """Whether the layer clips negative inputs to zero at the current bits."""
        ...


def version_of(x: Tensor) -> int:
    """Count how often ``x`` was changed in place; always 0 in inference mode, where PyTorch does not count."""
    return 0 if x.is_inference() else x._version


class QuantizedInput:
    """Quantize the input of a layer, and only once if several layers read the same tensor.

    The layer that runs first is the leader: it quantizes the tensor and leaves the result here. The other layers are
    its followers: they take that result if it belongs to the same, unchanged tensor and the same bits.
    """

    def __init__(self, followers: int = 0) -> None:
        self.followers = followers
        self.left: tuple[Tensor, tuple[int, int, bool], Tensor] | None = None  # input, its state, quantized input
        self.waiting = 0  # followers that have not run yet

    def __call__(self, x: Tensor, bits: int, layer: Reader) -> Tensor:
        """Return ``layer``'s input ``x``, (batch, channels, ...), quantized to ``bits``."""
        leader = layer.leader
        if not self.followers:
            return x if bits == FULL else _quantized(x, bits, layer)
        state = (bits, version_of(x), torch.is_grad_enabled())
        left, self.waiting = self.left, self.waiting - 1
        if layer is leader or self.waiting <= 0:
            self.left = None
        if bits == FULL:
            return x
        if layer is not leader and left is not None and left[0] is x and left[1] == state:
            return left[2]
        out = _quantized(x, bits, leader)
        if layer is leader:
            self.left, self.waiting = (x, state, out), self.followers
        return out

    def __deepcopy__(self, memo: dict) -> QuantizedInput:
        """Copy the number of followers, but not the stored result."""
        memo[id(self)] = copied = QuantizedInput(self.followers)
        return copied

    def __getstate__(self) -> dict[str, object]:
        return {"followers": self.followers, "left": None, "waiting": 0}


def _quantized(x: Tensor, bits: int, layer: Reader) -> Tensor:
    """Quantize ``x`` as an input of ``layer``; a single sample without a batch dimension counts as a batch of one."""
    if x.dim() < layer.weight.dim():  # a batch has at least the dimensions of the weights, (out, in, ...)
        return _quantized(x[None], bits, layer)[0]
    return layer.quantizer.activation(x, bits, layer.quant, layer.site)


class InputReLU(nn.ReLU):
    """A ReLU whose output is read by convolutions and linear layers only.

    `convert.quantize` finds these ``readers``. If each of them clips its input at zero anyway, this ReLU returns its
    input unchanged, which saves time in the forward and in the backward pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute max(input, 0) for any shape, or return ``input`` if all readers clip it at zero themselves."""
        readers: list[Reader] = self.__dict__.get("readers", [])
        return input if readers and all(reader.clips_at_zero for reader in readers) else super().forward(input)
