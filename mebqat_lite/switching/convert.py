"""Turn any module into one whose bitwidth is run-time state: `quantize`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mebqat_lite import quantizers
from mebqat_lite.bits import FP, FULL
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.switching.batchnorm import NORMS
from mebqat_lite.switching.inputs import InputReLU, QuantizedInput
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.setting import Setting
from mebqat_lite.switching.state import FLOAT_CLASS, Plan, at, is_quantized, plan_of, quantized_layers, setting_of
from mebqat_lite.tensors import Images, image_batches, place


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
    if is_quantized(model) and (quantizer := setting_of(model).quantizer) is not None and quantizer.predicts_only:
        raise ValueError("a packed network has integers and no float weights: take the checkpoint it was made from")
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
