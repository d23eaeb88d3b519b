"""A network at any pair, run for real at every move, and ten images with its answers: a part of the `heat_map`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape

import torch
from torch import nn

from mebqat_lite.bits import FP, Bits, BitsLike
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import card
from mebqat_lite.course.widgets.svg import Style
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure.summary import packed_bytes
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import at
from mebqat_lite.tensors import place

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


# --- the picture -----------------------------------------------------------------------------------------------

RIGHT, WRONG = Style(svg.DARK, width=1), Style(svg.VERMILION, width=3.5)


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
