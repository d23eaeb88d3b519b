"""Read and change the run-time state of a quantized model, as in ``with at(model, "W2A4"):``."""

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
    """What `quantize` learned about a model from the sample.

    With a plan, a model of the same architecture can be quantized without a sample.
    """

    quantizer: str  # its registered name
    sites: list[Site] = field(default_factory=list)  # one for each layer that the sample reached
    skipped: dict[str, str] = field(default_factory=dict)  # layer -> why it cannot be quantized
    readers: dict[str, list[str]] = field(default_factory=dict)  # `inputs.InputReLU` -> the layers that read it


class NotQuantizedError(TypeError):
    """A float model was used where a quantized one is needed."""


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantize` has converted this model."""
    return isinstance(model.__dict__.get("setting"), Setting)


def setting_of(model: nn.Module) -> Setting:
    """Return the run-time state of a quantized model, or of a part of one.

    Raises:
        NotQuantizedError: the model is a float model.
        ValueError: it holds several quantized models, each with bits of its own.
    """
    if is_quantized(model):
        return model.__dict__["setting"]
    found = {id(m.__dict__["setting"]): (name, m) for name, m in reversed(_with_setting(model))}
    if len(found) > 1:
        names = sorted(name for name, _ in found.values())
        raise ValueError(
            f"this {type(model).__name__} holds several quantized models ({', '.join(names)}): switch each"
        )
    if found:
        [(_, module)] = found.values()
        return module.__dict__["setting"]
    raise NotQuantizedError(
        f"this {type(model).__name__} has no bitwidths yet; call quantize(model, sample=images) first"
    )


def _with_setting(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a model that read a setting, the outermost first."""
    return [(name, module) for name, module in model.named_modules() if is_quantized(module)]


def plan_of(model: nn.Module) -> Plan:
    """Return the plan that `quantize` made for a model."""
    setting_of(model)
    plan = model.plan
    assert isinstance(plan, Plan)
    return plan


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the quantized layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def norm_layers(model: nn.Module) -> dict[str, SwitchableNorm]:
    """Return the batch norms of a quantized model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SwitchableNorm)}


def has_one_bit(model: nn.Module) -> bool:
    """Whether the quantizer of the model defines one bit."""
    return all(layer.quantizer.one_bit for layer in quantized_layers(model).values())


def has_norm_sets(model: nn.Module) -> bool:
    """Whether some batch norm has its own set for each pair (`norms.give_norm_sets`)."""
    return any(isinstance(m, SwitchableNorm) and len(m.sets) for m in model.modules())


def parse_settings(bits: MapOrBits | Iterable[MapOrBits]) -> list[MapOrBits]:
    """Read one or several bit settings into a list.

    ``bits`` is a pair, several pairs (``"W2A2,FP"`` or a list), a map from layers to pairs, or a list of pairs and
    maps.

    Raises:
        ValueError: something is not a pair, or there is none.
    """
    if isinstance(bits, str):
        return list(parse_all(bits))
    several: list[Any] = [bits] if isinstance(bits, (Bits, Mapping)) else list(bits)
    if len(several) == 2 and all(isinstance(b, int) for b in several):
        several = [Bits(*several)]
    found: list[MapOrBits] = [dict(b) if isinstance(b, Mapping) else Bits.parse(b) for b in several]
    return found or list(parse_all([]))  # raises, because there is no pair


def set_bits(model: nn.Module, bits: MapOrBits) -> None:
    """Switch a model to a bitwidth pair, or to one pair for each layer.

    A map names layers; ``*`` stands for all other layers, which are at FP if it is missing.

    >>> mq.set_bits(model, {"*": "W8A8", "body.1.0": "W2A2"})
    >>> print(model.setting.of("body.0.0"), model.setting.of("body.1.0"))
    W8A8 W2A2
    >>> mq.set_bits(model, "FP")

    Raises:
        ValueError: ``bits`` is no pair, the quantizer does not define these bits, or a named layer is not quantized.
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
    """Run ``model`` at ``bits`` inside the block, and with another norm policy if ``norm_stats`` is given.

    Afterwards the model has its previous bits and norm policy again. ``bits`` is as in `set_bits`, and ``norm_stats``
    as in `set_norm_stats`.

    >>> with mq.at(model, "W2A4"):
    ...     logits = model(images)
    >>> tuple(logits.shape)
    (64, 10)
    """
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
    """Choose the statistics that batch norm uses in evaluation mode: ``running``, ``batch`` or ``recalibrated``.

    `batchnorm.SwitchableNorm` explains these norm policies. An unknown one is a ValueError.
    """
    if norm_stats not in NORM_STATS:
        raise ValueError(f"no norm policy {norm_stats!r}; choose one of {', '.join(NORM_STATS[:3])}")
    setting_of(model).norm_stats = norm_stats


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Let layers compute their quantized weights once per bitwidth inside the block, and reuse them.

    Inside the block there are no gradients, and nothing may change a weight.
    """
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
