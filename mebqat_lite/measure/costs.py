"""What a method costs, counted: passes by the training loop, bytes from the tensors that are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.state import MapOrBits, at
from mebqat_lite.tensors import evaluating, place


def stored_bytes(model: nn.Module, statistics: bool = True) -> int:
    """Bytes of all parameters and buffers; ``statistics=False`` leaves out recalibrated norm statistics."""
    state = model.state_dict()
    return sum(
        t.numel() * t.element_size()
        for name, t in state.items()
        if statistics or not name.rpartition(".")[2].startswith("stats_")
    )


def bit_operations(model: nn.Module, image: Tensor, bits: MapOrBits) -> int:
    """BitOPs of one image, (channels, height, width): over all convolutions and linear layers, multiplications times
    weight bits times activation bits. A layer that stays full precision counts 32 x 32.
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        pair = layer.bits if isinstance(layer, QuantizedLayer) else FP
        weight = layer.get_parameter("weight")  # (out, in, ...)
        counted.append(out.numel() * weight[0].numel() * pair.w * pair.a)

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, tuple(LAYERS))]
    device, dtype = place(model)
    try:
        with torch.no_grad(), evaluating(model), at(model, bits, "batch"):
            model(image[None].to(device, dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def saving(cost: float, baseline: float) -> float:
    """How much less ``cost`` is than ``baseline``, in percent."""
    return 100 * (1 - cost / baseline)
