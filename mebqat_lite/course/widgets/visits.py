"""Lesson 04: 75 tiles that light up when their pair is visited, and take on new colours while a network trains."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import traitlets
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.course.exercises import lesson_04
from mebqat_lite.course.widgets.base import buttons, card, slider
from mebqat_lite.course.widgets.live import Drawing, LiveTraining, Part
from mebqat_lite.course.widgets.pair_board import choose_by_hand
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure import plots
from mebqat_lite.measure.boards import MIDDLE, board_on
from mebqat_lite.measure.evaluate import grid
from mebqat_lite.measure.looks import BLACK, GREY, PAGE, VERMILION, WHITE, color_of, ink

BACKPROPS, BEAT = 640, 8  # of a training, and between two pictures
MEASURED = (40, 80, 160, 320, 480, 640)  # after so many back-propagations all pairs are measured
CALIBRATION = 250  # training images on which norm statistics are measured anew
SIZES = (2, 4, 8)  # M, the pairs of a step
EXCLUDED: dict[str, tuple[int, ...]] = {"no width": (), "1 bit": (1,), "3, 5 and 7 bits": (3, 5, 7)}
Accuracies = Mapping[Bits, float]  # at each of the 75 pairs, in percent
FORMS = {"one for all pairs of a step": False, "one after each pair": True}


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
    accuracy: Mapping[int, Accuracies] = field(default_factory=dict)
    # on the validation images, by back-propagations

    @property
    def steps(self) -> int:
        """How many back-propagations were made."""
        return len(self.visited)

    def measured(self, at: int) -> Accuracies:
        """The latest accuracies that were known after ``at`` back-propagations."""
        return self.accuracy[max(known for known in self.accuracy if known <= at)]

    def curve(self, of: Callable[[Accuracies], float], at: int) -> dict[int, float]:
        """A number of the accuracies, by back-propagations up to ``at``."""
        return {known: of(accuracy) for known, accuracy in self.accuracy.items() if known <= at}


Functions = tuple[Callable[..., list[Bits]], Callable[..., Tensor], Callable[..., float]]


def train(net: nn.Module, data: Data, choice: Choice, functions: Functions) -> Iterator[Training]:
    """Train a network in place, and measure it on the validation images at all 75 pairs from time to time.

    Args:
        net: a quantized network.
        data: training images to learn from and to measure norms on, validation images to measure accuracies on.
        choice: which pairs are visited.
        functions: what the exercises of lesson 04 ask for: `sample_pairs`, `mebqat_loss` and `mebqat_step`.

    Yields:
        What happened so far: before the first step, and after every `BEAT` back-propagations.
    """
    sample, loss, step = functions
    visited: list[Bits] = []
    accuracy = {0: measure(net, data)}
    yield Training(choice, (), dict(accuracy))
    how: dict[str, Any] = {
        "pool": choice.pool,
        "m": choice.m,
        "guaranteed": choice.guaranteed,
        "in_turn": choice.in_turn,
    }
    taught = loss if choice.teacher else lambda logits, labels, teacher: loss(logits, labels, None)
    for pairs, _ in lesson_04.train(net, data.train, choice.steps, sample, taught, step, **how):
        visited += pairs
        if len(visited) in MEASURED:
            accuracy[len(visited)] = measure(net, data)
        if len(visited) % BEAT == 0:
            yield Training(choice, tuple(visited), dict(accuracy))


def measure(net: nn.Module, data: Data) -> dict[Bits, float]:
    """Measure the accuracy on the validation images at all 75 pairs, with norm statistics measured anew."""
    frame = grid(net, data.val, calibration=data.train.images[:CALIBRATION])
    return {Bits.parse(str(name)): float(value) for name, value in frame["mean"].items()}


def compute(net: nn.Module, data: Data, choice: Choice, functions: Functions) -> Training:
    """Train to the end; the arguments are those of `train`."""
    *_, training = train(net, data, choice, functions)
    return training


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
        tiles = _tiles(figure.add_subplot(places[:, 0]))
    with plots.style():
        above, beneath = (figure.add_subplot(places[row, 1]) for row in range(2))
        all_pairs = _curve(above, 80, lambda view: ("mean over 75 pairs", lambda accuracy: fmean(accuracy.values())))
        one_pair = _curve(beneath, 20, lambda view: (str(view.pair), lambda accuracy: accuracy[view.pair]))
        above.set(xticklabels=[])
        beneath.set(xlabel="back-propagations")
        beneath.legend(loc="lower right")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # so that nothing shifts when the board is drawn again
    return Drawing(figure, say, tiles, all_pairs, one_pair)


def _tiles(axes: Axes) -> Part:
    """Draw the board: a tile is orange when its pair has just been visited, and a dot grows with the visits."""
    board = board_on(axes, LIMITS, " ")
    axes.figure.colorbar(board.cells, ax=axes, **SCALE)
    board.frame.set(**CHOSEN)
    middles = {pair: text.get_position() for pair, text in board.texts.items()}
    lit = PatchCollection([], **LIT)
    axes.add_collection(lit)
    dots = axes.scatter(*zip(*((x + 0.38, y + 0.37) for x, y in middles.values()), strict=True), **DOT)
    title = axes.text(0.0, -0.5, "MEBQAT", fontsize=11)  # words, so that there is room
    numbers = [axes.text(0.0, 0.0, "", color=ink(to_rgb(VERMILION)), **MIDDLE) for _ in range(BEAT)]
    drawn: Accuracies = {}

    def update(view: View) -> None:
        nonlocal drawn
        accuracy, visits = view.training.measured(view.at), view.visits
        if accuracy != drawn:  # measured anew: all of the board is drawn again
            drawn = accuracy
            board.update(accuracy)
        board.choose(view.pair)
        now = {middles[pair]: f"{accuracy[pair]:.0f}" for pair in view.lit}
        lit.set_paths([Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in now])
        unused = [((0.0, 0.0), "")] * (BEAT - len(now))
        for number, (place, words) in zip(numbers, [*now.items(), *unused], strict=True):
            number.set(position=place, text=words)
        dots.set_sizes([min(4 * visits[pair], 60) for pair in middles])
        title.set_text(f"{view.training.choice.title}: after {view.at} back-propagations")

    return Part(update, [lit, *numbers, dots, board.frame, title])


def _curve(axes: Axes, lowest: float, shown: Callable[[View], tuple[str, Callable[[Accuracies], float]]]) -> Part:
    """Draw a number of a training over its back-propagations, and the same of another training, dashed.

    ``shown`` gives the name of the number for a view, and computes it from the accuracies.
    """
    [before] = axes.plot([], [], "--", color=GREY, label="the one before")
    [now] = axes.plot([], [], "o-", color=BLACK, markersize=4, label="this training")
    title = axes.text(0.0, 1.04, "mean", transform=axes.transAxes, fontsize=11)
    axes.set(xlim=(-10, BACKPROPS + 10), ylim=(lowest, 101))

    def update(view: View) -> None:
        name, of = shown(view)
        curve = view.training.curve(of, view.at)
        other = view.other.curve(of, BACKPROPS) if view.other else {}
        for line, points in ((now, curve), (before, other)):
            line.set_data([*points], [*points.values()])
        now.set_color(color_of(view.training.choice.title))
        title.set_text(f"{name}: {[*curve.values()][-1]:.1f} %")

    return Part(update, [before, now, title])


def still(training: Training) -> Figure:
    """Draw the end of a training, and the curve of W1A1."""
    return picture().still(View(training, training.steps, Bits(1, 1)))


def say(view: View) -> str:
    """The picture in one sentence."""
    accuracy = view.training.measured(view.at)
    lowest = min(sorted(accuracy), key=accuracy.__getitem__)
    return (
        f"{view.training.choice.title}, after {view.at} back-propagations: {len(view.visits)} of 75 pairs were "
        f"visited; mean {fmean(accuracy.values()):.1f} %, lowest {accuracy[lowest]:.1f} % at {lowest}; "
        f"{view.pair} {accuracy[view.pair]:.1f} %"
    )


def describe(view: View) -> str:
    """The numbers of a view, as HTML."""
    visits = view.visits
    ends = ", ".join(f"{pair} {visits[pair]} times" for pair in (FP, Bits(1, 1), view.pair))
    note = "Accuracy on validation images, norm statistics measured anew. Orange: visited since the picture before; "
    return card(say(view) + ".", f"Visits: {ends}. {note}a dot grows with the visits.")


class Visits(LiveTraining):
    """Trains when something else is chosen, and shows the pairs while they are visited.

    Args:
        start: the quantized network that every training starts from; it is copied.
        data: images and labels.
        functions: `sample_pairs`, `mebqat_loss` and `mebqat_step`, as the exercises of lesson 04 ask for them.
        known: trainings that were made already, by `compute` from the same network; they are not repeated, and the
            first of them is shown first.
    """

    pair = traitlets.Unicode("W1A1")

    def __init__(self, start: nn.Module, data: Data, functions: Functions, known: Sequence[Training] = ()) -> None:
        self.start, self.data, self.functions = start, data, functions
        self.trainings = {training.choice: training for training in known}
        self.moment = slider("back-propagations", BACKPROPS, 0, BACKPROPS, BEAT)
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
        choose_by_hand(self, candidates())

    def train(self, choice: Choice) -> Iterator[Training]:
        """Train a copy of the network as the choice says."""
        return train(copy.deepcopy(self.start), self.data, choice, self.functions)

    def view(self, moment: int, **choice: Any) -> View:
        """Show a training at a moment, or at its last one if it has not come so far."""
        self.controls["teacher"].disabled = choice["in_turn"]  # alone, a pair has nobody to learn from
        now = Choice(**choice | {"teacher": choice["teacher"] or choice["in_turn"]})
        self.follow(now, BACKPROPS)
        training, other = self.trainings[now], self.trainings.get(self.other)
        return View(training, min(moment, training.steps), Bits.parse(self.pair), other)


pair_visits = Visits  # as lessons call it
