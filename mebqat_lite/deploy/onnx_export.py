"""Networks as ONNX files: one pair of bits, frozen into standard QuantizeLinear and DequantizeLinear.

`export_onnx` writes a classifier, `export_few_shot` a prototypical network; `onnx_run` runs and compares the files.
"""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import files
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.deploy.onnx_graph import OPSET, Inputs, Weights, inputs_of, quantize_graph, strip, weights_of
from mebqat_lite.files import FORMAT
from mebqat_lite.learners import prototype_logits
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.norms import require_statistics
from mebqat_lite.switching.state import MapOrBits, plan_of, quantized_layers, set_bits, set_norm_stats, setting_of
from mebqat_lite.tensors import Images, place

INSTALL = 'pip install "mebqat_lite[export]"'
UPGRADE = INSTALL.replace("install", "install -U")
STORED = ("recalibrated", "running")  # norm statistics that do not depend on the batch


@dataclass(frozen=True)
class StoredLayer:
    """What became of one layer: its bits, the ONNX types of its weights and inputs, and why one is wider."""

    layer: str
    bits: Bits
    weights: str
    inputs: str
    note: str = ""


@dataclass
class Exported:
    """What was written."""

    path: Path
    bits: str
    quantizer: str
    norm_stats: str
    opset: int
    bytes: int
    layers: list[StoredLayer]

    @property
    def widened(self) -> dict[str, str]:
        """The layers whose weights lie in a type wider than their bits, and why."""
        return {stored.layer: stored.note for stored in self.layers if stored.note}

    def __str__(self) -> str:
        """A line for the file, and one for each layer."""
        about = f"opset {self.opset}, {self.bytes:,} bytes, norm statistics {self.norm_stats}"
        lines = [f"{self.path}: {self.quantizer} at {self.bits}, {about}"]
        wide = max((len(stored.layer) for stored in self.layers), default=0)
        for stored in self.layers:
            kinds = f"weights {stored.weights:6} inputs {stored.inputs:6}"
            lines.append(f"  {stored.layer:{wide}}  {stored.bits!s:6}  {kinds}  {stored.note}".rstrip())
        return "\n".join(lines)


def need(module: str) -> Any:
    """An optional module by name; where it is missing, a RuntimeError with the cure in it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"ONNX files need more packages: {INSTALL} ({error})") from error


def export_onnx(
    model: nn.Module,
    path: str | Path,
    bits: MapOrBits,
    image_shape: Sequence[int],
    *,
    calibration: Images | None = None,
    norm_stats: str = "recalibrated",
    opset: int = OPSET,
    compact: bool = False,
) -> Exported:
    """Write a quantized model at one pair: ``images`` (batch, channels, height, width) -> ``logits`` (batch, classes).

    The batch may have any size. First and last layers are as in the model.

    Args:
        model: quantized, in float32; it is not changed, but for norm statistics that it lacked.
        path: the file.
        bits: the pair, or a map of layers to pairs.
        image_shape: of one image, (channels, height, width).
        calibration: training images, to measure the pair's norm statistics on if the model has none.
        norm_stats: whose statistics the file takes, ``recalibrated`` for the pair or ``running``.
        opset: 21 or later; from 25 on weights of 2 bits lie in INT2, before in INT4.
        compact: keep weights around a half-integer (dorefa, centred sat) in their bits and add the half in the graph,
            instead of taking a wider type.

    Raises:
        ValueError: a pair that the quantizer does not define or that there are no norm statistics for; a quantizer
            that does not say what its integers mean.
        MissingNormSetError: the model has norm sets, and none for the pair: it was not trained for it.
        RuntimeError: onnx, onnxscript or torch is missing or too old.
    """
    network = _freeze(model, bits, calibration, norm_stats)
    task = _Task((torch.zeros(2, *image_shape),), {"images": {0: "batch"}}, ("logits",))
    return _write(network, task, Path(path), opset, compact)


def export_few_shot(
    model: nn.Module,
    folder: str | Path,
    bits: MapOrBits,
    image_shape: Sequence[int],
    *,
    calibration: Images | None = None,
    norm_stats: str = "recalibrated",
    opset: int = OPSET,
    compact: bool = False,
) -> tuple[Exported, Exported]:
    """Write a prototypical network, which learns classes in the runtime alone, as two files in ``folder``.

    ``enroll.onnx``: ``support`` (ways, shots, channels, height, width) -> ``prototypes`` (ways, features).
    ``classify.onnx``: ``images`` (batch, channels, height, width) and ``prototypes`` -> ``classes`` (batch,) and
    squared ``distances`` (batch, ways). Ways, shots and batch may have any size. Arguments as in `export_onnx`.
    """
    network = _freeze(model, bits, calibration, norm_stats)
    support, images = torch.zeros(3, 2, *image_shape), torch.zeros(2, *image_shape)
    with torch.no_grad():
        prototypes = torch.zeros(3, network(images).shape[1])
    enroll = _Task((support,), {"support": {0: "ways", 1: "shots"}}, ("prototypes",))
    sizes = {"images": {0: "batch"}, "prototypes": {0: "ways"}}
    classify = _Task((images, prototypes), sizes, ("classes", "distances"))
    return (
        _write(_Enroll(network), enroll, Path(folder) / "enroll.onnx", opset, compact),
        _write(_Classify(network), classify, Path(folder) / "classify.onnx", opset, compact),
    )


class _Around(nn.Module):
    """A network and what is done with its embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.plan = network, plan_of(network)


class _Enroll(_Around):
    """The prototypes of classes: the mean of the embeddings of their images."""

    def forward(self, support: Tensor) -> Tensor:
        """(ways, shots, channels, height, width) -> (ways, features)."""
        return self.network(support.flatten(0, 1)).unflatten(0, support.shape[:2]).mean(1)


class _Classify(_Around):
    """The nearest prototype."""

    def forward(self, images: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (batch,) and squared distances (batch, ways)."""
        logits = prototype_logits(self.network(images), prototypes)
        return logits.argmax(1), -logits


@dataclass
class _Task:
    """What an exported graph reads and gives."""

    inputs: tuple[Tensor, ...]
    sizes: dict[str, dict[int, str]]  # input -> dimension -> its name, of those that may have any size
    outputs: tuple[str, ...]


def _freeze(model: nn.Module, bits: MapOrBits, calibration: Images | None, norm_stats: str) -> nn.Module:
    """A copy for the exporter: on the CPU, in evaluation mode, at the pair, its layers plain."""
    if norm_stats not in STORED:
        raise ValueError(f"a file holds norm statistics, {' or '.join(STORED)}, not those of the {norm_stats}")
    setting_of(model)  # or its error, which says what to do
    if place(model)[1] != torch.float32:
        raise ValueError(
            f"ONNX files are for float32 networks; this one is {place(model)[1]}: call model.float() first"
        )
    if norm_stats == "recalibrated":
        require_statistics(model, [bits], calibration)
    network = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    set_bits(network, bits)
    set_norm_stats(network, norm_stats)
    for layer in quantized_layers(network).values():
        if layer.bits.w == FULL:
            layer.weight.data = layer.quantized_weight(FULL)  # which need not be its own
        layer.forward = functools.partial(_plain, layer)  # type: ignore[method-assign]
    return network


def _plain(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """A quantized layer as a float one; the integers come into the graph afterwards."""
    return layer.apply_weight(x, layer.weight)


def _write(module: nn.Module, task: _Task, path: Path, opset: int, compact: bool) -> Exported:
    """Export, put the integers in, check, and write."""
    onnx, optimizer = _packages(opset)
    layers = {name: (layer, *_integers(layer, opset, compact)) for name, layer in quantized_layers(module).items()}
    graph = _float_graph(module, task, opset)
    run = quantize_graph(graph, layers)
    graph = optimizer.optimize(graph)
    strip(graph)
    setting, quantizer = setting_of(module), plan_of(module).quantizer
    bits = setting.code.strip('"')
    meta = {"format": FORMAT, "bits": bits, "quantizer": quantizer, "norm_stats": setting.norm_stats}
    onnx.helper.set_model_props(graph, meta)
    onnx.checker.check_model(graph, full_check=True)
    files.replace(path, graph.SerializeToString())
    stored = [_stored(*layers[name]) for name in run]
    return Exported(path, bits, quantizer, setting.norm_stats, opset, path.stat().st_size, stored)


def _packages(opset: int) -> tuple[Any, Any]:
    """The packages ``onnx`` and ``onnxscript.optimizer``, if they are there and know the opset."""
    if opset < OPSET:
        raise ValueError(f"integers of 4 and 16 bits need opset {OPSET} or later, not {opset}")
    onnx, optimizer = need("onnx"), need("onnxscript.optimizer")
    if onnx.defs.onnx_opset_version() < opset:
        known = onnx.defs.onnx_opset_version()
        raise RuntimeError(f"onnx {onnx.__version__} knows opsets up to {known}, not {opset}: {UPGRADE}")
    return onnx, optimizer


def _integers(layer: QuantizedLayer, opset: int, compact: bool) -> tuple[Weights | None, Inputs | None]:
    """What of a layer becomes integers at the bits in force."""
    bits = layer.bits
    weights = None if bits.w == FULL else weights_of(layer, bits.w, opset, compact)
    return weights, None if bits.a == FULL else inputs_of(layer, bits.a)


def _stored(layer: QuantizedLayer, weights: Weights | None, inputs: Inputs | None) -> StoredLayer:
    weight_kind, input_kind = (part.kind if part else "FLOAT" for part in (weights, inputs))
    return StoredLayer(layer.site.name, layer.bits, weight_kind, input_kind, weights.note if weights else "")


def _float_graph(module: nn.Module, task: _Task, opset: int) -> Any:
    """The module as an `onnx.ModelProto` whose initializers are named as its parameters."""
    dims = {name: torch.export.Dim(name) for sizes in task.sizes.values() for name in sizes.values()}
    shapes = tuple({axis: dims[name] for axis, name in sizes.items()} for sizes in task.sizes.values())
    names = {"input_names": list(task.sizes), "output_names": list(task.outputs), "dynamic_shapes": shapes}
    # Not optimized: norms folded into weights could not become integers.
    how: dict[str, Any] = {"dynamo": True, "opset_version": opset, "optimize": False, "verbose": False, **names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        module(*task.inputs)  # what cannot run says so here, in fewer words
        program = torch.onnx.export(module, task.inputs, **how)
    assert program is not None
    graph = program.model_proto
    found = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if found < opset:
        raise RuntimeError(
            f"torch {torch.__version__} exports opset {found}, not {opset}: pip install -U torch onnxscript"
        )
    return graph
