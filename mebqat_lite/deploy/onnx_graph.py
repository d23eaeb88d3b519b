"""Put integers into an ONNX graph: weights go through DequantizeLinear, inputs through QuantizeLinear and back.

The graph comes from a float export, in which a layer's weights are the initializer ``<layer>.weight``. Everything here
works on an `onnx.ModelProto` and needs the package ``onnx``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.switching.layers import QuantizedLayer, QuantLinear

SIGNED = (("INT2", 2), ("INT4", 4), ("INT8", 8), ("INT16", 16), ("INT32", 32))
INPUTS = (("UINT8", 0, 2**8 - 1), ("INT8", -(2**7), 2**7 - 1), ("UINT16", 0, 2**16 - 1), ("INT16", -(2**15), 2**15 - 1))
OPSET, OPSET_INT2 = 21, 25  # the first opset with INT4 and INT16, and the first one with INT2
MULTIPLY = ("Conv", "Gemm", "MatMul")
INSTALL = 'pip install "mebqat_lite[export]"'
UPGRADE = INSTALL.replace("install", "install -U")


def need(module: str) -> Any:
    """Import an optional module; if it is missing, raise a RuntimeError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"ONNX files need more packages: {INSTALL} ({error})") from error


@dataclass(frozen=True)
class Weights:
    """The weights of a layer as the graph stores them: ``(codes + shift) * step``."""

    codes: np.ndarray  # int64, of the weight's shape
    step: np.ndarray  # float32, () or (out,)
    kind: str  # INT2 ... INT32
    shift: np.ndarray  # float32, () or (out,)
    note: str  # the reason if the type is wider than the bits, else empty


@dataclass(frozen=True)
class Inputs:
    """The grid of a layer's input, ``step * clip(round(x / step), low, high)``, and the ONNX type of its integers."""

    step: float
    low: int
    high: int
    kind: str
    clips: bool  # whether the type reaches beyond low or high, so that the graph has to clip


def weights_of(layer: QuantizedLayer, bits: int, opset: int, compact: bool = False) -> Weights:
    """Return the codes of a layer in the narrowest signed type that holds them without a zero point.

    If the zero is a half-integer (dorefa, centred sat, one bit), the weights are odd multiples of half a step, and
    storing these odd numbers takes one bit more. With ``compact`` the codes keep their bits, and the graph adds the
    half. It also adds what is left of a zero of each channel (corrected quantizers), which can be any number.
    """
    codes, step, zero = weight_codes(layer, bits)
    each = isinstance(zero, Tensor)
    odd = not each and not float(zero).is_integer()
    middle = 2 ** (bits - 1) if each or (odd and compact and bits > 1) else float(zero)
    shift = torch.as_tensor(middle - zero)
    scale = 2 if odd and not shift.any() else 1
    # The range that the bits allow, even if no weight lies at its ends.
    low, high = (round(scale * (end - middle)) for end in (0, 2**bits - 1))
    narrowest = 4 if isinstance(layer, QuantLinear) or opset < OPSET_INT2 else 2
    kind, width = next((k, n) for k, n in SIGNED if n >= narrowest and -(2 ** (n - 1)) <= low and high < 2 ** (n - 1))
    steps, shifts = (_per_channel(t) for t in (step / scale, shift))
    note = _why(layer, bits, width, opset, f"{low} to {high}" if scale == 2 else "")
    values = (codes.to(torch.int64) * scale + low).cpu().numpy()
    return Weights(values, steps, kind, shifts, note)


def _per_channel(t: Tensor) -> np.ndarray:
    """Return a number, or one number per output channel, (out, 1, ...), as float32, () or (out,)."""
    return t.detach().to(torch.float32).cpu().numpy().reshape(-1 if t.numel() > 1 else ())


def _why(layer: QuantizedLayer, bits: int, width: int, opset: int, odd: str) -> str:
    """Say why ``bits`` bits are stored in ``width`` bits; ``odd`` is the range of the codes if they are odd numbers."""
    if width == bits:
        return ""
    if odd and bits > 1:
        return f"{bits} bits around a half-integer: the odd numbers from {odd}"
    if bits > 2:
        return f"ONNX has no INT{bits}"
    if isinstance(layer, QuantLinear):
        return "no INT2 before a matrix product, where ONNX Runtime answers wrongly"
    return "ONNX has no INT1" if opset >= OPSET_INT2 else f"INT2 needs opset {OPSET_INT2}"


def inputs_of(layer: QuantizedLayer, bits: int) -> Inputs:
    """Return the grid of a layer's input at ``bits``, with the narrowest ONNX type that holds it.

    Raises:
        ValueError: the grid needs more than 16 bits, or the quantizer does not define `activation_grid`.
    """
    leader = layer.leader
    step, low, high = layer.quantizer.activation_grid(bits, leader.quant, leader.site)
    for kind, lowest, highest in INPUTS:
        if lowest <= low and high <= highest:
            return Inputs(float(step), low, high, kind, (low, high) != (lowest, highest))
    raise ValueError(f"{layer.site.name}: ONNX has no type for inputs from {low} to {high}; take at most 16 bits")


def quantize_graph(
    model: Any, layers: Mapping[str, tuple[QuantizedLayer, Weights | None, Inputs | None]]
) -> dict[str, list[str]]:
    """Put integers into a float graph, in place.

    The layer named ``name`` has the initializer ``<name>.weight``. Layers that read the same tensor on the same grid
    share the nodes that quantize it.

    Returns:
        For each layer that runs in the graph: the names of the quantized inputs of its nodes, or "" if they stay float.
    """
    graph = model.graph
    before: dict[int, list[Any]] = {}  # new nodes to insert before, and after, the node with that index
    after: dict[int, list[Any]] = {}
    shared: dict[tuple[str, Inputs, bool], str] = {}  # what is quantized, and how -> the result
    run: dict[str, list[str]] = {}
    readers = [(index, name) for name in layers for index in _multiplying(graph, f"{name}.weight")]
    for index, name in sorted(readers):
        (layer, weights, inputs), node = layers[name], graph.node[index]
        if inputs is not None:
            source, out = (node.input[0], inputs, weights is None), f"{name}.input_{index}"
            if source not in shared:
                before[index] = _quantize_input(graph, node.input[0], out, inputs, weights is None)
            node.input[0] = shared.setdefault(source, out)
            after[index] = _detach_bias(graph, node, layer)
        run.setdefault(name, []).append(node.input[0] if inputs else "")
    given = [(f"{name}.weight", weights) for name in run if (weights := layers[name][1]) is not None]
    first = [node for name, weights in given for node in _dequantize_weight(graph, name, weights)]
    nodes = [new for i, node in enumerate(graph.node) for new in (*before.get(i, ()), node, *after.get(i, ()))]
    del graph.node[:]
    graph.node.extend([*first, *nodes])
    return {name: run[name] for name in layers if name in run}


def _multiplying(graph: Any, weight: str) -> list[int]:
    """Find the indices of the nodes that multiply with an initializer, directly or transposed.

    There are none if the layer never runs.

    Raises:
        RuntimeError: other nodes use the initializer, so the layer was exported in an unknown way.
    """
    names, found = {weight}, []
    for index, node in enumerate(graph.node):
        if node.op_type == "Transpose" and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type in MULTIPLY and node.input[1] in names:
            found.append(index)
    if not found and any(weight in node.input for node in graph.node):
        raise RuntimeError(f"the exported graph has no convolution or matrix product with {weight}: use a newer torch")
    return found


def _quantize_input(graph: Any, x: str, out: str, grid: Inputs, float_weights: bool) -> list[Any]:
    """Make the nodes that compute ``out`` from ``x``: clip if needed, round to integers, and go back to floats.

    The zero point is the integer 0. The way back is a DequantizeLinear node. In front of float weights it is a Cast
    and a multiplication, which give the same values: if a float weight meets a DequantizeLinear, ONNX Runtime rounds
    the weight to 8 bits (its optimizer WeightBiasQuantization).
    """
    from onnx import TensorProto, helper

    nodes, source = [], x
    step = np.float32(grid.step)
    zero = helper.make_tensor(f"{out}_zero", getattr(TensorProto, grid.kind), (), [0])
    graph.initializer.extend([_floats(f"{out}_step", step), zero])
    if grid.clips:
        ends = {f"{out}_low": step * np.float32(grid.low), f"{out}_high": step * np.float32(grid.high)}
        graph.initializer.extend(_floats(name, value) for name, value in ends.items())
        source = f"{out}_clipped"
        nodes.append(helper.make_node("Clip", [x, *ends], [source], name=f"{source}_node"))
    codes, scaled = f"{out}_codes", [f"{out}_step", f"{out}_zero"]
    nodes.append(helper.make_node("QuantizeLinear", [source, *scaled], [codes], name=f"{out}_quantize"))
    if not float_weights:
        return [*nodes, helper.make_node("DequantizeLinear", [codes, *scaled], [out], name=f"{out}_dequantize")]
    cast = helper.make_node("Cast", [codes], [f"{out}_float"], name=f"{out}_cast", to=TensorProto.FLOAT)
    return [*nodes, cast, helper.make_node("Mul", [f"{out}_float", scaled[0]], [out], name=f"{out}_scale")]


def _detach_bias(graph: Any, node: Any, layer: QuantizedLayer) -> list[Any]:
    """Take the bias out of a convolution or matrix product, and let a node of its own add it.

    Inside a convolution of integers, ONNX Runtime would round the bias to a multiple of the product of both steps
    (WeightBiasQuantization again), and this is coarse at few bits.
    """
    from onnx import helper

    bias = layer.bias
    if node.op_type == "MatMul" or len(node.input) < 3:
        return []
    del node.input[2:]
    if not isinstance(bias, Tensor):
        return []  # the layer has no bias; the exporter had added zeros
    out, name = node.output[0], f"{node.output[0]}_bias"
    node.output[0] = f"{out}_product"
    column = bias.detach().reshape(-1, *[1] * (layer.weight.dim() - 2)).cpu().numpy()  # (out, 1, ...)
    graph.initializer.append(_floats(name, column))
    return [helper.make_node("Add", [node.output[0], name], [out], name=f"{out}_add")]


def _dequantize_weight(graph: Any, name: str, weights: Weights) -> list[Any]:
    """Replace the float initializer ``name`` by integers, and return the nodes that compute ``name`` from them."""
    from onnx import helper

    floats = next(index for index, tensor in enumerate(graph.initializer) if tensor.name == name)
    del graph.initializer[floats]
    graph.initializer.append(_integers(f"{name}_codes", weights.codes, weights.kind))
    if not weights.shift.any():
        graph.initializer.append(_floats(f"{name}_step", weights.step))
        return [_dequantize(f"{name}_codes", f"{name}_step", name, weights.step)]
    # code + 1/2 is exact in float32, so the only rounding is that of the multiplication by the step, as in PyTorch.
    given = {"one": np.ones(()), "shift": weights.shift, "step": weights.step}
    column = (-1, *[1] * (weights.codes.ndim - 1))  # (out, 1, ...)
    for what, value in given.items():
        graph.initializer.append(_floats(f"{name}_{what}", value.reshape(column) if value.ndim else value))
    return [
        _dequantize(f"{name}_codes", f"{name}_one", f"{name}_whole", np.float32(1)),
        helper.make_node("Add", [f"{name}_whole", f"{name}_shift"], [f"{name}_shifted"], name=f"{name}_add"),
        helper.make_node("Mul", [f"{name}_shifted", f"{name}_step"], [name], name=f"{name}_scale"),
    ]


def _dequantize(codes: str, step: str, out: str, value: Any) -> Any:
    """Make a DequantizeLinear node with one step, or with one step per output channel (the first axis)."""
    from onnx import helper

    axis: dict[str, Any] = {"axis": 0} if np.ndim(value) else {}
    return helper.make_node("DequantizeLinear", [codes, step], [out], name=f"{out}_dequantize", **axis)


def _floats(name: str, value: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def _integers(name: str, codes: np.ndarray, kind: str) -> Any:
    """Make a tensor of integers in the layout of ONNX.

    Integers of fewer than 8 bits share a byte, and the first of them takes its lowest bits.
    """
    from onnx import TensorProto

    width = dict(SIGNED)[kind]
    if width >= 8:
        raw = codes.astype(f"<i{width // 8}").tobytes()
    else:
        each = 8 // width
        flat = np.pad(codes.reshape(-1) & (2**width - 1), (0, -codes.size % each)).reshape(-1, each)
        raw = (flat << (width * np.arange(each))).sum(1).astype(np.uint8).tobytes()
    return TensorProto(name=name, data_type=getattr(TensorProto, kind), dims=codes.shape, raw_data=raw)


def strip(model: Any) -> None:
    """Remove what a reader of the file does not need.

    These are the shapes of intermediate values, which can be computed again, and the exporter's notes about its run,
    which contain paths of this machine.
    """
    graph = model.graph
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
