"""What `quantize` made of a model: a line per layer."""

from __future__ import annotations

from torch import nn

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import plan_of, setting_of

HEADER = ("layer", "kind", "weights", "inputs", "signed", "bytes", "why")


def summary(model: nn.Module) -> str:
    """A table with a line per layer: bits in force, signed inputs, packed bytes of its weights, and why.

    Bytes are what the layer's weights take when packed at the bits in force (a bias counts 4 bytes a value).
    """
    setting, rows = setting_of(model), _rows(model)
    total = packed_bytes(model)
    quantized = sum(site.role == "body" for site in plan_of(model).sites)
    lines = _table([HEADER, *((*row[:5], f"{row[5]:,}", row[6]) for row in rows)])
    lines.append(f"{quantized} of {len(rows)} layers quantized; {total:,} bytes at {setting.key}")
    if not quantized:
        lines.append("WARNING: nothing was quantized; every bitwidth gives the float model")
    return "\n".join(lines)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of all layers when their weights are packed at the bits in force: the total of `summary`."""
    return sum(row[5] for row in _rows(model))


def _rows(model: nn.Module) -> list[tuple[str, str, str, str, str, int, str]]:
    """A row per layer, those that `quantize` skipped last."""
    setting_of(model)  # or its error, which says what to do
    plan = plan_of(model)
    rows = [_row(model.get_submodule(site.name), site) for site in plan.sites]
    for name, reason in plan.skipped.items():
        layer = model.get_submodule(name)
        rows.append((name, type(layer).__name__, "FP", "FP", "", _bytes(layer, FULL), f"float: {reason}"))
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
    return -(-weight.numel() * bits // 8) + (0 if bias is None else 4 * bias.numel())


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Left-aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
