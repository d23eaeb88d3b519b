"""The run-time state of a quantized model, which all of its layers share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits
from mebqat_lite.quantizers import Quantizer
from mebqat_lite.switching.guard import Guard
from mebqat_lite.switching.measured import MeasuredWith


@dataclass
class Setting:
    """The run-time state of a quantized model: the current bits, the norm policy, and how batch norm behaves.

    All layers of a model hold the same `Setting` object. Switching the bitwidth changes this object and no layer.
    """

    quantizer: Quantizer  # of all layers of the model
    bits: Bits = FP
    per_layer: Mapping[str, Bits] = field(default_factory=dict)  # layers with other bits than ``bits``
    norm_stats: str = "running"  # the norm policy, one of `batchnorm.NORM_STATS`
    lend_sets: bool = False  # whether a pair without its own norm set uses that of the nearest pair
    track_running: bool = True  # whether forward passes in training mode update the running statistics
    keep_weights: bool = False  # whether layers reuse quantized weights; the weights must not change meanwhile
    norm: Callable[[Tensor, nn.Module, bool], Tensor] | None = None  # batch norm over several processes
    measured_with: MeasuredWith = field(default_factory=MeasuredWith)  # the weights of recalibrated statistics
    guard: Guard = field(default_factory=Guard)  # against other threads, and repeated passes at other bits

    def of(self, layer: str) -> Bits:
        """Return the current bits of one layer."""
        return self.per_layer.get(layer, self.bits) if self.per_layer else self.bits

    @property
    def key(self) -> str:
        """The bits of all layers as one string, which names the stored norm statistics."""
        parts = [str(self.bits), *(f"{name}={bits}" for name, bits in sorted(self.per_layer.items()))]
        return ",".join(parts).replace(".", "/")

    @property
    def code(self) -> str:
        """The bits of all layers as Python code, as a user would write them: ``"W2A4"`` or a map, for messages."""
        if not self.per_layer:
            return f'"{self.bits}"'
        return repr({"*": str(self.bits), **{name: str(bits) for name, bits in self.per_layer.items()}})

    def __getstate__(self) -> dict[str, Any]:
        """Copy the bits that hold outside of `state.at`, if it is another thread that is inside."""
        state = dict(vars(self))
        if self.guard.user is not None and self.guard.user[0] != threading.get_ident():
            state["bits"], state["per_layer"], state["norm_stats"] = self.guard.outside
        return state

    @property
    def now(self) -> tuple[Bits, Mapping[str, Bits], str]:
        """What decides how a forward pass runs."""
        return self.bits, self.per_layer, self.norm_stats

    def check_pass(self, layer: nn.Module) -> None:
        """Raise a RuntimeError if ``layer`` would not run at the bits that its caller means, see `guard.Guard`."""
        self.guard.check_pass(self.now, "_is_replica" in layer.__dict__)
