"""Lesson 00: two networks on the board of all pairs, and the test images that each reads wrongly at the chosen one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from mebqat_lite.bits import WIDTHS, Bits, BitsLike
from mebqat_lite.course.widgets.base import buttons, card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure import plots
from mebqat_lite.measure.boards import board_on, pair_at
from mebqat_lite.measure.looks import PAGE, SMALLEST, VERMILION, color_of
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import at
from mebqat_lite.tensors import evaluating, place

Accuracies = Mapping[str, Mapping[str, float]]  # by title and pair, in percent
SIZE = (PAGE / 2, 5.2)  # inches of the picture of one network
TOUCH = "the board of pairs: press a pair, or move to one with the arrow keys"
WIDE, SHOWN = 36, 8  # images in a row of the sheet, and wrong ones that are shown large


@dataclass(frozen=True)
class Answers:
    """What a network reads in the test images at one pair."""

    title: str
    bits: Bits
    accuracies: Mapping[str, float]  # of this network, by pair, in percent
    predicted: Tensor  # (images,), classes
    labels: Tensor  # (images,)

    @property
    def wrong(self) -> Tensor:
        """The numbers of the images that are read wrongly, rising."""
        return (self.predicted != self.labels).nonzero()[:, 0]

    @property
    def accuracy(self) -> float:
        """Right answers in percent."""
        return 100 * (1 - len(self.wrong) / len(self.labels))


def compute(model: nn.Module, data: Data, bits: BitsLike) -> Tensor:
    """Classify all test images at ``bits``, with weights that are quantized anew; returns classes, (images,).

    The norm statistics are those of the training images at these bits. Where the model does not have them yet, they are
    measured and stored with it.
    """
    data.test.of_classes("the board of pairs")
    pair = Bits.parse(bits)
    if not is_recalibrated(model, str(pair)):
        recalibrate(model, data.train.images, pair)
    with torch.no_grad(), evaluating(model), at(model, pair, "recalibrated"):
        return model(data.test.images.to(*place(model))).argmax(1).cpu()


# --- the picture -----------------------------------------------------------------------------------------------


def picture(test: Split, limits: tuple[float, float], side: int, figure: Any = None) -> Drawing:
    """Draw a board of the pairs, beneath it all test images as a sheet, and some of the wrong ones with the answers.

    Args:
        test: images of digits, (images, 1, height, width), and labels.
        limits: the accuracies at the two ends of the colours.
        side: which of the results it shows, 0 for the left network and 1 for the right one.
        figure: what to draw into, which may be a part of another figure; by default a new one.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        drawn = figure or plt.figure(figsize=SIZE)
        axes = drawn.subplots(3, 1, height_ratios=(3.1, 1.5, 0.4))
        board, sheet, large = board_on(axes[0], limits, " "), _Sheet(axes[1], test), _Large(axes[2], test)
    accuracies: Mapping[str, float] = {}

    def update(results: Sequence[Answers]) -> str:
        nonlocal accuracies
        found = results[side]
        if accuracies is not found.accuracies:  # another network: all of the board is drawn again
            accuracies = found.accuracies
            axes[0].set_title(found.title, fontweight="bold", color=color_of(found.title))
            board.update(accuracies)
        board.choose(found.bits)
        sheet.update(found)
        large.update(found)
        return spoken(found)

    return Drawing(drawn, update, [board.frame, *sheet.moving, *large.moving])


def still(results: Sequence[Answers], test: Split, limits: tuple[float, float]) -> Figure:
    """Draw both networks beside each other in one figure."""

    def part(side: int) -> Callable[..., str]:
        return lambda figure: picture(test, limits, side, figure).update(results)

    figure = plots.beside([part(0), part(1)], (SIZE[0],) * 2, SIZE[1], "")
    figure.set_label("; ".join(map(spoken, results)))
    return figure


def spoken(found: Answers) -> str:
    """The picture of one network in words."""
    return f"{found.title} at {found.bits}: {len(found.wrong)} of {len(found.labels)} test images are read wrongly"


class _Sheet:
    """All test images, small; those that are read wrongly are white on orange."""

    def __init__(self, axes: Axes, test: Split) -> None:
        self.pixels = test.images[:, 0].numpy()  # (images, height, width)
        self.height, self.width = self.pixels.shape[1:]
        axes.set(xticks=[], yticks=[], frame_on=False)
        rows = -(-len(self.pixels) // WIDE)
        self.image = axes.imshow(np.ones((rows * self.height, WIDE * self.width, 3)), aspect="auto")
        self.words = axes.text(0.5, 1.02, "", transform=axes.transAxes, ha="center", va="bottom")
        self.moving = [self.image, self.words]

    def update(self, found: Answers) -> None:
        self.image.set_data(mosaic(tinted(self.pixels, found.wrong.numpy()), WIDE))
        self.words.set_text(f"{found.bits}: {len(found.wrong)} of {len(found.labels)} read wrongly (orange)")


class _Large:
    """The first images that are read wrongly, and what the network reads in them."""

    def __init__(self, axes: Axes, test: Split) -> None:
        self.pixels = test.images[:, 0].numpy()
        height, width = self.pixels.shape[1:]
        axes.set(xticks=[], yticks=[], frame_on=False, xlabel=" ")
        self.margin = width // 2  # white pixels beside each image
        step = width + self.margin
        self.image = axes.imshow(np.ones((height, SHOWN * step, 3)))
        middles = [number * step + width / 2 - 0.5 for number in range(SHOWN)]
        look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": SMALLEST, "color": VERMILION}
        self.words = [axes.text(x, height, "", **look) for x in middles]
        self.moving = [self.image, *self.words]

    def update(self, found: Answers) -> None:
        wrong = found.wrong[:SHOWN].numpy()
        apart = np.pad(self.pixels[wrong], ((0, 0), (0, 0), (0, self.margin)))
        self.image.set_data(mosaic(tinted(apart, np.array([], dtype=int)), SHOWN))
        answers = [f"as {int(found.predicted[i])}" for i in wrong]
        for words, answer in zip(self.words, [*answers, *[""] * (SHOWN - len(answers))], strict=True):
            words.set_text(answer)


def tinted(pixels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Dark digits on white as (images, height, width, 3); the ``wrong`` ones white on orange."""
    orange = np.array(to_rgb(VERMILION))
    ink = pixels[..., None]
    colours = np.repeat(1 - ink, 3, axis=-1)
    colours[wrong] = orange + (1 - orange) * ink[wrong]
    return colours


def mosaic(images: np.ndarray, wide: int) -> np.ndarray:
    """Lay images, (images, height, width, 3), out in rows of ``wide``; places that are left over are white."""
    count, height, width, _ = images.shape
    rows = max(-(-count // wide), 1)
    places = np.ones((rows * wide, height, width, 3))
    places[:count] = images
    return places.reshape(rows, wide, height, width, 3).swapaxes(1, 2).reshape(rows * height, wide * width, 3)


# --- the widget ------------------------------------------------------------------------------------------------


class PairBoard(LiveFigure):
    """The widget: a pair is chosen on either board, by pointer or keys, and the left network by buttons.

    Args:
        networks: quantized models by their titles. The last one stands on the right.
        accuracies: ``accuracies[title][pair]`` in percent, under statistics of the training images at each pair.
        data: images of digits, and labels.
        pair: the pair that is chosen at first.
    """

    pair = traitlets.Unicode()

    def __init__(self, networks: Mapping[str, nn.Module], accuracies: Accuracies, data: Data, pair: str) -> None:
        self.networks, self.accuracies, self.data = dict(networks), accuracies, data
        self.set_trait("pair", pair)
        *others, self.right = self.networks
        lowest = min(min(row.values()) for row in accuracies.values())
        self.limits = (10 * math.floor(lowest / 10), 100.0)
        sides = [picture(data.test, self.limits, side) for side in range(2)]
        super().__init__({"left": buttons("on the left", others, others[0])}, self._answers, *sides, words=describe)
        for side in sides:
            self.touch(side.figure.axes[0], TOUCH, self._point, self._step)
        self.observe(self.update, "pair")

    def _answers(self, left: str) -> list[Answers]:
        """What both networks read at the chosen pair."""
        found, bits = [], Bits.parse(self.pair)
        for title in (left, self.right):
            predicted = compute(self.networks[title], self.data, bits)
            found.append(Answers(title, bits, self.accuracies[title], predicted, self.data.test.labels))
        return found

    def _point(self, x: float, y: float) -> None:
        if pair := pair_at(x, y):
            self.pair = str(pair)

    def _step(self, right: int, up: int) -> None:
        """Move to a neighbour: activation bits rise to the right, and weight bits downwards."""
        bits = Bits.parse(self.pair)
        places = (WIDTHS.index(bits.w) - up, WIDTHS.index(bits.a) + right)
        self.pair = str(Bits(*(WIDTHS[min(max(place, 0), len(WIDTHS) - 1)] for place in places)))

    def still(self) -> Figure:
        """Draw what the widget shows now as one figure, for a page without a kernel."""
        return still(self.result, self.data.test, self.limits)


def describe(results: Sequence[Answers]) -> str:
    """What the networks read at a pair, as HTML."""
    bits = results[0].bits
    read = [f"{escape(r.title)} reads {len(r.labels) - len(r.wrong)} ({r.accuracy:.1f} %)" for r in results]
    lines = [f"<b>{bits}</b> Of {len(results[0].labels)} test images {' and '.join(read)}."]
    if not bits.is_candidate:
        lines.append(f"{bits} is not one of the 75 pairs: no method trained for it.")
    return card(*lines)


def pair_board(networks: Mapping[str, nn.Module], accuracies: Accuracies, data: Data, pair: str = "W2A2") -> PairBoard:
    """The widget `PairBoard`."""
    return PairBoard(networks, accuracies, data, pair)
