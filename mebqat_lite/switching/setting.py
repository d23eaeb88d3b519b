"""The run-time state that all layers of one model share: the bits in force and the norm policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits
from mebqat_lite.quantizers import Quantizer


@dataclass
class Setting:
    """The run-time state that all layers of one model read: bits, norm policy, and what to keep."""

    bits: Bits = FP
    per_layer: Mapping[str, Bits] = field(default_factory=dict)
    quantizer: Quantizer | None = None  # of all its layers
    norm_stats: str = "running"
    lend_sets: bool = False  # whether a pair without a norm set of its own takes the nearest pair's
    track_running: bool = True  # whether a training pass moves the running statistics
    keep_weights: bool = False  # whether layers keep their quantized weights of each bitwidth (frozen weights only)
    norm: Callable[[Tensor, nn.Module, bool], Tensor] | None = None  # batch norm over several processes (`parallel`)

    def of(self, layer: str) -> Bits:
        """The bits of one layer."""
        return self.per_layer.get(layer, self.bits) if self.per_layer else self.bits

    @property
    def key(self) -> str:
        """The whole bit setting as a string, by which norm statistics are stored."""
        parts = [str(self.bits), *(f"{name}={bits}" for name, bits in sorted(self.per_layer.items()))]
        return ",".join(parts).replace(".", "/")

    @property
    def code(self) -> str:
        """The whole bit setting as a user would write it: ``"W2A4"``, or a map."""
        if not self.per_layer:
            return f'"{self.bits}"'
        return repr({"*": str(self.bits), **{name: str(bits) for name, bits in self.per_layer.items()}})
