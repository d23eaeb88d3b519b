"""Norm policies: measuring batch-norm statistics for a bitwidth, and one norm set per bitwidth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mebqat_lite.bits import FP, Bits, BitsLike, parse_all
from mebqat_lite.convert import MapOrBits, at, frozen_weights, norm_layers, setting_of
from mebqat_lite.layers import FLOAT_CLASS, SwitchableNorm
from mebqat_lite.tensors import Images, evaluating, image_batches, place


def recalibrate(model: nn.Module, images: Images, bits: MapOrBits | Iterable[BitsLike]) -> nn.Module:
    """Measure the mean and variance that each batch norm sees at ``bits`` and store them with the model.

    Args:
        model: quantized; its weights do not change.
        images: calibration images, never test images: a tensor, an ``(images, labels)`` pair or a loader.
        bits: a pair, several (``"W2A2,FP"`` or a list), or one per-layer map.
    """
    setting_of(model)
    settings: list[MapOrBits] = [bits] if isinstance(bits, dict) else list(_pairs(bits))
    norms = norm_layers(model).values()
    try:
        with evaluating(model), frozen_weights(model):
            for setting in settings:
                _measure(model, images, setting)
    except BaseException:
        for norm in norms:
            norm.take_measured()
        raise
    for norm in norms:  # all or none
        for key, stats in norm.take_measured().items():
            norm.register_buffer(f"stats_{key}", stats)
    return model


def _measure(model: nn.Module, images: Images, bits: MapOrBits) -> None:
    """Let each batch norm pool the statistics that it sees at ``bits``."""
    device, dtype = place(model)
    with at(model, bits, "measure"):
        for batch in image_batches(images):
            model(batch.to(device, dtype))


def _pairs(bits: Any) -> list[Bits]:
    """One pair or several, parsed."""
    if isinstance(bits, (tuple, list)) and len(bits) == 2 and all(isinstance(b, int) for b in bits):
        return parse_all([bits])
    return parse_all(bits if isinstance(bits, (str, list, tuple)) else [bits])


def is_recalibrated(model: nn.Module, key: str) -> bool:
    """Whether every batch norm has statistics for the setting named ``key``."""
    return all(f"stats_{key}" in norm._buffers for norm in norm_layers(model).values())


def give_norm_sets(model: nn.Module, pairs: str | Iterable[BitsLike]) -> nn.Module:
    """Give each listed pair its own gain, shift and running statistics, started from the float layer's.

    This is the switchable batch norm of AdaBits and Any-Precision; FP keeps the float layer's set, and a pair that
    has a set keeps it.
    """
    setting_of(model)
    listed = [pair for pair in parse_all(pairs) if pair != FP]
    for norm in norm_layers(model).values():
        for pair in listed:
            if str(pair) not in norm.sets:
                norm.sets[str(pair)] = _plain_copy(norm)
    return model


def _plain_copy(norm: SwitchableNorm) -> nn.Module:
    """A batch norm of the float class with the values of ``norm``."""
    plain = FLOAT_CLASS[type(norm)]
    options = {name: getattr(norm, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    state = norm.state_dict()
    like = next((t for t in state.values() if t.is_floating_point()), torch.empty(0))
    copied = plain(norm.num_features, **options).to(like.device, like.dtype)
    copied.load_state_dict({name: state[name] for name in copied.state_dict()})
    return copied.train(norm.training)
