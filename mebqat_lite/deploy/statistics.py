"""The norm statistics that a file needs before it can be written."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import MapOrBits, key_of, setting_of
from mebqat_lite.tensors import Sample


def require_statistics(model: nn.Module, settings: Iterable[MapOrBits], calibration: Sample | None) -> None:
    """Measure the recalibrated statistics of those settings for which the model has none, or those of other weights.

    Raises:
        ValueError: statistics are missing, and there are no calibration images to measure them on.
        MissingNormSetError: the model has norm sets, but none for a setting, because it was not trained for it.
    """
    missing = []
    for setting in settings:
        key, measured_with = key_of(model, setting), setting_of(model).measured_with
        if not is_recalibrated(model, key) or (calibration is not None and measured_with.changed(model, key)):
            missing.append(setting)
        measured_with.warn_if_changed(model, [] if setting in missing else [key])
    if missing and calibration is None:
        raise ValueError(
            f"no recalibrated norm statistics for {', '.join(map(str, missing))}: give calibration=, training images"
        )
    if missing:
        recalibrate(model, calibration, missing)  # type: ignore[arg-type]
