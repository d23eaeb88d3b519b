"""Turn any module into one whose bitwidth is run-time state: `quantize`, then ``with at(model, "W2A4"):``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import quantizers
from mebqat_lite.bits import FP, FULL, Bits, BitsLike, parse_all
from mebqat_lite.layers import (
    FLOAT_CLASS,
    LAYERS,
    NORM_STATS,
    NORMS,
    InputReLU,
    QuantizedInput,
    QuantizedLayer,
    Setting,
    SwitchableNorm,
)
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.tensors import Images, image_batches, place

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


def quantize(
    model: nn.Module,
    quantizer: str | Quantizer = "dorefa",
    *,
    sample: Images | None = None,
    keep: Iterable[str] | None = None,
    plan: Plan | None = None,
) -> nn.Module:
    """Make every convolution and linear layer of ``model`` switchable between bitwidths, in place.

    Args:
        model: any module; it is returned. A quantized one is given the new quantizer.
        quantizer: a registered name (``quantizers.QUANTIZERS``) or quantizer.
        sample: some hundred images, (batch, channels, height, width), or a loader of them. They are run as one
            batch, in the mode the model is in, to find the first and last layer, each input's sign and the start
            of learned steps. Nothing of the model changes by that run.
        keep: names of layers that stay full precision, instead of the first and the last one as executed.
        plan: of an equal model quantized before (from a checkpoint), instead of a sample.

    Raises:
        ValueError: without a sample, for an unknown quantizer or an unknown name in ``keep``.
    """
    name, chosen = quantizers.get(quantizer)
    inputs: dict[str, Tensor] = {}
    if plan is None:
        if sample is None:
            raise ValueError("quantize needs sample=: a batch of images (or a loader) to run the model on once")
        plan, inputs = _observe(model, name, sample, None if keep is None else list(keep))
    restore_float(model)
    setting = Setting(quantizer=chosen)
    modules = dict(model.named_modules())
    for site in plan.sites:
        if site.role == "body" or chosen.edge_bits != FULL:
            _swap_layer(modules[site.name], site, chosen, setting, inputs.get(site.name))
    _share_inputs(modules, plan.sites)
    _connect_readers(modules, plan.readers)
    for module in modules.values():
        if type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
            module.setting, module.sets = setting, nn.ModuleDict()
    model.plan, model.setting = plan, setting  # type: ignore[assignment]
    if not any(site.role == "body" for site in plan.sites):
        warnings.warn("quantize found no layer to quantize: see summary(model) for the reasons", stacklevel=2)
    return model


def requantize(model: nn.Module, quantizer: str | Quantizer, sample: Images) -> nn.Module:
    """Give a quantized model another quantizer, or new learned steps, and keep the same layers full precision."""
    kept = [site.name for site in plan_of(model).sites if site.role != "body"]
    return quantize(model, quantizer, sample=sample, keep=kept)


def _observe(model: nn.Module, name: str, sample: Images, keep: list[str] | None) -> tuple[Plan, dict[str, Tensor]]:
    """Run the sample and write down what each layer sees; also returns each layer's first input."""
    layers, plan = _find_layers(model, name)
    seen, order, rectified = _run_sample(model, layers, sample)
    edges = {order[0]: "first", order[-1]: "last"} if order else {}
    if unknown := set(keep or ()) - set(layers):
        raise ValueError(f"keep names {sorted(unknown)}, but the layers are {list(layers)}")
    kept = set(edges) if keep is None else set(keep)
    first_reader: dict[tuple[int, int], str] = {}
    for layer, inputs in seen.items():
        role = "body" if layer not in kept else edges.get(layer, "kept")
        mean_abs = sum(float(x.abs().sum()) for x in inputs) / sum(x.numel() for x in inputs)
        site = Site(layer, role, any(bool((x < 0).any()) for x in inputs), mean_abs, leader=layer)
        if role == "body" and len(inputs) == 1:  # one tensor into several layers: the first one quantizes it
            site.leader = first_reader.setdefault((id(inputs[0]), inputs[0]._version), layer)
        plan.sites.append(site)
    for relu, out in rectified.items():
        readers = [layer for layer, inputs in seen.items() if any(x is out for x in inputs)]
        if all(len(seen[layer]) == 1 for layer in readers):
            plan.readers[relu] = readers
    plan.skipped |= {layer: "the sample did not reach it" for layer in layers if layer not in seen}
    return plan, {layer: inputs[0] for layer, inputs in seen.items()}


def _find_layers(model: nn.Module, name: str) -> tuple[dict[str, nn.Module], Plan]:
    """The layers that can be quantized, and a plan that says why others cannot."""
    layers, plan = {}, Plan(name)
    for layer, module in model.named_modules():
        if FLOAT_CLASS.get(type(module), type(module)) in LAYERS and "weight" in module._parameters:
            layers[layer] = module
        elif isinstance(module, tuple(LAYERS)):
            computed = type(module) in LAYERS
            own = "its weights are computed" if computed else f"{type(module).__name__} is a layer class of its own"
            plan.skipped[layer] = own
    return layers, plan


def _run_sample(
    model: nn.Module, layers: dict[str, nn.Module], sample: Images
) -> tuple[dict[str, list[Tensor]], list[str], dict[str, Tensor]]:
    """The inputs that each layer saw, the layers as executed, and the output of each `layers.InputReLU` that ran
    once; buffers and random state are put back.
    """
    seen: dict[str, list[Tensor]] = {}
    order: list[str] = []
    rectified: dict[str, list[Tensor]] = {}

    def see(layer: str, x: Tensor) -> None:
        seen.setdefault(layer, []).append(x)
        order.append(layer)

    hooks = [
        module.register_forward_pre_hook(lambda _module, args, layer=layer: see(layer, args[0]))
        for layer, module in layers.items()
    ]
    hooks += [
        module.register_forward_hook(lambda _module, _args, out, name=name: rectified.setdefault(name, []).append(out))
        for name, module in model.named_modules()
        if isinstance(module, InputReLU)
    ]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device, dtype = place(model)
    images = torch.cat(list(image_batches(sample))).to(device, dtype)
    full_precision = at(model, FP, "running") if is_quantized(model) else contextlib.nullcontext()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), full_precision:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return seen, order, {name: outs[0] for name, outs in rectified.items() if len(outs) == 1}


def _swap_layer(layer: nn.Module, site: Site, quantizer: Quantizer, setting: Setting, x: Tensor | None) -> None:
    layer.__class__ = LAYERS[type(layer)]
    assert isinstance(layer, QuantizedLayer)
    layer.site, layer.quantizer, layer.setting = site, quantizer, setting
    layer.shared_input = QuantizedInput()
    start = quantizer.parameters(layer.weight, x, site)
    layer.quant = nn.ParameterDict(
        {name: nn.Parameter(value.clone(), quantizer.learns(name)) for name, value in start.items()}
    )
    layer.__dict__["leading"] = None


def give_clips(model: nn.Module, widths: Iterable[int]) -> nn.Module:
    """Give each activation bitwidth of ``widths`` a clip of its own, where a clip is learned (AdaBits, section 3.3).

    It starts from the clip that serves all; a bitwidth that has one keeps it.
    """
    for layer in quantized_layers(model).values():
        for bits in sorted(set(widths) - {FULL}):
            if "alpha" in layer.quant and f"alpha{bits}" not in layer.quant:
                layer.quant[f"alpha{bits}"] = nn.Parameter(layer.quant["alpha"].detach().clone())
    return model


def _share_inputs(modules: dict[str, nn.Module], sites: list[Site]) -> None:
    """Let the layers that read one tensor use their leader's quantized input."""
    for site in sites:
        layer, leader = modules[site.name], modules[site.leader]
        if layer is not leader and isinstance(layer, QuantizedLayer) and isinstance(leader, QuantizedLayer):
            leader.shared_input.followers += 1
            layer.shared_input = leader.shared_input
            layer.__dict__["leading"] = leader  # beside the submodules: it is not a child


def _connect_readers(modules: dict[str, nn.Module], found: dict[str, list[str]]) -> None:
    """Tell each `layers.InputReLU` who reads it, if all of them are quantized. One in a ``stem`` has to work: a stem
    may run once for all pairs, FP among them.
    """
    for relu, names in found.items():
        readers = [modules[name] for name in names]
        if not relu.startswith("stem.") and all(isinstance(reader, QuantizedLayer) for reader in readers):
            modules[relu].__dict__["readers"] = readers  # beside the submodules: they are not children


def restore_float(model: nn.Module) -> nn.Module:
    """Undo `quantize`, in place: the float classes again, learned steps and stored statistics dropped."""
    for module in model.modules():
        module.__dict__.pop("readers", None)
        if type(module) in FLOAT_CLASS:
            module.__class__ = FLOAT_CLASS[type(module)]
            for name in ("site", "quantizer", "setting", "shared_input", "leading", "kept"):
                module.__dict__.pop(name, None)
            for name in ("quant", "sets"):
                module._modules.pop(name, None)
            for name in [name for name in module._buffers if name.startswith("stats_")]:
                del module._buffers[name]
    for name in ("plan", "setting"):
        model.__dict__.pop(name, None)
    return model


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
    for width in {width for b in (pair, *per_layer.values()) for width in (b.w, b.a)} - {FULL}:
        if setting.quantizer is not None:
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
