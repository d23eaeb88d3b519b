"""Write networks as ONNX files: one pair of bits, fixed in standard nodes QuantizeLinear and DequantizeLinear.

`export_onnx` writes a classifier, and `export_few_shot` a prototypical network. `onnx_run` runs and compares the files.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import files
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.deploy.agree import check_close, compared, copied
from mebqat_lite.deploy.onnx_graph import (
    OPSET,
    UPGRADE,
    Inputs,
    Weights,
    inputs_of,
    need,
    quantize_graph,
    strip,
    weights_of,
)
from mebqat_lite.deploy.onnx_run import values
from mebqat_lite.deploy.statistics import require_statistics
from mebqat_lite.files import FORMAT
from mebqat_lite.learners import prototype_logits
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import (
    MapOrBits,
    plan_of,
    quantized_layers,
    set_bits,
    set_norm_stats,
    setting_of,
    unwrapped,
)
from mebqat_lite.tensors import Images, place

STORED = ("recalibrated", "running")  # norm policies whose statistics do not depend on the batch


@dataclass(frozen=True)
class StoredLayer:
    """How one layer was written: its bits, the ONNX types of its weights and inputs, and why its weights are wider."""

    layer: str
    bits: Bits
    weights: str
    inputs: str
    note: str = ""


@dataclass
class Exported:
    """A description of an ONNX file that was written, and of each layer in it."""

    path: Path
    bits: str
    quantizer: str
    norm_stats: str
    opset: int
    bytes: int
    layers: list[StoredLayer]

    @property
    def widened(self) -> dict[str, str]:
        """For each layer whose weights take a wider type than their bits: its name, and the reason."""
        return {stored.layer: stored.note for stored in self.layers if stored.note}

    def __str__(self) -> str:
        """Write one line for the file, and one for each layer."""
        about = f"opset {self.opset}, {self.bytes:,} bytes, norm statistics {self.norm_stats}"
        lines = [f"{self.path}: {self.quantizer} at {self.bits}, {about}"]
        wide = max((len(stored.layer) for stored in self.layers), default=0)
        for stored in self.layers:
            kinds = f"weights {stored.weights:6} inputs {stored.inputs:6}"
            lines.append(f"  {stored.layer:{wide}}  {stored.bits!s:6}  {kinds}  {stored.note}".rstrip())
        return "\n".join(lines)


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
    """Write a quantized model at one pair of bits as an ONNX file.

    The file turns ``images``, (batch, channels, height, width), into ``logits``, (batch, classes), for any batch size.
    The first and the last layer are written as they are in the model.

    Args:
        model: a quantized float32 model. It does not change, except that missing norm statistics are measured.
        path: the file to write.
        bits: the pair, or a map of layers to pairs.
        image_shape: the shape of one image, (channels, height, width), or of one vector, such as (2,) for coordinates.
        calibration: training images, on which the pair's norm statistics are measured if the model has none.
        norm_stats: the statistics to write: ``recalibrated`` (measured for the pair) or ``running``.
        opset: the version of ONNX's operators, 21 or later. From 25 on, 2-bit weights of convolutions are stored in
            INT2; otherwise 2-bit weights are stored in INT4.
        compact: how to store weights whose levels lie around a half-integer (dorefa, centred sat). If True, they keep
            their bits and the graph adds the half; otherwise they are stored in a wider type.

    Raises:
        ValueError: the quantizer does not define the pair or does not say what its integers mean, or norm statistics
            are missing and there are no calibration images.
        MissingNormSetError: the model has norm sets, but none for this pair, because it was not trained for it.
        RuntimeError: onnx, onnxscript or torch is missing or too old.
        DisagreementError: the graph does not compute what the model computes. There is no file then.
    """
    network = freeze(model, [bits], calibration, norm_stats)
    task = Task((random_images(2, *image_shape),), {"images": {0: "batch"}}, ("logits",))
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
    """Write a prototypical network as two ONNX files, so that ONNX Runtime alone can learn new classes.

    ``enroll.onnx`` turns ``support``, (ways, shots, channels, height, width), into ``prototypes``, (ways, features).
    ``classify.onnx`` turns ``images``, (batch, channels, height, width), and ``prototypes`` into ``classes``, (batch,),
    and squared ``distances``, (batch, ways). Ways, shots and batch may have any size.

    The files are written to ``folder``. The other arguments, and the errors, are those of `export_onnx`.
    """
    network = freeze(model, [bits], calibration, norm_stats)
    support, images = random_images(3, 2, *image_shape), random_images(2, *image_shape)
    with torch.no_grad():
        prototypes = network(support[:, 0])
    enroll = Task((support,), {"support": {0: "ways", 1: "shots"}}, ("prototypes",))
    sizes = {"images": {0: "batch"}, "prototypes": {0: "ways"}}
    classify = Task((images, prototypes), sizes, ("classes", "distances"))
    return (
        _write(_Enroll(network), enroll, Path(folder) / "enroll.onnx", opset, compact),
        _write(_Classify(network), classify, Path(folder) / "classify.onnx", opset, compact),
    )


class _Around(nn.Module):
    """A network, together with what is done with its embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class _Enroll(_Around):
    """Computes prototypes: the mean of the embeddings of each class."""

    def forward(self, support: Tensor) -> Tensor:
        """Turn images, (ways, shots, channels, height, width), into prototypes, (ways, features)."""
        return self.network(support.flatten(0, 1)).unflatten(0, support.shape[:2]).mean(1)


class _Classify(_Around):
    """Finds the nearest prototype of each image."""

    def forward(self, images: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Turn images into their classes, (batch,), and their squared distances to the prototypes, (batch, ways)."""
        logits = prototype_logits(self.network(images), prototypes)
        return logits.argmax(1), -logits


def random_images(*shape: int) -> Tensor:
    """Draw random images, always the same, on which the graph is traced and compared with the network."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@dataclass
class Task:
    """The inputs and the outputs of an exported graph."""

    inputs: tuple[Tensor, ...]
    sizes: dict[str, dict[int, str]]  # the dimensions that may have any size: input -> dimension -> its name
    outputs: tuple[str, ...]


def freeze(model: nn.Module, bits: Sequence[MapOrBits], calibration: Images | None, norm_stats: str) -> nn.Module:
    """Copy the model for the exporter: on the CPU, in evaluation mode, at the first of ``bits``.

    If ``norm_stats`` is ``recalibrated``, the model gets the norm statistics of all ``bits`` that it lacks.

    Raises:
        ValueError: the model is not float32, statistics are missing and cannot be measured, or the norm policy is one
            that no file holds.
    """
    if norm_stats not in STORED:
        raise ValueError(f"a file holds norm statistics, {' or '.join(STORED)}, not those of the {norm_stats}")
    setting_of(model)  # raises an error that says what to do if the model is not quantized
    if place(model)[1] != torch.float32:
        raise ValueError(
            f"ONNX files are for float32 networks; this one is {place(model)[1]}: call model.float() first"
        )
    if norm_stats == "recalibrated":
        require_statistics(model, bits, calibration)
    network = copied(unwrapped(model)).cpu().eval().requires_grad_(False)
    set_bits(network, bits[0])
    set_norm_stats(network, norm_stats)
    return network


@contextlib.contextmanager
def _float_layers(module: nn.Module) -> Iterator[None]:
    """Let quantized layers be float ones inside the block; the integers are put into the graph afterwards.

    Each has weights of its own, because layers that share weights need not share the integers. Some quantizers change
    32-bit weights too, so these are computed here.
    """
    layers = {layer: layer.weight for layer in quantized_layers(module).values()}
    try:
        for layer, weight in layers.items():
            own = layer.quantized_weight(FULL) if layer.bits.w == FULL else weight
            layer.weight = nn.Parameter(own.detach().clone(), requires_grad=False)
            layer.forward = functools.partial(_plain, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer, weight in layers.items():
            layer.weight = weight
            layer.__dict__.pop("forward", None)


def _plain(layer: QuantizedLayer, input: Tensor) -> Tensor:
    return layer.apply_weight(input, layer.weight)


def _write(module: nn.Module, task: Task, path: Path, opset: int, compact: bool) -> Exported:
    """Export the float graph, put the integers into it, compare it with the module, and write the file."""
    onnx, optimizer = packages(opset)
    with _float_layers(module):
        graph = float_graph(module, task, opset)
    found = {name: (layer, *_integers(layer, opset, compact)) for name, layer in _layers_in(graph, module).items()}
    run = quantize_graph(graph, found)
    graph = optimizer.optimize(graph)
    strip(graph)
    setting, quantizer = setting_of(module), plan_of(module).quantizer
    bits = setting.code.strip('"')
    meta = {"format": FORMAT, "bits": bits, "quantizer": quantizer, "norm_stats": setting.norm_stats}
    onnx.helper.set_model_props(graph, meta)
    onnx.checker.check_model(graph, full_check=True)
    _check(graph, module, task, {found[name][0]: inputs for name, inputs in run.items()})
    files.replace(path, graph.SerializeToString())
    stored = [_stored(*found[name]) for name in run]
    return Exported(path, bits, quantizer, setting.norm_stats, opset, path.stat().st_size, stored)


def _check(graph: Any, module: nn.Module, task: Task, nodes: Mapping[nn.Module, Sequence[str]]) -> None:
    """Make sure that a graph computes what the module computes, see `agree`.

    ``nodes`` has the inputs of each layer's nodes as `quantize_graph` returns them.
    """
    computed = {name for node in graph.graph.node for name in node.output}  # without what the optimizer made constant
    read = {name for names in nodes.values() for name in names} & computed
    theirs = values(graph, [*task.outputs, *read], dict(zip(task.sizes, task.inputs, strict=True)))
    inputs = {name: [*map(theirs.get, nodes.get(layer, ()))] for name, layer in quantized_layers(module).items()}
    with compared(module, inputs):
        ours = module(*task.inputs)
    for name, value in zip(task.outputs, ours if isinstance(ours, tuple) else (ours,), strict=True):
        check_close(f"the output {name!r}", value, theirs[name])


def _layers_in(graph: Any, module: nn.Module) -> dict[str, QuantizedLayer]:
    """Find the quantized layers of a graph, each by the name that the graph has for it if it has several."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    modules = module.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, QuantizedLayer) and f"{name}.weight" in stored}


def packages(opset: int) -> tuple[Any, Any]:
    """Import ``onnx`` and ``onnxscript.optimizer``, and make sure that they are there and know the opset."""
    if opset < OPSET:
        raise ValueError(f"integers of 4 and 16 bits need opset {OPSET} or later, not {opset}")
    onnx, optimizer = need("onnx"), need("onnxscript.optimizer")
    if onnx.defs.onnx_opset_version() < opset:
        known = onnx.defs.onnx_opset_version()
        raise RuntimeError(f"onnx {onnx.__version__} knows opsets up to {known}, not {opset}: {UPGRADE}")
    return onnx, optimizer


def _integers(layer: QuantizedLayer, opset: int, compact: bool) -> tuple[Weights | None, Inputs | None]:
    """Return the integer form of a layer's weights and inputs at its current bits, and None for what stays float."""
    bits = layer.bits
    weights = None if bits.w == FULL else weights_of(layer, bits.w, opset, compact)
    return weights, None if bits.a == FULL else inputs_of(layer, bits.a)


def _stored(layer: QuantizedLayer, weights: Weights | None, inputs: Inputs | None) -> StoredLayer:
    weight_kind, input_kind = (part.kind if part else "FLOAT" for part in (weights, inputs))
    return StoredLayer(layer.site.name, layer.bits, weight_kind, input_kind, weights.note if weights else "")


def float_graph(module: nn.Module, task: Task, opset: int) -> Any:
    """Export the module as an `onnx.ModelProto` whose initializers have the names of its parameters."""
    dims = {name: torch.export.Dim(name) for sizes in task.sizes.values() for name in sizes.values()}
    shapes = tuple({axis: dims[name] for axis, name in sizes.items()} for sizes in task.sizes.values())
    names = {"input_names": list(task.sizes), "output_names": list(task.outputs), "dynamic_shapes": shapes}
    # Not optimized: the optimizer would fold norms into the weights, and these could not become integers any more.
    how: dict[str, Any] = {"dynamo": True, "opset_version": opset, "optimize": False, "verbose": False, **names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own code
        module(*task.inputs)  # if the model cannot run, its own error is shorter than the exporter's
        program = torch.onnx.export(module, task.inputs, **how)
    assert program is not None
    graph = program.model_proto
    found = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if found < opset:
        raise RuntimeError(
            f"torch {torch.__version__} exports opset {found}, not {opset}: pip install -U torch onnxscript"
        )
    return graph
