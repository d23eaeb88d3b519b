"""A copy of a network whose bits are tensors: all that depends on them lies in tables, for `onnx_switch`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, FULL, Bits
from mebqat_lite.deploy.agree import copied
from mebqat_lite.quantizers import LSQ, DoReFa, LeastSquares, unit_weight
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import at, norm_layers, quantized_layers, set_bits

KINDS = (DoReFa, LSQ, LeastSquares)  # the classes of the quantizers that `Switched` computes
STATISTICS = ("norm_mean", "norm_variance", "norm_gain", "norm_shift")


class Switched(nn.Module):
    """A copy of a network that takes its bits as tensors, and looks up in tables what depends on them.

    ``seen`` has the quantized weights and inputs of the layers in the last run, in order: the name of the layer,
    ``weight`` or ``input``, and the value.
    """

    index: Tensor
    w_rows: Tensor
    a_rows: Tensor

    def __init__(self, network: nn.Module, pairs: Sequence[Bits]) -> None:
        super().__init__()
        self.network, self.pairs = copied(network), pairs
        self.now = SimpleNamespace()  # what a run looks up; no tensors of the module itself, which the exporter forbids
        self.w_bits, self.a_bits = (sorted({getattr(pair, kind) for pair in pairs}) for kind in "wa")
        index = torch.full((FULL + 1, FULL + 1), len(pairs), dtype=torch.int16)  # a row that is not there: an error
        for row, pair in enumerate(pairs):
            index[pair.w, pair.a] = row
        self.register_buffer("index", index)
        self.register_buffer("w_rows", torch.tensor([self.w_bits.index(pair.w) for pair in pairs]))
        self.register_buffer("a_rows", torch.tensor([self.a_bits.index(pair.a) for pair in pairs]))
        self._give_tables()

    def _give_tables(self) -> None:
        """Give each norm and each quantized layer its tables, and a forward pass that reads them."""
        for norm in norm_layers(self.network).values():
            if not any(name.startswith("stats_") for name in norm._buffers):
                continue  # no evaluation reaches it
            _give_statistics(norm, self.network, self.pairs)
            norm.forward = functools.partial(self._normalise, norm)  # type: ignore[method-assign]
        for name, layer in quantized_layers(self.network).items():
            if layer.site.role == "body":
                _give_weights(layer, self.w_bits)
                _give_inputs(layer, self.a_bits)
                layer.forward = functools.partial(self._run, name, layer)  # type: ignore[method-assign]
        set_bits(self.network, FP)  # the other layers are float ones then, and no ReLU is left out

    def forward(self, images: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> tuple[Tensor, ...]:
        """Return the output of the network for ``images``, and behind it the values of ``seen``."""
        row = _row(_row(self.index, weight_bits.long()), activation_bits.long()).long()
        rows = {"row": row, "w_row": _row(self.w_rows, row), "a_row": _row(self.a_rows, row)}
        vars(self.now).update(w=weight_bits, a=activation_bits, seen=[], **rows)
        return self.network(images), *(value for _, _, value in self.seen)

    @property
    def seen(self) -> list[tuple[str, str, Tensor]]:
        """The quantized weights and inputs of the last run."""
        return self.now.seen

    def _run(self, name: str, layer: QuantizedLayer, x: Tensor) -> Tensor:
        """Run a layer whose bits are switched."""
        weight = self._weight(layer)
        self.seen.append((name, "weight", weight))
        if "input_step" in layer._buffers:
            x = self._input(layer, x)
            self.seen.append((name, "input", x))
        return layer.apply_weight(x, weight)

    def _weight(self, layer: QuantizedLayer) -> Tensor:
        """Compute (code - zero) step, as `weight_codes` does; one bit and full precision are cases of their own."""
        step, zero, last = (_row(getattr(layer, f"weight_{what}"), self.now.w_row) for what in ("step", "zero", "last"))
        if isinstance(layer.quantizer, DoReFa):
            codes = (layer.get_buffer("weight_unit") * last).round() - zero
        else:
            codes = (layer.weight / step).clamp(-zero, last - zero).round()
        if 1 in self.w_bits:
            codes = torch.where(self.now.w == 1, torch.where(layer.weight >= 0, 0.5, -0.5), codes)
        return torch.where(self.now.w == FULL, layer.weight, codes * step) if FULL in self.w_bits else codes * step

    def _input(self, layer: QuantizedLayer, x: Tensor) -> Tensor:
        """Quantize the input of a layer, with the same result as the quantizer's."""
        step, low, high = (_row(getattr(layer, f"input_{what}"), self.now.a_row) for what in ("step", "low", "high"))
        if isinstance(layer.quantizer, DoReFa):
            # Clipped after the product, which gives the same: the exporter's optimizer breaks a graph in which two
            # clips with fixed ends follow one ReLU.
            out = (x * high).clamp(low, high).round() / high
        else:
            out = (x / step).clamp(low, high).round() * step
        return torch.where(self.now.a == FULL, x, out) if FULL in self.a_bits else out

    def _normalise(self, norm: SwitchableNorm, x: Tensor) -> Tensor:
        """Normalise ``x`` with the statistics, the gain and the shift of the pair."""
        tables = [getattr(norm, what, None) for what in STATISTICS]
        mean, var, gain, shift = (t if t is None else _row(t, self.now.row) if len(t) > 1 else t[0] for t in tables)
        return F.batch_norm(x, mean, var, gain, shift, False, 0.0, norm.eps)


def _row(table: Tensor, number: Tensor) -> Tensor:
    """Return a row of a table; `torch.export` of version 2.11 and earlier refuses ``table[number]`` for one number."""
    return table.index_select(0, number.reshape(1))[0]


def _give_weights(layer: QuantizedLayer, widths: Sequence[int]) -> None:
    """Give a layer the tables of its weights, with a row for each width; that of 32 bits is not used."""
    w, quantizer = layer.weight, layer.quantizer
    grids = [quantizer.weight_grid(w, bits, layer.quant, layer.site) for bits in widths if bits < FULL]
    grids += [(torch.ones_like(grids[0][0] if grids else w[:1]), 0.0)] * (FULL in widths)
    layer.register_buffer("weight_step", torch.stack([step for step, _ in grids]))
    layer.register_buffer("weight_zero", torch.tensor([zero for _, zero in grids]))
    layer.register_buffer("weight_last", torch.tensor([2.0**bits - 1 for bits in widths]))
    if isinstance(quantizer, DoReFa):
        layer.register_buffer("weight_unit", unit_weight(w)[0])
    layer.weight = nn.Parameter(layer.quantized_weight(FULL).detach().clone(), requires_grad=False)


def _give_inputs(layer: QuantizedLayer, widths: Sequence[int]) -> None:
    """Give a layer the tables of its input, with a row for each width, unless it keeps its input as it is."""
    if all(layer.runs_at(Bits(FULL, bits)).a == FULL for bits in widths):
        return
    leader = layer.leader
    grids = [leader.quantizer.activation_grid(bits, leader.quant, leader.site) for bits in widths if bits < FULL]
    for what, column in zip(("step", "low", "high"), zip(*grids, strict=True), strict=True):
        layer.register_buffer(f"input_{what}", torch.tensor([*map(float, column), *[1.0] * (FULL in widths)]))


def _give_statistics(norm: SwitchableNorm, network: nn.Module, pairs: Sequence[Bits]) -> None:
    """Give a norm the tables of its mean, variance, gain and shift, with one row if all pairs have the same."""
    rows = []
    for pair in pairs:
        with at(network, pair, "recalibrated"):
            own = norm if (found := norm.own_set()) is None else found
            rows.append([*norm.stats(), *([] if own.weight is None else [own.weight.detach(), own.bias.detach()])])
    for what, column in zip(STATISTICS, zip(*rows, strict=True), strict=False):
        table = torch.stack(column)
        norm.register_buffer(what, table[:1] if (table == table[0]).all() else table)
