"""Lesson 00: two networks on the board of all pairs, and the test images that each reads wrongly at the chosen one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
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
        parts = [_board(axes[0], limits), _sheet(axes[1], test), _large(axes[2], test)]

    def update(results: Sequence[Answers]) -> None:
        for part in parts:
            part.update(results[side])

    moving = [artist for part in parts for artist in part.moving]
    return Drawing(drawn, lambda results: say(results[side]), Part(update, moving))


def still(results: Sequence[Answers], test: Split, limits: tuple[float, float]) -> Figure:
    """Draw both networks beside each other in one figure."""
    sides = [lambda figure, side=side: picture(test, limits, side, figure).update(results) for side in range(2)]
    figure = plots.beside(sides, (SIZE[0],) * 2, SIZE[1], "")
    figure.set_label("; ".join(map(say, results)))
    return figure


def say(found: Answers) -> str:
    """The picture of one network in words."""
    return f"{found.title} at {found.bits}: {len(found.wrong)} of {len(found.labels)} test images are read wrongly"


def _board(axes: Axes, limits: tuple[float, float]) -> Part:
    """Draw the board of a network's accuracies, with a frame around the pair."""
    board = board_on(axes, limits, " ")
    accuracies: Mapping[str, float] = {}

    def update(found: Answers) -> None:
        nonlocal accuracies
        if accuracies is not found.accuracies:  # another network: all of the board is drawn again
            accuracies = found.accuracies
            axes.set_title(found.title, fontweight="bold", color=color_of(found.title))
            board.update(accuracies)
        board.choose(found.bits)

    return Part(update, [board.frame])


def _sheet(axes: Axes, test: Split) -> Part:
    """Draw all test images, small; those that are read wrongly are white on orange."""
    pixels = test.images[:, 0].numpy()  # (images, height, width)
    axes.set(xticks=[], yticks=[], frame_on=False)
    image = axes.imshow(mosaic(tinted(pixels, []), WIDE), aspect="auto")
    words = axes.text(0.5, 1.02, "", transform=axes.transAxes, ha="center", va="bottom")

    def update(found: Answers) -> None:
        image.set_data(mosaic(tinted(pixels, found.wrong), WIDE))
        words.set_text(f"{found.bits}: {len(found.wrong)} of {len(found.labels)} read wrongly (orange)")

    return Part(update, [image, words])


def _large(axes: Axes, test: Split) -> Part:
    """Draw the first images that are read wrongly, and what the network reads in them."""
    pixels = test.images[:, 0].numpy()
    height, width = pixels.shape[1:]
    margin = width // 2  # white pixels beside each image
    step = width + margin
    axes.set(xticks=[], yticks=[], frame_on=False, xlabel=" ")
    image = axes.imshow(np.ones((height, SHOWN * step, 3)))
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": SMALLEST, "color": VERMILION}
    words = [axes.text(number * step + width / 2 - 0.5, height, "", **look) for number in range(SHOWN)]

    def update(found: Answers) -> None:
        wrong = found.wrong[:SHOWN].numpy()
        apart = np.pad(pixels[wrong], ((0, 0), (0, 0), (0, margin)))
        image.set_data(mosaic(tinted(apart, []), SHOWN))
        answers = [f"as {int(found.predicted[i])}" for i in wrong]
        for text, answer in zip(words, [*answers, *[""] * (SHOWN - len(answers))], strict=True):
            text.set_text(answer)

    return Part(update, [image, *words])


def tinted(pixels: np.ndarray, wrong: Any) -> np.ndarray:
    """Dark characters on white as (images, height, width, 3); the ``wrong`` ones white on orange."""
    wrong, orange = np.asarray(wrong, dtype=int), np.array(to_rgb(VERMILION))
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


def choose_by_hand(live: LiveFigure, pairs: Sequence[Bits]) -> None:
    """Let a hand on the first axes of each drawing, which are boards, set ``live.pair`` to one of some pairs.

    Activation bits rise to the right, and weight bits downwards.
    """

    def press(x: float, y: float) -> None:
        if (pair := pair_at(x, y)) in pairs:
            live.pair = str(pair)

    def moved(along: Sequence[Bits], steps: int) -> Bits:
        place = along.index(Bits.parse(live.pair)) + steps
        return along[min(max(place, 0), len(along) - 1)]

    def step(right: int, up: int) -> None:
        live.pair = str(moved([pair for pair in pairs if pair.w == Bits.parse(live.pair).w], right))
        live.pair = str(moved([pair for pair in pairs if pair.a == Bits.parse(live.pair).a], -up))

    for drawing in live.drawings:
        live.touch(drawing.figure.axes[0], TOUCH, press, step)
    live.observe(live.update, "pair")


class PairBoard(LiveFigure):
    """The widget: a pair is chosen on either board, by pointer or keys, and the left network by buttons.

    Args:
        networks: quantized models by their titles. The last one stands on the right.
        accuracies: ``accuracies[title][pair]`` in percent, under statistics of the training images at each pair.
        data: images of digits, and labels.
        pair: the pair that is chosen at first.
    """

    pair = traitlets.Unicode()

    def __init__(
        self, networks: Mapping[str, nn.Module], accuracies: Accuracies, data: Data, pair: str = "W2A2"
    ) -> None:
        self.networks, self.accuracies, self.data = dict(networks), accuracies, data
        self.set_trait("pair", pair)
        *others, self.right = self.networks
        lowest = min(min(row.values()) for row in accuracies.values())
        self.limits = (10 * math.floor(lowest / 10), 100.0)
        sides = [picture(data.test, self.limits, side) for side in range(2)]
        super().__init__({"left": buttons("on the left", others, others[0])}, self._answers, *sides, words=describe)
        choose_by_hand(self, [Bits(w, a) for w in WIDTHS for a in WIDTHS])

    def _answers(self, left: str) -> list[Answers]:
        """What both networks read at the chosen pair."""
        found, bits = [], Bits.parse(self.pair)
        for title in (left, self.right):
            predicted = compute(self.networks[title], self.data, bits)
            found.append(Answers(title, bits, self.accuracies[title], predicted, self.data.test.labels))
        return found

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


pair_board = PairBoard  # as lessons call it
