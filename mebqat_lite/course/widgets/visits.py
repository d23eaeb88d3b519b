"""Lesson 04: 75 tiles that light up when their pair is visited, and take on new colours while a network trains."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import traitlets
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.course.exercises import lesson_04
from mebqat_lite.course.widgets.base import buttons, card, labelled
from mebqat_lite.course.widgets.live import Drawing, LiveFigure
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure import plots
from mebqat_lite.measure.boards import MIDDLE, Board, board_on, pair_at
from mebqat_lite.measure.evaluate import grid
from mebqat_lite.measure.looks import BLACK, GREY, PAGE, VERMILION, WHITE, color_of, ink

BACKPROPS, BEAT = 640, 8  # of a training, and between two pictures
MEASURED = (40, 80, 160, 320, 480, 640)  # after so many back-propagations all pairs are measured
CALIBRATION = 250  # training images on which norm statistics are measured anew
SIZES = (2, 4, 8)  # M, the pairs of a step
EXCLUDED: dict[str, tuple[int, ...]] = {"no width": (), "1 bit": (1,), "3, 5 and 7 bits": (3, 5, 7)}
FORMS = {"one for all pairs of a step": False, "one after each pair": True}
TOUCH = "the board of pairs: press a pair, or move to one with the arrow keys"


@dataclass(frozen=True)
class Choice:
    """Which pairs a training visits, and how it learns at them."""

    m: int = 4  # pairs of a step
    ends: bool = True  # full precision and the lowest pair of the pool are visited in every step
    exclude: tuple[int, ...] = ()  # widths that are never visited
    teacher: bool = True  # where a step visits FP, its other pairs also learn from the answers at FP
    in_turn: bool = False  # an update after each pair, instead of one for all pairs of a step

    @property
    def pool(self) -> list[Bits]:
        """The pairs that can be visited, in rising order."""
        return [pair for pair in candidates() if not {pair.w, pair.a} & {*self.exclude}]

    @property
    def guaranteed(self) -> list[Bits]:
        """The pairs that every step visits."""
        return [FP, self.pool[0]] if self.ends else []

    @property
    def steps(self) -> int:
        """How many updates make the same number of back-propagations."""
        return BACKPROPS // (1 if self.in_turn else self.m)

    @property
    def title(self) -> str:
        """The choice in words: the method, and how it differs from the default."""
        words = ["MEBQAT in turn" if self.in_turn else "MEBQAT"]
        words += [f"M = {self.m}"] * (self.m != Choice.m) + ["no ends"] * (not self.ends)
        words += [f"never {words}" for words, widths in EXCLUDED.items() if widths and widths == self.exclude]
        words += ["no teacher"] * (not self.teacher and not self.in_turn)
        return ", ".join(words)


@dataclass(frozen=True)
class Training:
    """What a training has done so far."""

    choice: Choice
    visited: tuple[Bits, ...] = ()  # the pairs, in the order of the visits: a back-propagation each
    accuracy: Mapping[int, Mapping[Bits, float]] = field(default_factory=dict)
    # by back-propagations, the accuracy at each of the 75 pairs on the validation images, in percent

    def measured(self, at: int) -> Mapping[Bits, float]:
        """The latest accuracies that were known after ``at`` back-propagations."""
        return self.accuracy[max(known for known in self.accuracy if known <= at)]

    def curve(self, of: Callable[[Mapping[Bits, float]], float], at: int) -> dict[int, float]:
        """A number of the accuracies, by back-propagations up to ``at``."""
        return {known: of(accuracy) for known, accuracy in self.accuracy.items() if known <= at}


Functions = tuple[Callable[..., list[Bits]], Callable[..., Tensor], Callable[..., float]]


def train(net: nn.Module, data: Data, choice: Choice, functions: Functions, seed: int = 0) -> Iterator[Training]:
    """Train a network in place, and measure it on the validation images at all 75 pairs from time to time.

    Args:
        net: a quantized network.
        data: training images to learn from and to measure norms on, validation images to measure accuracies on.
        choice: which pairs are visited.
        functions: what the exercises of lesson 04 ask for: `sample_pairs`, `mebqat_loss` and `mebqat_step`.
        seed: of all that is drawn.

    Yields:
        What happened so far: before the first step, and after every `BEAT` back-propagations.
    """
    sample, loss, step = functions
    visited: list[Bits] = []
    accuracy = {0: measure(net, data)}
    yield Training(choice, (), dict(accuracy))
    how: dict[str, Any] = {"pool": choice.pool, "m": choice.m, "guaranteed": choice.guaranteed, "seed": seed}
    taught = loss if choice.teacher else lambda logits, labels, teacher: loss(logits, labels, None)
    for pairs, _ in lesson_04.train(net, data.train, choice.steps, sample, taught, step, in_turn=choice.in_turn, **how):
        visited += pairs
        if len(visited) in MEASURED:
            accuracy[len(visited)] = measure(net, data)
        if len(visited) % BEAT == 0:
            yield Training(choice, tuple(visited), dict(accuracy))


def measure(net: nn.Module, data: Data) -> dict[Bits, float]:
    """Measure the accuracy on the validation images at all 75 pairs, with norm statistics measured anew."""
    frame = grid(net, data.val, calibration=data.train.images[:CALIBRATION])
    return {Bits.parse(str(name)): float(value) for name, value in frame["mean"].items()}


def compute(net: nn.Module, data: Data, choice: Choice, functions: Functions, seed: int = 0) -> Training:
    """Train to the end; the arguments are those of `train`."""
    *_, training = train(net, data, choice, functions, seed)
    return training


# --- the picture -----------------------------------------------------------------------------------------------

SIZE, LIMITS = (PAGE, 4.7), (80.0, 100.0)  # inches; accuracies at the ends of the colours
LIT: dict[str, Any] = {"facecolor": VERMILION, "edgecolor": WHITE, "linewidth": 1}
SCALE: dict[str, Any] = {"location": "bottom", "ticks": range(80, 101, 5), "aspect": 40}
SCALE["label"] = "accuracy on validation images (%)\norange tile: just visited; the dot grows with the visits so far"
DOT: dict[str, Any] = {"color": VERMILION, "edgecolor": WHITE, "linewidth": 0.5}
CHOSEN: dict[str, Any] = {"edgecolor": BLACK, "linewidth": 2}


@dataclass(frozen=True)
class View:
    """A moment of a training, and the training that is drawn beside it."""

    training: Training
    at: int  # back-propagations
    pair: Bits  # whose accuracy is drawn as a curve
    other: Training | None = None

    @property
    def visits(self) -> Counter[Bits]:
        """How often each pair was visited so far."""
        return Counter(self.training.visited[: self.at])

    @property
    def lit(self) -> set[Bits]:
        """The pairs that were visited since the picture before."""
        return {*self.training.visited[max(self.at - BEAT, 0) : self.at]}


def picture() -> Drawing:
    """Draw the board of the pairs, and beside it two curves: the mean over all pairs, and one pair. It takes a `View`.

    The axes of the board are the first ones.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        figure = plt.figure(figsize=SIZE)
        places = figure.add_gridspec(2, 2, width_ratios=(1.75, 1))
        tiles = Tiles(figure.add_subplot(places[:, 0]))
        figure.colorbar(tiles.board.cells, ax=tiles.board.axes, **SCALE)
    with plots.style():
        curves = [Curve(figure.add_subplot(places[row, 1]), lowest) for row, lowest in enumerate((80, 20))]
        curves[0].axes.set(xticklabels=[])
        curves[1].axes.set(xlabel="back-propagations")
        curves[1].axes.legend(loc="lower right")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # so that nothing shifts when the board is drawn again

    def update(view: View) -> str:
        tiles.update(view)
        curves[0].update(view, "mean over 75 pairs", mean)
        curves[1].update(view, str(view.pair), lambda accuracy: accuracy[view.pair])
        return say(view)

    return Drawing(figure, update, [*tiles.moving, *curves[0].moving, *curves[1].moving])


def mean(accuracy: Mapping[Bits, float]) -> float:
    """The mean over all pairs."""
    return sum(accuracy.values()) / len(accuracy)


class Tiles:
    """The board: a tile is orange when its pair has just been visited, and a dot grows with the visits."""

    def __init__(self, axes: Axes) -> None:
        self.board: Board = board_on(axes, LIMITS, " ")
        self.board.frame.set(**CHOSEN)
        self.middles = {pair: text.get_position() for pair, text in self.board.texts.items()}
        self.lit = PatchCollection([], **LIT)
        axes.add_collection(self.lit)
        self.dots = axes.scatter(*zip(*((x + 0.38, y + 0.37) for x, y in self.middles.values()), strict=True), **DOT)
        self.title = axes.text(0.0, -0.5, "MEBQAT", fontsize=11)  # words, so that there is room
        self.numbers = [axes.text(0.0, 0.0, "", color=ink(to_rgb(VERMILION)), **MIDDLE) for _ in range(BEAT)]
        self.accuracy: Mapping[Bits, float] = {}
        self.moving: list[Artist] = [self.lit, *self.numbers, self.dots, self.board.frame, self.title]

    def update(self, view: View) -> None:
        """Show a moment of a training."""
        accuracy, visits = view.training.measured(view.at), view.visits
        lit = {self.middles[pair]: f"{accuracy[pair]:.0f}" for pair in view.lit}
        if accuracy != self.accuracy:  # measured anew: all of the board is drawn again
            self.accuracy = accuracy
            self.board.update(accuracy)
        self.board.choose(view.pair)
        self.lit.set_paths([Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in lit])
        unused = [((0.0, 0.0), "")] * (BEAT - len(lit))
        for number, (place, words) in zip(self.numbers, [*lit.items(), *unused], strict=True):
            number.set(position=place, text=words)
        self.dots.set_sizes([min(4 * visits[pair], 60) for pair in self.middles])
        self.title.set_text(f"{view.training.choice.title}: after {view.at} back-propagations")


class Curve:
    """A panel with a number of a training over its back-propagations, and the same of another training, dashed."""

    def __init__(self, axes: Axes, lowest: float) -> None:
        self.axes = axes
        [self.other] = axes.plot([], [], "--", color=GREY, label="the one before")
        [self.now] = axes.plot([], [], "o-", color=BLACK, markersize=4, label="this training")
        self.title = axes.text(0.0, 1.04, "mean", transform=axes.transAxes, fontsize=11)
        self.moving: list[Artist] = [self.other, self.now, self.title]
        axes.set(xlim=(-10, BACKPROPS + 10), ylim=(lowest, 101))

    def update(self, view: View, title: str, of: Callable[[Mapping[Bits, float]], float]) -> None:
        """Draw a number of the training of a view up to its moment, and that of the other training to its end."""
        curve = view.training.curve(of, view.at)
        other = view.other.curve(of, BACKPROPS) if view.other else {}
        for line, points in ((self.now, curve), (self.other, other)):
            line.set_data([*points], [*points.values()])
        self.now.set_color(color_of(view.training.choice.title))
        self.title.set_text(f"{title}: {[*curve.values()][-1]:.1f} %")


def still(training: Training, pair: Bits | None = None, other: Training | None = None) -> Figure:
    """Draw the end of a training, and the curve of one pair, by default W1A1, with another training beside it."""
    drawing = picture()
    drawing.update(View(training, len(training.visited), pair or Bits(1, 1), other))
    return drawing.figure


# --- in words --------------------------------------------------------------------------------------------------


def say(view: View) -> str:
    """The picture in one sentence."""
    accuracy = view.training.measured(view.at)
    lowest = min(sorted(accuracy), key=accuracy.__getitem__)
    return (
        f"{view.training.choice.title}, after {view.at} back-propagations: {len(view.visits)} of 75 pairs were "
        f"visited; mean {mean(accuracy):.1f} %, lowest {accuracy[lowest]:.1f} % at {lowest}; "
        f"{view.pair} {accuracy[view.pair]:.1f} %"
    )


def describe(view: View) -> str:
    """The numbers of a view, as HTML."""
    visits = view.visits
    ends = ", ".join(f"{pair} {visits[pair]} times" for pair in (FP, Bits(1, 1), view.pair))
    note = "Accuracy on validation images, norm statistics measured anew. Orange: visited since the picture before; "
    return card(say(view) + ".", f"Visits: {ends}. {note}a dot grows with the visits.")


# --- the widget ------------------------------------------------------------------------------------------------


class Visits(LiveFigure):
    """Trains when something else is chosen, and shows the pairs while they are visited."""

    pair = traitlets.Unicode("W1A1")

    def __init__(self, start: nn.Module, data: Data, functions: Functions, known: Sequence[Training] = ()) -> None:
        self.start, self.data, self.functions = start, data, functions
        self.trainings = {training.choice: training for training in known}
        self.chosen: Choice | None = None
        self.other: Choice | None = None
        self.moment = labelled("back-propagations", ipywidgets.IntSlider(BACKPROPS, 0, BACKPROPS, BEAT))
        first = known[0].choice if known else Choice()
        controls = {
            "in_turn": buttons("an update", [*FORMS.items()], first.in_turn),
            "m": buttons("M, pairs of a step", SIZES, first.m),
            "ends": buttons("the two ends", [("in every step", True), ("like any pair", False)], first.ends),
            "exclude": buttons("never visited", [*EXCLUDED.items()], first.exclude),
            "teacher": buttons("FP teaches", [("yes", True), ("no", False)], first.teacher),
            "moment": self.moment,
        }
        super().__init__(controls, self.view, picture(), words=describe)
        self.touch(self.drawings[0].figure.axes[0], TOUCH, self._point, self._step)
        self.observe(self.update, "pair")

    def view(self, moment: int, **choice: Any) -> View:
        """Show a training at a moment, or at its last one if it has not come so far."""
        self.controls["teacher"].disabled = choice["in_turn"]  # alone, a pair has nobody to learn from
        now = Choice(**choice | {"teacher": choice["teacher"] or choice["in_turn"]})
        if now != self.chosen:
            self.chosen, self.other = now, self.chosen
            if len(self.trainings.get(now, Training(now)).visited) < BACKPROPS:
                work = self.training(now)
                next(work)  # so that there is something to show
                self.in_turns(work)
        training, other = self.trainings[now], self.trainings.get(self.other) if self.other else None
        return View(training, min(moment, len(training.visited)), Bits.parse(self.pair), other)

    def training(self, choice: Choice) -> Iterator[None]:
        """Train further in each turn, until the reader chooses something else."""
        for training in train(copy.deepcopy(self.start), self.data, choice, self.functions):
            if self.chosen != choice:
                return
            self.trainings[choice] = training
            self.moment.value = len(training.visited)
            yield

    def _point(self, x: float, y: float) -> None:
        pair = pair_at(x, y)
        if pair and pair.is_candidate:
            self.pair = str(pair)

    def _step(self, right: int, up: int) -> None:
        """Move along the rows, from the end of one to the next, or along a column; weight bits rise downwards."""
        pair = _moved(candidates(), Bits.parse(self.pair), right)
        self.pair = str(_moved([other for other in candidates() if other.a == pair.a], pair, -up))


def _moved(pairs: Sequence[Bits], pair: Bits, steps: int) -> Bits:
    """The pair some steps further on in a list, or at its end."""
    return pairs[min(max(pairs.index(pair) + steps, 0), len(pairs) - 1)]


def pair_visits(start: nn.Module, data: Data, functions: Functions, known: Sequence[Training] = ()) -> Visits:
    """The widget: a network trains while one looks on, visiting the pairs as the controls say.

    Args:
        start: the quantized network that every training starts from; it is copied.
        data: images and labels.
        functions: `sample_pairs`, `mebqat_loss` and `mebqat_step`, as the exercises of lesson 04 ask for them.
        known: trainings that were made already, by `compute` from the same network; they are not repeated, and the
            first of them is shown first.
    """
    return Visits(start, data, functions, known)
