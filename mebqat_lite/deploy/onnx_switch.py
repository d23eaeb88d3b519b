"""Write a network as one ONNX file whose bits are inputs: it runs at every pair that it was written for.

The graph has float operators only, such as Clip, Round, Gather and Where. What depends on the bits (steps, ranges,
norm statistics) lies in tables, in which the graph looks up the rows of the pair that it is given. The file takes more
bytes than a float network, and computes the quantized weights in each run. `onnx_run.answers` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import files
from mebqat_lite.bits import FULL, Bits, BitsLike, parse_all
from mebqat_lite.deploy.agree import CLOSE, DisagreementError, check_close, compared
from mebqat_lite.deploy.codes import dequantize, weight_codes
from mebqat_lite.deploy.onnx_export import Task, float_graph, freeze, packages, random_images
from mebqat_lite.deploy.onnx_graph import OPSET, need, strip
from mebqat_lite.deploy.onnx_run import Agreement, agreement, feed, values
from mebqat_lite.deploy.switched import KINDS, Switched
from mebqat_lite.files import FORMAT
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import at, plan_of, quantized_layers, setting_of
from mebqat_lite.tensors import Images, as_float

LISTED = 6  # images that a line names


@dataclass
class Switchable:
    """A description of an ONNX file whose bits are inputs."""

    path: Path
    quantizer: str
    pairs: list[Bits]
    bytes: int

    def __str__(self) -> str:
        """Write one line."""
        return f"{self.path}: {self.quantizer} at any of {len(self.pairs)} pairs, opset {OPSET}, {self.bytes:,} bytes"


def export_switch(
    model: nn.Module,
    path: str | Path,
    pairs: str | Iterable[BitsLike],
    image_shape: Sequence[int],
    *,
    calibration: Images | None = None,
    output: str = "logits",
) -> Switchable:
    """Write a quantized model as one ONNX file that runs at each of several pairs of bits.

    The file has three inputs: ``images``, (batch, channels, height, width), and the int32 numbers ``weight_bits`` and
    ``activation_bits``. They are the numbers in the name of a pair, with 32 for full precision: 2 and 4 are W2A4, 32
    and 32 are FP. For a pair that is not in the file, ONNX Runtime stops with an error of a Gather node, and
    `onnx_run.answers` says which pairs there are.

    Before the file is written, it is compared with the model at every pair: the weights must be equal to the last
    digit, and the quantized inputs of the layers and the output must be close (`agree`).

    Args:
        model: a quantized float32 model. It does not change, except that missing norm statistics are measured.
        path: the file to write.
        pairs: the pairs that the file should have.
        image_shape: the shape of one image, (channels, height, width), or of one vector, such as (2,) for coordinates.
        calibration: training images, on which norm statistics are measured that the model lacks.
        output: the name of the output, (batch, classes).

    Raises:
        ValueError: the quantizer is none of ``dorefa``, ``lsq`` and ``least_squares``, it does not define a pair, or
            norm statistics are missing and there are no calibration images.
        MissingNormSetError: the model has norm sets, but none for one of the pairs.
        RuntimeError: onnx, onnxscript or torch is missing or too old.
        DisagreementError: the graph does not compute what the model computes. There is no file then.
    """
    listed, path = sorted(set(parse_all(pairs))), Path(path)
    check_quantizer(model)
    onnx, optimizer = packages(OPSET)
    network = freeze(model, listed, calibration, "recalibrated")
    switched, images = Switched(network, listed), random_images(2, *image_shape)
    graph = optimizer.optimize(_graph(switched, images, output))
    del graph.graph.output[1:]  # they were there so that `_check` finds them; the file has one output
    strip(graph)
    quantizer = plan_of(network).quantizer
    meta = {"format": FORMAT, "pairs": ",".join(map(str, listed)), "quantizer": quantizer, "norm_stats": "recalibrated"}
    onnx.helper.set_model_props(graph, meta)
    onnx.checker.check_model(graph, full_check=True)
    for pair in listed:
        _check(graph, network, pair, images)
    files.replace(path, graph.SerializeToString())
    return Switchable(path, quantizer, listed, path.stat().st_size)


def check_quantizer(model: nn.Module) -> None:
    """Raise a ValueError if the model has a quantizer whose arithmetic `Switched` does not have."""
    if type(setting_of(model).quantizer) not in KINDS:
        known = ", ".join(name for name, one in QUANTIZERS.items() if type(one) in KINDS)
        raise ValueError(
            f"a file whose bits are inputs can be written for the quantizers {known}, not for "
            f"{plan_of(model).quantizer}: write a file for each pair, --bits W4A4"
        )


@dataclass
class Agreements:
    """How the answers of a file whose bits are inputs compare with those of the PyTorch model at each of its pairs."""

    each: dict[Bits, Agreement]
    has_classes: bool = True

    @property
    def same_class(self) -> float:
        """The percentage of answers, over all pairs and images, with the same class."""
        return 100 - self._percent([found.disagreements for found in self.each.values()])

    @property
    def close(self) -> float:
        """The percentage of answers, over all pairs and images, whose values differ by at most `agree.CLOSE`."""
        return 100 - self._percent([found.apart for found in self.each.values()])

    def _percent(self, lists: Sequence[Sequence]) -> float:
        return 100 * sum(map(len, lists)) / sum(found.images for found in self.each.values())

    def __str__(self) -> str:
        """Write the shares in one line, and a line for each pair with answers that are not close."""
        images = max(found.images for found in self.each.values())
        same = f"same class for {self.same_class:.2f} %, " if self.has_classes else ""
        lines = [f"{len(self.each)} pairs, {images} images each: {same}values within {CLOSE:g} for {self.close:.2f} %"]
        lines += [
            f"  rounding flips at {pair}: {_few(found.apart)}" for pair, found in self.each.items() if found.apart
        ]
        return "\n".join(lines)


def _few(images: Sequence[int]) -> str:
    return f"images {', '.join(map(str, images[:LISTED]))}" + f" and {len(images) - LISTED} more" * (
        len(images) > LISTED
    )


def agreements(path: str | Path, model: nn.Module, images: Tensor, has_classes: bool = True) -> Agreements:
    """Compare the answers of a file whose bits are inputs with those of the model that it was made from.

    Where they are not close, the layers are compared one by one, so that what is left can only be rounding: a value
    that lay halfway between two levels was rounded up by one program and down by the other.

    Args:
        path: a file that `export_switch` wrote.
        model: the quantized model.
        images: (count, channels, height, width).
        has_classes: whether the output is one of classes, rather than of values or features.

    Raises:
        DisagreementError: an answer differs by more than rounding explains.
    """
    graph = need("onnx").load(path)
    meta = {entry.key: entry.value for entry in graph.metadata_props}
    network, each = freeze(model, parse_all(meta["pairs"]), None, "recalibrated"), {}
    for pair in parse_all(meta["pairs"]):
        each[pair] = agreement(path, model, images, pair)
        if each[pair].apart:
            _check_flips(graph, network, pair, images[each[pair].apart])
    return Agreements(each, has_classes)


def _check_flips(graph: Any, network: nn.Module, pair: Bits, images: Tensor) -> None:
    """Make sure that rounding alone explains other answers to ``images``; otherwise raise a DisagreementError."""
    try:
        _check(graph, network, pair, as_float(images).cpu())
    except DisagreementError as error:
        raise DisagreementError(
            f"at {pair} the file gives answers that rounding does not explain: was it made from this model?"
        ) from error


def _graph(switched: Switched, images: Tensor, output: str) -> Any:
    """Export the network as an `onnx.ModelProto`; what `_check` compares are further outputs."""
    inputs = {"images": images, **feed(switched.pairs[0])}
    with torch.no_grad():
        switched(*inputs.values())
    seen = [f"{name}.{what}_{number}" for number, (name, what, _) in enumerate(switched.seen)]
    sizes = {name: {0: "batch"} if name == "images" else {} for name in inputs}
    return float_graph(switched, Task(tuple(inputs.values()), sizes, (output, *seen)), OPSET)


def _check(graph: Any, network: nn.Module, pair: Bits, images: Tensor) -> None:
    """Compare a graph with the network at one pair, layer by layer; a DisagreementError if they differ, see `agree`."""
    output, seen = graph.graph.output[0].name, _seen(graph)
    theirs = values(graph, [output, *seen], {"images": images, **feed(pair)})
    layers, inputs = quantized_layers(network), dict[str, list[Tensor | None]]()
    with at(network, pair):
        for key, (name, what) in seen.items():
            if what == "input":
                inputs[name][-1] = theirs[key]
                continue
            inputs.setdefault(name, []).append(None)
            if not torch.equal(theirs[key], _weights(layers[name])):
                raise DisagreementError(f"the weights of {name} at {pair} are not those of the network")
        with compared(network, inputs):
            ours = network(images)
    check_close(f"the output {output!r} at {pair}", ours, theirs[output])


def _seen(graph: Any) -> dict[str, tuple[str, str]]:
    """Return what `_graph` named, in order: name -> layer, and weight or input."""
    names = [name for node in graph.graph.node for name in node.output]
    found = [match for name in names if (match := re.fullmatch(r"(.+)\.(weight|input)_(\d+)", name))]
    return {match[0]: (match[1], match[2]) for match in sorted(found, key=lambda match: int(match[3]))}


def _weights(layer: QuantizedLayer) -> Tensor:
    """Compute the weights of a layer at its current bits from their codes."""
    bits = layer.bits.w
    return layer.quantized_weight(bits) if bits == FULL else dequantize(*weight_codes(layer, bits))
