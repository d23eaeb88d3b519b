"""Run ONNX files in ONNX Runtime on the CPU: do they answer as PyTorch does, and how fast are they?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mebqat_lite.bits import Bits, BitsLike
from mebqat_lite.deploy.agree import CLOSE
from mebqat_lite.deploy.onnx_graph import UPGRADE, need
from mebqat_lite.measure.evaluate import BATCH
from mebqat_lite.switching.state import MapOrBits, at, frozen_weights, setting_of
from mebqat_lite.tensors import as_float, evaluating, place

# Turn weights into floats only once, when a file is loaded. By default ONNX Runtime does it in each run, which takes
# several times as long.
OPTIONS = {"session.disable_quant_qdq": "1"}


@dataclass
class Agreement:
    """How the answers of a file compare with those of the PyTorch model."""

    share: float  # percentage of images with the same class
    images: int
    disagreements: list[tuple[int, int, int]]  # number of the image, class in PyTorch, class in ONNX Runtime
    largest_difference: float  # between the logits of both, in absolute value
    apart: list[int]  # numbers of the images with a logit that differs by more than `agree.CLOSE` of the largest one

    def __str__(self) -> str:
        """Write the share in one line, and a line for each image whose class differs."""
        lines = [f"same class for {self.share:.2f} % of {self.images} images"]
        lines += [f"  image {image}: PyTorch {ours}, ONNX {theirs}" for image, ours, theirs in self.disagreements]
        return "\n".join(lines)


@dataclass
class Latency:
    """The time that a file takes relative to another one, from runs that alternate between both."""

    ratio: float  # median over the runs
    quartiles: tuple[float, float]  # of the ratio
    milliseconds: tuple[float, float]  # median time of a run: for the file, and for the other one
    batch: int
    runs: int

    def __str__(self) -> str:
        """Write the ratio with its quartiles, and both times."""
        (low, high), (ours, other) = self.quartiles, self.milliseconds
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}] at batch {self.batch}: {ours:.3f} ms over {other:.3f} ms"


def session(path: str | Path, plain: bool = False, threads: int = 1) -> Any:
    """Open a file as an `onnxruntime.InferenceSession` on the CPU, with `OPTIONS` unless it should be ``plain``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is no ONNX file.
        RuntimeError: ONNX Runtime is missing, or too old for the file.
    """
    need("onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name} in {path.parent}")
    return open_session(str(path), path.name, plain, threads)


def open_session(source: str | bytes, name: str, plain: bool = False, threads: int = 1) -> Any:
    """Open an `onnxruntime.InferenceSession` as `session` does, from a path or from the bytes of a file.

    ``name`` stands for it in error messages.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    for option, value in ({} if plain else OPTIONS).items():
        options.add_session_config_entry(option, value)
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of ONNX Runtime have no narrower base class
        if "Protobuf parsing failed" in str(error):
            raise ValueError(f"{name} is damaged or no ONNX file") from error
        why = f"ONNX Runtime {runtime.__version__} cannot run {name} ({' '.join(str(error).split())})"
        raise RuntimeError(f"{why}: {UPGRADE}, or export with opset=21") from error


def answers(path: str | Path, images: Tensor, plain: bool = False, bits: BitsLike | None = None) -> Tensor:
    """Compute logits, (count, classes), of ``images``, (count, channels, height, width), in ONNX Runtime.

    A file whose bits are inputs (`onnx_switch`) runs at the pair ``bits``. A file of one pair needs no ``bits``.

    Raises:
        ValueError: the file does not have the pair ``bits``, or it has several pairs and none was given.
    """
    return _answers(path, images, plain, None if bits is None else str(Bits.parse(bits)))


def _answers(path: str | Path, images: Tensor, plain: bool, bits: str | None) -> Tensor:
    run = session(path, plain)
    inputs = _inputs(run.get_modelmeta().custom_metadata_map, Path(path).name, bits)
    parts = [run.run(None, {"images": as_float(part).numpy(), **inputs})[0] for part in images.cpu().split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


def _inputs(meta: Mapping[str, str], name: str, bits: str | None) -> dict[str, np.ndarray]:
    """Return the inputs of a file beside the images; a ValueError if it does not have these bits."""
    if "pairs" not in meta:
        written = meta.get("bits", bits)
        if bits not in (None, written):
            raise ValueError(f"{name} is of {written}: use it at these bits, not at {bits}")
        return {}
    if bits not in meta["pairs"].split(","):
        why = "runs at several pairs: say at which, bits='W4A4'" if bits is None else f"was not written for {bits}"
        raise ValueError(f"{name} {why}; it has {meta['pairs'].replace(',', ', ')}")
    return {key: value.numpy() for key, value in feed(Bits.parse(bits)).items()}


def feed(pair: Bits) -> dict[str, Tensor]:
    """Return the two int32 numbers that stand for a pair in a file whose bits are inputs."""
    return {
        "weight_bits": torch.tensor(pair.w, dtype=torch.int32),
        "activation_bits": torch.tensor(pair.a, dtype=torch.int32),
    }


def agreement(
    path: str | Path,
    model: nn.Module,
    images: Tensor,
    bits: MapOrBits,
    norm_stats: str = "recalibrated",
    plain: bool = False,
) -> Agreement:
    """Compare the answers of an ONNX file with those of the model that it was made from.

    Args:
        path: a file that `onnx_export.export_onnx` or `onnx_switch.export_switch` wrote.
        model: the quantized model.
        images: (count, channels, height, width).
        bits: the pair at which the file was exported, or one of its pairs.
        norm_stats: the norm policy with which the file was exported.
        plain: as in `session`.

    Raises:
        ValueError: the file was exported at other bits.
    """
    device, dtype = place(model)
    with evaluating(model), frozen_weights(model), at(model, bits, norm_stats):
        theirs = _answers(path, images, plain, setting_of(model).code.strip('"'))
        ours = torch.cat([model(as_float(part).to(device, dtype)).cpu() for part in images.split(BATCH)])
    chosen = torch.stack([ours.argmax(1), theirs.argmax(1)], 1)  # (count, 2)
    apart = (chosen[:, 0] != chosen[:, 1]).nonzero().flatten().tolist()
    listed = [(image, *chosen[image].tolist()) for image in apart]
    share = 100 * (1 - len(apart) / len(images))
    difference = (ours - theirs).abs().amax(1)  # (count,)
    is_far = ~(difference <= CLOSE * ours.abs().max())  # also NaN
    return Agreement(share, len(images), listed, float(difference.max()), is_far.nonzero().flatten().tolist())


def latency(
    path: str | Path, other: str | Path, images: Tensor, *, runs: int = 50, warmup: int = 5, plain: bool = False
) -> Latency:
    """Measure how long a file takes for a batch relative to another file, with one thread each.

    Args:
        path: the file to measure.
        other: the file to compare it with.
        images: the batch, (batch, channels, height, width).
        runs: how many runs of each file are measured; runs of both files alternate.
        warmup: how many runs come before these and do not count.
        plain: as in `session`, for both files.
    """
    feed = {"images": as_float(images).cpu().numpy()}
    sessions = [session(file, plain) for file in (path, other)]
    pairs = []
    for number in range(warmup + runs):  # the order alternates, because on a busy machine it makes a difference
        order = (0, 1) if number % 2 else (1, 0)
        spent = {index: _milliseconds(sessions[index], feed) for index in order}
        pairs.append((spent[0], spent[1]))
    pairs = pairs[warmup:]
    ratios = [ours / theirs for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Latency(middle, (low, high), (ours, theirs), len(images), runs)


def _milliseconds(run: Any, feed: dict[str, np.ndarray]) -> float:
    started = time.perf_counter()
    run.run(None, feed)
    return 1000 * (time.perf_counter() - started)


def values(model: Any, names: Sequence[str], feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute intermediate and final values of an `onnx.ModelProto` by name.

    ONNX Runtime computes them, or, if it is missing or too old for the model, the slow reference evaluator of onnx.
    """
    onnx, inputs = need("onnx"), {name: value.numpy() for name, value in feed.items()}
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    try:
        run = open_session(watched.SerializeToString(), "the graph")
    except RuntimeError:
        run = need("onnx.reference").ReferenceEvaluator(watched)
    return dict(zip(names, map(torch.from_numpy, run.run(list(names), inputs)), strict=True))
