"""Let trained networks of coordinates paint their picture at several bitwidths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mebqat_lite import datasets
from mebqat_lite.checkpoint import load_model
from mebqat_lite.measure.evaluate import grid, norm_images
from mebqat_lite.switching.state import at


@torch.no_grad()
def paint(
    files: Mapping[str, Path], pairs: Iterable[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Load a network for each title, and let it paint at all pairs, under statistics of the training pixels.

    Returns:
        ``pictures[title][pair]``, (64, 64, 3) each, and ``measured[title][pair]``, the PSNR in dB.
    """
    pictures: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, float]] = {}
    for title, path in files.items():
        model, extra = load_model(path)
        data = datasets.load(extra["data"], extra["seed"])
        frame = grid(model, data.test, pairs, calibration=norm_images(data.train))
        measured[title] = {str(pair): float(psnr) for pair, psnr in frame["mean"].items()}
        pictures[title] = {}
        for pair in measured[title]:
            with at(model, pair, "recalibrated"):
                pictures[title][pair] = datasets.picture(model(data.test.images)).numpy()
    return pictures, measured
