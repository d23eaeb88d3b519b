"""Lesson 00: networks that have learned a photograph paint it side by side, at the bits of a slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np

from mebqat_lite.bits import FULL, Bits
from mebqat_lite.course.widgets.base import card, labelled
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import PAGE, color_of

Pictures = Mapping[str, Mapping[str, np.ndarray]]  # by title and pair, (height, width, 3) each, in [0, 1]
Measured = Mapping[str, Mapping[str, float]]  # by title and pair: the PSNR in dB
DEVICES = {"W1A1": "the sensor", "W2A2": "the watch", "W4A4": "the phone", "FP": "the server"}


@dataclass(frozen=True)
class Painted:
    """What each network paints at one pair, by its title."""

    pair: str
    pictures: dict[str, np.ndarray]
    psnr: dict[str, float]  # dB


def compute(pictures: Pictures, measured: Measured, pair: str) -> Painted:
    """Take from what `experiments.painting.paint` returned the part of one pair."""
    return Painted(
        pair, {title: row[pair] for title, row in pictures.items()}, {t: row[pair] for t, row in measured.items()}
    )


def picture(titles: Sequence[str], size: tuple[int, int]) -> Drawing:
    """Draw a place for the picture of each network, (height, width) = ``size`` pixels, side by side.

    Under each of them stands the PSNR, and above it the title, in the colour of the method.
    """
    with plots.style():
        figure, axes = plt.subplots(1, len(titles), figsize=(PAGE, PAGE / len(titles) + 0.45), squeeze=False)
    images, words = {}, {}
    for title, cell in zip(titles, axes[0], strict=True):
        cell.set(xticks=[], yticks=[], frame_on=False, xlabel=" ")
        cell.set_title(title, color=color_of(title), fontweight="bold")
        images[title] = cell.imshow(np.ones((*size, 3)), vmin=0, vmax=1, interpolation="nearest")
        words[title] = cell.text(0.5, -0.03, "", transform=cell.transAxes, ha="center", va="top")

    def update(result: Painted) -> None:
        for title in titles:
            images[title].set_data(result.pictures[title])
            words[title].set_text(f"{result.psnr[title]:.1f} dB")

    return Drawing(figure, say, Part(update, [*images.values(), *words.values()]))


def say(result: Painted) -> str:
    """The picture in words."""
    return f"{spoken(result.pair)}: " + ", ".join(f"{title} {psnr:.1f} dB" for title, psnr in result.psnr.items())


def spoken(pair: str) -> str:
    """A pair in words, with the device of the story that has so many bits."""
    bits = Bits.parse(pair)
    words = "full precision" if bits.w == FULL else f"{bits.w} bit{'s' * (bits.w > 1)}"
    return words + (f" ({DEVICES[pair]})" if pair in DEVICES else "")


def describe(result: Painted) -> str:
    """Which network is nearest to the photograph and which is farthest, as HTML."""
    ranked = sorted(result.psnr, key=result.psnr.__getitem__)
    ends = {"nearest to the photograph": ranked[-1], "farthest from it": ranked[0]}
    words = "; ".join(f"{where}: {title}, {result.psnr[title]:.1f} dB" for where, title in ends.items())
    return card(f"<b>{spoken(result.pair)}</b> {words}")


def paintings(pictures: Pictures, measured: Measured) -> LiveFigure:
    """The widget: a slider of the bits, and beneath it what each network paints with so many.

    Args:
        pictures: ``pictures[title][pair]``, (height, width, 3) each, with values in [0, 1].
        measured: ``measured[title][pair]``, the PSNR in dB; see `experiments.painting.paint`.
    """
    first = next(iter(pictures.values()))
    pairs = [(spoken(pair), pair) for pair in first]
    start = "W4A4" if "W4A4" in first else pairs[0][1]
    slider = labelled("bits", ipywidgets.SelectionSlider(options=pairs, value=start))
    height, width, _ = next(iter(first.values())).shape
    drawing = picture(list(pictures), (height, width))
    return LiveFigure({"pair": slider}, lambda pair: compute(pictures, measured, pair), drawing, words=describe)
