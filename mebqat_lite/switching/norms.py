"""Norm policies: measuring batch-norm statistics for a bitwidth, and one norm set per bitwidth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite.bits import FP, BitsLike, parse_all
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.state import (
    FLOAT_CLASS,
    MapOrBits,
    at,
    frozen_weights,
    has_stem,
    norm_layers,
    parse_settings,
    setting_of,
)
from mebqat_lite.tensors import Images, evaluating, image_batches, place


def recalibrate(
    model: nn.Module, images: Images, bits: MapOrBits | Iterable[MapOrBits], *, progress: bool = False
) -> nn.Module:
    """Measure the mean and variance that each batch norm sees at ``bits`` and store them with the model.

    Args:
        model: quantized; its weights do not change.
        images: calibration images, never test images: a tensor, an ``(images, labels)`` pair or a loader.
        bits: a pair, several (``"W2A2,FP"`` or a list), or a per-layer map or a list of them.
        progress: show a bar.
    """
    settings, (device, dtype) = parse_settings(bits), place(model)
    try:
        with torch.no_grad(), evaluating(model), frozen_weights(model):
            for batch in tqdm(
                image_batches(images), desc="norm statistics", disable=not progress, leave=False, delay=2
            ):
                _measure(model, batch.to(device, dtype), settings)
        found = take_stats(model)
    finally:
        take_stats(model)
    norms = norm_layers(model)
    for name, stats in found.items():  # all or none
        owner, _, buffer = name.rpartition(".")
        norms[owner].register_buffer(buffer, stats)
    return model


def take_stats(model: nn.Module) -> dict[str, Tensor]:
    """What batch norms measured under ``measure`` since the last call, by the name of the buffer that is to hold it.

    Each is (2, channels), mean and variance: ``{"body.0.1.stats_W2A2": ...}``.
    """
    return {
        f"{name}.stats_{key}": stats
        for name, norm in norm_layers(model).items()
        for key, stats in norm.take_measured().items()
    }


def stored_stats(model: nn.Module) -> dict[str, Tensor]:
    """The recalibrated statistics that a model keeps, named as by `take_stats`."""
    return {
        f"{name}.{buffer}": stats
        for name, norm in norm_layers(model).items()
        for buffer, stats in norm.named_buffers(recurse=False)
        if buffer.startswith("stats_")
    }


def forget_stats(model: nn.Module) -> None:
    """Drop the recalibrated statistics: they belong to the weights and steps that they were measured with."""
    for norm in norm_layers(model).values():
        for buffer in [buffer for buffer in norm._buffers if buffer.startswith("stats_")]:
            delattr(norm, buffer)


@contextlib.contextmanager
def lent_stats(model: nn.Module, stats: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the model has these recalibrated statistics, named as by `take_stats`; afterwards its own."""
    norms = norm_layers(model)
    before = {name: dict(norm._buffers) for name, norm in norms.items()}
    try:
        for name, value in stats.items():
            owner, _, buffer = name.rpartition(".")
            norms[owner]._buffers[buffer] = value
        yield
    finally:
        for name, norm in norms.items():
            norm._buffers.clear()
            norm._buffers.update(before[name])


def _measure(model: nn.Module, images: Tensor, settings: Sequence[MapOrBits]) -> None:
    """Let each batch norm see a batch at all settings; a stem that is the same at all of them sees it once."""
    if not has_stem(model):
        for bits in settings:
            with at(model, bits, "measure"):
                model(images)
        return
    keys = []
    with at(model, settings[0], "measure"):
        first, features = setting_of(model).key, model.stem(images)  # type: ignore[operator]
    for bits in settings:
        with at(model, bits, "measure"):
            keys.append(setting_of(model).key)
            model.body(features.clone())  # type: ignore[operator]
    for norm in norm_layers(model.stem).values():  # type: ignore[arg-type]
        norm.share_measured(first, keys)


def require_statistics(model: nn.Module, settings: Iterable[MapOrBits], calibration: Images | None) -> None:
    """See to it that a model has recalibrated norm statistics for all settings: measure those that it lacks.

    Raises:
        ValueError: there are none for a setting, and no images to measure them on.
        MissingNormSetError: the model has norm sets, and none for a setting: it was not trained for that.
    """
    missing = []
    for setting in settings:
        with at(model, setting):
            missing += [] if is_recalibrated(model, setting_of(model).key) else [setting]
    if missing and calibration is None:
        raise ValueError(
            f"no recalibrated norm statistics for {', '.join(map(str, missing))}: give calibration=, training images"
        )
    if missing:
        recalibrate(model, calibration, missing)  # type: ignore[arg-type]


def is_recalibrated(model: nn.Module, key: str) -> bool:
    """Whether every batch norm has statistics for the setting named ``key``."""
    return all(f"stats_{key}" in norm._buffers for norm in norm_layers(model).values())


def give_norm_sets(model: nn.Module, pairs: str | Iterable[BitsLike]) -> nn.Module:
    """Give each listed pair its own gain, shift and running statistics, started from the float layer's.

    This is the switchable batch norm of AdaBits and Any-Precision; FP keeps the float layer's set, and a pair that
    has a set keeps it.
    """
    setting_of(model)
    listed = [pair for pair in parse_all(pairs) if pair != FP]
    for norm in norm_layers(model).values():
        for pair in listed:
            if str(pair) not in norm.sets:
                norm.sets[str(pair)] = _plain_copy(norm)
    return model


def _plain_copy(norm: SwitchableNorm) -> nn.Module:
    """A batch norm of the float class with the values of ``norm``."""
    plain = FLOAT_CLASS[type(norm)]
    options = {name: getattr(norm, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    state = norm.state_dict()
    like = next((t for t in state.values() if t.is_floating_point()), torch.empty(0))
    copied = plain(norm.num_features, **options).to(like.device, like.dtype)
    copied.load_state_dict({name: state[name] for name in copied.state_dict()})
    return copied.train(norm.training)
