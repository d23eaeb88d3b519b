"""Lesson 06: what networks make of new classes at any bitwidth, and a challenge of twenty of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mebqat_lite import datasets, methods, paths
from mebqat_lite.bits import Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets.base import card, labelled, slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.course.widgets.pair_board import mosaic, tinted
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import prototype_logits
from mebqat_lite.measure import fewshot, plots
from mebqat_lite.measure.intervals import interval
from mebqat_lite.measure.looks import BLACK, LOOKS, PAGE, color_of, method_of
from mebqat_lite.switching.norms import is_recalibrated, recalibrate

PAIRS = ("W2A2", "W3A3", "W4A4", "W8A8", "FP")
WAYS, CHALLENGES, SEED = 20, 200, 6  # classes of a challenge; how many there are; what chooses them
CALIBRATION = 512  # training images that measure norm statistics
SHIPPED = {  # title -> the file, and the quantizer that is set after training
    "PN + PTQ-MSE": ("glyphs-pn", "least_squares"),
    "MEBQAT-PN": ("glyphs-mebqat_pn", ""),
    "MEBQAT-PN in turn": ("glyphs-mebqat_pn_in_turn", ""),
}


def shipped_networks(data: Data | None = None) -> dict[str, nn.Module]:
    """Load the shipped prototypical networks by the titles of their methods, in evaluation mode.

    The first is quantized here, after its training; ``data`` are the glyphs on which this is done.
    """
    found, glyphs = {}, data or datasets.load("glyphs")
    for title, (name, quantizer) in SHIPPED.items():
        model, _ = load_model(paths.shipped("checkpoints", f"{name}.safetensors"))
        if quantizer:
            methods.set_steps(model, quantizer, glyphs)
        found[title] = model.eval()
    return found


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of `Embedded` compute only once what it returns for a network at a pair."""

    @functools.wraps(method)
    def get(self: Embedded, title: str, bits: BitsLike) -> Any:
        key = method.__name__, title, Bits.parse(bits)
        if key not in self.known:
            self.known[key] = method(self, title, bits)
        return self.known[key]

    return get


class Embedded:
    """What networks make of all images of a split at a pair. Each is computed when it is first asked for, and kept.

    Args:
        networks: prototypical networks by their titles.
        split: the images, and labels.
        calibration: training images, (count, channels, height, width). They measure the norm statistics of a pair that
            a network lacks, which are then stored with it.
    """

    def __init__(self, networks: Mapping[str, nn.Module], split: Split, calibration: Tensor) -> None:
        self.networks, self.split, self.calibration = dict(networks), split, calibration
        self.challenges = Episodes(split, WAYS, 1, 1, SEED)
        self.known: dict[tuple[str, str, Bits], Any] = {}

    @_kept
    def at(self, title: str, bits: BitsLike) -> Tensor:
        """Return the embeddings of all images of one network at a pair, (images, features)."""
        return next(fewshot.embeddings(self.ready(title, bits), self.challenges, [Bits.parse(bits)]))

    def ready(self, title: str, bits: BitsLike) -> nn.Module:
        """Return a network, with norm statistics for a pair."""
        model, pair = self.networks[title], Bits.parse(bits)
        if not is_recalibrated(model, str(pair)):
            recalibrate(model, self.calibration, pair)
        return model

    @_kept
    def usual(self, title: str, bits: BitsLike) -> float:
        """Return the distance that only one in ten queries exceeds to the only example of its own class."""
        index = torch.cat([self.challenges.index(number) for number in range(CHALLENGES)])  # (queries, 2)
        out = self.at(title, bits)[index]  # (queries, 2, features)
        return float((out[:, 0] - out[:, 1]).norm(dim=1).quantile(0.9))

    @_kept
    def scores(self, title: str, bits: BitsLike) -> Tensor:
        """Return the accuracy of a network on each of the challenges in percent, (`CHALLENGES`,)."""
        return fewshot.scores_of(self.at(title, bits), self.challenges, CHALLENGES)


@dataclass(frozen=True)
class Challenge:
    """The answers to twenty queries, one of each class, and the scores in all challenges, by title."""

    bits: Bits
    number: int
    index: Tensor  # (classes, 2): the images of the split that are the example and the query of each class
    answers: dict[str, Tensor]  # (classes,)
    scores: dict[str, Tensor]  # accuracy in percent in each of the challenges, (challenges,)

    def right(self, title: str) -> int:
        """Count the right answers."""
        return int((self.answers[title] == torch.arange(len(self.index))).sum())

    def share(self, title: str) -> float:
        """Return the right answers in percent."""
        return 100 * self.right(title) / len(self.index)


def compute(embedded: Embedded, bits: BitsLike, number: int) -> Challenge:
    """Let each network learn the twenty classes of a challenge from one example each, and answer a query of each.

    Everything runs at ``bits``, under norm statistics of training images at these bits.
    """
    index, answers = embedded.challenges.index(number), {}
    for title in embedded.networks:
        out = embedded.at(title, bits)[index]  # (classes, 2, features)
        answers[title] = prototype_logits(out[:, 1], out[:, 0]).argmax(1)
    scores = {title: embedded.scores(title, bits) for title in embedded.networks}
    return Challenge(Bits.parse(bits), number, index, answers, scores)


ROW = 0.3  # inches of a row of images
GAP = 3  # white pixels around an image
LEFT, RIGHT = 0.205, 0.93  # of the figure: where images and intervals begin and end
LIMITS = (45, 101)  # percent


def picture(split: Split, titles: Sequence[str]) -> Drawing:
    """Draw a challenge: example and query of each class, what each method answers, and the scores in all challenges.

    The drawing takes results of `compute` on the images of ``split``.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        inches = {"top": 0.25, "sheet": ROW * (2 + len(titles)), "gap": 0.2, "scores": 0.22 * len(titles), "axis": 0.5}
        height = sum(inches.values())
        figure = plt.figure(figsize=(PAGE, height), layout="none")

        def place(bottom: float, tall: float) -> Axes:
            return figure.add_axes((LEFT, bottom / height, RIGHT - LEFT, tall / height))

        scores = _scores(place(inches["axis"], inches["scores"]), titles)
        sheet = _sheet(place(height - inches["top"] - inches["sheet"], inches["sheet"]), split, titles)
    return Drawing(figure, spoken, sheet, scores)


def _sheet(axes: Axes, split: Split, titles: Sequence[str]) -> Part:
    """Draw rows of images: the examples, the queries, and for each method the example that it answers with."""
    images = split.images[:, 0].float().cpu()
    pixels = np.pad((images / images.max()).numpy(), ((0, 0), (GAP, GAP), (GAP, GAP)))
    height, width = pixels.shape[1:]
    rows = 2 + len(titles)
    image = axes.imshow(np.ones((rows * height, WAYS * width, 3)), aspect="auto")
    axes.set(xticks=[], frame_on=False)
    axes.set_yticks([height * (row + 0.5) for row in range(rows)], ["example", "query", *titles])
    axes.tick_params(length=0)
    for label in axes.get_yticklabels()[2:]:
        label.set(color=color_of(label.get_text()), fontweight="bold")
    heading = axes.text(0, 1.02, "", transform=axes.transAxes, va="bottom")
    places = [1 - (row + 2.5) / rows for row in range(len(titles))]
    counts = [axes.text(1.01, y, "", transform=axes.transAxes, va="center") for y in places]

    def update(result: Challenge) -> None:
        heading.set_text(f"{result.bits}: what each method takes the query for, and how many of {WAYS} are right")
        answers = torch.stack([result.answers[title] for title in titles])  # (methods, classes)
        examples, queries = result.index.T
        shown = torch.cat([examples, queries, examples[answers].flatten()])
        wrong = (answers != torch.arange(WAYS)).flatten().nonzero()[:, 0] + 2 * WAYS
        image.set_data(mosaic(tinted(pixels[shown], wrong), WAYS))
        for title, words in zip(titles, counts, strict=True):
            words.set_text(f"{result.right(title)}")

    return Part(update, [heading, image, *counts])


def _scores(axes: Axes, titles: Sequence[str]) -> Part:
    """Draw for each method the mean of all challenges with its interval, and the score in the challenge shown."""
    bars, means, here = [], [], []
    for title in titles:
        look = LOOKS[method_of(title)] | {"linestyle": "none", "markersize": 7}
        bars += axes.plot([], [], "|-", color=look["color"], markersize=9, linewidth=2)
        means += axes.plot([], [], **look)
        here += axes.plot([], [], "D", color=BLACK, fillstyle="none", markersize=9)
    axes.set(xlim=LIMITS, ylim=(len(titles) - 0.5, -0.5), xlabel="accuracy (%); diamond: this challenge; "
             f"marker and interval: the mean of {CHALLENGES} challenges")  # fmt: skip
    axes.set_yticks(range(len(titles)), titles)
    axes.grid(axis="x")

    def update(result: Challenge) -> None:
        for row, title in enumerate(titles):
            cell = interval(result.scores[title].tolist())
            mean, half = cell["mean"], cell["ci95"]
            bars[row].set_data([mean - half, mean + half], [row, row])
            means[row].set_data([mean], [row])
            here[row].set_data([result.share(title)], [row])

    return Part(update, [*bars, *means, *here])


def spoken(result: Challenge) -> str:
    """The picture in words."""
    found = ", ".join(f"{title} {result.right(title)}" for title in result.answers)
    return f"challenge {result.number} at {result.bits}, right answers of {len(result.index)}: {found}"


def describe(result: Challenge) -> str:
    """The scores as HTML: of this challenge, and over all of them, with the paired difference to the first method."""
    first, *others = result.answers
    lines = [f"<b>{result.bits}</b>, this challenge of {len(result.index)} queries: "
             + ", ".join(f"{title} {result.right(title)}" for title in result.answers)]  # fmt: skip
    for title in others:
        gap = fewshot.paired_difference(result.scores[title], result.scores[first])
        lines.append(
            f"over {CHALLENGES} challenges {title} is {gap['mean']:+.1f} ±{gap['ci95']:.1f} points from {first}"
        )
    return card(*lines)


def still(result: Challenge, split: Split) -> Figure:
    """Draw a challenge once, as a figure that is labelled with what it shows."""
    return picture(split, list(result.answers)).still(result)


def challenge(embedded: Embedded) -> LiveFigure:
    """The widget: a slider of the bits, and one of the challenges."""
    controls = {"bits": bits_slider(), "number": slider("challenge", 0, 0, CHALLENGES - 1)}
    drawing = picture(embedded.split, list(embedded.networks))
    return LiveFigure(controls, lambda bits, number: compute(embedded, bits, number), drawing, words=describe)


def bits_slider() -> ipywidgets.SelectionSlider:
    """Make a slider over `PAIRS`, which shows the bits of the weights."""
    words = [(pair if pair == "FP" else str(Bits.parse(pair).w), pair) for pair in PAIRS]
    return labelled("weights, activations (bits)", ipywidgets.SelectionSlider(options=words, value="FP"))
