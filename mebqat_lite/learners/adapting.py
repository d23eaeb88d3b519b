"""Run a network that was adapted to a task, with adapted weights and with the statistics of a support set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mebqat_lite.switching.norms import lent_stats, take_stats
from mebqat_lite.switching.state import MapOrBits, at, norm_layers
from mebqat_lite.tensors import evaluating


def call_with(model: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Run ``model`` on ``images``, (batch, channels, height, width), with ``weights`` in place of its own.

    The images are put into channels-last order, which the layers then pass on. The weights alone cannot do this:
    adapted weights of a first convolution with one input channel do not show that order.
    """
    order = torch.channels_last if images.dim() == 4 else torch.preserve_format
    own = torch.empty_like(images, memory_format=order).copy_(images)  # a network may begin with an operation in place
    return functional_call(model, weights, (own,))


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace the named parameters of ``model``, in place, by the values of ``weights``; all others stay."""
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(value)


def run_adapted(
    model: nn.Module,
    images: Tensor,
    *,
    bits: MapOrBits,
    norm_stats: str,
    stats: Mapping[str, Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Tensor:
    """Run a model that was adapted to a task, in evaluation mode and without gradients.

    images: (batch, channels, height, width). ``weights`` are the adapted parameters by name, and ``stats`` the norm
    statistics of the support set (`support_stats`); without them the model uses its own. The norm policy ``support``
    uses ``stats``. Returns the output of the model, (batch, N) or (batch, features).
    """
    policy = "recalibrated" if norm_stats == "support" else norm_stats
    with torch.no_grad(), evaluating(model), lent_stats(model, stats or {}), at(model, bits, policy):
        return call_with(model, weights or {}, images)


def refuse_unmeasured(model: nn.Module, norm_stats: str) -> None:
    """Raise a ValueError if the norm policy is ``running``, but nothing measured the running statistics."""
    norms = [norm for norm in norm_layers(model).values() if norm.running_mean is not None]
    running = [norm.get_buffer("running_mean") for norm in norms]
    if norm_stats == "running" and running and not any(mean.any() for mean in running):
        raise ValueError("running statistics were never measured here: take norm_stats support, batch or recalibrated")


def support_stats(
    model: nn.Module, images: Tensor, bits: MapOrBits, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Measure the norm statistics of the support images, (N K, channels, height, width), at ``bits``.

    ``weights`` are adapted parameters, if there are any. The statistics are named as by `take_stats`.
    """
    run_adapted(model, images, bits=bits, norm_stats="measure", weights=weights)
    return take_stats(model)
