"""Show what `quantize` made of a model, one line per layer."""

from __future__ import annotations

from torch import Tensor, nn

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.audit import audit, own_bytes, uncounted
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import plan_of, setting_of

HEADER = ("layer", "kind", "weights", "inputs", "signed", "bytes", "why")


def summary(model: nn.Module) -> str:
    """Describe a quantized model as text, with one line per layer.

    >>> with mq.at(model, "W2A4"):
    ...     print(mq.summary(model))  # doctest: +ELLIPSIS
    layer     kind    weights  inputs  signed  bytes  why
    stem.0    Conv2d  FP       FP      no      ...  float: first layer
    body.0.0  Conv2d  2        4       no      ...  quantized
    ...
    3 of 5 layers quantized; ... bytes at W2A4

    A line shows the current bits, whether the layer's inputs can be negative, and why the layer is quantized or not.
    The bytes are those of the layer when its weights are packed at these bits; each value of a bias takes 4 bytes, and
    so do the step and the zero of each channel where weights are corrected.

    Raises:
        NotQuantizedError: the model was not quantized.
    """
    setting, rows = setting_of(model), _rows(model)
    total = packed_bytes(model)
    quantized = sum(site.role == "body" for site in plan_of(model).sites)
    lines = _table([HEADER, *((*row[:5], f"{row[5]:,}", row[6]) for row in rows)])
    layers = len(plan_of(model).sites) + len(plan_of(model).skipped)
    lines.append(f"{quantized} of {layers} layers quantized; {total:,} bytes at {setting.key}")
    return "\n".join([*lines, *(f"WARNING: {words}" for words in audit(model))])


def packed_bytes(model: nn.Module) -> int:
    """Count the bytes of all layers when their weights are packed at the current bits, as `summary` does."""
    return sum(row[5] for row in _rows(model))


def _rows(model: nn.Module) -> list[tuple[str, str, str, str, str, int, str]]:
    """Make a row per layer. Those that `quantize` skipped come after the others, and then all other parameters.

    Batch norms have no row: what they store is counted by `costs.stored_bytes`.
    """
    setting_of(model)  # raises an error that says what to do if the model is not quantized
    plan = plan_of(model)
    rows = [_row(model.get_submodule(site.name), site) for site in plan.sites]
    for name, reason in plan.skipped.items():
        layer = model.get_submodule(name)
        rows.append((name, type(layer).__name__, "FP", "FP", "", _bytes(layer, FULL), f"float: {reason}"))
    for name, module in uncounted(model).items():
        why = "float: parameters of no convolution or linear layer"
        rows.append((name or "(itself)", type(module).__name__, "FP", "", "", own_bytes(module), why))
    return rows


def _row(layer: nn.Module, site: Site) -> tuple[str, str, str, str, str, int, str]:
    kind = type(layer).__name__.removeprefix("Quant")
    if not isinstance(layer, QuantizedLayer):
        return site.name, kind, "FP", "FP", _sign(site), _bytes(layer, FULL), f"float: {_edge(site)}"
    bits = layer.bits
    why = "quantized"
    if site.role != "body":
        why = f"{layer.quantizer.edge_bits}-bit weights: {_edge(site)}"
    elif site.signed and not layer.quantizer.signed_inputs:
        why = "quantized; inputs stay FP, they are signed"
    elif site.leader != site.name:
        why = f"quantized; reads the input that {site.leader} quantizes"
    return site.name, kind, _width(bits.w), _width(bits.a), _sign(site), _bytes(layer, bits.w), why


def _edge(site: Site) -> str:
    return f"{site.role} layer" if site.role in ("first", "last") else "kept by name"


def _width(bits: int) -> str:
    return "FP" if bits == FULL else str(bits)


def _sign(site: Site) -> str:
    return "yes" if site.signed else "no"


def _bytes(layer: nn.Module, bits: int) -> int:
    weight, bias = getattr(layer, "weight"), getattr(layer, "bias", None)  # noqa: B009 (its type)
    return -(-weight.numel() * bits // 8) + (0 if bias is None else 4 * bias.numel()) + _correction(layer, bits)


def _correction(layer: nn.Module, bits: int) -> int:
    """The bytes of the step and the zero of each channel, if a quantized layer has zeros for its channels."""
    if bits == FULL or not isinstance(layer, QuantizedLayer):
        return 0
    try:
        _, zero = layer.quantizer.weight_grid(layer.weight, bits, layer.quant, layer.site)
    except ValueError:  # the quantizer does not say what its integers mean
        return 0
    return 2 * 4 * zero.numel() if isinstance(zero, Tensor) else 0


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align columns to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
