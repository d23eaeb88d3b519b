"""Batch norm whose statistics, gain and shift can be switched at run time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, nearest_pair
from mebqat_lite.quantizers import wide
from mebqat_lite.switching.guard import is_repeated
from mebqat_lite.switching.setting import Setting

NORM_STATS = ("running", "batch", "recalibrated", "measure")  # the norm policies, see `SwitchableNorm`


class MissingNormSetError(KeyError, ValueError):
    """Batch norm has no norm set, or no statistics, for the current pair."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingStatisticsError(MissingNormSetError):
    """Recalibrated statistics were not measured yet for the current pair."""


class SwitchableNorm(nn.Module):
    """Mixin for a batch norm class that chooses its statistics, gain and shift at run time.

    In training mode batch norm uses the statistics of the batch. In evaluation mode the norm policy decides:

    - ``running``: the running statistics.
    - ``batch``: the statistics of the batch.
    - ``recalibrated``: statistics that `norms.recalibrate` measured for the current bits. They are stored as buffers
      ``stats_<bits>``, (2, channels), mean and variance.
    - ``measure``: the statistics of the batch, which are also collected for `norms.recalibrate`.

    ``sets`` may hold a batch norm for each listed pair (`norms.give_norm_sets`). Then each of these pairs has its own
    gain, shift and running statistics.
    """

    setting: Setting
    sets: nn.ModuleDict
    weight: nn.Parameter
    bias: nn.Parameter
    eps: float
    num_features: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (batch, channels, ...), under the current norm policy."""
        x, stats, own = input, self.setting.norm_stats, self.own_set()
        self.check(x)
        tracks = self.training and self.setting.track_running
        if self.setting.norm is not None and (self.training or stats == "batch"):
            return self.setting.norm(x, self if own is None else own, tracks and not is_repeated())
        if tracks and is_repeated():
            return self.repeat(x, self if own is None else own)
        if tracks or (stats == "running" and not self.training):
            return super().forward(x) if own is None else own(x)
        gain, shift = (self.weight, self.bias) if own is None else (own.weight, own.bias)
        if not self.training and stats == "recalibrated":
            mean, var = self.stats() if gain is None else self.stats().to(gain.dtype)
            return F.batch_norm(x, mean, var, gain, shift, False, 0.0, self.eps)
        if stats == "measure" and not self.training:
            self.measure(x)
        return F.batch_norm(x, None, None, gain, shift, True, 0.0, self.eps)

    def check(self, x: Tensor) -> None:
        """Refuse a pass at other bits than its caller means, and a batch of one value per channel."""
        self.setting.check_pass(self)
        uses_batch = self.training or self.setting.norm_stats in ("batch", "measure")
        if uses_batch and x.numel() == self.num_features:
            raise ValueError(
                "a batch norm sees one value per channel, which has no variance: give a larger batch, or in evaluation "
                "use the norm policy recalibrated"
            )

    def repeat(self, x: Tensor, norm: SwitchableNorm | nn.modules.batchnorm._BatchNorm) -> Tensor:
        """Normalise ``x``, (batch, channels, ...), again as ``norm`` did, without another update of its statistics."""
        mean, var = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, True, 0.0, self.eps)  # type: ignore[arg-type]

    def own_set(self) -> nn.modules.batchnorm._BatchNorm | None:
        """Return the batch norm of the current pair, or None if the float layer's own gain and shift are used.

        Raises:
            MissingNormSetError: other pairs have a norm set, this one has none, and ``setting.lend_sets`` is off.
        """
        key = self.setting.key
        if not len(self.sets) or key == str(FP):
            return None
        if key not in self.sets:
            listed = [str(FP), *self.sets]
            if not self.setting.lend_sets:
                raise MissingNormSetError(f"no norm set for {key}: this model has sets for {', '.join(listed)} only")
            key = str(nearest_pair(self.setting.bits, [Bits.parse(pair) for pair in listed]))
        return self.sets[key] if key != str(FP) else None  # type: ignore[return-value]

    def stats(self) -> Tensor:
        """Return the recalibrated mean and variance, (2, channels), of the current bits.

        Raises:
            MissingStatisticsError: they were not measured.
        """
        name = f"stats_{self.setting.key}"
        if name not in self._buffers:
            raise MissingStatisticsError(
                f"no recalibrated statistics for {self.setting.key}; "
                f"call recalibrate(model, images, {self.setting.code}) first"
            )
        return self.get_buffer(name)

    def measure(self, x: Tensor) -> None:
        """Pool mean and squared deviations of ``x``, (batch, channels, ...), with those of earlier batches.

        The pooled values are those of all batches taken together (Chan, Golub and LeVeque, 1979).
        """
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(wide(x), dims, correction=0)  # each (channels,)
        count = x.numel() // x.shape[1]
        moments = self.__dict__.setdefault("moments", {})
        seen, old_mean, old_square = moments.get(self.setting.key, (0, mean, torch.zeros_like(var)))
        total, gap = seen + count, mean - old_mean
        square = old_square + var * count + gap**2 * (seen * count / total)
        moments[self.setting.key] = (total, old_mean + gap * (count / total), square)

    def share_measured(self, key: str, others: Iterable[str]) -> None:
        """Copy what was measured at the bits named ``key`` to those named in ``others``, which have the same input."""
        moments = self.__dict__.get("moments", {})
        moments.update({other: moments[key] for other in others if key in moments})

    def take_measured(self) -> dict[str, Tensor]:
        """Return the pooled mean and variance, (2, channels), of each measured bit setting, and forget them."""
        moments = self.__dict__.pop("moments", {})
        return {key: torch.stack([mean, square / total]) for key, (total, mean, square) in moments.items()}

    def _load_from_state_dict(self, state: dict, prefix: str, local: dict, strict: bool, *rest: list) -> None:
        """Load a state dict. Its recalibrated statistics become buffers.

        If it brings another norm without statistics, those of before are dropped: they belong to other weights.
        """
        if any(key.startswith(prefix) for key in state):
            for name in [name for name in self._buffers if name.startswith("stats_") and prefix + name not in state]:
                delattr(self, name)
        for key, value in list(state.items()):
            if key.startswith(f"{prefix}stats_"):
                like = self.weight if self.weight is not None else value
                self.register_buffer(key.removeprefix(prefix), value.clone().to(like.device, wide(like).dtype))
                self.setting.measured_with.forget()
        super()._load_from_state_dict(state, prefix, local, strict, *rest)


class SwitchableNorm1d(SwitchableNorm, nn.BatchNorm1d):
    """One-dimensional batch norm with a norm policy."""


class SwitchableNorm2d(SwitchableNorm, nn.BatchNorm2d):
    """Two-dimensional batch norm with a norm policy."""


class SwitchableNorm3d(SwitchableNorm, nn.BatchNorm3d):
    """Three-dimensional batch norm with a norm policy."""


NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SwitchableNorm1d,
    nn.BatchNorm2d: SwitchableNorm2d,
    nn.BatchNorm3d: SwitchableNorm3d,
}
