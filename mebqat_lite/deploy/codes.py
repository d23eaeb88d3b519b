"""Turn the weights of a layer into integers, called codes, and pack codes of b bits into exactly b bits each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mebqat_lite.quantizers import wide
from mebqat_lite.switching.layers import QuantizedLayer

LAYOUT = "bit planes, the most significant first; each plane row-major, eight codes a byte, the first one highest"


def weight_codes(layer: QuantizedLayer, bits: int) -> tuple[Tensor, Tensor, float | Tensor]:
    """Express the weights of a layer at ``bits`` as integers.

    The weights that the layer multiplies with are exactly ``(codes - zero) * step``.

    Returns:
        ``codes``, int32 from 0 to 2^bits - 1, of the shape of the weights; ``step``, a scalar or (out, 1, ...); and
        ``zero``, a number that may be a half-integer, or any numbers (out, 1, ...).

    Raises:
        ValueError: the quantizer does not define `weight_grid`, its grid does not reproduce the weights, or the
            weights are not finite.
    """
    if not layer.quantizer.predicts_only and not bool(layer.weight.isfinite().all()):
        raise ValueError(f"the weights of {layer.site.name} are not all finite: the network diverged, train it anew")
    with torch.no_grad():
        quantized = layer.quantized_weight(bits)
        step, zero = layer.quantizer.weight_grid(layer.weight, bits, layer.quant, layer.site)
        codes = (wide(quantized) / step + zero).round().clamp(0, 2**bits - 1).to(torch.int32)
    if not torch.equal(dequantize(codes, step, zero).to(quantized.dtype), quantized):
        raise ValueError(
            f"{layer.quantizer}: weight_grid() at {bits} bits does not give the weights back: weight() must be "
            "(code - zero) step to the last digit; a straight-through gradient is q.detach() + (w - w.detach())"
        )
    return codes, step, zero


def dequantize(codes: Tensor, step: Tensor, zero: float | Tensor) -> Tensor:
    """Compute the weights ``(codes - zero) * step``, in the type of ``step``, but no narrower than float32."""
    return codes.to(wide(step).dtype).sub_(zero).mul_(step)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of ``bits`` bits into bytes, (bits, ceil(codes / 8)).

    Each row is a bit plane: it holds one bit of every code, and the first row holds the most significant bits. So the
    first c rows are the packed codes of the upper c bits.
    """
    flat = codes.flatten().cpu().numpy()
    planes = [(flat >> shift) & 1 for shift in reversed(range(bits))]
    return torch.from_numpy(np.packbits(np.stack(planes).astype(np.uint8), axis=1))


def unpack(planes: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack codes, int32 of ``shape``, from the bit planes of `pack`; the first c rows alone give the upper c bits."""
    rows = np.unpackbits(planes.cpu().numpy(), axis=1, count=int(np.prod(shape))).astype(np.int32)
    value = np.zeros(rows.shape[1], np.int32)
    for row in rows:
        value = value * 2 + row
    return torch.from_numpy(value).reshape(*shape)
