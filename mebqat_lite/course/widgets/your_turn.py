"""Lesson 05: the reader does a few-shot task: one example of each character, and questions about other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mebqat_lite.course.widgets.base import card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, ORANGE, PAGE, PALE, SMALLEST, VERMILION

WIDE = 7  # examples in a row
QUESTIONS = 10
SIDE, LEFT = 0.8, 0.1  # of an example in its place, which is 1 wide; its number stands beneath
TOUCH = "the examples: press the one that is the same character, or move the frame with the arrow keys and press Enter"


@dataclass(frozen=True)
class Questions:
    """The questions of an episode, and what was answered so far.

    Attributes:
        ways: how many examples there are.
        images: what is asked, (questions, height, width).
        labels: which example is the same character, (questions,), from 0 on.
        answers: the examples that were chosen, for the first questions.
        place: the example that has the frame.
    """

    ways: int
    images: Tensor
    labels: Tensor
    answers: tuple[int, ...]
    place: int

    @property
    def is_done(self) -> bool:
        """Whether all questions are answered."""
        return len(self.answers) == len(self.labels)

    @property
    def right(self) -> int:
        """How many of the answers are right."""
        return int((torch.tensor(self.answers, dtype=torch.long) == self.labels[: len(self.answers)]).sum())


def compute(episode: Episode, answers: Sequence[int] = (), place: int = 0) -> Questions:
    """Ask about ten queries of an episode of one shot, in an order that its size alone determines.

    Raises:
        ValueError: the episode has several shots, there are more answers than questions, or one of the answers is not
            an example.
    """
    ways, shots = episode.support.shape[:2]
    if shots != 1:
        raise ValueError(
            f"the task shows one example of each character, and the episode has {shots}: draw it of 1 shot"
        )
    order = torch.randperm(len(episode.labels), generator=torch.Generator().manual_seed(0))[:QUESTIONS]
    if len(answers) > len(order) or not all(0 <= answer < ways for answer in answers):
        raise ValueError(
            f"there are {len(order)} questions, and each answer is one of 0 to {ways - 1}: {list(answers)}"
        )
    images = episode.query.flatten(0, 1)[order, 0]
    return Questions(ways, images, episode.labels[order], tuple(answers), place)


def picture(episode: Episode) -> Drawing:
    """Draw the question at the left and the examples of an episode at the right."""
    examples = episode.support[:, 0, 0].numpy()  # (N, height, width)
    wide = min(len(examples), WIDE)
    tall = -(-len(examples) // wide)
    with plots.style(), plt.rc_context({"axes.grid": False}):
        each = (PAGE - 1.9) / wide
        size = (PAGE, max(each * tall, 1.6) + 0.4)
        figure, (asked, known) = plt.subplots(1, 2, figsize=size, width_ratios=(1.7, PAGE - 1.9), layout="none")
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.33 / size[1], wspace=0.06)
        asked.set(xticks=[], yticks=[])
        asked.spines[:].set(visible=True, color=PALE)
        question = asked.imshow(examples[0], cmap="gray_r", vmin=0, vmax=1)
        known.set(xticks=[], yticks=[], frame_on=False, title="one example of each character")
        for number, image in enumerate(examples):
            _example(known, image, number % wide, number // wide, number + 1)
        known.set(xlim=(0, wide), ylim=(tall, 0), aspect="equal")
        frame = known.add_patch(Rectangle((LEFT, 0.02), SIDE, SIDE, fill=False, edgecolor=ORANGE, linewidth=3))
        title = asked.text(0.5, 1.03, "", transform=asked.transAxes, ha="center", va="bottom", fontsize=11)
        score = asked.text(0.5, 0.5, "", transform=asked.transAxes, ha="center", va="center", fontsize=11)

    def update(found: Questions) -> None:
        question.set_visible(not found.is_done)
        if not found.is_done:
            question.set_data(found.images[len(found.answers)].numpy())
        frame.set_visible(not found.is_done)
        frame.set_xy((found.place % wide + LEFT, found.place // wide + 0.02))
        title.set_text("done" if found.is_done else f"{len(found.answers) + 1} of {len(found.labels)}: which one?")
        score.set_text(f"{found.right} of {len(found.labels)}\nare right" if found.is_done else "")

    border = asked.spines.values()  # drawn after the question, which would cover half of their width
    return Drawing(figure, spoken, Part(update, [question, *border, frame, title, score]))


def _example(axes: Axes, image: np.ndarray, column: int, row: int, number: int) -> None:
    """Draw an image into its place, and its number beneath it."""
    left, top = column + LEFT, row + 0.02
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, extent=(left, left + SIDE, top + SIDE, top))
    axes.add_patch(Rectangle((left, top), SIDE, SIDE, fill=False, edgecolor=PALE, linewidth=0.8))
    axes.text(column + 0.5, top + SIDE, str(number), fontsize=SMALLEST, ha="center", va="top")


def spoken(found: Questions) -> str:
    """The picture in words."""
    if found.is_done:
        return f"{found.ways} examples, all {len(found.labels)} questions answered, {found.right} are right"
    asked = f"question {len(found.answers) + 1} of {len(found.labels)}"
    return f"{found.ways} examples, {asked}, the frame is around example {found.place + 1}"


def compared(tasks: Mapping[str, tuple[Questions, Sequence[int]]]) -> Figure:
    """Show the questions of each task, and under each what the network answers and, if the reader did, the reader.

    Args:
        tasks: by a title, the reader's questions and the network's answers to them, from 0 on. A wrong answer is red
            and crossed.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        size = (PAGE, 1.45 * len(tasks))
        figure, rows = plt.subplots(len(tasks), QUESTIONS, figsize=size, squeeze=False)
        for row, (title, (found, answers)) in zip(rows, tasks.items(), strict=True):
            given: list[int | None] = [*found.answers, *[None] * (len(found.labels) - len(found.answers))]
            for cell, image, label, *both in zip(row, found.images, found.labels, answers, given, strict=True):
                cell.set(xticks=[], yticks=[], frame_on=False)
                cell.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
                for height, answer in zip((-0.06, -0.32), both, strict=True):
                    _answer(cell, height, answer, int(label))
            for height, who in zip((-0.06, -0.32), ("network", "you"), strict=True):
                row[0].text(-0.25, height, who, transform=row[0].transAxes, ha="right", va="top", fontsize=SMALLEST)
            row[0].set_title(title, loc="left")
    return figure


def _answer(cell: Axes, height: float, answer: int | None, label: int) -> None:
    """Write an answer under an image, counted from 1 as the examples are."""
    is_wrong = answer not in (None, label)
    words = "–" if answer is None else f"{'✗ ' * is_wrong}{answer + 1}"
    look: dict[str, Any] = {"transform": cell.transAxes, "ha": "center", "va": "top", "fontsize": SMALLEST}
    cell.text(0.5, height, words, color=VERMILION if is_wrong else BLACK, **look)


class YourTurn(LiveFigure):
    """The widget: press the example that is the same character as the question. ``answers`` keeps what was chosen."""

    answers = traitlets.Tuple()
    place = traitlets.Int(0)

    def __init__(self, episode: Episode) -> None:
        self.episode, self.count, self.pressed = episode, len(episode.support), 0
        self.wide = min(self.count, WIDE)
        drawing = picture(episode)
        super().__init__({}, lambda: compute(episode, self.answers, self.place), drawing, words=describe)
        examples, press = drawing.figure.axes[1], lambda: self._choose(self.place)
        self.touch(examples, TOUCH, self._point, self._step, press, lambda: not self.result.is_done)
        self.observe(self.update, ["answers", "place"])

    def _point(self, x: float, y: float) -> None:
        """Answer with the example that is pressed; a drag belongs to its press and answers nothing more."""
        number, place = self.pictures[0].point[-1], int(y) * self.wide + int(x)
        if number != self.pressed and place < self.count:
            self.pressed = number
            self._choose(place)

    def _step(self, right: int, up: int) -> None:
        """Move the frame within the rows and columns of the examples."""
        row, column = divmod(self.place, self.wide)
        tall = -(-self.count // self.wide)
        column, row = min(max(column + right, 0), self.wide - 1), min(max(row - up, 0), tall - 1)
        self.place = min(row * self.wide + column, self.count - 1)

    def _choose(self, place: int) -> None:
        if not self.result.is_done:
            with self.hold_trait_notifications():
                self.place, self.answers = place, (*self.answers, place)


def describe(found: Questions) -> str:
    """How far the reader is, as HTML."""
    if found.is_done:
        return card(f"<b>{found.right} of {len(found.labels)}</b> are right. Keep the number for later in the lesson.")
    return card(f"{len(found.answers)} of {len(found.labels)} questions answered; chance is 1 in {found.ways}.")


your_turn = YourTurn  # as lessons call it
