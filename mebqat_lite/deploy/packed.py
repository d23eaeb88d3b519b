"""Write and read packed files, in which each weight of a quantized network takes exactly its b bits.

A file serves the pairs that it was written for. With some quantizers the codes of fewer bits can be cut from the 8-bit
codes: they are the upper bits (the floor forms of SAT), or these rounded (Double Rounding). A nested file then stores
the 8-bit codes alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mebqat_lite import checkpoint, files, quantizers
from mebqat_lite.bits import FP, FULL, Bits
from mebqat_lite.deploy.agree import DisagreementError, check_close, compared, copied, recorded
from mebqat_lite.deploy.codes import LAYOUT, dequantize, pack, unpack, weight_codes
from mebqat_lite.deploy.statistics import require_statistics
from mebqat_lite.quantizers import NESTED, Params, Quantizer, Site
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import (
    MapOrBits,
    at,
    norm_layers,
    parse_settings,
    plan_of,
    quantized_layers,
    set_bits,
    setting_of,
)
from mebqat_lite.tensors import Images, evaluating, image_batches, place

KIND = "packed"
FEW_IMAGES = 8  # on which a file is compared with its network


@dataclass
class Codes:
    """The weights of a layer as integers: for each width its bit planes (see `codes.pack`), its steps and its zeros."""

    shape: torch.Size
    layout: torch.memory_format
    planes: dict[int, Tensor]
    steps: dict[int, Tensor]
    zeros: Mapping[int, float | Tensor]
    kept: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def weight(self, bits: int, device: torch.device, cut: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Compute the weights at ``bits``, if need be from codes that ``cut`` makes of the 8-bit ones."""
        if (bits, device) not in self.kept:
            whole = unpack(self.planes[bits if bits in self.planes else NESTED], self.shape)
            codes = whole if bits in self.planes else cut(whole, bits)
            weight = dequantize(codes, self.steps[bits], self.zeros[bits])
            self.kept[bits, device] = weight.to(device).contiguous(memory_format=self.layout)
        return self.kept[bits, device]


class Packed(Quantizer):
    """A quantizer that takes weights from integers, and treats activations as the quantizer of the training did."""

    float_weights = False
    predicts_only = True

    def __init__(self, original: Quantizer, settings: list[MapOrBits], codes: Mapping[str, Codes]) -> None:
        self.original, self.settings, self.codes = original, settings, codes
        for name in ("one_bit", "weight_widths", "activation_widths", "signed_inputs", "clips_at_zero", "edge_bits"):
            setattr(self, name, getattr(original, name))

    def check(self, bits: Bits) -> None:
        """Raise a ValueError for bits that the file has neither for weights nor for activations."""
        pairs = [b for s in self.settings for b in ([*s.values(), s.get("*", FP)] if isinstance(s, Mapping) else [s])]
        for width in {bits.w, bits.a} - {width for pair in map(Bits.parse, pairs) for width in (pair.w, pair.a)}:
            raise ValueError(self._lacks(f"weights or activations of {width} bits"))

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Compute the weights from the integers of this width; at 32 bits the file may hold float weights instead.

        Raises:
            ValueError: the file has no weights of this width.
        """
        codes = self.codes.get(site.name)
        if codes is not None and bits in codes.steps:
            return codes.weight(bits, w.device, self.cut).to(w.dtype)
        if bits < FULL or bool(w.isnan().any()):
            raise ValueError(self._lacks(f"weights of {bits} bits"))
        return w if self.original.float_weights else self.original.weight(w, bits, params, site)

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Quantize as the original quantizer does; a ValueError if the file has no step for these bits."""
        try:
            return self.original.activation(x, bits, params, site)
        except (KeyError, AttributeError) as error:  # the file does not have its step
            raise ValueError(self._lacks(f"activations of {bits} bits")) from error

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float | Tensor]:
        """Return the step and the zero that are stored in the file."""
        codes = self.codes[site.name]
        step, zero = codes.steps[bits].to(w.device), codes.zeros[bits]
        return step, zero.to(w.device) if isinstance(zero, Tensor) else zero

    def cut(self, codes: Tensor, bits: int) -> Tensor:
        """Cut codes as the original quantizer does."""
        return self.original.cut(codes, bits)

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Return the grid of the original quantizer."""
        return self.original.activation_grid(bits, params, site)

    def _lacks(self, what: str) -> str:
        written = ", ".join(map(str, self.settings[:6])) + ", ..." * (len(self.settings) > 6)
        return f"this packed file has no {what}: it was written for {written}"

    def __str__(self) -> str:
        return f"packed {self.original}"


def save_packed(
    model: nn.Module,
    path: str | Path,
    bits: MapOrBits | Iterable[MapOrBits],
    *,
    nested: bool = False,
    calibration: Images | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bool:
    """Write a network to a file in which each weight is an integer of exactly b bits.

    >>> mq.save_packed(model, folder / "small.safetensors", "W2A2,W4A4", calibration=images)
    False

    The file holds only what predictions at its pairs need: the integers and their steps, the norm statistics of each
    pair (``recalibrated``), and the layers that stay at full precision. `load_packed` reads it.

    Args:
        model: a quantized model. It does not change, except that missing norm statistics are measured.
        path: the file to write.
        bits: a pair, several pairs (``"W2A2,W4A4"`` or a list), or maps of layers to pairs.
        nested: whether to store only 8-bit codes, if those of all other widths can be cut from them. If they cannot,
            the codes of each width are stored.
        calibration: training images, on which norm statistics are measured for pairs that have none.
        extra: JSON that `load_packed` returns with the model.

    Returns:
        Whether the file is nested: it holds 8-bit codes from which all widths are cut.

    Raises:
        ValueError: norm statistics are missing and there are no calibration images, the quantizer does not say what
            its integers mean, a ``nested`` file should hold weights of more than 8 bits, or a part is compiled.
        DisagreementError: the file was read back and has other weights than the model, or, on ``calibration`` images,
            other inputs or outputs. Nothing is written then.
    """
    settings, model = parse_settings(bits), checkpoint.as_saved(model)
    require_statistics(model, settings, calibration)
    layers = quantized_layers(model)
    widths = {name: _widths(model, settings, name) for name in layers}
    if nested and any(width > NESTED for found in widths.values() for width in found):
        raise ValueError(f"a nested file holds weights of up to {NESTED} bits: leave out pairs with more, and FP")
    is_nested = nested and all(nests(layer, widths[name]) for name, layer in layers.items())
    tensors, zeros = _rest(model, settings, widths) | _statistics(model, settings), {}
    for name, layer in layers.items():
        whole = sorted({*(width for width in widths[name] if width < FULL), *[NESTED][:is_nested]})
        found = {width: weight_codes(layer, width) for width in whole}
        stored = {NESTED} if is_nested else set(found)
        tensors |= {f"codes/{name}/{width}": pack(found[width][0], width) for width in stored}
        if found:
            tensors[f"steps/{name}"] = torch.stack([step for _, step, _ in found.values()])
            zeros[name] = {width: None if isinstance(zero, Tensor) else zero for width, (_, _, zero) in found.items()}
            if each := [zero for _, _, zero in found.values() if isinstance(zero, Tensor)]:  # one per channel
                tensors[f"zeros/{name}"] = torch.stack(each)
    described = checkpoint.describe(model) | {"norm_sets": _sets(model, settings)}
    meta = {"kind": KIND, "layout": LAYOUT, "nested": is_nested, "zeros": zeros, "model": described}
    meta |= {"settings": [_as_json(setting) for setting in settings], "extra": dict(extra or {})}
    if wrong := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise ValueError(f"not all numbers of {wrong[0]} are finite: the network diverged, train it anew")
    with tempfile.TemporaryDirectory() as folder:
        _check(files.write(Path(folder) / Path(path).name, tensors, meta), model, settings, calibration)
    files.write(path, tensors, meta)
    return is_nested


def _check(path: Path, model: nn.Module, settings: list[MapOrBits], calibration: Images | None) -> None:
    """Read a file back, and compare its weights with the model's, and what both compute of a few calibration images."""
    fresh = copied(model)
    setting_of(fresh).quantizer = Quantizer()  # a packed network can be written again, though it cannot be quantized
    again, _ = load_packed(path, fresh)
    batch = None if calibration is None else next(iter(image_batches(calibration)), None)
    for setting in settings:
        _check_weights(model, again, setting)
        if batch is not None:
            _check_outputs(model, again, setting, batch[:FEW_IMAGES].to(*place(model)))


def _check_weights(model: nn.Module, again: nn.Module, setting: MapOrBits) -> None:
    with at(model, setting), at(again, setting):
        layers = quantized_layers(again)
        for name, ours in quantized_layers(model).items():
            if not torch.equal(ours.quantized_weight(ours.bits.w), layers[name].quantized_weight(ours.bits.w)):
                raise DisagreementError(f"the weights of {name} come back as others at {setting}: nothing was written")


def _check_outputs(model: nn.Module, again: nn.Module, setting: MapOrBits, images: Tensor) -> None:
    with evaluating(model), at(model, setting, "recalibrated"), recorded(model) as inputs:
        outputs = tree_leaves(model(images.clone()))  # a network may begin with an operation in place
    with at(again, setting), compared(again, inputs):
        for ours, theirs in zip(outputs, tree_leaves(again(images)), strict=True):
            check_close("the output", ours, theirs)


def nests(layer: QuantizedLayer, widths: Iterable[int]) -> bool:
    """Tell whether the codes of all ``widths`` are what `Quantizer.cut` makes of the layer's 8-bit codes."""
    whole = weight_codes(layer, NESTED)[0]
    return all(torch.equal(weight_codes(layer, width)[0], layer.quantizer.cut(whole, width)) for width in widths)


def _widths(model: nn.Module, settings: Iterable[MapOrBits], name: str) -> list[int]:
    """List the weight bits that a layer has at the settings, in ascending order."""
    found = set()
    for setting in settings:
        with at(model, setting):
            found.add(quantized_layers(model)[name].bits.w)
    return sorted(found)


def _rest(model: nn.Module, settings: list[MapOrBits], widths: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Collect the tensors that are stored as they are: edge layers, biases, gains, shifts and activation steps.

    Weights that become codes, running statistics, and whatever only other pairs use are left out.
    """
    layers, norms, again = quantized_layers(model), norm_layers(model), _further_names(model)
    read = plan_of(model).bypassed  # the model itself reads these weights, too
    dropped = {f"{name}.weight" for name in layers if FULL not in widths[name] and name not in read}
    for name, layer in layers.items():
        kept = set()
        for setting in settings:
            with at(model, setting):
                kept |= _read(layer)
        dropped |= {f"{name}.quant.{parameter}" for parameter in layer.quant if parameter not in kept}
    for name, norm in norms.items():
        dropped |= {f"{name}.{buffer}" for buffer, _ in norm.named_buffers()}
        others = set(norm.sets) - set(_sets(model, settings))
        dropped |= {f"{name}.sets.{pair}.{p}" for pair in others for p in ("weight", "bias")}
    state = {name: t for name, t in model.state_dict().items() if not name.startswith(again)}
    return {f"model/{name}": t for name, t in state.items() if name not in dropped}


def _further_names(model: nn.Module) -> tuple[str, ...]:
    """List the names, with a dot, of modules that a model holds under other names already."""
    first = dict(model.named_modules())
    return tuple(f"{name}." for name, _ in model.named_modules(remove_duplicate=False) if name not in first)


def _read(layer: QuantizedLayer) -> set[str]:
    """Find the names of the learned numbers that quantize a layer's input at its current bits.

    These are all that the layer has if its quantizer does not define `activation_grid`.
    """
    if layer.bits.a == FULL or layer.leader is not layer:
        return set()
    read = _Watched(layer.quant.items())
    try:
        layer.quantizer.activation_grid(layer.bits.a, read, layer.site)
    except ValueError:
        return set(layer.quant)
    return read.seen


class _Watched(dict):
    """A dictionary that remembers which of its keys were looked up."""

    def __init__(self, items: Iterable) -> None:
        super().__init__(items)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return super().__getitem__(name)


def _statistics(model: nn.Module, settings: list[MapOrBits]) -> dict[str, Tensor]:
    """Collect each norm's recalibrated statistics, (settings, 2, channels).

    They are (1, 2, channels) if all are equal, and (0, 2, channels) if evaluation does not reach the norm.
    """
    found = {}
    for name, norm in norm_layers(model).items():
        rows = [torch.empty(0, 2, norm.num_features)]
        for setting in settings if any(buffer.startswith("stats_") for buffer in norm._buffers) else []:
            with at(model, setting):
                rows.append(norm.stats()[None].cpu())
        same = all(torch.equal(row, rows[1]) for row in rows[1:])
        found[f"statistics/{name}"] = torch.cat(rows[:2] if same else rows)
    return found


def _sets(model: nn.Module, settings: list[MapOrBits]) -> list[str]:
    """List the norm sets that the settings use."""
    own = next((list(norm.sets) for norm in norm_layers(model).values()), [])
    return [pair for pair in own if pair in map(str, settings)]


def _as_json(setting: MapOrBits) -> Any:
    return {k: str(v) for k, v in setting.items()} if isinstance(setting, Mapping) else str(setting)


def load_packed(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network from a packed file.

    >>> nested = mq.save_packed(model, folder / "packed.safetensors", "W2A2,W4A4", calibration=images)
    >>> packed, extra = mq.load_packed(folder / "packed.safetensors")
    >>> with mq.at(packed, "W4A4"):
    ...     packed(images).shape
    torch.Size([64, 10])

    `at` and `set_bits` switch between the pairs of the file; other bits are a ValueError.

    Args:
        path: a file of `save_packed`.
        model: an instance of the architecture, needed only if it is not one of this package's.

    Returns:
        The network, in evaluation mode and at the first pair of the file, and the ``extra`` that was saved with it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, is of another kind, or does not fit ``model``.
    """
    tensors, meta = files.read(path, KIND)
    with files.understood(path):
        model = checkpoint.blank(meta["model"], Path(path).name, model)
        settings, extra = parse_settings(meta["settings"]), meta["extra"]
        codes = {name: _codes(model, tensors, meta, name) for name in meta["zeros"]}
        _restore(model, tensors, codes)
        _restore_statistics(model, tensors, settings)
    packed = Packed(quantizers.get(plan_of(model).quantizer)[1], settings, codes)
    setting = setting_of(model)
    setting.quantizer, setting.norm_stats = packed, "recalibrated"
    for layer in quantized_layers(model).values():
        layer.quantizer = packed
    set_bits(model, settings[0])
    return model.eval(), extra


def load_any(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network from a packed file or from a checkpoint of `checkpoint.save_model`."""
    _, meta = files.read(path, "model", KIND)
    return (load_packed if meta["kind"] == KIND else checkpoint.load_model)(path)


def packed_settings(model: nn.Module) -> list[MapOrBits]:
    """List the pairs that a packed network was written for; the list is empty for any other network."""
    quantizer = setting_of(model).quantizer
    return quantizer.settings if isinstance(quantizer, Packed) else []


def _codes(model: nn.Module, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Codes:
    """Read the integers of one layer; a ValueError if their shape or type is wrong."""
    shape = quantized_layers(model)[name].weight.shape
    widths = [int(width) for width in meta["zeros"][name]]
    each = tensors.get(f"zeros/{name}")  # one per channel
    numbers = map(float, meta["zeros"][name].values()) if each is None else each
    zeros, steps = (dict(zip(widths, values, strict=True)) for values in (numbers, tensors[f"steps/{name}"]))
    stored = [NESTED] if meta["nested"] else widths
    planes = {width: tensors[f"codes/{name}/{width}"] for width in stored}
    for width, found in planes.items():
        if found.dtype != torch.uint8 or found.shape != (width, -(-shape.numel() // 8)):
            raise ValueError(f"the codes of {name} are {tuple(found.shape)} {found.dtype}")
    last = meta["model"]["channels_last"] and len(shape) == 4
    return Codes(shape, torch.channels_last if last else torch.contiguous_format, planes, steps, zeros)


def _restore(model: nn.Module, tensors: Mapping[str, Tensor], codes: Mapping[str, Codes]) -> None:
    """Load the tensors that are not packed.

    Raises:
        ValueError: a tensor is unknown, or one is missing that is neither a packed weight nor a running statistic.
    """
    rest = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    for name, layer in quantized_layers(model).items():
        for parameter in [p for p in layer.quant if f"{name}.quant.{p}" not in rest]:
            del layer.quant[parameter]
        if name in codes and f"{name}.weight" not in rest:  # NaN, so that nobody mistakes it for a weight
            layer.weight = nn.Parameter(layer.weight.new_full((), torch.nan).expand(layer.weight.shape))
            rest[f"{name}.weight"] = layer.weight
    missing, unexpected = model.load_state_dict(checkpoint.as_state(model, rest), strict=False)
    running, again = ("running_mean", "running_var", "num_batches_tracked"), _further_names(model)
    missing = [name for name in missing if name.rpartition(".")[2] not in running and not name.startswith(again)]
    if wrong := [*unexpected, *missing]:
        raise ValueError(f"it does not fit this model at {', '.join(wrong[:3])}")


def _restore_statistics(model: nn.Module, tensors: Mapping[str, Tensor], settings: list[MapOrBits]) -> None:
    """Give each norm its statistics for each setting of the file."""
    for name, norm in norm_layers(model).items():
        rows = tensors[f"statistics/{name}"]
        if rows.shape[1:] != (2, norm.num_features) or len(rows) not in (0, 1, len(settings)):
            raise ValueError(f"the norm statistics of {name} are {tuple(rows.shape)}")
        for index, setting in enumerate(settings if len(rows) else []):
            with at(model, setting):
                norm.register_buffer(f"stats_{setting_of(model).key}", rows[index % len(rows)].clone())
