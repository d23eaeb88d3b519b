"""Measure the accuracy or PSNR of one model, or of one model per seed, at every bitwidth pair."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite.bits import FP, Bits
from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.learners import Classes, Values, objective
from mebqat_lite.measure.intervals import interval
from mebqat_lite.quantizers import wide
from mebqat_lite.switching.audit import audit
from mebqat_lite.switching.batchnorm import MissingNormSetError, MissingStatisticsError
from mebqat_lite.switching.norms import lent_stats, recalibrate, stored_stats
from mebqat_lite.switching.state import (
    MapOrBits,
    at,
    frozen_weights,
    has_norm_sets,
    key_of,
    norm_layers,
    pairs_of,
    parse_settings,
    setting_of,
)
from mebqat_lite.switching.stem import has_stem
from mebqat_lite.tensors import Images, evaluating, like_model, logits_of, place

if TYPE_CHECKING:
    import pandas as pd

BATCH = 1024
CALIBRATION_NORMS = 2048  # this many training images are enough to measure norm statistics


def accuracy(
    model: nn.Module, split: Split, bits: MapOrBits, norm_stats: str | None = None, batch_size: int = BATCH
) -> float:
    """Measure the percentage of ``split`` that ``model`` classifies correctly at ``bits``.

    >>> 0 <= mq.accuracy(model, data.test, "W4A4", norm_stats="batch") <= 100
    True

    Args:
        model: a quantized model. Its bits, norm policy and mode do not change.
        split: the images and their labels.
        bits: a pair such as ``"W4A4"``, or a map of layers to pairs, see `set_bits`.
        norm_stats: the statistics that batch norm uses: ``running``, ``batch`` or ``recalibrated``. By default the
            model's own choice applies, see `set_norm_stats`.
        batch_size: how many images are classified at a time. Under ``batch`` statistics the accuracy depends on it.

    Returns:
        The accuracy in percent, or NaN if the model has norm sets, but none for this pair.

    Raises:
        ValueError: the quantizer does not define these bits.
        MissingStatisticsError: ``recalibrated`` statistics are asked for, but were not measured for this pair.
        DataError: the split is empty, its labels are values, or they do not fit the network.
    """
    return score(model, split.check().of_classes("accuracy", ", or measure `score`"), bits, norm_stats, batch_size)


def score(
    model: nn.Module, split: Split, bits: MapOrBits, norm_stats: str | None = None, batch_size: int = BATCH
) -> float:
    """Measure the accuracy of ``model`` in percent, or its PSNR in dB where the labels of ``split`` are values.

    The arguments and errors are those of `accuracy`.
    """
    return _scores(model, split, [bits], norm_stats, batch_size)[0]


def scores(
    model: nn.Module,
    split: Split,
    settings: str | Iterable[MapOrBits],
    *,
    metric: str = "score",
    norm_stats: str | None = None,
    calibration: Images | None = None,
) -> list[float]:
    """Measure many pairs or maps of layers to pairs in one pass over the images; nothing is left in the model.

    Args:
        model: a quantized model. Its bits, norm policy, mode and stored statistics do not change.
        split: the images and their labels.
        settings: the pairs, or maps of layers to pairs.
        metric: ``score`` is what `score` measures. ``KL`` is the mean Kullback-Leibler divergence in nats of the class
            probabilities from those at FP: 0 is best, and the labels play no part.
        norm_stats: the norm policy; by default ``recalibrated`` where ``calibration`` is given, else the model's own.
        calibration: training images, on which each setting gets norm statistics of its own, which are then forgotten.

    Returns:
        One number for each setting; NaN where the model has norm sets, but none for the setting.

    Raises:
        ValueError: the metric is unknown, or the quantizer does not define these bits.
        DataError: the split is empty, or ``KL`` is asked for where labels are values.
    """
    listed, policy = parse_settings(settings), _policy(model, norm_stats, calibration)
    goal = goal_of(split, metric)
    lent = contextlib.nullcontext() if calibration is None else lent_stats(model, stored_stats(model))
    with frozen_weights(model), lent:
        if calibration is not None:
            _calibrate(model, calibration, [FP, *listed] if metric == "KL" else listed, progress=False)
        if isinstance(goal, Divergence):
            split = split._replace(labels=_probabilities(model, split.images, policy))
        return _scores(model, split, listed, policy, BATCH, goal=goal)


class Divergence:
    """The mean Kullback-Leibler divergence of class probabilities from those of the network at FP, in nats."""

    name, measure = "KL", "KL from FP (nats)"

    def score(self, out: Tensor, labels: Tensor) -> float:
        """Add up the divergences of logits from the probabilities ``labels``, both (batch, classes)."""
        return float(F.kl_div(wide(out).log_softmax(1), labels, reduction="sum"))

    def measured(self, total: float, count: int) -> float:
        """Return the mean over ``count`` images."""
        return total / count


def goal_of(split: Split, metric: str) -> Classes | Values | Divergence:
    """Return what ``metric`` measures on ``split``; an unknown metric is a ValueError, see `scores`."""
    if metric not in ("score", "KL"):
        raise ValueError(f"no metric {metric!r}; choose score or KL")
    if metric == "score":
        return objective(split.labels)
    split.of_classes("the metric KL", ", or leave out the metric")
    return Divergence()


def _probabilities(model: nn.Module, images: Tensor, norm_stats: str) -> Tensor:
    """Compute the class probabilities at FP, (count, classes)."""
    with evaluating(model), at(model, FP, norm_stats):
        batches = _batches(images, BATCH)
        return torch.cat([wide(model(like_model(batch, model).clone())).softmax(1) for batch in batches])


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
    """Measure the accuracy at many bitwidth pairs, or the PSNR where labels are values, such as colours.

    >>> frame = mq.grid(model, data.test, "W2A2,W4A4,FP", norm_stats="batch")
    >>> list(frame.index)
    ['W2A2', 'W4A4', 'FP']
    >>> list(frame.columns)
    ['w', 'a', 'mean', 'ci95', 'n']
    >>> len(mq.grid(model, data.test, calibration=data.train.images, norm_stats="recalibrated"))
    75

    Args:
        models: a quantized model, or a list with one model per seed.
        splits: the images and labels to classify: one split for all models, or a list with one per model.
        bits: the pairs, or maps of layers to pairs. By default these are all candidates that the quantizer defines: 75
            for dorefa, 73 without 1 bit.
        norm_stats: the norm policy; by default ``recalibrated`` where ``calibration`` is given, else that of the first
            model.
        calibration: training images, one set for all models or a list with one per model. If they are given, the
            ``recalibrated`` statistics of every pair are measured on them first.
        lend_sets: whether a pair without a norm set may use the gain and shift of the nearest pair that has one;
            otherwise its accuracy is NaN. Also give ``calibration``, so that the statistics are those of the pair.
        batch_size: how many images are classified at a time. Under ``batch`` statistics the accuracy depends on it.
        progress: whether to show a progress bar.

    Returns:
        A frame with a row per pair, indexed by its name (``bits``). ``w`` and ``a`` are its bitwidths, ``mean`` is the
        accuracy in percent or the PSNR in dB, ``ci95`` the half-width of the 95 % t-interval over the models (NaN for
        one model), and ``n`` the number of models. ``frame.attrs["measure"]`` is ``accuracy (%)`` or ``PSNR (dB)``,
        ``frame.attrs["norm_stats"]`` names the norm policy, and ``frame.attrs["unreached"]`` lists what the bits do
        not reach (`switching.audit.audit`).

    Raises:
        ValueError: the quantizer does not define these bits, or there are not as many splits or calibration sets as
            models.
        MissingStatisticsError: ``recalibrated`` statistics are asked for, but were not measured for a pair.
    """
    nets = [models] if isinstance(models, nn.Module) else list(models)
    parts = [splits] * len(nets) if isinstance(splits, Split) else list(splits)
    several = _is_list(calibration)
    images: list[Any] = list(calibration) if several else [calibration] * len(nets)  # type: ignore[arg-type]
    if not len(nets) == len(parts) == len(images):
        raise ValueError(f"{len(nets)} models, {len(parts)} splits, {len(images)} calibration sets: give one each")
    pairs = pairs_of(nets[0]) if bits is None else parse_settings(bits)
    norm_stats = _policy(nets[0], norm_stats, calibration)
    runs = []
    bar = functools.partial(tqdm, disable=not progress, leave=False, delay=2)
    for net, split, sample in zip(nets, parts, images, strict=True):
        with _lending(net, lend_sets), frozen_weights(net):
            if sample is not None:
                _calibrate(net, sample, pairs, progress)
            runs.append(_scores(net, split, pairs, norm_stats, batch_size, bar))
    frame = frame_of(pairs, runs, norm_stats, objective(parts[0].labels).measure)
    frame.attrs["unreached"] = audit(nets[0])
    return frame


def norm_images(split: Split) -> Tensor:
    """Choose the training images on which norm statistics are measured.

    2,048 are enough where labels are classes. Where they are values, errors of 1 % count, so these are all of them.
    """
    return split.images[: None if split.has_values else CALIBRATION_NORMS]


def _calibrate(model: nn.Module, images: Images, pairs: Sequence[MapOrBits], progress: bool) -> None:
    """Measure norm statistics for all pairs, except for those that have no norm set."""
    if not has_norm_sets(model):
        recalibrate(model, images, pairs, progress=progress)
        return
    for pair in tqdm(pairs, desc="norm statistics", disable=not progress, leave=False, delay=2):
        with contextlib.suppress(MissingNormSetError):  # a pair without a norm set becomes NaN in the grid
            recalibrate(model, images, [pair])


def _policy(model: nn.Module, asked: str | None, calibration: object) -> str:
    """The norm policy: the one asked for, else that of the calibration images, else the model's own."""
    measured = "recalibrated" if calibration is not None else setting_of(model).norm_stats
    return asked or measured


@contextlib.contextmanager
def _lending(model: nn.Module, lend_sets: bool) -> Iterator[None]:
    """Inside the block, decide whether a pair without a norm set may borrow one."""
    setting = setting_of(model)
    before, setting.lend_sets = setting.lend_sets, lend_sets
    try:
        yield
    finally:
        setting.lend_sets = before


def agreement(model: nn.Module, images: Tensor, bits: MapOrBits, norm_stats: str = "recalibrated") -> float:
    """Measure the percentage of images that get the same class alone as in a large batch.

    Under stored norm statistics this is 100, apart from rounding. It is lower if the statistics are taken from the
    batch, because those of a single image differ from those of many.

    Args:
        model: a quantized model.
        images: (count, channels, height, width).
        bits: a pair, or a map of layers to pairs.
        norm_stats: the norm policy.
    """
    images = like_model(images, model)
    with evaluating(model), frozen_weights(model), at(model, bits, norm_stats):
        together = torch.cat([model(batch.clone()).argmax(1) for batch in images.split(BATCH)])
        alone = torch.cat([model(image.clone()).argmax(1) for image in images.split(1)])
    return 100 * float((alone == together).double().mean())


def frame_of(
    pairs: Sequence[MapOrBits], runs: list[list[float]], norm_stats: str, measure: str = Classes.measure
) -> pd.DataFrame:
    """Make the frame that `grid` returns from what was measured, ``runs[seed or episode][pair]``.

    For a map of layers to pairs, ``w`` and ``a`` are the bits of its entry ``*``.
    """
    import pandas as pd

    def row(pair: MapOrBits) -> dict[str, Any]:
        rest = Bits.parse(pair.get("*", FP) if isinstance(pair, Mapping) else pair)
        name = ",".join(f"{k}={v}" for k, v in pair.items()) if isinstance(pair, Mapping) else str(rest)
        return {"bits": name, "w": rest.w, "a": rest.a}

    rows = [{**row(pair), **interval(values)} for pair, values in zip(pairs, zip(*runs, strict=True), strict=True)]
    frame = pd.DataFrame(rows).set_index("bits")
    frame.attrs |= {"norm_stats": norm_stats, "measure": measure}
    return frame


def _scores(
    model: nn.Module,
    split: Split,
    pairs: Sequence[MapOrBits],
    norm_stats: str | None,
    batch_size: int,
    bar: Callable[..., Iterable] = lambda batches, **_: batches,
    goal: Classes | Values | Divergence | None = None,
) -> list[float]:
    """Measure ``goal`` at each pair, by default the accuracy or the PSNR, as the labels ask for.

    Each weight is quantized only once per bitwidth, and a shared stem runs only once per batch.
    """
    if not len(split.check().labels):
        raise DataError("there are no images to measure on: this part of the data is empty")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    goal, sums = goal or objective(split.labels), [0.0] * len(pairs)
    batches = list(zip(_batches(split.images, batch_size), _batches(split.labels, batch_size), strict=True))
    with evaluating(model), frozen_weights(model):
        shared = _shares_stem(model, pairs, norm_stats)
        for images, labels in bar(batches, desc="images"):
            images, labels = like_model(images, model), labels.to(place(model)[0])
            features, body = _after_stem(model, images, shared)
            for index, bits in enumerate(pairs):
                version = features._version
                with at(model, bits, norm_stats):
                    out = _output(body, features, bits)
                sums[index] += math.nan if out is None else goal.score(out, labels)
                if features._version != version:  # the body has overwritten its input, so compute it again
                    features, body = _after_stem(model, images, shared)
    return [goal.measured(total, len(split.labels)) for total in sums]


def _batches(tensor: Tensor, size: int) -> Sequence[Tensor]:
    """Cut a tensor into batches of ``size``, or of nearly that size if the last one would have a single image.

    A single image may have no variance for batch norm.
    """
    return tensor.tensor_split(-(-len(tensor) // size)) if len(tensor) % size == 1 < size else tensor.split(size)


def _is_list(calibration: object) -> bool:
    """Tell a list of calibration sets, one per model, from a single set such as an ``(images, labels)`` tuple."""
    is_pair = isinstance(calibration, tuple) and len(calibration) == 2 and isinstance(calibration[0], Tensor)
    return isinstance(calibration, (list, tuple)) and not is_pair


def _after_stem(model: nn.Module, images: Tensor, shared: tuple[MapOrBits, str] | None) -> tuple[Tensor, nn.Module]:
    """Run the stem if all pairs share it, and return its output and the rest of the network.

    ``shared`` is what `_shares_stem` returns. If it is None, the result is the images and the whole network.
    """
    images = images.clone()  # they are the caller's, and a network may begin with an operation in place
    if shared is None:
        return images, model
    with at(model, *shared):
        return model.stem(images), model.body  # type: ignore[operator, return-value]


def _shares_stem(model: nn.Module, pairs: Sequence[MapOrBits], norm_stats: str | None) -> tuple[MapOrBits, str] | None:
    """Find the bits and the norm policy at which one run of the stem serves all pairs, or None if no run does.

    Recalibrated statistics are stored per pair, also in the stem. One run serves all pairs only if these statistics
    are equal, and they are if they were measured on the same images.
    """
    policy = norm_stats or setting_of(model).norm_stats
    if not has_stem(model) or not pairs:
        return None
    if policy != "recalibrated":
        return FP, policy
    names = [f"stats_{key_of(model, pair)}" for pair in pairs]
    for norm in norm_layers(model.stem).values():  # type: ignore[arg-type]
        found = [norm._buffers.get(name) for name in names]
        if any(stats is None or not torch.equal(stats, found[0]) for stats in found):  # type: ignore[arg-type]
            return None
    return pairs[0], policy


def _output(body: nn.Module, features: Tensor, bits: MapOrBits) -> Tensor | None:
    """Compute the output, (batch, outputs), or None if the model has norm sets, but none for the pair ``bits``."""
    try:
        out = body(features)
    except MissingStatisticsError:
        raise
    except MissingNormSetError:
        return None
    if logits_of(out).isnan().any():
        raise ValueError(f"the network gives logits that are not numbers (NaN) at {bits}")
    return out
