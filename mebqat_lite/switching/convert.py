"""`quantize` turns any module into one whose bitwidth can be switched at run time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mebqat_lite import quantizers
from mebqat_lite.bits import FULL
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.switching.audit import audit
from mebqat_lite.switching.batchnorm import NORMS
from mebqat_lite.switching.inputs import QuantizedInput
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.observe import observe, runner, unchanged
from mebqat_lite.switching.setting import Setting
from mebqat_lite.switching.state import (
    FLOAT_CLASS,
    HELD,
    Held,
    Plan,
    at,
    plan_of,
    quantized_layers,
    settings_in,
    unwrapped,
)
from mebqat_lite.tensors import Sample

LAYER_NAMES = ("setting", "site", "quantizer", "quant", "shared_input", "leading")  # attributes of quantized layers
NORM_NAMES = ("setting", "sets")


def quantize(
    model: nn.Module,
    quantizer: str | Quantizer = "dorefa",
    *,
    sample: Sample | None = None,
    keep: Iterable[str] | None = None,
    plan: Plan | None = None,
) -> nn.Module:
    """Make the convolution and linear layers of ``model`` switchable between bitwidths, in place.

    The model starts at full precision (FP), where it computes exactly what it did before.

    >>> net = mq.quantize(mq.models.digit_net(), "dorefa", sample=images)
    >>> [site.name for site in mq.switching.state.plan_of(net).sites if site.role == "body"]
    ['body.0.0', 'body.1.0', 'body.2.0']

    Args:
        model: any module; it is returned. A model that is quantized already gets the new quantizer.
        quantizer: a registered quantizer or its name, a key of ``quantizers.QUANTIZERS``.
        sample: some hundred images, (batch, channels, height, width), or a loader of them. The model runs on them
            once, as one batch and in its present mode, to find the first and the last layer, the inputs with negative
            values, and the start values of learned steps. This run leaves the model unchanged. Where the quantizer
            says so (`Quantizer.starts_at`), a second run measures the steps at few bits. For a model with other inputs
            than one tensor it is a function that runs the model: ``lambda model: model(tokens, mask=mask)``.
        keep: names of the layers whose bitwidth is not switched. By default these are the first and the last layer
            that the sample executed. They stay full precision; with sat the first and the last have 8-bit weights.
        plan: the plan of an equal model that was quantized before, for example from a checkpoint. It replaces the
            sample.

    Raises:
        ValueError: there is neither a sample nor a plan, or the quantizer or a name in ``keep`` is unknown.
    """
    name, chosen = quantizers.get(quantizer)
    given, model = model, unwrapped(model)  # compiling wrappers change the names of layers
    inputs: dict[str, Tensor] = {}
    run = None
    if plan is None:
        if sample is None:
            raise ValueError("quantize needs sample=: a batch of images (or a loader) to run the model on once")
        run = runner(model, sample)
        plan, inputs = observe(model, name, run, None if keep is None else list(keep))
    restore_float(model)
    _convert(model, plan, chosen, inputs)
    if run is not None and chosen.starts_at:
        _start_again(model, run, chosen.starts_at)
    for words in audit(model) if sample is not None else []:  # a model from a file was warned of when it was made
        warnings.warn(f"quantize found {words}", stacklevel=2)
    return given


@torch.inference_mode(False)  # learned values made in inference mode could not be trained
def _convert(model: nn.Module, plan: Plan, chosen: Quantizer, inputs: dict[str, Tensor]) -> None:
    """Give the layers and norms of a float model their new classes and their common setting."""
    setting, modules = Setting(quantizer=chosen), dict(model.named_modules())
    _refuse_own_names(modules)
    for site in plan.sites:
        if site.role == "body" or (site.role != "kept" and chosen.edge_bits != FULL):
            _swap_layer(modules[site.name], site, chosen, setting, inputs.get(site.name))
    _share_inputs(modules, plan.sites)
    _connect_readers(modules, plan.readers)
    for module in modules.values():
        if type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
            module.setting, module.sets = setting, nn.ModuleDict()
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.register_forward_pre_hook(_no_fast_path)
        elif isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:  # which only the fast path takes
            module.__dict__.update(use_nested_tensor=False, nests=True)
    parts = [(module._modules, name, part) for module in modules.values() for name, part in module._modules.items()]
    places = [place for place in parts if isinstance(place[2], QuantizedLayer)]
    model.__dict__[HELD] = Held(plan, setting, places)


def _start_again(model: nn.Module, run: Callable[[], object], bits: str) -> None:
    """Run the sample at ``bits``, and let the learned steps of each layer start from the input that it reads then."""

    def start(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        assert isinstance(layer, QuantizedLayer)
        hooks.pop(layer).remove()  # a layer starts from the first of its inputs
        x = args[0] if args else kwargs["input"]
        layer.site.mean_abs = float(x.abs().mean())
        for name, value in layer.quantizer.parameters(layer.weight, x, layer.site).items():
            layer.quant[name].copy_(value)

    hooks = {
        layer: layer.register_forward_pre_hook(start, with_kwargs=True) for layer in quantized_layers(model).values()
    }
    try:
        with unchanged(model), at(model, bits, "running"):
            run()
    finally:
        for hook in hooks.values():
            hook.remove()


def requantize(model: nn.Module, quantizer: str | Quantizer, sample: Sample) -> nn.Module:
    """Give a quantized model another quantizer, or the same with new learned steps; the kept layers stay the same."""
    kept = [site.name for site in plan_of(model).sites if site.role != "body"]
    return quantize(model, quantizer, sample=sample, keep=kept)


def _no_fast_path(layer: nn.Module, _: tuple) -> None:
    """Do nothing, as a hook: a layer with a hook does not take PyTorch's fast path, which bypasses the layers in it."""


def _refuse_own_names(modules: dict[str, nn.Module]) -> None:
    """Raise a ValueError if a layer has an attribute of the user under a name that a quantized layer needs."""
    for name, module in modules.items():
        taken = LAYER_NAMES if type(module) in LAYERS else NORM_NAMES if type(module) in NORMS else ()
        if found := [own for own in taken if own in module.__dict__ or own in module._modules]:
            raise ValueError(f"{name} has an attribute {found[0]!r} of its own, which quantize needs: rename it")


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
    if any(found.quantizer.predicts_only for found in settings_in(model).values()):
        raise ValueError("a packed network has integers and no float weights: take the checkpoint it was made from")
    for module in model.modules():
        module.__dict__.pop("readers", None)
        if type(module) in FLOAT_CLASS:
            module.__class__ = FLOAT_CLASS[type(module)]
            for name in {*LAYER_NAMES, *NORM_NAMES, "kept", "moments"}:
                module.__dict__.pop(name, None)
                module._modules.pop(name, None)
            for name in [name for name in module._buffers if name.startswith("stats_")]:
                del module._buffers[name]
        module.__dict__.pop(HELD, None)  # also of a part that was quantized by itself
        if module.__dict__.pop("nests", False):
            module.__dict__["use_nested_tensor"] = True
        if isinstance(module, nn.TransformerEncoderLayer):
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _no_fast_path]:
                del module._forward_pre_hooks[key]
    return model
