"""Evaluation: one model, or one per seed, at every bitwidth pair."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite.bits import FP, Bits, BitsLike, candidates
from mebqat_lite.datasets.base import Split
from mebqat_lite.switching.batchnorm import MissingNormSetError, MissingStatisticsError
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.switching.state import (
    MapOrBits,
    at,
    frozen_weights,
    has_norm_sets,
    has_one_bit,
    has_stem,
    norm_layers,
    parse_settings,
    quantized_layers,
    setting_of,
)
from mebqat_lite.tensors import Images, as_float, evaluating, place

if TYPE_CHECKING:
    import pandas as pd
from mebqat_lite.measure.intervals import interval

BATCH = 1024
CALIBRATION_NORMS = 2048  # training images that suffice to measure norm statistics


def accuracy(
    model: nn.Module, split: Split, bits: MapOrBits, norm_stats: str | None = None, batch_size: int = BATCH
) -> float:
    """Share of ``split`` that ``model`` classifies correctly at ``bits`` (a pair or a per-layer map), in percent."""
    hits = [_hits(model, split, [bits], norm_stats, batch_size)]
    return 100 * hits[0][0] / len(split.labels)


def grid(
    models: nn.Module | Sequence[nn.Module],
    splits: Split | Sequence[Split],
    bits: str | Iterable[MapOrBits] | None = None,
    *,
    norm_stats: str | None = None,
    calibration: Images | Sequence[Images] | None = None,
    lend_sets: bool = False,
    batch_size: int = BATCH,
    progress: bool = False,
) -> pd.DataFrame:
    """Accuracy in percent at each pair, as a frame with columns ``bits w a mean ci95 n``.

    Args:
        models: one model, or one per seed; ``ci95`` is then the half-width of a t-interval over the seeds.
        splits: the images and labels to classify, one for all models or one each.
        bits: the pairs, or per-layer maps; by default all candidates of the model's quantizer, 75 or 73.
        norm_stats: the norm policy; by default the one that the model was left with.
        calibration: training images, one set or one per model: statistics are measured for each pair first.
        lend_sets: a pair without a norm set of its own takes gain and shift of the nearest pair that has one; give
            ``calibration`` with it, so that at least the statistics are its own. Otherwise the pair is NaN.
        batch_size: images at a time. Under ``batch`` statistics it is part of the policy.
        progress: show a bar.

    The frame's ``attrs["norm_stats"]`` names the policy.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    parts = [splits] * len(nets) if isinstance(splits, Split) else list(splits)
    images: list[Any] = list(calibration) if _is_list(calibration) else [calibration] * len(nets)  # type: ignore[arg-type]
    if not len(nets) == len(parts) == len(images):
        raise ValueError(f"{len(nets)} models, {len(parts)} splits, {len(images)} calibration sets: give one each")
    pairs = candidates(has_one_bit(nets[0])) if bits is None else parse_settings(bits)
    norm_stats = norm_stats or setting_of(nets[0]).norm_stats
    runs = []
    bar = functools.partial(tqdm, disable=not progress, leave=False, delay=2)
    for net, split, sample in zip(nets, parts, images, strict=True):
        with _lending(net, lend_sets), frozen_weights(net):
            if sample is not None:
                _calibrate(net, sample, pairs, progress)
            hits = _hits(net, split, pairs, norm_stats, batch_size, bar)
        runs.append([100 * count / len(split.labels) for count in hits])
    return frame_of(pairs, runs, norm_stats)


def _calibrate(model: nn.Module, images: Images, pairs: Sequence[MapOrBits], progress: bool) -> None:
    """Measure norm statistics for all pairs; one without a norm set has none."""
    if not has_norm_sets(model):
        recalibrate(model, images, pairs, progress=progress)
        return
    for pair in tqdm(pairs, desc="norm statistics", disable=not progress, leave=False, delay=2):
        with contextlib.suppress(MissingNormSetError):  # off the list, and NaN in the grid
            recalibrate(model, images, [pair])


def sensitivity(
    model: nn.Module,
    split: Split,
    bits: BitsLike = "W2A2",
    *,
    rest: BitsLike = "FP",
    norm_stats: str | None = None,
    calibration: Images | None = None,
) -> pd.DataFrame:
    """Accuracy in percent when one layer alone goes down to ``bits`` while the others stay at ``rest``.

    A row per quantized layer, with columns ``accuracy`` and ``loss``, the points lost against all layers at ``rest``.
    """
    import pandas as pd

    body = [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"]
    settings: dict[str, MapOrBits] = {"": rest} | {name: {"*": rest, name: bits} for name in body}
    found = {}
    for name, setting in settings.items():
        if calibration is not None:
            recalibrate(model, calibration, setting)
        found[name] = accuracy(model, split, setting, norm_stats)
    whole = found.pop("")
    rows = [{"layer": name, "accuracy": value, "loss": whole - value} for name, value in found.items()]
    return pd.DataFrame(rows).set_index("layer")


@contextlib.contextmanager
def _lending(model: nn.Module, lend_sets: bool) -> Iterator[None]:
    """Inside the block pairs without a norm set may borrow one."""
    setting = setting_of(model)
    before, setting.lend_sets = setting.lend_sets, lend_sets
    try:
        yield
    finally:
        setting.lend_sets = before


def agreement(model: nn.Module, images: Tensor, bits: MapOrBits, norm_stats: str = "recalibrated") -> float:
    """Percent of ``images``, (count, channels, height, width), that get the same class alone as among the others.

    100 (but for rounding) under stored statistics; less where statistics come from the batch, which a batch of one
    does not have.
    """
    device, dtype = place(model)
    images = as_float(images).to(device, dtype)
    with evaluating(model), frozen_weights(model), at(model, bits, norm_stats):
        together = torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])
        alone = torch.cat([model(image).argmax(1) for image in images.split(1)])
    return 100 * float((alone == together).double().mean())


def frame_of(pairs: Sequence[MapOrBits], runs: list[list[float]], norm_stats: str) -> pd.DataFrame:
    """Rows of pairs from runs[seed or episode][pair]; a per-layer map has the bits of ``*``."""
    import pandas as pd

    def row(pair: MapOrBits) -> dict[str, Any]:
        rest = Bits.parse(pair.get("*", FP) if isinstance(pair, Mapping) else pair)
        name = ",".join(f"{k}={v}" for k, v in pair.items()) if isinstance(pair, Mapping) else str(rest)
        return {"bits": name, "w": rest.w, "a": rest.a}

    rows = [{**row(pair), **interval(values)} for pair, values in zip(pairs, zip(*runs, strict=True), strict=True)]
    frame = pd.DataFrame(rows).set_index("bits")
    frame.attrs["norm_stats"] = norm_stats
    return frame


def _hits(
    model: nn.Module,
    split: Split,
    pairs: Sequence[MapOrBits],
    norm_stats: str | None,
    batch_size: int,
    bar: Callable[..., Iterable] = lambda batches, **_: batches,
) -> list[float]:
    """Correct answers at each pair. Weights are quantized once a bitwidth, the stem is run once a batch."""
    device, dtype = place(model)
    hits: list[float] = [0.0] * len(pairs)
    batches = list(zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True))
    with evaluating(model), frozen_weights(model):
        shared = _shares_stem(model, pairs, norm_stats)
        for images, labels in bar(batches, desc="images"):
            images, labels = as_float(images).to(device, dtype), labels.to(device)
            features, body = _after_stem(model, images, shared)
            for index, bits in enumerate(pairs):
                version = features._version
                hits[index] += _hits_at(model, body, features, labels, bits, norm_stats)
                if features._version != version:  # the body works in place
                    features, body = _after_stem(model, images, shared)
    return hits


def _is_list(calibration: object) -> bool:
    """Whether it is a list of calibration sets, one per model; an ``(images, labels)`` tuple is one set."""
    is_pair = isinstance(calibration, tuple) and len(calibration) == 2 and isinstance(calibration[0], Tensor)
    return isinstance(calibration, (list, tuple)) and not is_pair


def _after_stem(model: nn.Module, images: Tensor, shared: tuple[MapOrBits, str] | None) -> tuple[Tensor, nn.Module]:
    """The output of a stem that is the same at all pairs, run as ``shared`` says, and the rest of the network."""
    if shared is None:
        return images, model
    with at(model, *shared):
        return model.stem(images), model.body  # type: ignore[operator, return-value]


def _shares_stem(model: nn.Module, pairs: Sequence[MapOrBits], norm_stats: str | None) -> tuple[MapOrBits, str] | None:
    """Bits and norm policy at which one run of the stem serves all pairs; None if there is no such stem.

    Recalibrated statistics belong to a pair, those of a stem too: they must be equal, as they are if they were
    measured on the same images.
    """
    policy = norm_stats or setting_of(model).norm_stats
    if not has_stem(model) or not pairs:
        return None
    if policy != "recalibrated":
        return FP, policy
    names = []
    for pair in pairs:
        with at(model, pair):
            names.append(f"stats_{setting_of(model).key}")
    for norm in norm_layers(model.stem).values():  # type: ignore[arg-type]
        found = [norm._buffers.get(name) for name in names]
        if any(stats is None or not torch.equal(stats, found[0]) for stats in found):  # type: ignore[arg-type]
            return None
    return pairs[0], policy


def _hits_at(
    model: nn.Module,
    body: nn.Module,
    features: Tensor,
    labels: Tensor,
    bits: MapOrBits,
    norm_stats: str | None,
) -> float:
    with at(model, bits, norm_stats):
        try:
            return float((body(features).argmax(1) == labels).sum())
        except MissingStatisticsError:
            raise
        except MissingNormSetError:  # off the list
            return math.nan
