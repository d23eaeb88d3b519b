"""ONNX files in ONNX Runtime on the CPU: do they answer as PyTorch does, and how fast are they?"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mebqat_lite.deploy.onnx_export import UPGRADE, need
from mebqat_lite.measure.evaluate import BATCH
from mebqat_lite.switching.state import MapOrBits, at, frozen_weights, setting_of
from mebqat_lite.tensors import as_float, evaluating, place

# Weights become floats once, when a file is loaded. By default they do at each run, which takes several times as long.
OPTIONS = {"session.disable_quant_qdq": "1"}


@dataclass
class Agreement:
    """How the answers of a file compare with those of the PyTorch model."""

    share: float  # percent of images with the same class
    images: int
    disagreements: list[tuple[int, int, int]]  # image, class in PyTorch, class in ONNX Runtime
    largest_difference: float  # of a logit

    def __str__(self) -> str:
        """The share, and the images that differ."""
        lines = [f"same class for {self.share:.2f} % of {self.images} images"]
        lines += [f"  image {image}: PyTorch {ours}, ONNX {theirs}" for image, ours, theirs in self.disagreements]
        return "\n".join(lines)


@dataclass
class Latency:
    """Time of a file over that of another one, from runs in turns."""

    ratio: float  # median
    quartiles: tuple[float, float]  # of the ratio
    milliseconds: tuple[float, float]  # medians of a run: of the file, of the other one
    batch: int
    runs: int

    def __str__(self) -> str:
        """The ratio with its middle half, and both times."""
        (low, high), (ours, other) = self.quartiles, self.milliseconds
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}] at batch {self.batch}: {ours:.3f} ms over {other:.3f} ms"


def session(path: str | Path, plain: bool = False, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with `OPTIONS`, or ``plain`` without.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: ONNX Runtime is missing, or too old for the file.
    """
    runtime, path = need("onnxruntime"), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.name} in {path.parent}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    for name, value in ({} if plain else OPTIONS).items():
        options.add_session_config_entry(name, value)
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no other base
        if "Protobuf parsing failed" in str(error):
            raise ValueError(f"{path.name} is damaged or no ONNX file") from error
        why = f"ONNX Runtime {runtime.__version__} cannot run {path.name} ({' '.join(str(error).split())})"
        raise RuntimeError(f"{why}: {UPGRADE}, or export with opset=21") from error


def answers(path: str | Path, images: Tensor, plain: bool = False) -> Tensor:
    """Logits, (count, classes), of ``images``, (count, channels, height, width), in ONNX Runtime."""
    run = session(path, plain)
    parts = [run.run(None, {"images": as_float(part).numpy()})[0] for part in images.cpu().split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


def agreement(
    path: str | Path,
    model: nn.Module,
    images: Tensor,
    bits: MapOrBits,
    norm_stats: str = "recalibrated",
    plain: bool = False,
) -> Agreement:
    """Compare a file that `onnx_export.export_onnx` made of ``model`` with the model at the same ``bits``.

    images: (count, channels, height, width). ``norm_stats`` as in the export, ``plain`` as in `session`.

    Raises:
        ValueError: the file is of other bits.
    """
    device, dtype = place(model)
    theirs = answers(path, images, plain)
    with evaluating(model), frozen_weights(model), at(model, bits, norm_stats):
        _check_bits(path, setting_of(model).code.strip('"'))
        ours = torch.cat([model(as_float(part).to(device, dtype)).cpu() for part in images.split(BATCH)])
    chosen = torch.stack([ours.argmax(1), theirs.argmax(1)], 1)  # (count, 2)
    apart = (chosen[:, 0] != chosen[:, 1]).nonzero().flatten().tolist()
    listed = [(image, *chosen[image].tolist()) for image in apart]
    share = 100 * (1 - len(apart) / len(images))
    return Agreement(share, len(images), listed, float((ours - theirs).abs().max()))


def _check_bits(path: str | Path, asked: str) -> None:
    """Refuse to compare a file with a network at other bits than the file's."""
    written = session(path).get_modelmeta().custom_metadata_map.get("bits", asked)
    if written != asked:
        raise ValueError(f"{Path(path).name} is of {written}: compare it at these bits, not at {asked}")


def latency(
    path: str | Path, other: str | Path, images: Tensor, *, runs: int = 50, warmup: int = 5, plain: bool = False
) -> Latency:
    """Median time of ``path`` over that of ``other`` on one batch of ``images``, one thread each, in turns.

    ``plain`` as in `session`, for both.
    """
    feed = {"images": as_float(images).cpu().numpy()}
    sessions = [session(file, plain) for file in (path, other)]
    pairs = []
    for number in range(warmup + runs):  # who goes first changes: on a busy machine that makes a difference
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
