"""Lesson 06: draw characters of your own, learn them from one to three examples at any bitwidth, and ask for one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox
from torch import Tensor

from mebqat_lite.bits import Bits
from mebqat_lite.course.widgets.base import card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.course.widgets.new_classes import PAIRS, Embedded
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, BLUE, GREY, LIGHT, PAGE, SMALLEST, VERMILION, WHITE, color_of, pale

WAYS, SHOTS, SIDE = 5, 3, 28
NAMES = "ABCDE"
# As `data/make_glyphs.py` draws: the longest side is 13 to 22 pixels, the pen's radius 0.65 to 0.85, four grey levels.
LENGTH, RADIUS, LEVELS = 17.5, 0.75, 4
Box = Mapping[str, Any]  # "strokes": [[x, y, x, y, ...], ...] in 0 .. 1, or "pixels": 784 digits 0 .. 3, row by row
EMPTY: dict[str, Any] = {"strokes": [], "pixels": ""}


def render(strokes: Sequence[Sequence[float]]) -> Tensor:
    """The image, (1, 28, 28), of strokes ``[x, y, x, y, ...]``, as a glyph is drawn: its box is scaled to `LENGTH`
    pixels and centred, the pen is round, and grey has four levels. White (1) on black (0); no strokes: black.
    """
    lines = [torch.tensor(line, dtype=torch.float32).reshape(-1, 2) for line in strokes if len(line) >= 2]
    if not lines:
        return torch.zeros(1, SIDE, SIDE)
    every = torch.cat(lines)
    low, high = every.amin(0), every.amax(0)  # (2,) x and y
    scale = LENGTH / max(float((high - low).max()), 1e-6)
    points = torch.cat([_dense((line - (low + high) / 2) * scale + SIDE / 2) for line in lines])  # (points, 2)
    y, x = torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2)  # (SIDE SIDE, 2)
    far = torch.cat([torch.cdist(pixels, part).amin(1, keepdim=True) for part in points.split(2000)], 1).amin(1)
    ink = (RADIUS + 0.5 - far).clamp(0, 1).mul(LEVELS - 1).round().div(LEVELS - 1)
    return ink.reshape(1, SIDE, SIDE)


def _dense(line: Tensor, gap: float = 0.2) -> Tensor:
    """Points along a line through ``line``, (corners, 2), at most ``gap`` pixels apart."""
    parts = [line[:1]]
    for start, end in itertools.pairwise(line):
        count = max(1, math.ceil(float((end - start).norm()) / gap))
        share = torch.arange(1, count + 1)[:, None] / count
        parts.append(start + (end - start) * share)
    return torch.cat(parts)


def image_of(box: Box) -> Tensor | None:
    """The image of a box, (1, 28, 28), or None if it is empty. ValueError for pixels that are not 28 x 28 levels."""
    if box.get("strokes"):
        return render(box["strokes"])
    if not (digits := box.get("pixels", "")):
        return None
    if len(digits) != SIDE * SIDE or set(digits) - set("0123"):
        raise ValueError(f"a box holds {SIDE * SIDE} digits 0 to {LEVELS - 1}, or strokes")
    return torch.tensor([int(digit) for digit in digits]).reshape(1, SIDE, SIDE) / (LEVELS - 1)


def box_of(image: Tensor, **more: Any) -> dict[str, Any]:
    """A box that holds an image, (1, 28, 28) from 0 to 1."""
    levels = (image * (LEVELS - 1)).round().int().flatten().tolist()
    return {"strokes": [], "pixels": "".join(map(str, levels)), **more}


@dataclass(frozen=True)
class Answers:
    """What each method answers to one query at each pair.

    ``distances[title, pair]`` lists the distances of the query to the classes, in the order of ``names``. The unit is
    the distance that only one in ten queries exceeds to the only example of its own class, at this method and pair.
    """

    names: list[str]
    distances: dict[tuple[str, str], list[float]]  # empty while there are less than two classes or no query
    truth: str = ""  # the query's class, if it is known

    def nearest(self, title: str, pair: str) -> tuple[str, float]:
        """Return the nearest class and its distance."""
        row = self.distances[title, pair]
        return self.names[row.index(min(row))], min(row)

    def answer(self, title: str, pair: str) -> str:
        """Return the nearest class, or "none" if even this one is farther than 1."""
        name, distance = self.nearest(title, pair)
        return name if distance <= 1 else "none"


def compute(embedded: Embedded, support: Mapping[str, Tensor], query: Tensor | None, truth: str = "") -> Answers:
    """Learn the classes of ``support`` with each network at each pair, and measure how far ``query`` is from them.

    Args:
        embedded: the networks, and the images by which their distances are judged.
        support: by class its examples, (examples, 1, 28, 28), white on black, 0 to 1.
        query: the image to classify, (1, 28, 28). Without it, or with less than two classes, nothing is computed.
        truth: the query's class, if it is known.
    """
    found: dict[tuple[str, str], list[float]] = {}
    if query is not None and len(support) > 1:
        for title in embedded.networks:
            for pair in PAIRS:
                learned = ProtoNet().adapt(embedded.ready(title, pair), even(list(support.values())), Bits.parse(pair),
                                           "recalibrated")  # fmt: skip
                far = (-learned(query[None])[0]).clamp(min=0).sqrt()  # (N,)
                found[title, pair] = (far / embedded.usual(title, pair)).tolist()
    return Answers(list(support), found, truth)


def even(classes: Sequence[Tensor]) -> Tensor:
    """Examples, (K_n, 1, 28, 28) of each class, as one support set, (N, K, 1, 28, 28), K the least common multiple:
    all of a class count alike, and so do the classes.
    """
    shots = math.lcm(*map(len, classes))
    return torch.stack([images.repeat(shots // len(images), 1, 1, 1) for images in classes])


SIZE = (5.75, 2.1)  # inches, beside the query
GRID, BARS = (0.27, 0.2, 0.46, 0.62), (0.79, 0.2, 0.19, 0.62)  # left, bottom, width and height of the two axes
FARTHEST = 2.0  # where the bars end


def picture(titles: Sequence[str]) -> Drawing:
    """Draw the answers as a grid of methods and pairs, and beside it the distances behind one of them.

    The drawing takes pairs ``(answers, chosen)``, where ``chosen`` is a title and a pair.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        figure = plt.figure(figsize=SIZE, layout="none")
        parts = _grid(figure.add_axes(GRID), titles), _bars(figure.add_axes(BARS))
    return Drawing(figure, lambda shown: spoken(*shown), *parts)


def _grid(axes: Axes, titles: Sequence[str]) -> Part:
    """Draw a cell for each method and pair, with the answer and its distance, and the chosen answer above them."""
    places = {(title, pair): (x, y) for y, title in enumerate(titles) for x, pair in enumerate(PAIRS)}
    cells = {key: axes.add_patch(Rectangle((x, y), 0.94, 0.9)) for key, (x, y) in places.items()}
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALLEST}
    words = {key: axes.text(x + 0.47, y + 0.45, "", **look) for key, (x, y) in places.items()}
    frame = axes.add_patch(Rectangle((0, 0), 0.94, 0.9, fill=False, edgecolor=BLACK, linewidth=2.5))
    heading = axes.text(-0.58 * len(PAIRS), -0.3, "", fontsize=11, va="bottom")
    axes.set(xlim=(-0.05, len(PAIRS)), ylim=(len(titles), -0.05), frame_on=False, xlabel="bits")
    axes.set_xticks([x + 0.47 for x in range(len(PAIRS))], [_width(pair) for pair in PAIRS])
    axes.set_yticks([y + 0.45 for y in range(len(titles))], titles)
    axes.tick_params(length=0)
    for label in axes.get_yticklabels():
        label.set(color=color_of(label.get_text()), fontweight="bold")

    def update(shown: tuple[Answers, tuple[str, str]]) -> None:
        answers, chosen = shown
        heading.set(text=_headline(*shown))
        frame.set(xy=places[chosen])
        for key, cell in cells.items():
            said = answers.answer(*key) if answers.distances else "none"
            is_wrong = bool(answers.truth) and said not in (answers.truth, "none")
            cell.set(facecolor=VERMILION if is_wrong else LIGHT if said == "none" else pale(BLUE, 0.75))
            text = f"{said}\n{min(answers.nearest(*key)[1], 9.9):.1f}" if answers.distances else ""
            words[key].set(text=text, color=WHITE if is_wrong else BLACK)

    return Part(update, [heading, *cells.values(), *words.values(), frame])


def _bars(axes: Axes) -> Part:
    """Draw the distance of the query to each class, and the line beyond which the answer is "none of these"."""
    bars = axes.barh(range(WAYS), [0.0] * WAYS, height=0.7)
    names = [axes.text(-0.08, i, "", ha="right", va="center", fontsize=SMALLEST) for i in range(WAYS)]
    limit = axes.plot([1, 1], [-0.6, WAYS - 0.4], "--", color=BLACK)
    axes.set(xlim=(0, FARTHEST), ylim=(WAYS - 0.4, -0.6), yticks=[], xticks=[0, 1, 2], xlabel="distance")

    def update(shown: tuple[Answers, tuple[str, str]]) -> None:
        answers, chosen = shown
        row = answers.distances.get(chosen, [])
        unused = [("", 0.0)] * (WAYS - len(row))
        both = [*zip(answers.names, row, strict=False), *unused]
        for bar, text, (name, far) in zip(bars, names, both, strict=True):
            bar.set(width=min(far, FARTHEST), color=BLUE if row and far == min(row) else GREY)
            text.set_text(name)

    return Part(update, [*bars, *names, *limit])


def _width(pair: str) -> str:
    return "FP" if pair == "FP" else str(Bits.parse(pair).w)


def _headline(answers: Answers, chosen: tuple[str, str]) -> str:
    """The chosen answer, or what is still to be drawn."""
    if answers.distances:
        title, pair = chosen
        said = answers.answer(*chosen)
        told = f"{title} at {pair}: " + ("none of these" if said == "none" else f"class {said}")
        return told + (f"; it is class {answers.truth}" if answers.truth else "")
    if len(answers.names) < 2:
        return f"Draw examples of two classes at least: there {'is 1' if answers.names else 'are none'}"
    return "Now draw one of your classes once more, as the query"


def spoken(answers: Answers, chosen: tuple[str, str]) -> str:
    """The picture in words."""
    rows = []
    for title in dict.fromkeys(title for title, _ in answers.distances):
        rows.append(f"{title} {', '.join(f'{_width(pair)}: {answers.answer(title, pair)}' for pair in PAIRS)}")
    return ". ".join([_headline(answers, chosen), *rows])


def describe(answers: Answers, chosen: tuple[str, str]) -> str:
    """What the distances mean, as HTML."""
    if not answers.distances:
        return ""
    name, distance = answers.nearest(*chosen)
    return card(
        f"The nearest class is {name}, at {distance:.2f}. Distance 1 is what only one in ten queries exceeds to the "
        "only example of its own class; a query that is farther from all classes is none of these"
    )


def still(
    answers: Answers,
    support: Mapping[str, Tensor] | None = None,
    query: Tensor | None = None,
    chosen: tuple[str, str] = ("PN + PTQ-MSE", "W2A2"),
) -> Figure:
    """Draw answers once, as a figure that is labelled with what it shows.

    With ``support`` and ``query``, as `compute` takes them, the query stands beside the answers and the examples stand
    beneath them.
    """
    figure = picture(list(dict.fromkeys(title for title, _ in answers.distances))).still((answers, chosen))
    if support and query is not None:
        _draw_images(figure, support, query)
    return figure


def _draw_images(figure: Figure, support: Mapping[str, Tensor], query: Tensor) -> None:
    """Make a figure of answers as wide as the page, and draw the query at its left and the examples beneath."""
    (wide, tall), beneath = figure.get_size_inches(), 1.0  # inches
    whole = (PAGE, tall + beneath, PAGE, tall + beneath)
    figure.set_size_inches(whole[:2])
    for axes in figure.axes:
        x, y, width, height = axes.get_position().bounds
        place = (x * wide + PAGE - wide, y * tall + beneath, width * wide, height * tall)
        axes.set_position(Bbox.from_bounds(*(part / size for part, size in zip(place, whole, strict=True))))
    shown = [(f"class {name}", image) for name, images in support.items() for image in images]
    each = min(0.7, PAGE / len(shown) - 0.3)
    boxes = [("the query", query, (0.15, beneath + 0.45, 1.2, 1.2))]
    boxes += [(name, image, (0.15 + i * (each + 0.3), 0.05, each, each)) for i, (name, image) in enumerate(shown)]
    with plots.style(), plt.rc_context({"axes.grid": False}):
        for name, image, place in boxes:
            left, bottom, width, height = (part / size for part, size in zip(place, whole, strict=True))
            cell = figure.add_axes((left, bottom, width, height), xticks=[], yticks=[])
            cell.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
            cell.set_title(name, fontsize=SMALLEST)
            cell.spines[:].set_visible(True)


HINT = (
    "Draw with mouse, finger or pen; × empties a box. By keys: Tab to a box, arrows move the pen, Space sets it down "
    "and lifts it, Delete empties the box, Ctrl+Z takes back."
)


class Pad(anywidget.AnyWidget):
    """Boxes to draw in, a column of ``shots`` boxes for each name. By mouse, touch, pen or keys."""

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    boxes: Any = traitlets.List().tag(sync=True)
    names: Any = traitlets.List().tag(sync=True)
    shots = traitlets.Int(1).tag(sync=True)
    hint = traitlets.Unicode("").tag(sync=True)

    @traitlets.default("boxes")
    def _empty(self) -> list[Box]:
        return [EMPTY for _ in range(len(self.names) * self.shots)]


class DrawYourOwn(LiveFigure):
    """The widget: a query and the answers to it, and beneath them the examples of each class.

    The boxes begin with characters of the split that ``embedded`` holds.
    """

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self.titles = list(embedded.networks)
        self.chosen = (self.titles[0], PAIRS[0])
        self.query = Pad(names=["query: which class?"])
        self.classes = Pad(names=[f"class {name}" for name in NAMES], shots=SHOTS, hint=HINT)
        self.pads = (self.classes, self.query)
        self.episodes = Episodes(embedded.split, WAYS, 1, SHOTS, seed=6)
        self.number, self.asked = -1, 0  # of the episode that fills the boxes; of its query
        self.history: list[list[list[Box]]] = []
        self.is_drawn = True  # whether a change of the boxes comes from the page
        drawing = picture(self.titles)
        super().__init__({}, self._answers, drawing, words=lambda shown: describe(*shown))
        actions = {
            "example characters": self.fill,
            "new query": self.ask,
            "undo": self.undo,
            "clear all": lambda: self._put([[EMPTY] * len(pad.boxes) for pad in self.pads]),
        }
        self.actions = {words: self.button(words, act) for words, act in actions.items()}
        _, error, answers = self.parts
        self.children = [ipywidgets.HBox([self.query, answers]), error, ipywidgets.HBox([*self.actions.values()]),
                         self.classes]  # fmt: skip
        self.add_class("mq-pad-all")
        label = "the answer that is explained: click a cell, or choose one with the arrow keys"
        self.touch(drawing.figure.axes[0], label, lambda x, y: self._choose(int(x), int(y)), self._step)
        for pad in self.pads:
            pad.observe(self._drawn, "boxes")
            pad.on_msg(lambda _pad, content, _buffers: self.undo() if content == "undo" else None)
        self.fill()
        self.history.clear()

    def fill(self) -> None:
        """Put an example of each of five characters into the boxes, and another of one of them as the query."""
        self.number, self.asked = self.number + 1, 0
        support = self.episodes[self.number].support  # (WAYS, 1, 1, 28, 28)
        boxes: list[Box] = [box_of(images[0]) if shot == 0 else EMPTY for images in support for shot in range(SHOTS)]
        self._put([boxes, [self._question()]])

    def ask(self) -> None:
        """Ask for another of the example characters, or, where the classes are drawn, empty the query's box."""
        self.asked += 1
        boxes = self.classes.boxes
        drawn = any(box["strokes"] for box in boxes) or not any(box["pixels"] for box in boxes)
        self._put([boxes, [EMPTY if drawn else self._question()]])

    def undo(self) -> None:
        """Take back the last change of the boxes."""
        if self.history:
            self._set(self.history.pop())

    def _question(self) -> Box:
        """A query of the episode that fills the boxes; which one follows from the numbers alone."""
        label = (2 * self.number + 3 * self.asked + 1) % WAYS
        return box_of(self.episodes[self.number].query[label, self.asked % SHOTS], truth=NAMES[label])

    def _put(self, boxes: list[list[Box]]) -> None:
        self.history.append([pad.boxes for pad in self.pads])
        self._set(boxes)

    def _set(self, boxes: list[list[Box]]) -> None:
        """Change the boxes of both pads at once. This is no stroke to take back."""
        self.is_drawn = False
        for pad, content in zip(self.pads, boxes, strict=True):
            pad.boxes = content
        self.is_drawn = True
        self.update()

    def _drawn(self, change: Mapping[str, Any]) -> None:
        if self.is_drawn:
            before = [change["old"] if pad is change["owner"] else pad.boxes for pad in self.pads]
            self.history = [*self.history[-99:], before]
            self.update()

    def _choose(self, column: int, row: int) -> None:
        row, column = min(max(row, 0), len(self.titles) - 1), min(max(column, 0), len(PAIRS) - 1)
        self.chosen = self.titles[row], PAIRS[column]
        if self.pictures[0].value:  # not after an error
            self.show((self.result[0], self.chosen))

    def _step(self, right: int, up: int) -> None:
        title, pair = self.chosen
        self._choose(PAIRS.index(pair) + right, self.titles.index(title) - up)

    def read(self) -> tuple[dict[str, Tensor], Tensor | None, str]:
        """By class its examples, (examples, 1, 28, 28); the query, (1, 28, 28) or None; and its class, if known."""
        images = [image_of(box) for box in self.classes.boxes]
        found = {}
        for way, name in enumerate(NAMES):
            if shown := [image for image in images[SHOTS * way : SHOTS * (way + 1)] if image is not None]:
                found[name] = torch.stack(shown)
        [box] = self.query.boxes
        return found, image_of(box), box.get("truth", "")

    def _answers(self) -> tuple[Answers, tuple[str, str]]:
        return compute(self.embedded, *self.read()), self.chosen


draw_your_own = DrawYourOwn  # as lessons call it
