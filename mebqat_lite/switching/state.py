"""Read and change the run-time state of a quantized model, as in ``with at(model, "W2A4"):``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import mode
from typing import Any, NamedTuple

import torch
from torch import nn

from mebqat_lite.bits import FP, Bits, BitsLike, parse_all
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.batchnorm import NORM_STATS, NORMS, SwitchableNorm
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.setting import Setting

FLOAT_CLASS = {swapped: plain for plain, swapped in (LAYERS | NORMS).items()}
MapOrBits = BitsLike | Mapping[str, BitsLike]
HELD = "_mebqat"  # the attribute that holds the plan and the setting of a model, whose own attributes have other names


@dataclass
class Plan:
    """What `quantize` learned about a model from the sample.

    With a plan, a model of the same architecture can be quantized without a sample.
    """

    quantizer: str  # its registered name
    sites: list[Site] = field(default_factory=list)  # one for each layer that the sample reached
    skipped: dict[str, str] = field(default_factory=dict)  # layer -> why it cannot be quantized
    readers: dict[str, list[str]] = field(default_factory=dict)  # `inputs.InputReLU` -> the layers that read it
    bypassed: list[str] = field(default_factory=list)  # layers whose weights the model also reads without their forward

    def within(self, prefix: str) -> Plan:
        """Return the plan with the names that hold in a module whose part ``prefix`` is this model."""
        if not prefix:
            return self

        def full(name: str) -> str:
            return f"{prefix}.{name}" if name else prefix

        sites = [replace(site, name=full(site.name), leader=full(site.leader)) for site in self.sites]
        skipped = {full(name): why for name, why in self.skipped.items()}
        readers = {full(relu): [full(name) for name in names] for relu, names in self.readers.items()}
        bypassed = [full(name) for name in self.bypassed]
        return replace(self, sites=sites, skipped=skipped, readers=readers, bypassed=bypassed)


class Held(NamedTuple):
    """What a quantized model holds: its plan, its setting, and where each quantized layer lies."""

    plan: Plan
    setting: Setting
    places: list[tuple[dict[str, nn.Module | None], str, nn.Module]]  # the parts of the module around it, name, layer

    def lost(self) -> int:
        """Count the layers that were replaced since `quantize`, or that have another setting."""
        there = (parts.get(name) is layer and layer.__dict__.get("setting") for parts, name, layer in self.places)
        return sum(setting is not self.setting for setting in there)


class NotQuantizedError(TypeError):
    """A float model was used where a quantized one is needed."""


def settings_in(model: nn.Module) -> dict[str, Setting]:
    """Find the settings in a model, each under the name of the outermost part that holds it."""
    found: dict[int, tuple[str, Setting]] = {}
    for name, module in model.named_modules():
        held = module.__dict__.get(HELD)
        setting = module.setting if isinstance(module, (QuantizedLayer, SwitchableNorm)) else held and held.setting
        if setting is not None:
            found.setdefault(id(setting), (name, setting))
    return dict(found.values())


def setting_of(model: nn.Module) -> Setting:
    """Return the run-time state of a quantized model, of a part of one, or of a module that holds one.

    Raises:
        NotQuantizedError: the model is a float model.
        ValueError: it holds several quantized models, each with bits of its own, or layers were replaced since
            `quantize`.
    """
    held, kind = model.__dict__.get(HELD), type(model).__name__
    if held and not held.lost():
        return held.setting
    found = settings_in(model)
    if not found:
        raise NotQuantizedError(f"this {kind} has no bitwidths yet; call quantize(model, sample=images) first")
    if len(found) > 1:
        names = ", ".join(name or "itself" for name in sorted(found))
        raise ValueError(f"this {kind} holds several quantized models ({names}): switch each, or quantize the whole")
    for part in model.modules():
        if (held := part.__dict__.get(HELD)) and (lost := held.lost()):
            raise ValueError(f"{lost} of {len(held.places)} quantized layers were replaced: quantize this {kind} again")
    return next(iter(found.values()))


def plan_of(model: nn.Module) -> Plan:
    """Return the plan that `quantize` made for a model, with the names that its layers have in ``model``.

    Raises:
        NotQuantizedError: the model is a float model.
        ValueError: it is a part of a quantized model, or holds several.
    """
    setting_of(model)
    for name, module in model.named_modules():
        if held := module.__dict__.get(HELD):
            return held.plan.within(name)
    raise ValueError(f"this {type(model).__name__} is a part of a quantized model: give the whole model")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside data-parallel, averaging and compiling wrappers, or ``model`` itself if there is none."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or _wrapped(model), nn.Module):
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    return model.module if isinstance(model, wrappers) else None


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the quantized layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def norm_layers(model: nn.Module) -> dict[str, SwitchableNorm]:
    """Return the batch norms of a quantized model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SwitchableNorm)}


def pairs_of(model: nn.Module) -> list[Bits]:
    """List the candidate pairs that the quantizer of the model defines, in rising order."""
    return setting_of(model).quantizer.pairs()


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
    """Switch a model to a bitwidth pair, or to one pair for each layer, for all threads.

    A map names layers; ``*`` stands for all other layers, which are at FP if it is missing. Maps at which every layer
    runs at the same bits are one setting, however they are written, so they share their norm statistics.

    >>> mq.set_bits(model, {"*": "W8A8", "body.1.0": "W2A2"})
    >>> setting = setting_of(model)
    >>> print(setting.of("body.0.0"), setting.of("body.1.0"))
    W8A8 W2A2
    >>> mq.set_bits(model, "FP")

    Raises:
        ValueError: ``bits`` is no pair, the quantizer does not define these bits, or a named layer is not quantized.
    """
    setting = setting_of(model)
    given = {layer: Bits.parse(pair) for layer, pair in (bits if isinstance(bits, Mapping) else {"*": bits}).items()}
    known = quantized_layers(model) if isinstance(bits, Mapping) else {}
    if unknown := set(given) - set(known) - {"*"}:
        raise ValueError(f"no quantized layer {sorted(unknown)}; there are {list(known)} and * for the rest")
    setting.guard.check_user()
    for pair in given.values():
        setting.quantizer.check(pair)
    setting.bits, setting.per_layer = _shortest(given, known.items())
    _warn_if_stale(model, setting)


def _shortest(given: Mapping[str, Bits], layers: Iterable[tuple[str, QuantizedLayer]]) -> tuple[Bits, dict[str, Bits]]:
    """Return the pair at which most layers are, and the bits of those layers that run at others.

    However a map is written, the result is the same if every layer runs at the same bits.
    """
    rest = given.get("*", FP)
    own = {layer: given.get(name, rest) for name, layer in layers}
    body = sorted((bits for layer, bits in own.items() if layer.site.role == "body"), reverse=True)
    pair = mode(body or [rest])  # in a tie, the highest
    others = {layer: layer.runs_at(bits) for layer, bits in own.items()}
    return pair, {layer.site.name: bits for layer, bits in others.items() if bits != layer.runs_at(pair)}


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
    user = setting.guard.take(setting.now)
    before = setting.now
    try:
        setting.norm_stats = setting.norm_stats if norm_stats is None else _known(norm_stats)
        set_bits(model, bits)
        yield model
    finally:
        setting.bits, setting.per_layer, setting.norm_stats = before
        setting.guard.user = user


def key_of(model: nn.Module, bits: MapOrBits) -> str:
    """Return the name under which the norm statistics of ``bits`` are stored (`setting.Setting.key`)."""
    with at(model, bits, "batch"):
        return setting_of(model).key


@contextlib.contextmanager
def going_backward(model: nn.Module, bits: MapOrBits) -> Iterator[None]:
    """Run a backward pass inside the block for a loss that was computed at ``bits``.

    A model with gradient checkpointing repeats its forward passes then, at the same bits.
    """
    with at(model, bits):
        setting = setting_of(model)
        setting.guard.ran, setting.guard.bare = [], [setting.now]
        yield


def set_norm_stats(model: nn.Module, norm_stats: str) -> None:
    """Choose the statistics that batch norm uses in evaluation mode: ``running``, ``batch`` or ``recalibrated``.

    `batchnorm.SwitchableNorm` explains these norm policies. An unknown one is a ValueError. There is a warning if the
    weights have changed since statistics were recalibrated.
    """
    setting = setting_of(model)
    setting.norm_stats = _known(norm_stats)
    _warn_if_stale(model, setting)


def _known(norm_stats: str) -> str:
    if norm_stats not in NORM_STATS:
        raise ValueError(f"no norm policy {norm_stats!r}; choose one of {', '.join(NORM_STATS[:3])}")
    return norm_stats


def _warn_if_stale(model: nn.Module, setting: Setting) -> None:
    if setting.norm_stats == "recalibrated":
        setting.measured_with.warn_if_changed(model, [setting.key], stacklevel=5)


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Let layers compute their quantized weights once per bitwidth inside the block, and reuse them.

    Inside the block there are no gradients, and nothing may change a weight.
    """
    setting = setting_of(model)
    before, setting.keep_weights = setting.keep_weights, True
    try:
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode could not be trained later
            yield
    finally:
        setting.keep_weights = before
        if not before:
            for layer in quantized_layers(model).values():
                layer.__dict__.pop("kept", None)
