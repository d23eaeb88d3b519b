"""Remember which weights norm statistics were measured with."""

from __future__ import annotations

import zlib

import torch
from torch import nn


class MeasuredWith:
    """The parameters of a model at the time when its norm statistics were measured."""

    def __init__(self) -> None:
        self.versions: list[tuple[int, int]] = []  # of each parameter: its identity, and how often it was changed
        self.sums: list[int] = []  # a checksum of each parameter; empty if nothing was measured

    def remember(self, model: nn.Module) -> None:
        """Remember the present parameters of ``model``."""
        self.versions, self.sums = _versions(model), _sums(model)

    def forget(self) -> None:
        """Take any parameters for right, for example because statistics came together with weights from a file."""
        self.versions, self.sums = [], []

    def changed(self, model: nn.Module) -> bool:
        """Whether ``model`` has other parameters than those remembered, if there are any."""
        now = _versions(model)
        if not self.sums or now == self.versions:
            return False
        if _sums(model) != self.sums:
            return True
        self.versions = now  # of a copy, or of parameters that were overwritten by the same values
        return False


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    return [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]


def _sums(model: nn.Module) -> list[int]:
    return [zlib.crc32(p.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()) for p in model.parameters()]
