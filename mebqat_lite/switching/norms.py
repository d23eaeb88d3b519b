"""Measure batch-norm statistics for a bitwidth, and give each bitwidth its own norm set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite.bits import FP, BitsLike, parse_all
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.measured import MeasuredWith
from mebqat_lite.switching.state import (
    FLOAT_CLASS,
    MapOrBits,
    at,
    frozen_weights,
    key_of,
    norm_layers,
    parse_settings,
    setting_of,
)
from mebqat_lite.switching.stem import has_stem
from mebqat_lite.tensors import Sample, evaluating, image_batches, like_model


def recalibrate(
    model: nn.Module, images: Sample, bits: MapOrBits | Iterable[MapOrBits], *, progress: bool = False
) -> nn.Module:
    """Measure the mean and variance of each batch norm's input at ``bits``, and store them in the model.

    In evaluation mode under the norm policy ``recalibrated`` the model uses them, so it can classify a single image.

    >>> model = mq.recalibrate(model.eval(), images, "W2A2")
    >>> with mq.at(model, "W2A2", "recalibrated"):
    ...     logits = model(images[:1])
    >>> tuple(logits.shape)
    (1, 10)

    Args:
        model: a quantized model, which is returned; its weights do not change.
        images: training images, never test images: a tensor, an ``(images, labels)`` pair, a loader, or a function
            that runs the model on them, as in `quantize`.
        bits: a pair, several pairs (``"W2A2,FP"`` or a list), a map from layers to pairs, or a list of maps.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there are no images, or what was measured is not finite. The model then keeps what it had.
    """
    settings = list({key_of(model, setting): setting for setting in parse_settings(bits)}.values())
    try:
        with evaluating(model), frozen_weights(model):
            if callable(images):
                _measure(model, images, settings)
            else:
                batches = tqdm(
                    image_batches(images), desc="norm statistics", disable=not progress, leave=False, delay=2
                )
                count = 0
                for batch in filter(len, batches):
                    count += len(batch)
                    _measure(model, like_model(batch, model), settings)
                if not count:
                    raise ValueError("there are no images to measure norm statistics on")
        found = take_stats(model)
    finally:
        take_stats(model)
    if bad := [name for name, stats in found.items() if not stats.isfinite().all()]:
        raise ValueError(f"{bad[0]} is not finite: look for bad values in the images, or in the weights")
    norms = norm_layers(model)
    for name, stats in found.items():  # after all measurements, so that an error stores nothing
        owner, _, buffer = name.rpartition(".")
        norms[owner].register_buffer(buffer, stats)
    setting_of(model).measured_with.remember(model, {name.rpartition(".stats_")[2] for name in found})
    return model


def take_stats(model: nn.Module) -> dict[str, Tensor]:
    """Return what the batch norms measured under the policy ``measure`` since the last call, and forget it.

    The result maps names of buffers to statistics, (2, channels), mean and variance:
    ``{"body.0.1.stats_W2A2": ...}``.
    """
    return {
        f"{name}.stats_{key}": stats
        for name, norm in norm_layers(model).items()
        for key, stats in norm.take_measured().items()
    }


def stored_stats(model: nn.Module) -> dict[str, Tensor]:
    """Return the recalibrated statistics that a model holds, named as by `take_stats`."""
    return {
        f"{name}.{buffer}": stats
        for name, norm in norm_layers(model).items()
        for buffer, stats in norm.named_buffers(recurse=False)
        if buffer.startswith("stats_")
    }


def forget_stats(model: nn.Module) -> None:
    """Remove the recalibrated statistics, which are wrong once weights or learned steps change."""
    for norm in norm_layers(model).values():
        for buffer in [buffer for buffer in norm._buffers if buffer.startswith("stats_")]:
            delattr(norm, buffer)
    setting_of(model).measured_with.forget()


@contextlib.contextmanager
def lent_stats(model: nn.Module, stats: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model other recalibrated statistics inside the block; afterwards it has its own again.

    ``stats`` maps names to statistics, (2, channels), as `take_stats` returns them.
    """
    norms, setting = norm_layers(model), setting_of(model)
    before, measured_with = {name: dict(norm._buffers) for name, norm in norms.items()}, setting.measured_with
    setting.measured_with = MeasuredWith({} if stats else measured_with.then)  # a copy: the model keeps its own
    try:
        for name, value in stats.items():
            owner, _, buffer = name.rpartition(".")
            norms[owner]._buffers[buffer] = value
        yield
    finally:
        for name, norm in norms.items():
            norm._buffers.clear()
            norm._buffers.update(before[name])
        setting.measured_with = measured_with


def _measure(model: nn.Module, images: Tensor | Callable[[nn.Module], object], settings: Sequence[MapOrBits]) -> None:
    """Run a batch of images at all bit settings, so that each batch norm measures its input.

    A stem that computes the same at every bitwidth runs only once.
    """
    if callable(images) or not has_stem(model):
        for bits in settings:
            with at(model, bits, "measure"):  # a network may begin with an operation in place
                images(model) if callable(images) else model(images.clone())
        return
    keys = []
    with at(model, settings[0], "measure"):
        first, features = setting_of(model).key, model.stem(images.clone())  # type: ignore[operator]
    for bits in settings:
        with at(model, bits, "measure"):
            keys.append(setting_of(model).key)
            model.body(features.clone())  # type: ignore[operator]
    for norm in norm_layers(model.stem).values():  # type: ignore[arg-type]
        norm.share_measured(first, keys)


def is_recalibrated(model: nn.Module, key: str) -> bool:
    """Whether every batch norm has recalibrated statistics for the bits named ``key`` (`Setting.key`).

    Norms without any such statistics do not count if others have some, because evaluation does not reach them.
    """
    norms = norm_layers(model).values()
    reached = [norm for norm in norms if any(name.startswith("stats_") for name in norm._buffers)]
    return all(f"stats_{key}" in norm._buffers for norm in reached or norms)


def give_norm_sets(model: nn.Module, pairs: str | Iterable[BitsLike]) -> nn.Module:
    """Give each listed pair its own gain, shift and running statistics in every batch norm.

    This is the switchable batch norm of AdaBits and Any-Precision. The new sets start as copies of the float layer's
    values. FP uses the float layer itself, and a pair that has a set keeps it.
    """
    setting_of(model)
    listed = [pair for pair in parse_all(pairs) if pair != FP]
    for norm in norm_layers(model).values():
        for pair in listed:
            if str(pair) not in norm.sets:
                norm.sets[str(pair)] = _plain_copy(norm)
    return model


def _plain_copy(norm: SwitchableNorm) -> nn.Module:
    """Make a plain float batch norm with the values of ``norm``."""
    plain = FLOAT_CLASS[type(norm)]
    options = {name: getattr(norm, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    state = norm.state_dict()
    like = next((t for t in state.values() if t.is_floating_point()), torch.empty(0))
    copied = plain(norm.num_features, **options).to(like.device, like.dtype)
    copied.load_state_dict({name: state[name] for name in copied.state_dict()})
    return copied.train(norm.training)
