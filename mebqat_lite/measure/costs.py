"""Count what a network costs: the bytes of its tensors, and the bit operations that it needs for an image.

The training loop itself counts the passes that a training takes (`loop.Costs`).
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP, FULL
from mebqat_lite.switching.audit import uncounted
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.state import MapOrBits, at
from mebqat_lite.tensors import evaluating, like_model

if TYPE_CHECKING:
    import pandas as pd


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


def by_layer(model: nn.Module, image: Tensor, bits: MapOrBits) -> pd.DataFrame:
    """Count the weight bytes and the bit operations (BitOPs) of each convolution and linear layer at ``bits``.

    Weights are stored as `deploy.packed.save_packed` does, in planes of one bit each; biases, norms and learned steps
    are not counted. Every multiplication for one image counts as the bits of the weight times the bits of the
    activation. In a layer that stays at full precision this is 32 x 32.

    >>> frame = mq.costs.by_layer(model, images[0], "W2A4")
    >>> total, without_edges = frame.bytes.sum(), frame.bytes[~frame.edge].sum()

    Args:
        model: a quantized model.
        image: (channels, height, width).
        bits: a pair, or a map of layers to pairs.

    Returns:
        A frame with a row per layer, in the order in which they run: its bits ``w`` and ``a``, ``edge`` (whether it is
        kept at full precision, or only has weights of 8 bits, as the first and the last layer), ``bytes`` and
        ``bitops``.
    """
    import pandas as pd

    names = {module: name for name, module in model.named_modules()}
    rows: dict[str, dict[str, int]] = {}

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        weight = layer.get_parameter("weight")  # (out, in, ...)
        pair, edge = (layer.bits, layer.site.role != "body") if isinstance(layer, QuantizedLayer) else (FP, True)
        size = weight.numel() * weight.element_size() if pair.w == FULL else pair.w * math.ceil(weight.numel() / 8)
        new = {"w": pair.w, "a": pair.a, "edge": edge, "bytes": size, "bitops": 0}
        row = rows.setdefault(names[layer], new)
        row["bitops"] += out.numel() * weight[0].numel() * pair.w * pair.a  # again if it runs again

    if left_out := uncounted(model):
        them = ", ".join(f"{name or 'the model itself'} ({type(m).__name__})" for name, m in left_out.items())
        warnings.warn(f"costs leave out what is no convolution or linear layer: {them}", stacklevel=2)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, tuple(LAYERS))]
    try:
        with torch.no_grad(), evaluating(model), at(model, bits, "running"):
            model(like_model(image[None].clone(), model))
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def bit_operations(model: nn.Module, image: Tensor, bits: MapOrBits) -> int:
    """Count the bit operations that a model needs for one image, (channels, height, width), at ``bits``.

    This is the sum over all layers of `by_layer`, also over those that stay at full precision.
    """
    return int(by_layer(model, image, bits).bitops.sum())


def saving(cost: float, baseline: float) -> float:
    """Compute by how many percent ``cost`` is lower than ``baseline``."""
    return 100 * (1 - cost / baseline)
