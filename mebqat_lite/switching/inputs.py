"""A layer's input, quantized once for all layers that read it; and the ReLU that those readers can make needless."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers import Quantizer, Site


class Reader(Protocol):
    """What has to be known here of a layer that reads an input: a part of `layers.QuantizedLayer`."""

    quantizer: Quantizer
    quant: nn.ParameterDict
    site: Site

    @property
    def leader(self) -> Reader:
        """The layer whose activation quantizer serves this layer's input."""
        ...

    @property
    def clips_at_zero(self) -> bool:
        """Whether the layer takes negative inputs for zero at the bits in force."""
        ...


class QuantizedInput:
    """Quantizes a layer's input; where one tensor feeds several layers, it is quantized once for all of them.

    The layer that runs first, the leader, quantizes; the others, the followers, take what it left, if it left it
    for the same tensor and bits.
    """

    def __init__(self, followers: int = 0) -> None:
        self.followers = followers
        self.left: tuple[Tensor, tuple[int, int, bool], Tensor] | None = None  # input, its state, output
        self.waiting = 0  # followers that have not come yet

    def __call__(self, x: Tensor, bits: int, layer: Reader) -> Tensor:
        """``x`` as ``layer`` reads it at ``bits``."""
        leader = layer.leader
        if not self.followers:
            return x if bits == FULL else layer.quantizer.activation(x, bits, layer.quant, layer.site)
        state = (bits, 0 if x.is_inference() else x._version, torch.is_grad_enabled())
        left, self.waiting = self.left, self.waiting - 1
        if layer is leader or self.waiting <= 0:
            self.left = None
        if bits == FULL:
            return x
        if layer is not leader and left is not None and left[0] is x and left[1] == state:
            return left[2]
        out = layer.quantizer.activation(x, bits, leader.quant, leader.site)
        if layer is leader:
            self.left, self.waiting = (x, state, out), self.followers
        return out

    def __deepcopy__(self, memo: dict) -> QuantizedInput:
        """A copy waits for nothing."""
        memo[id(self)] = copied = QuantizedInput(self.followers)
        return copied

    def __getstate__(self) -> dict[str, object]:
        return {"followers": self.followers, "left": None, "waiting": 0}


class InputReLU(nn.ReLU):
    """A ReLU whose output goes into convolutions and linear layers and nowhere else.

    Where each of these ``readers``, which `convert.quantize` finds, clips its input at zero anyhow, there is nothing
    left to do, forward and backward: two passes over the activations less.
    """

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0), of any shape; or ``x``, if its readers do that."""
        readers: list[Reader] = self.__dict__.get("readers", [])
        return x if readers and all(reader.clips_at_zero for reader in readers) else super().forward(x)
