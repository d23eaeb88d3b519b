"""`quantize` turns any module into one whose bitwidth can be switched at run time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mebqat_lite import quantizers
from mebqat_lite.bits import FP, FULL
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.switching.audit import audit
from mebqat_lite.switching.batchnorm import NORMS
from mebqat_lite.switching.inputs import InputReLU, QuantizedInput
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.setting import Setting
from mebqat_lite.switching.state import (
    FLOAT_CLASS,
    MapOrBits,
    Plan,
    at,
    is_quantized,
    plan_of,
    quantized_layers,
    setting_of,
)
from mebqat_lite.tensors import Images, image_batches, place


def quantize(
    model: nn.Module,
    quantizer: str | Quantizer = "dorefa",
    *,
    sample: Images | None = None,
    keep: Iterable[str] | None = None,
    plan: Plan | None = None,
) -> nn.Module:
    """Make the convolution and linear layers of ``model`` switchable between bitwidths, in place.

    The model starts at full precision (FP), where it computes exactly what it did before.

    >>> net = mq.quantize(mq.models.digit_net(), "dorefa", sample=images)
    >>> [site.name for site in net.plan.sites if site.role == "body"]
    ['body.0.0', 'body.1.0', 'body.2.0']

    Args:
        model: any module; it is returned. A model that is quantized already gets the new quantizer.
        quantizer: a registered quantizer or its name, a key of ``quantizers.QUANTIZERS``.
        sample: some hundred images, (batch, channels, height, width), or a loader of them. The model runs on them
            once, as one batch and in its present mode, to find the first and the last layer, the inputs with negative
            values, and the start values of learned steps. This run leaves the model unchanged. Where the quantizer
            says so (`Quantizer.starts_at`), a second run measures the steps at few bits.
        keep: names of the layers whose bitwidth is not switched. By default these are the first and the last layer
            that the sample executed. They stay full precision; with sat the first and the last have 8-bit weights.
        plan: the plan of an equal model that was quantized before, for example from a checkpoint. It replaces the
            sample.

    Raises:
        ValueError: there is neither a sample nor a plan, or the quantizer or a name in ``keep`` is unknown.
    """
    name, chosen = quantizers.get(quantizer)
    inputs: dict[str, Tensor] = {}
    if plan is None:
        if sample is None:
            raise ValueError("quantize needs sample=: a batch of images (or a loader) to run the model on once")
        sample = torch.cat(list(image_batches(sample)))  # a loader may yield its images only once
        plan, inputs = _observe(model, name, sample, None if keep is None else list(keep))
    restore_float(model)
    setting = Setting(quantizer=chosen)
    modules = dict(model.named_modules())
    for site in plan.sites:
        if site.role == "body" or (site.role != "kept" and chosen.edge_bits != FULL):
            _swap_layer(modules[site.name], site, chosen, setting, inputs.get(site.name))
    _share_inputs(modules, plan.sites)
    _connect_readers(modules, plan.readers)
    for module in modules.values():
        if type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
            module.setting, module.sets = setting, nn.ModuleDict()
    model.plan, model.setting = plan, setting  # type: ignore[assignment]
    if isinstance(sample, Tensor) and chosen.starts_at:
        _start_again(model, sample, chosen.starts_at)
    for words in audit(model) if sample is not None else []:  # a model from a file was warned of when it was made
        warnings.warn(f"quantize found {words}", stacklevel=2)
    return model


def _start_again(model: nn.Module, sample: Tensor, bits: str) -> None:
    """Run the sample at ``bits``, and let the learned steps of each layer start from the input that it reads then."""

    def start(layer: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(layer, QuantizedLayer)
        hooks.pop(layer).remove()  # a layer starts from the first of its inputs
        layer.site.mean_abs = float(args[0].abs().mean())
        for name, value in layer.quantizer.parameters(layer.weight, args[0], layer.site).items():
            layer.quant[name].copy_(value)

    hooks = {layer: layer.register_forward_pre_hook(start) for layer in quantized_layers(model).values()}
    try:
        _run_sample(model, {}, sample, bits)
    finally:
        for hook in hooks.values():
            hook.remove()


def requantize(model: nn.Module, quantizer: str | Quantizer, sample: Images) -> nn.Module:
    """Give a quantized model another quantizer, or the same with new learned steps; the kept layers stay the same."""
    kept = [site.name for site in plan_of(model).sites if site.role != "body"]
    return quantize(model, quantizer, sample=sample, keep=kept)


def _observe(model: nn.Module, name: str, sample: Tensor, keep: list[str] | None) -> tuple[Plan, dict[str, Tensor]]:
    """Run the sample and record what each layer reads, as a plan; also return the first input of each layer."""
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
        if role == "body" and len(inputs) == 1:  # the first of the layers that read one tensor quantizes it
            site.leader = first_reader.setdefault((id(inputs[0]), inputs[0]._version), layer)
        plan.sites.append(site)
    for relu, out in rectified.items():
        readers = [layer for layer, inputs in seen.items() if any(x is out for x in inputs)]
        if all(len(seen[layer]) == 1 for layer in readers):
            plan.readers[relu] = readers
    plan.skipped |= {layer: "the sample did not reach it" for layer in layers if layer not in seen}
    return plan, {layer: inputs[0] for layer, inputs in seen.items()}


def _find_layers(model: nn.Module, name: str) -> tuple[dict[str, nn.Module], Plan]:
    """Find the layers that can be quantized, and start a plan that says why other layers cannot."""
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
    model: nn.Module, layers: dict[str, nn.Module], sample: Tensor, bits: MapOrBits = FP
) -> tuple[dict[str, list[Tensor]], list[str], dict[str, Tensor]]:
    """Run the sample through the model, at full precision or at ``bits``, and record what the layers read.

    Returns the inputs of each layer, the names of the layers in the order of execution, and the output of each
    `inputs.InputReLU` that ran exactly once. Buffers and the random state are restored afterwards.
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
    at_bits = at(model, bits, "running") if is_quantized(model) else contextlib.nullcontext()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), at_bits:
            model(sample.to(device, dtype, copy=True))  # a network may begin with an operation in place
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
    """Give each activation bitwidth in ``widths`` its own learned clip (AdaBits, Jin et al., 2020, section 3.3).

    The new clips start from the shared one. Bitwidths that have their own clip keep it, and layers whose quantizer
    learns no clip stay as they are.
    """
    for layer in quantized_layers(model).values():
        for bits in sorted(set(widths) - {FULL}):
            if "alpha" in layer.quant and f"alpha{bits}" not in layer.quant:
                layer.quant[f"alpha{bits}"] = nn.Parameter(layer.quant["alpha"].detach().clone())
    return model


def _share_inputs(modules: dict[str, nn.Module], sites: list[Site]) -> None:
    """Let layers that read the same tensor use the input that their leader quantized."""
    for site in sites:
        layer, leader = modules[site.name], modules[site.leader]
        if layer is not leader and isinstance(layer, QuantizedLayer) and isinstance(leader, QuantizedLayer):
            leader.shared_input.followers += 1
            layer.shared_input = leader.shared_input
            layer.__dict__["leading"] = leader  # a plain attribute would make it a child module


def _connect_readers(modules: dict[str, nn.Module], found: dict[str, list[str]]) -> None:
    """Tell each `inputs.InputReLU` which layers read its output, if all of them are quantized.

    A ReLU in a ``stem`` is left out, because it must always run: the stem may run once for all pairs, also for FP.
    """
    for relu, names in found.items():
        readers = [modules[name] for name in names]
        if not relu.startswith("stem.") and all(isinstance(reader, QuantizedLayer) for reader in readers):
            modules[relu].__dict__["readers"] = readers


def restore_float(model: nn.Module) -> nn.Module:
    """Turn a quantized model back into a float model, in place.

    Learned steps, norm sets and recalibrated statistics are removed. A float model stays as it is.

    Raises:
        ValueError: the network is packed, so that it has no float weights.
    """
    if is_quantized(model) and (quantizer := setting_of(model).quantizer) is not None and quantizer.predicts_only:
        raise ValueError("a packed network has integers and no float weights: take the checkpoint it was made from")
    for module in model.modules():
        module.__dict__.pop("readers", None)
        if type(module) in FLOAT_CLASS:
            module.__class__ = FLOAT_CLASS[type(module)]
            for name in ("site", "quantizer", "shared_input", "leading", "kept"):
                module.__dict__.pop(name, None)
            for name in ("quant", "sets"):
                module._modules.pop(name, None)
            for name in [name for name in module._buffers if name.startswith("stats_")]:
                del module._buffers[name]
        for name, kind in (("plan", Plan), ("setting", Setting)):
            if isinstance(module.__dict__.get(name), kind):  # also of a part that was quantized by itself
                del module.__dict__[name]
    return model
