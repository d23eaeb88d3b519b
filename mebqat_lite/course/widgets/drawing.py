"""Lesson 06: draw characters of your own, learn them from one to three examples at any bitwidth, and ask for one."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import torch
import traitlets
from torch import Tensor, nn

from mebqat_lite import datasets, methods, paths
from mebqat_lite.bits import FULL, Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Style
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.norms import is_recalibrated, recalibrate

WAYS, SHOTS, SIDE = 5, 3, 28
NAMES = "ABCDE"
# As `data/make_glyphs.py` draws: the longest side is 13 to 22 pixels, the pen's radius 0.65 to 0.85, four grey levels.
LENGTH, RADIUS, LEVELS = 17.5, 0.75, 4
START = 14  # the task that the boxes hold first: picked, because there the answer changes with the bits
CALIBRATION = 200  # training images that measure the statistics of a pair that comes without
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, FULL)
SHIPPED = {  # title -> the file, and the quantizer that is set after training
    "PN + PTQ-MSE": ("glyphs-pn", "least_squares"),
    "MEBQAT-PN": ("glyphs-mebqat_pn", ""),
    "MEBQAT-MAML": ("glyphs-mebqat_maml", ""),
}
Box = Mapping[str, Any]  # "strokes": [[x, y, x, y, ...], ...] in 0 .. 1, or "pixels": 784 digits 0 .. 3, row by row
EMPTY: dict[str, Any] = {"strokes": [], "pixels": ""}


# --- from strokes to an image ----------------------------------------------------------------------------------


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


# --- what is computed ------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A trained few-shot network, and how it learns new classes."""

    title: str
    model: nn.Module
    learner: ProtoNet | FOMAML
    calibration: Tensor  # training images, (count, 1, 28, 28), that measure norm statistics which the model lacks

    @property
    def norm_stats(self) -> str:
        """Statistics of the pair for prototypes, those of the examples for FOMAML: a single query works with both."""
        return "recalibrated" if isinstance(self.learner, ProtoNet) else "support"


@dataclass(frozen=True)
class DrawingResult:
    """The answer to one query."""

    title: str
    bits: Bits
    names: list[str]  # of the classes
    scores: list[float]  # probability of each class in percent: the softmax of the logits
    milliseconds: float  # to learn the classes and to answer

    @property
    def answer(self) -> str:
        """The most probable class."""
        return self.names[self.scores.index(max(self.scores))]


def compute(network: Network, support: Mapping[str, Tensor], query: Tensor, bits: BitsLike) -> DrawingResult:
    """Learn the classes of ``support`` at ``bits``, and classify ``query``.

    Args:
        network: and its learner.
        support: by class its examples, (examples, 1, 28, 28), white on black, 0 to 1; two classes at least.
        query: the image to classify, (1, 28, 28).
        bits: the pair at which all of it runs. Statistics that the network lacks are measured and stored with it.
    """
    pair, model = Bits.parse(bits), cut_to(network.model, len(support))
    if network.norm_stats == "recalibrated" and not is_recalibrated(model, str(pair)):
        recalibrate(model, network.calibration, pair)
    start = time.perf_counter()
    predict = network.learner.adapt(model, even(list(support.values())), pair, network.norm_stats)
    logits = predict(query[None])[0]  # (N,)
    milliseconds = 1000 * (time.perf_counter() - start)
    scores = (100 * logits.double().softmax(0)).tolist()
    return DrawingResult(network.title, pair, list(support), scores, milliseconds)


def even(classes: Sequence[Tensor]) -> Tensor:
    """Examples, (K_n, 1, 28, 28) of each class, as one support set, (N, K, 1, 28, 28), K the least common multiple:
    all of a class count alike, and so do the classes.
    """
    shots = math.lcm(*map(len, classes))
    return torch.stack([images.repeat(shots // len(images), 1, 1, 1) for images in classes])


def cut_to(model: nn.Module, ways: int) -> nn.Module:
    """The network for ``ways`` classes: a copy whose classifier has that many of its outputs, where it has one.

    Raises:
        ValueError: fewer than two classes, or more than the classifier has outputs.
    """
    if ways < 2:
        raise ValueError(f"there must be two classes at least, not {ways}")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or model.get_submodule(linear[-1]).out_features == ways:
        return model
    cut = copy.deepcopy(model)
    head: Any = cut.get_submodule(linear[-1])
    if head.out_features < ways:
        raise ValueError(f"this network tells {head.out_features} classes apart, not {ways}")
    head.weight, head.out_features = nn.Parameter(head.weight.detach()[:ways].clone()), ways
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach()[:ways].clone())
    return cut


# --- the picture -----------------------------------------------------------------------------------------------

FRAME, BEST, OTHER = Style(svg.DARK, width=1), svg.BLUE, svg.PALE
LEFT, TOP, ROW, WIDE = 190, 50, 46, 330  # pixels: where bars begin, the first row, a row's height, a full bar


def picture(
    support: Mapping[str, Tensor], query: Tensor | None, result: DrawingResult | None, state: str, truth: str = ""
) -> str:
    """What the network sees of the examples, and its scores, as SVG. ``state`` is method and pair."""
    height = TOP + ROW * max(len(support), 3) + 26
    parts = [svg.text(12, 24, _headline(support, query, result, truth), size=16)]
    for row, (name, images) in enumerate(support.items()):
        parts.append(_class_row(TOP + ROW * row, name, images, result))
    if support:
        parts.append(svg.text(LEFT, height - 10, "score: softmax of the logits (%)", size=11.5))
    if query is not None:
        parts.append(_seen(query, result, truth))
    title = f"{state}: {_headline(support, query, result, truth)}"
    return svg.figure(800, height, title, *parts)


def _headline(support: Mapping[str, Tensor], query: Tensor | None, result: DrawingResult | None, truth: str) -> str:
    if result is not None:
        found = f"{result.title} at {result.bits} answers {result.answer} ({max(result.scores):.0f} %)"
        return found + (f"; it is class {truth}" if truth else "")
    if len(support) < 2:
        return f"Draw examples of two classes at least: there {'is 1' if len(support) == 1 else 'are none'}"
    return "Now draw one of your classes once more, in the box with the question mark"


def _class_row(top: float, name: str, images: Tensor, result: DrawingResult | None) -> str:
    """Name and examples of a class, and its bar."""
    parts = [svg.text(14, top + 25, name, size=17)]
    for i, image in enumerate(images):
        parts.append(_framed(36 + 44 * i, top, 40, image))
    if result is not None:
        score, best = result.scores[result.names.index(name)], name == result.answer
        fill = BEST if best else OTHER
        parts.append(svg.tag("rect", x=LEFT, y=top + 6, width=max(WIDE * score / 100, 1), height=26, fill=fill))
        words = f"{score:.1f} %" + (" ◀ answer" if best else "")
        parts.append(svg.text(LEFT + WIDE * score / 100 + 8, top + 24, words, size=13))
    return "".join(parts)


def _seen(query: Tensor, result: DrawingResult | None, truth: str) -> str:
    """The query as the network sees it, 28 x 28; framed thickly where the answer is known to be wrong."""
    wrong = bool(truth) and result is not None and result.answer != truth
    style = Style(svg.VERMILION, width=4) if wrong else FRAME
    words = f"wrong: it is class {truth}" if wrong else "the query, 28 x 28"
    return _framed(656, TOP, 126, query, style) + svg.text(719, TOP + 144, words, "middle", 12)


def _framed(x: float, y: float, size: float, image: Tensor, style: Style = FRAME) -> str:
    frame = svg.tag("rect", x=x, y=y, width=size, height=size, **style.paint)
    return svg.gray_image(x, y, size, image[0].tolist()) + frame


def describe(result: DrawingResult, support: Mapping[str, Tensor], norm_stats: str) -> str:
    """The numbers of a result, as HTML."""
    shown = sum(map(len, support.values()))
    lines = [
        f"<b>{result.title} at {result.bits}</b>: learned {len(support)} classes from {shown} examples and answered "
        f"in {result.milliseconds:.0f} ms (measured: fake quantization saves no time); norm statistics: {norm_stats}",
    ]
    if not result.bits.is_candidate:
        lines.append(f"{result.bits} is none of the pairs that methods are trained for")
    return card(*lines)


# --- the widget ------------------------------------------------------------------------------------------------


class Pad(anywidget.AnyWidget):
    """Boxes to draw in: `WAYS` x `SHOTS` examples, class by class, then the query. By mouse, touch, pen or keys."""

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    boxes: Any = traitlets.List().tag(sync=True)
    ways = traitlets.Int(WAYS).tag(sync=True)
    shots = traitlets.Int(SHOTS).tag(sync=True)

    @traitlets.default("boxes")
    def _empty(self) -> list[Box]:
        return [dict(EMPTY) for _ in range(WAYS * SHOTS + 1)]


class DrawYourOwn(Live):
    """The widget for networks by title, and the characters that it offers as examples."""

    def __init__(self, networks: Mapping[str, Network], examples: Split, filled: bool = True) -> None:
        self.networks, self.pad = dict(networks), Pad()
        self.episodes = Episodes(examples, WAYS, 1, SHOTS, seed=6)
        self.number, self.asked = START - 1, 0  # of the episode that fills the boxes; of its query
        self.history: list[list[Box]] = []
        if filled:
            self.fill()
            self.history.clear()
        super().__init__(_controls(list(self.networks)), self._render)
        actions = {
            "example characters": self.fill,
            "new query": self.ask,
            "undo": self.undo,
            "clear all": lambda: self._show([dict(EMPTY) for _ in self.pad.boxes]),
        }
        self.actions = {words: _button(words, self._showing(act)) for words, act in actions.items()}
        self.children = [self.pad, ipywidgets.HBox(list(self.actions.values())), *self.parts]
        self.pad.observe(self._drawn, "boxes")
        self.pad.on_msg(lambda _pad, content, _buffers: self.undo() if content == "undo" else None)

    def fill(self) -> None:
        """Put an example of each of five characters into the boxes, and another of one of them as the query."""
        self.number, self.asked = self.number + 1, 0
        support = self.episodes[self.number].support  # (WAYS, 1, 1, 28, 28)
        boxes = [box_of(images[0]) if shot == 0 else dict(EMPTY) for images in support for shot in range(SHOTS)]
        self._show([*boxes, self._question()])

    def ask(self) -> None:
        """Ask for another of the example characters, or, where the classes are drawn, empty the query's box."""
        self.asked += 1
        drawn = any(box["strokes"] for box in self.pad.boxes[:-1]) or not any(b["pixels"] for b in self.pad.boxes[:-1])
        self._show([*self.pad.boxes[:-1], dict(EMPTY) if drawn else self._question()])

    def undo(self) -> None:
        """Take back the last change of the boxes."""
        if self.history:
            before = self.history.pop()
            with self._forgetting():
                self.pad.boxes = before

    def _question(self) -> Box:
        """A query of the episode that fills the boxes; which one follows from the numbers alone."""
        label = (2 * self.number + 3 * self.asked + 1) % WAYS
        return box_of(self.episodes[self.number].query[label, self.asked % SHOTS], truth=NAMES[label])

    def _show(self, boxes: list[Box]) -> None:
        self.history.append(self.pad.boxes)
        with self._forgetting():
            self.pad.boxes = boxes

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Changes inside the block are no strokes to take back."""
        self.own = True
        try:
            yield
        finally:
            self.own = False

    def _drawn(self, change: Mapping[str, Any]) -> None:
        if not self.own:
            self.history = [*self.history[-99:], change["old"]]
        self.update()

    own = False

    def _showing(self, act: Callable[[], None]) -> Callable[[object], None]:
        def click(_button: object) -> None:
            with self.showing_errors("button"):
                act()

        return click

    def read(self) -> tuple[dict[str, Tensor], Tensor | None, str]:
        """By class its examples, (examples, 1, 28, 28); the query, (1, 28, 28) or None; and its class, if known."""
        images = [image_of(box) for box in self.pad.boxes]
        found = {}
        for way, name in enumerate(NAMES):
            if shown := [image for image in images[SHOTS * way : SHOTS * (way + 1)] if image is not None]:
                found[name] = torch.stack(shown)
        return found, images[-1], self.pad.boxes[-1].get("truth", "")

    def _render(self, w: int, a: int, method: str) -> str:
        network, pair = self.networks[method], Bits(w, a)
        support, query, truth = self.read()
        if query is None or len(support) < 2:
            return picture(support, query, None, f"{method} at {pair}")
        result = compute(network, support, query, pair)
        shown = picture(support, query, result, f"{method} at {pair}", truth)
        return shown + describe(result, support, network.norm_stats)


def _button(words: str, act: Callable[[object], None]) -> ipywidgets.Button:
    made = ipywidgets.Button(description=words, layout={"width": "auto"})
    made.on_click(act)
    return made


def _controls(titles: list[str]) -> dict[str, ipywidgets.Widget]:
    widths = [("FP" if width == FULL else str(width), width) for width in WIDTHS]
    slider = ipywidgets.SelectionSlider
    return {
        "w": labelled("weights (bits)", slider(options=widths, value=2)),
        "a": labelled("activations (bits)", slider(options=widths, value=2)),
        "method": buttons("method", titles, titles[0]),
    }


def shipped_networks() -> dict[str, Network]:
    """The shipped networks by title; the first is quantized here, after its training."""
    found, data = {}, datasets.load("glyphs")
    calibration = data.train.images[:CALIBRATION]
    for title, (name, quantizer) in SHIPPED.items():
        model, extra = load_model(paths.shipped("checkpoints", f"{name}.safetensors"))
        recipe, method = Recipe(**extra["setup"]["recipe"]), methods.get(extra["method"])
        learner = method.learner(recipe, "labels")
        assert isinstance(learner, ProtoNet | FOMAML)
        if quantizer:
            methods.set_steps(model, quantizer, data)
            recalibrate(model, calibration, [Bits(b, b) for b in WIDTHS])
        found[title] = Network(title, model, learner, calibration)
    return found


def draw_your_own() -> DrawYourOwn:
    """The widget with the shipped networks, filled with characters of the test scripts."""
    return DrawYourOwn(shipped_networks(), datasets.load("glyphs").test)
