"""Count what a network costs: the bytes of its tensors, and the bit operations that it needs for an image.

The training loop itself counts the passes that a training takes (`loop.Costs`).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP
from mebqat_lite.switching.audit import uncounted
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.state import MapOrBits, at
from mebqat_lite.tensors import evaluating, like_model


def stored_bytes(model: nn.Module, statistics: bool = True) -> int:
    """Count the bytes of all parameters and buffers of a model.

    ``statistics=False`` leaves out the norm statistics that `recalibrate` stored for each pair.
    """
    state = model.state_dict()
    return sum(
        t.numel() * t.element_size()
        for name, t in state.items()
        if statistics or not name.rpartition(".")[2].startswith("stats_")
    )


def bit_operations(model: nn.Module, image: Tensor, bits: MapOrBits) -> int:
    """Count the bit operations (BitOPs) that a model needs for one image at ``bits``.

    In each convolution and linear layer, every multiplication counts as the bits of the weight times the bits of the
    activation. In a layer that stays at full precision this is 32 x 32.

    Args:
        model: a quantized model.
        image: (channels, height, width).
        bits: a pair, or a map of layers to pairs.
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        pair = layer.bits if isinstance(layer, QuantizedLayer) else FP
        weight = layer.get_parameter("weight")  # (out, in, ...)
        counted.append(out.numel() * weight[0].numel() * pair.w * pair.a)

    if left_out := uncounted(model):
        names = ", ".join(f"{name or 'the model itself'} ({type(m).__name__})" for name, m in left_out.items())
        warnings.warn(f"bit_operations leaves out what is no convolution or linear layer: {names}", stacklevel=2)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, tuple(LAYERS))]
    try:
        with torch.no_grad(), evaluating(model), at(model, bits, "running"):
            model(like_model(image[None].clone(), model))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def saving(cost: float, baseline: float) -> float:
    """Compute by how many percent ``cost`` is lower than ``baseline``."""
    return 100 * (1 - cost / baseline)
