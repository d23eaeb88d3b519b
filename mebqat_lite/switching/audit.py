"""What the bits of a quantized model do not reach, in words: `quantize` warns of it, and `summary` shows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mebqat_lite.bits import FULL
from mebqat_lite.switching.batchnorm import NORMS, SwitchableNorm
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import plan_of, quantized_layers, setting_of


def audit(model: nn.Module) -> list[str]:
    """Say what the bits and the norm policies of a quantized model do not reach; an empty list if they reach all.

    >>> mq.switching.audit.audit(model)
    []
    """
    found = (_nothing(model), _bypassed(model), _float_inputs(model), _rescaled(model), _other_norms(model))
    return [words for words in found if words]


def _nothing(model: nn.Module) -> str:
    """Whether every bitwidth gives the float model."""
    quantized = any(site.role == "body" for site in plan_of(model).sites)
    return "" if quantized else "no layer to quantize: see summary(model) for the reasons"


def _float_inputs(model: nn.Module) -> str:
    """Inputs that stay float at every activation bitwidth, because they can be negative."""
    body = [layer for layer in quantized_layers(model).values() if layer.site.role == "body"]
    signed = [layer.site.name for layer in body if layer.site.signed and not layer.quantizer.signed_inputs]
    if not signed:
        return ""
    return (
        f"{len(signed)} of {len(body)} layer inputs that can be negative: they stay float at every activation bitwidth "
        f"({_names(signed)}), because {setting_of(model).quantizer} has no negative values; lsq has"
    )


def _bypassed(model: nn.Module) -> str:
    """Layers whose weights the model reads by itself, so that these reads are always float."""
    found = plan_of(model).bypassed
    words = f"{len(found)} layers whose weights the model also reads without calling the layer ({_names(found)})"
    return f"{words}: no bitwidth reaches these reads" if found else ""


def _rescaled(model: nn.Module) -> str:
    """Layers whose quantized weights have another scale than the float ones, while no norm follows that removes it."""
    found = [name for name, layer in quantized_layers(model).items() if not layer.site.normed and _changes_scale(layer)]
    if not found:
        return ""
    return (
        f"{len(found)} layers without a norm behind them ({_names(found)}), although {setting_of(model).quantizer} "
        "changes the scale of weights, which only a norm removes: quantize with lsq, or add norms"
    )


@torch.no_grad()
def _changes_scale(layer: QuantizedLayer) -> bool:
    """Whether 8-bit weights, which are nearly exact, have over four times or under a quarter of the float spread."""
    if layer.site.role != "body" or layer.weight.numel() < 2 or layer.quantizer.predicts_only:
        return False
    ratio = float(layer.quantizer.weight(layer.weight, 8, layer.quant, layer.site).std() / layer.weight.std())
    return not 1 / 4 < ratio < 4


def _other_norms(model: nn.Module) -> str:
    """Batch norms of a class that no norm policy reaches."""
    found = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if _is_other_norm(m)]
    plain = ", ".join(kind.__name__ for kind in NORMS)
    words = (
        f"{len(found)} norms of other classes than {plain}: no norm policy reaches their statistics ({_names(found)})"
    )
    return words if found else ""


def _is_other_norm(module: nn.Module) -> bool:
    if isinstance(module, SwitchableNorm) or not isinstance(module, _NormBase):
        return False
    return isinstance(module, _BatchNorm) or module.track_running_stats  # instance norms seldom have statistics


def uncounted(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules whose own parameters belong to no convolution, linear layer or batch norm, by name.

    Their parameters stay float, and the operations that they do are not counted as BitOPs.
    """
    plan = plan_of(model)
    known = {site.name for site in plan.sites} | set(plan.skipped)
    below = tuple(f"{name}." for name in known)  # parts of a layer, such as parametrizations of its weight
    found = {}
    for name, module in model.named_modules():
        is_part = name in known or name.startswith(below) or isinstance(module, nn.ParameterDict | _BatchNorm)
        if not is_part and list(module.parameters(recurse=False)):
            found[name] = module
    return found


def own_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's own parameters, which stay float: 4 for each value."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False)) * FULL // 8


def _names(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
