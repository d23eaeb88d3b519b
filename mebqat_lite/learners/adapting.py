"""Running a network as an adaptation left it: with other weights and with the statistics of a support set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mebqat_lite.switching.norms import lent_stats, take_stats
from mebqat_lite.switching.state import MapOrBits, at
from mebqat_lite.tensors import evaluating


def call_with(model: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """``model`` with other ``weights``. The images come channels-last: adapted weights of a first convolution with one
    channel do not show that layout any more, and all layers after it would leave it.
    """
    if images.dim() == 4:
        images = torch.empty_like(images, memory_format=torch.channels_last).copy_(images)
    return functional_call(model, weights, (images,))


def run_adapted(
    model: nn.Module,
    images: Tensor,
    *,
    bits: MapOrBits,
    norm_stats: str,
    stats: Mapping[str, Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Tensor:
    """``model`` on ``images`` without a gradient, with statistics (``support``) and weights of an adaptation."""
    policy = "recalibrated" if norm_stats == "support" else norm_stats
    with torch.no_grad(), evaluating(model), at(model, bits, policy), lent_stats(model, stats or {}):
        return call_with(model, weights or {}, images)


def support_stats(
    model: nn.Module, images: Tensor, bits: MapOrBits, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The norm statistics of the support, (N K, channels, height, width), at ``bits``."""
    run_adapted(model, images, bits=bits, norm_stats="measure", weights=weights)
    return take_stats(model)
