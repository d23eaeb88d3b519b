"""The run-time state of a quantized model: ask what it is, and switch its bits: ``with at(model, "W2A4"):``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mebqat_lite.bits import FP, FULL, Bits, BitsLike, parse_all
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.batchnorm import NORM_STATS, NORMS, SwitchableNorm
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.setting import Setting

FLOAT_CLASS = {swapped: plain for plain, swapped in (LAYERS | NORMS).items()}
MapOrBits = BitsLike | Mapping[str, BitsLike]


@dataclass
class Plan:
    """What `quantize` found by running the sample: enough to quantize the same architecture again without it."""

    quantizer: str
    sites: list[Site] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # layer -> why it stays a float layer
    readers: dict[str, list[str]] = field(default_factory=dict)  # `layers.InputReLU` -> the layers that read it


class NotQuantizedError(TypeError):
    """A module was used as quantized that is not."""


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantize` made this model."""
    return "setting" in model.__dict__


def setting_of(model: nn.Module) -> Setting:
    """The run-time state of a quantized model or of a part of one."""
    if "setting" in model.__dict__:
        return model.__dict__["setting"]
    for module in model.modules():
        if "setting" in module.__dict__:
            return module.__dict__["setting"]
    raise NotQuantizedError(
        f"this {type(model).__name__} has no bitwidths yet; call quantize(model, sample=images) first"
    )


def plan_of(model: nn.Module) -> Plan:
    """What `quantize` found in a model."""
    setting_of(model)
    plan = model.plan
    assert isinstance(plan, Plan)
    return plan


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def norm_layers(model: nn.Module) -> dict[str, SwitchableNorm]:
    """The batch norms of a quantized model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SwitchableNorm)}


def has_one_bit(model: nn.Module) -> bool:
    """Whether every quantizer of the model defines one bit."""
    return all(layer.quantizer.one_bit for layer in quantized_layers(model).values())


def has_stem(model: nn.Module) -> bool:
    """Whether a model declares ``stem`` and ``body`` and its stem is the same at every bitwidth."""
    return hasattr(model, "stem") and hasattr(model, "body") and is_shareable(model.stem)


def is_shareable(stem: object) -> bool:
    """Whether a stem is the same at every bitwidth: no quantized layer, no norm set per pair."""
    if not isinstance(stem, nn.Module):
        return True
    return not has_norm_sets(stem) and not any(isinstance(m, QuantizedLayer) for m in stem.modules())


def has_norm_sets(model: nn.Module) -> bool:
    """Whether batch norms have a set for each pair."""
    return any(isinstance(m, SwitchableNorm) and len(m.sets) for m in model.modules())


def parse_settings(bits: MapOrBits | Iterable[MapOrBits]) -> list[MapOrBits]:
    """One pair, several (``"W2A2,FP"`` or a list), a map of layers to pairs, or a list of maps and pairs, parsed."""
    if isinstance(bits, str):
        return list(parse_all(bits))
    several: list[Any] = [bits] if isinstance(bits, (Bits, Mapping)) else list(bits)
    if len(several) == 2 and all(isinstance(b, int) for b in several):
        several = [Bits(*several)]
    found: list[MapOrBits] = [dict(b) if isinstance(b, Mapping) else Bits.parse(b) for b in several]
    return found or list(parse_all([]))  # which refuses none


def set_bits(model: nn.Module, bits: MapOrBits) -> None:
    """Switch a model to a pair, or to a pair per layer: ``{"*": "W8A8", "conv3": "W2A2"}`` (``*`` defaults to FP).

    Raises:
        ValueError: bits that are none, that the quantizer does not define, or a layer that is not quantized.
    """
    setting = setting_of(model)
    per_layer: dict[str, Bits] = {}
    if isinstance(bits, Mapping):
        per_layer = {layer: Bits.parse(pair) for layer, pair in bits.items()}
        known = quantized_layers(model)
        if unknown := set(per_layer) - set(known) - {"*"}:
            raise ValueError(f"no quantized layer {sorted(unknown)}; there are {list(known)} and * for the rest")
        pair = per_layer.pop("*", FP)
    else:
        pair = Bits.parse(bits)
    for width in {width for b in (pair, *per_layer.values()) for width in (b.w, b.a)}:
        if setting.quantizer is not None and (width < FULL or setting.quantizer.predicts_only):
            setting.quantizer.check(width)
    setting.bits, setting.per_layer = pair, per_layer


@contextlib.contextmanager
def at(model: nn.Module, bits: MapOrBits, norm_stats: str | None = None) -> Iterator[nn.Module]:
    """Run ``model`` at ``bits`` inside the block, optionally under a norm policy; afterwards all is as before."""
    setting = setting_of(model)
    before = setting.bits, setting.per_layer, setting.norm_stats
    try:
        set_bits(model, bits)
        if norm_stats is not None:
            set_norm_stats(model, norm_stats)
        yield model
    finally:
        setting.bits, setting.per_layer, setting.norm_stats = before


def set_norm_stats(model: nn.Module, norm_stats: str) -> None:
    """Choose whose statistics batch norm uses in evaluation: ``running``, ``batch`` or ``recalibrated``."""
    if norm_stats not in NORM_STATS:
        raise ValueError(f"no norm policy {norm_stats!r}; choose one of {', '.join(NORM_STATS[:3])}")
    setting_of(model).norm_stats = norm_stats


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Inside the block layers keep their quantized weights of each bitwidth: nothing may change a weight there."""
    setting = setting_of(model)
    before, setting.keep_weights = setting.keep_weights, True
    try:
        with torch.no_grad():
            yield
    finally:
        setting.keep_weights = before
        if not before:
            for layer in quantized_layers(model).values():
                layer.__dict__.pop("kept", None)
