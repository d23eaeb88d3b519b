"""Layers whose bitwidth is run-time state: convolution, linear and batch norm, made by class swap.

All quantized layers of a model share one `Setting`. Switching bits changes that one object and builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, FULL, Bits, nearest_pair
from mebqat_lite.quantizers import Quantizer, Site

NORM_STATS = ("running", "batch", "recalibrated", "measure")


class MissingNormSetError(KeyError, ValueError):
    """A pair is in force for which batch norm has no set or no statistics."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingStatisticsError(MissingNormSetError):
    """Statistics were not measured yet for the pair in force."""


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


class QuantizedInput:
    """Quantizes a layer's input; where one tensor feeds several layers, it is quantized once for all of them.

    The layer that runs first, the leader, quantizes; the others, the followers, take what it left, if it left it
    for the same tensor and bits.
    """

    def __init__(self, followers: int = 0) -> None:
        self.followers = followers
        self.left: tuple[Tensor, tuple[int, int, bool], Tensor] | None = None  # input, its state, output
        self.waiting = 0  # followers that have not come yet

    def __call__(self, x: Tensor, bits: int, layer: QuantizedLayer) -> Tensor:
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


class InputReLU(nn.ReLU):
    """A ReLU whose output goes into convolutions and linear layers and nowhere else.

    Where each of these ``readers``, which `convert.quantize` finds, clips its input at zero anyhow, there is nothing
    left to do, forward and backward: two passes over the activations less.
    """

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0), of any shape; or ``x``, if its readers do that."""
        readers: list[QuantizedLayer] = self.__dict__.get("readers", [])
        return x if readers and all(reader.clips_at_zero for reader in readers) else super().forward(x)


class SwitchableNorm(nn.Module):
    """Mixin that goes before a batch norm class: whose statistics (and whose gain and shift) it uses.

    ``running``: the float layer's own. ``batch``: of the batch at hand. ``recalibrated``: measured for the bit
    setting in force and stored as buffers ``stats_<setting>`` of shape (2, channels), mean and variance.
    With ``sets`` (one batch norm per listed pair) each pair has its own gain, shift and running statistics.
    """

    setting: Setting
    sets: nn.ModuleDict
    weight: nn.Parameter
    bias: nn.Parameter
    eps: float
    num_features: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, (batch, channels, ...), by the policy in force."""
        stats, own = self.setting.norm_stats, self.own_set()
        if self.setting.norm is not None and (self.training or stats == "batch"):
            return self.setting.norm(x, self if own is None else own, self.training and self.setting.track_running)
        if (self.training and self.setting.track_running) or (stats == "running" and not self.training):
            return super().forward(x) if own is None else own(x)
        gain, shift = (self.weight, self.bias) if own is None else (own.weight, own.bias)
        if not self.training and stats == "recalibrated":
            mean, var = self.stats().to(x.dtype)
            return F.batch_norm(x, mean, var, gain, shift, False, 0.0, self.eps)
        if stats == "measure" and not self.training:
            self.measure(x)
        return F.batch_norm(x, None, None, gain, shift, True, 0.0, self.eps)

    def own_set(self) -> nn.modules.batchnorm._BatchNorm | None:
        """The norm of the pair in force where each pair has its own; FP uses the float layer's."""
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
        """Recalibrated (mean, variance), (2, channels), of the setting in force."""
        name = f"stats_{self.setting.key}"
        if name not in self._buffers:
            raise MissingStatisticsError(
                f"no recalibrated statistics for {self.setting.key}; "
                f"call recalibrate(model, images, {self.setting.code}) first"
            )
        return self.get_buffer(name)

    def measure(self, x: Tensor) -> None:
        """Pool this batch's mean and squared deviations with those of earlier ones (Chan, Golub and LeVeque, 1979)."""
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x, dims, correction=0)  # each (channels,)
        count = x.numel() // x.shape[1]
        moments = self.__dict__.setdefault("moments", {})
        seen, old_mean, old_square = moments.get(self.setting.key, (0, mean, torch.zeros_like(var)))
        total, gap = seen + count, mean - old_mean
        square = old_square + var * count + gap**2 * (seen * count / total)
        moments[self.setting.key] = (total, old_mean + gap * (count / total), square)

    def share_measured(self, key: str, others: Iterable[str]) -> None:
        """Other settings see what the one named ``key`` saw."""
        moments = self.__dict__.get("moments", {})
        moments.update({other: moments[key] for other in others if key in moments})

    def take_measured(self) -> dict[str, Tensor]:
        """The pooled mean and variance, (2, channels), of each setting that came by; and begin anew."""
        moments = self.__dict__.pop("moments", {})
        return {key: torch.stack([mean, square / total]) for key, (total, mean, square) in moments.items()}

    def _load_from_state_dict(self, state: dict, prefix: str, local: dict, strict: bool, *rest: list) -> None:
        """Recalibrated statistics in the file become buffers; those that it lacks are kept."""
        for key, value in list(state.items()):
            if key.startswith(f"{prefix}stats_"):
                like = self.weight if self.weight is not None else value
                self.register_buffer(key.removeprefix(prefix), value.clone().to(like.device, like.dtype))
        for name, value in self._buffers.items():
            if name.startswith("stats_") and value is not None:
                state.setdefault(prefix + name, value)
        super()._load_from_state_dict(state, prefix, local, strict, *rest)


class SwitchableNorm1d(SwitchableNorm, nn.BatchNorm1d):
    """One-dimensional batch norm under a norm policy."""


class SwitchableNorm2d(SwitchableNorm, nn.BatchNorm2d):
    """Two-dimensional batch norm under a norm policy."""


class SwitchableNorm3d(SwitchableNorm, nn.BatchNorm3d):
    """Three-dimensional batch norm under a norm policy."""


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SwitchableNorm1d,
    nn.BatchNorm2d: SwitchableNorm2d,
    nn.BatchNorm3d: SwitchableNorm3d,
}
FLOAT_CLASS = {swapped: plain for plain, swapped in (LAYERS | NORMS).items()}
