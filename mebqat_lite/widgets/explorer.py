"""Lesson 00: trained networks at any bitwidth, run for real at every move."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
import torch
from torch import nn

from mebqat_lite import datasets, paths
from mebqat_lite.bits import FP, FULL, WIDTHS, Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.convert import at
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.layers import MissingNormSetError
from mebqat_lite.methods import has_one_bit
from mebqat_lite.norms import is_recalibrated, recalibrate
from mebqat_lite.summary import packed_bytes
from mebqat_lite.tensors import place
from mebqat_lite.widgets import svg
from mebqat_lite.widgets.base import Live, card
from mebqat_lite.widgets.svg import Plot, Style

SHIPPED = {
    "FP + PTQ naive": "digits-ptq_naive",
    "FP + PTQ-MSE": "digits-ptq_mse",
    "QAT for W1A1": "digits-qat_w1a1",
    "QAT for W2A2": "digits-qat_w2a2",
    "QAT for W4A4": "digits-qat_w4a4",
    "MEBQAT": "digits-mebqat",
}
DIAGONAL = [*(Bits(b, b) for b in range(1, 9)), FP]
SHOWN = 10  # images


@dataclass(frozen=True)
class ExplorerResult:
    """One network at one pair on all test images."""

    bits: Bits
    correct: int
    total: int
    first_image: int
    predictions: list[int]  # of the images shown, which start at first_image
    labels: list[int]
    packed: int  # bytes of the weights at these bits
    packed_fp: int  # and as floats
    milliseconds: float  # of the pass over all test images

    @property
    def accuracy(self) -> float:
        """Correct answers in percent."""
        return 100 * self.correct / self.total


def compute(model: nn.Module, data: Data, bits: BitsLike, first_image: int = 0) -> ExplorerResult:
    """Classify all test images at ``bits`` under recalibrated statistics.

    Statistics that the model does not have yet are measured on the training images and stored with it.
    Weights are quantized anew at every call: that is what a change of bitwidth costs.
    """
    pair = Bits.parse(bits)
    if not is_recalibrated(model, str(pair)):
        recalibrate(model, data.train.images, pair)
    model.eval()
    images = data.test.images.to(*place(model))
    with torch.no_grad(), at(model, pair, "recalibrated"):
        start = time.perf_counter()
        answers = model(images).argmax(1).cpu()  # (images,)
        milliseconds = 1000 * (time.perf_counter() - start)
        packed = packed_bytes(model)
    with at(model, FP):
        packed_fp = packed_bytes(model)
    shown = slice(first_image, first_image + SHOWN)
    labels = data.test.labels
    return ExplorerResult(
        pair,
        int((answers == labels).sum()),
        len(labels),
        first_image,
        answers[shown].tolist(),
        labels[shown].tolist(),
        packed,
        packed_fp,
        milliseconds,
    )


def diagonal(model: nn.Module, data: Data) -> Iterator[float]:
    """The accuracy in percent at W1A1 to W8A8 and FP; NaN at a pair that the model does not have."""
    for pair in DIAGONAL:
        try:
            has_pair = pair.w > 1 or has_one_bit(model)
            yield compute(model, data, pair).accuracy if has_pair else math.nan
        except MissingNormSetError:
            yield math.nan


# --- the picture -----------------------------------------------------------------------------------------------

STYLES = (
    Style(svg.ORANGE, "2 3", "triangle"),
    Style(svg.GREEN, "6 3", "square"),
    Style(svg.PURPLE, "8 3 2 3", "cross"),
    Style("#56B4E9", "10 4", "diamond"),
    Style(svg.VERMILION, "4 2", "down"),
    Style(svg.BLUE, "", "circle"),
)
RIGHT, WRONG = Style(svg.BLUE, width=1.5), Style(svg.VERMILION, width=4)
WRONG_MARK, HERE = Style(svg.VERMILION, shape="cross", size=7), Style(svg.BLACK, "5 4", width=1.4)
Curves = Mapping[str, Sequence[float]]


def picture(result: ExplorerResult, method: str, curves: Curves, test: Split) -> str:
    """Accuracy of all methods against bits, and the images with the answers, as SVG."""
    wrong = sum(a != b for a, b in zip(result.predictions, result.labels, strict=True))
    state = (
        f"{method} at {result.bits}: accuracy {result.accuracy:.1f} %, "
        f"{wrong} of the {len(result.labels)} images shown are classified wrongly"
    )
    return svg.figure(800, 372, state, _curves(result, method, curves), _images(result, test))


def _curves(result: ExplorerResult, method: str, curves: Curves) -> str:
    known = [a for curve in curves.values() for a in curve if math.isfinite(a)]
    low = 10 * math.floor(min([*known, result.accuracy]) / 10)
    plot = Plot(58, 62, 366, 262, (0.6, 9.4), (low, 100))
    names = [str(pair.w) for pair in DIAGONAL[:-1]] + ["FP"]
    ticks = [(y, f"{y}") for y in range(low, 101, 10)]
    plot.axes("bits of weights and of activations", "accuracy (%)", list(enumerate(names, 1)), ticks)
    styles = dict(zip(curves, itertools.cycle(STYLES)))
    ...
