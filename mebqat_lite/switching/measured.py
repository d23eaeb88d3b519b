"""Remember which weights norm statistics were measured with."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn


class MeasuredWith:
    """The parameters of a model at the time when its norm statistics were measured, for each bit setting."""

    def __init__(self, then: Mapping[str, list[list]] | None = None) -> None:
        self.then = dict(then or {})  # key of a bit setting -> versions and checksums of all parameters

    def remember(self, model: nn.Module, keys: Iterable[str]) -> None:
        """Remember the present parameters of ``model`` for the bit settings named ``keys`` (`Setting.key`)."""
        versions, sums = _versions(model), _sums(model)
        self.then.update({key: [versions, sums] for key in keys})

    def forget(self) -> None:
        """Forget all parameters, so that none count as changed, for example after statistics came from a file."""
        self.then = {}

    def changed(self, model: nn.Module, key: str) -> bool:
        """Whether the parameters of ``model`` have changed since ``key`` was measured; False if nothing is known."""
        then = self.then.get(key)
        if then is None or then[0] == (now := _versions(model)):
            return False
        if then[1] != _sums(model):
            return True
        then[0] = now  # of a copy, or of parameters that were overwritten by the same values
        return False

    def warn_if_changed(self, model: nn.Module, keys: Iterable[str], stacklevel: int = 3) -> None:
        """Warn if the parameters of ``model`` have changed since one of ``keys`` was measured."""
        if found := [key for key in keys if self.changed(model, key)]:
            warnings.warn(
                "the weights have changed since the norm statistics were measured: call recalibrate again for "
                + ", ".join(found),
                stacklevel=stacklevel,
            )


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    """How often each parameter was changed in place, beside its identity."""
    return [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]


def _sums(model: nn.Module) -> list[int]:
    """A checksum of each parameter."""
    return [zlib.crc32(p.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()) for p in model.parameters()]
