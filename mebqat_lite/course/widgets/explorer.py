"""Lesson 00: trained networks at any bitwidth, run for real at every move."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import ipywidgets
import torch
from torch import nn

from mebqat_lite import datasets, paths
from mebqat_lite.bits import FP, FULL, WIDTHS, Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure.summary import packed_bytes
from mebqat_lite.switching.batchnorm import MissingNormSetError
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import at, pairs_of
from mebqat_lite.tensors import place

SHIPPED = {
    "FP + PTQ naive": "digits-wide-ptq_naive",
    "FP + PTQ-MSE": "digits-wide-ptq_mse",
    "QAT for W1A1": "digits-wide-qat_w1a1",
    "QAT for W2A2": "digits-wide-qat_w2a2",
    "QAT for W4A4": "digits-wide-qat_w4a4",
    "MEBQAT": "digits-wide-mebqat",
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
    data.test.of_classes("the explorer")
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
            yield compute(model, data, pair).accuracy if pair in pairs_of(model) else math.nan
        except MissingNormSetError:
            yield math.nan


# --- the picture -----------------------------------------------------------------------------------------------

HERE, RING = Style(svg.BLACK, "5 4", width=1.4), Style(svg.BLACK, shape="circle", size=8)
RIGHT, WRONG = Style(svg.DARK, width=1), Style(svg.VERMILION, width=3.5)
Curves = Mapping[str, Sequence[float]]


def picture(result: ExplorerResult, method: str, curves: Curves, test: Split) -> str:
    """Accuracy of all methods against bits, and the images with the answers, as SVG."""
    wrong = sum(a != b for a, b in zip(result.predictions, result.labels, strict=True))
    state = (
        f"{method} at {result.bits}: accuracy {result.accuracy:.1f} %; "
        f"{wrong} of the {len(result.labels)} images shown are classified wrongly"
    )
    return svg.figure(800, 362, state, _curves(result, method, curves), image_panel(result, test))


def _curves(result: ExplorerResult, method: str, curves: Curves) -> str:
    known = [a for curve in curves.values() for a in curve if math.isfinite(a)]
    low = 10 * math.floor(min([50, *known, result.accuracy]) / 10)
    plot = Plot((58, 62, 366, 250), (0.6, 9.4), (low, 100))
    names = [*(str(pair.w) for pair in DIAGONAL[:-1]), "FP"]
    ticks = list(enumerate(names, 1))
    plot.axes("weight bits = activation bits", "accuracy (%)", ticks, [(y, str(y)) for y in range(low, 101, 10)])
    styles = _styles(curves, method)
    for title, curve in sorted(curves.items(), key=lambda item: item[0] == method):  # the chosen one on top
        plot.line(range(1, len(curve) + 1), curve, styles[title])
    plot.line(plot.x_range, [result.accuracy] * 2, HERE)
    if result.bits in DIAGONAL:
        here = plot.at(DIAGONAL.index(result.bits) + 1, result.accuracy)
        plot.parts.append(svg.marker(*here, RING, hollow=True))
    end, down = plot.at(plot.x_range[1], result.accuracy)
    label = svg.text(end + 5, down + 4, f"{result.accuracy:.1f} %", size=11.5)
    return "".join(plot.parts) + label + svg.legend(58, 14, list(styles.items()), 130, 3)


def _styles(curves: Curves, method: str) -> dict[str, Style]:
    """A style for each method; the chosen one is thick."""
    styles = svg.styles(curves)
    return {t: replace(s, width=3.5, size=5) if t == method else replace(s, width=1.5) for t, s in styles.items()}


def image_panel(result: ExplorerResult, test: Split) -> str:
    """Ten test images with the answers; a wrong one has a thick frame and a cross."""
    last = result.first_image + len(result.labels) - 1
    parts = [
        svg.text(492, 18, f"{result.bits}: {result.correct} of {result.total} correct", size=14),
        svg.text(492, 38, f"test images {result.first_image} to {last}; cross: wrong answer", size=11.5),
    ]
    for i, (answer, label) in enumerate(zip(result.predictions, result.labels, strict=True)):
        x, y = 492 + 62 * (i % 5), 62 + 130 * (i // 5)
        pixels = test.images[result.first_image + i].mean(0).tolist()  # (channels, height, width) -> rows
        parts += [svg.gray_image(x, y, 54, pixels), _answer(x, y, answer, label)]
    return "".join(parts)


def _answer(x: float, y: float, answer: int, label: int) -> str:
    """The frame of an image and the words under it; a wrong answer is framed thickly and crossed."""
    style = RIGHT if answer == label else WRONG
    parts = [svg.tag("rect", x=x, y=y, width=54, height=54, **style.paint)]
    if answer != label:
        ends = ((x + 44, y - 6, x + 60, y + 10), (x + 60, y - 6, x + 44, y + 10))
        parts += [svg.segment(*end, style) for end in ends]
    parts.append(svg.text(x + 27, y + 74, f"says {answer}", "middle", 13))
    return "".join([*parts, svg.text(x + 27, y + 91, f"true {label}", "middle", 13)])


def describe(result: ExplorerResult, method: str) -> str:
    """The numbers of a result, as HTML."""
    lines = [
        f"<b>{escape(method)} at {result.bits}</b>: accuracy {result.accuracy:.1f} % "
        f"({result.correct} of {result.total} test images); norm statistics recalibrated at this pair",
        f"weights packed at these bits: {result.packed:,} bytes (as floats: {result.packed_fp:,})",
        f"one pass over the {result.total} images: {result.milliseconds:.1f} ms "
        "(measured: fake quantization saves no time)",
    ]
    if not result.bits.is_candidate:
        lines.insert(1, f"{result.bits} is not one of the 75 pairs: no method trained for it")
    return card(*lines)


# --- the widget ------------------------------------------------------------------------------------------------


class Explorer(Live):
    """The widget for quantized models by title, and the data that they are tested on."""

    def __init__(self, models: Mapping[str, nn.Module], data: Data) -> None:
        self.models, self.data = dict(models), data
        self.curves: dict[str, list[float]] = {title: [] for title in self.models}
        points = len(self.models) * len(DIAGONAL)
        self.progress = ipywidgets.IntProgress(0, 0, points, description="measuring")
        super().__init__(_controls(list(self.models), len(data.test.labels)), self._render)
        self.children = [*self.parts, self.progress]
        self.in_turns(self._measure())

    def _render(self, w: int, a: int, method: str, first: int) -> str:
        result = compute(self.models[method], self.data, Bits(w, a), first)
        return picture(result, method, self.curves, self.data.test) + describe(result, method)

    def _measure(self) -> Iterator[None]:
        """Fill the curves, a point at a time; the picture follows after each method."""
        for title, model in self.models.items():
            for accuracy in diagonal(model, self.data):
                self.curves[title].append(accuracy)
                self.progress.value += 1
                yield
            self.update()
        self.progress.layout.display = "none"


def _controls(titles: list[str], images: int) -> dict[str, ipywidgets.Widget]:
    widths = [("FP" if width == FULL else str(width), width) for width in WIDTHS]
    slider = ipywidgets.SelectionSlider
    return {
        "w": labelled("weights (bits)", slider(options=widths, value=2)),
        "a": labelled("activations (bits)", slider(options=widths, value=2)),
        "method": buttons("method", titles, titles[-1]),
        "first": labelled("more images, from number", ipywidgets.IntSlider(0, 0, max(images - SHOWN, 0), SHOWN)),
    }


def explorer() -> Explorer:
    """The widget with the shipped models on the digits."""
    files = {title: paths.shipped("checkpoints", f"{name}.safetensors") for title, name in SHIPPED.items()}
    return Explorer({title: load_model(path)[0] for title, path in files.items()}, datasets.digits())
