"""Run a sample through a model once, and record as a plan what its layers read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mebqat_lite.bits import FP
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.inputs import InputReLU, version_of
from mebqat_lite.switching.layers import LAYERS
from mebqat_lite.switching.state import FLOAT_CLASS, Plan, settings_in
from mebqat_lite.tensors import Sample, image_batches, like_model

SCALING = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # norms, which remove the scale of the layer before them


@dataclass
class Read:
    """An input that a layer read: the tensor itself, its version at that time, and its values."""

    source: Tensor
    version: int
    value: Tensor  # the tensor itself, or a copy if the model overwrote it later

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed the tensor since the layer read it."""
        return self.value is self.source and version_of(self.source) != self.version


@dataclass
class Watched:
    """What happened while the sample ran."""

    reads: dict[str, list[Read]] = field(default_factory=dict)  # the inputs of each layer
    order: list[str | None] = field(default_factory=list)  # layers as they were executed, and None for each norm
    rectified: dict[str, list[Tensor]] = field(default_factory=dict)  # the outputs of each `inputs.InputReLU`
    bypassed: set[str] = field(default_factory=set)  # layers whose weights were read outside of their forward


def observe(
    model: nn.Module, quantizer: str, run: Callable[[], object], keep: Sequence[str] | None
) -> tuple[Plan, dict[str, Tensor]]:
    """Run the sample, and return what each layer reads as a plan, and the first input of each layer.

    quantizer: its registered name; run: a function that runs the sample (`runner`); keep: the layers to keep, or None
    for the first and the last. The model stays unchanged. If ``keep`` names something that is not a layer, it is a
    ValueError.
    """
    layers, plan = _find_layers(model, quantizer)
    if unknown := set(keep or ()) - set(layers):
        raise ValueError(f"keep names {sorted(unknown)}, but the layers are {list(layers)}")
    seen = _watch(model, layers, run)
    order = [layer for layer in seen.order if layer is not None]
    edges = {order[0]: "first", order[-1]: "last"} if order else {}
    kept = set(edges) if keep is None else set(keep)
    first_reader: dict[tuple[int, int], str] = {}
    for layer, reads in seen.reads.items():
        role = "body" if layer not in kept else edges.get(layer, "kept")
        site = _site(layer, role, [read.value for read in reads], normed=_is_normed(layer, seen.order))
        if role == "body" and len(reads) == 1:  # the first of the layers that read one tensor quantizes it
            site.leader = first_reader.setdefault((id(reads[0].source), reads[0].version), layer)
        plan.sites.append(site)
    plan.readers = _readers(seen)
    plan.bypassed = [layer for layer in layers if layer in seen.bypassed]
    plan.skipped |= {layer: "the sample did not reach it" for layer in layers if layer not in seen.reads}
    return plan, {layer: reads[0].value for layer, reads in seen.reads.items()}


def _find_layers(model: nn.Module, quantizer: str) -> tuple[dict[str, nn.Module], Plan]:
    """Find the layers that can be quantized, and start a plan that says why other layers cannot."""
    layers, plan = {}, Plan(quantizer)
    for layer, module in model.named_modules():
        stored = "weight" in module._parameters
        if FLOAT_CLASS.get(type(module), type(module)) in LAYERS and stored:
            layers[layer] = module
        elif isinstance(module, tuple(LAYERS)):
            own = f"{type(module).__name__} is a layer class of its own" if stored else "its weights are computed"
            plan.skipped[layer] = own
    return layers, plan


def _site(layer: str, role: str, inputs: Sequence[Tensor], normed: bool) -> Site:
    mean_abs = sum(float(x.abs().sum()) for x in inputs) / max(1, sum(x.numel() for x in inputs))
    if not math.isfinite(mean_abs):
        raise ValueError(f"the sample gives {layer} an input that is not finite: look for bad values in it")
    return Site(layer, role, any(bool((x < 0).any()) for x in inputs), mean_abs, leader=layer, normed=normed)


def _is_normed(layer: str, order: Sequence[str | None]) -> bool:
    """Whether a norm runs after the layer, before the next layer does."""
    return all(after is None for before, after in zip(order, [*order[1:], "end"], strict=True) if before == layer)


def _readers(seen: Watched) -> dict[str, list[str]]:
    """Find the layers that read the output of each `inputs.InputReLU`, if they read nothing else."""
    found = {}
    for relu, outs in seen.rectified.items():
        readers = [layer for layer, reads in seen.reads.items() if any(read.source is outs[0] for read in reads)]
        if len(outs) == 1 and all(len(seen.reads[layer]) == 1 for layer in readers):
            found[relu] = readers
    return found


def runner(model: nn.Module, sample: Sample) -> Callable[[], object]:
    """Make a function that runs the sample through the model; a sample without images is a ValueError."""
    if callable(sample):
        return lambda: sample(model)
    if not (batches := list(image_batches(sample))) or not sum(map(len, batches)):
        raise ValueError("the sample has no images: give some hundred of them")
    images = like_model(torch.cat(batches), model)
    return lambda: model(images.clone())  # a network may begin with an operation in place


def _watch(
    model: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], object], copied: Iterable[str] = ()
) -> Watched:
    """Run the model at full precision and record what happens; the inputs of the layers ``copied`` are copied.

    If the model overwrites an input after a layer has read it, the model runs once more, and this input is copied.
    """
    seen, running = Watched(), list[str]()
    hooks = [hook for name, layer in layers.items() for hook in _layer_hooks(name, layer, seen, running, set(copied))]
    for name, module in model.named_modules():
        if isinstance(module, InputReLU):
            hooks.append(
                module.register_forward_hook(
                    lambda _module, _args, out, name=name: seen.rectified.setdefault(name, []).append(out)
                )
            )
        elif isinstance(module, SCALING):
            hooks.append(module.register_forward_hook(lambda *_: seen.order.append(None)))
    try:
        with unchanged(model), _at_full_precision(model), _WeightReads(layers, running, seen):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    overwritten = {layer for layer, reads in seen.reads.items() if any(read.overwritten for read in reads)}
    return _watch(model, layers, run, overwritten) if overwritten else seen


def _layer_hooks(
    name: str, layer: nn.Module, seen: Watched, running: list[str], copied: set[str]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Record what a layer reads, and while it runs list it in ``running``."""

    def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["input"]
        seen.reads.setdefault(name, []).append(Read(x, version_of(x), x.clone() if name in copied else x))
        seen.order.append(name)
        running.append(name)

    return [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(lambda *_: running.remove(name)),
    ]


class _WeightReads(TorchFunctionMode):
    """Inside this block, notice each operation that reads the weight of a layer outside of the layer's forward."""

    def __init__(self, layers: Mapping[str, nn.Module], running: Sequence[str], seen: Watched) -> None:
        super().__init__()
        self.running, self.seen = running, seen
        self.owners: dict[int, set[str]] = {}
        for name, layer in layers.items():
            self.owners.setdefault(id(layer.weight), set()).add(name)  # tied layers own one weight together

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in tree_leaves(out)):  # not when a shape or a device was asked for
            for value in tree_leaves((args, kwargs)):
                owners = self.owners.get(id(value), set())
                if owners and owners.isdisjoint(self.running):
                    self.seen.bypassed |= owners
        return out


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has its buffers of before, with their values, and so has the CPU its random state."""
    before = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = {id(b): (b, b.clone()) for _, buffers in before for b in buffers.values() if b is not None}
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for buffers, own in before:
            buffers.clear()
            buffers.update(own)
        for buffer, value in values.values():
            buffer.copy_(value)


@contextlib.contextmanager
def _at_full_precision(model: nn.Module) -> Iterator[None]:
    """Run each part that is quantized already at full precision."""
    before = [(setting, dict(vars(setting))) for setting in settings_in(model).values()]
    try:
        for setting, _ in before:
            setting.bits, setting.per_layer, setting.norm_stats = FP, {}, "running"
        yield
    finally:
        for setting, values in before:
            vars(setting).update(values)
