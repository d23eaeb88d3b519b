"""Lesson 02: a network trains through its rounding, and its weights are seen to move, or not to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from mebqat_lite.bits import Bits
from mebqat_lite.course.widgets.base import buttons, card, slider
from mebqat_lite.course.widgets.live import Drawing, LiveTraining, Part
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure import plots
from mebqat_lite.measure.evaluate import accuracy
from mebqat_lite.measure.looks import DARK, GREEN, GREY, PAGE, PALE, SKY, looks
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.switching.state import at

BITS = range(1, 5)
STEPS, EVERY = 60, 5  # of training; validation images are classified after every fifth step
LR = 0.01
HIDDEN = ("body.0.0", "body.1.0", "body.2.0")  # the layers of a digit net that are quantized
WATCHED = "body.1.0"
SHOWN = 40  # weights whose paths are drawn
NEAR = 0.03  # of a step: so near to a threshold a weight counts as lying at it


@dataclass(frozen=True)
class Trace:
    """What happened in training so far. Entry 0 of each list is that before the first step."""

    quantizer: str  # its registered name
    bits: int
    places: Tensor  # (steps + 1, weights): where each weight of the watched layer lies, from -1 to 1
    losses: tuple[float, ...]  # (steps + 1,), of all training images
    right: Mapping[int, float]  # validation images that are classified correctly, in percent, by step

    @property
    def steps(self) -> int:
        """How many steps were trained."""
        return len(self.losses) - 1

    @property
    def levels(self) -> int:
        """How many steps there are between the lowest level, -1, and the highest, 1."""
        return 2**self.bits - 1

    def codes(self, step: int) -> Tensor:
        """The level of each weight after a step, (weights,), counted from 0."""
        return self._stairs(step).round()

    def changed(self, step: int) -> int:
        """How many weights have another level than at the start."""
        return int((self.codes(step) != self.codes(0)).sum())

    def near(self, step: int) -> int:
        """How many weights lie at a threshold, which is within `NEAR` of a step."""
        stairs = self._stairs(step)
        inside = (stairs > 0.5 - NEAR) & (stairs < self.levels - 0.5 + NEAR)
        return int((inside & ((stairs % 1 - 0.5).abs() < NEAR)).sum())

    def _stairs(self, step: int) -> Tensor:
        return (self.places[step] + 1) / 2 * self.levels


def train(model: nn.Module, quantizer: str, bits: int, data: Data, steps: int = STEPS) -> Iterator[Trace]:
    """Train the hidden weights of a copy of a digit net, with all training images in each step.

    Nothing else learns: neither the norms nor the first and the last layer.

    Args:
        model: the network to start from.
        quantizer: the registered name of a quantizer, which rounds weights and activations.
        bits: of the weights and the activations.
        data: its training images are learned, and its validation images are classified.
        steps: how many steps of Adam.

    Yields:
        What happened so far: before the first step, and after each step.
    """
    pair, images = Bits(bits, bits), data.train.images
    net = quantize(copy.deepcopy(model), quantizer, sample=images)
    weights = [net.get_parameter(f"{name}.weight") for name in HIDDEN]
    optimizer = torch.optim.Adam(weights, lr=LR)
    places: list[Tensor] = []
    losses: list[float] = []
    right: dict[int, float] = {}
    for step in range(steps + 1):
        net.train()
        with at(net, pair):
            loss = F.cross_entropy(net(images), data.train.labels)
        places.append(place(net.get_parameter(f"{WATCHED}.weight")))
        losses.append(loss.item())
        if step % EVERY == 0:
            recalibrate(net, images, pair)
            right[step] = accuracy(net, data.val, pair, "recalibrated")
        yield Trace(quantizer, bits, torch.stack(places), tuple(losses), dict(right))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def place(w: Tensor) -> Tensor:
    """Where DoReFa puts weights between its lowest level, -1, and its highest, 1: (weights,), tanh w / max|tanh w|."""
    squashed = torch.tanh(w.detach()).flatten()
    return squashed / squashed.abs().max()


def compute(model: nn.Module, quantizer: str, bits: int, data: Data, steps: int = STEPS) -> Trace:
    """Train to the last step; the arguments are those of `train`."""
    *_, trace = train(model, quantizer, bits, data, steps)
    return trace


THRESHOLD: dict[str, Any] = {"color": DARK, "linewidth": 1, "linestyle": (0, (4, 2))}
WEIGHTS = {"a weight": {"color": GREY}, "with a new level": {"color": GREEN}, "threshold": THRESHOLD}
EDGES = torch.linspace(-1, 1, 82)  # of the bars
LENGTH = STEPS * 1.02  # of the axes of steps


@dataclass(frozen=True)
class View:
    """A moment of a training, with the other training at the same bits beside it."""

    title: str
    trace: Trace
    step: int
    curves: Mapping[str, Trace]  # by title: whose loss and accuracy are drawn


def picture(titles: tuple[str, ...]) -> Drawing:
    """Draw the paths of the weights, how all weights are spread, and the curves of loss and accuracy.

    The drawing takes a `View`; ``titles`` are those of all trainings that it may show.
    """
    with plots.style():
        figure = plt.figure(figsize=(PAGE, 4.0))
        grid = figure.add_gridspec(2, 3, width_ratios=(3, 1, 2.4))
        paths, spread = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
        above, beneath = (figure.add_subplot(grid[row, 2]) for row in range(2))
        above.set(ylabel="loss", ylim=(0, 2.6), xticklabels=[])
        beneath.set(ylabel="validation (%)", ylim=(0, 103), xlabel="training step")
        weights = [_levels(paths, LENGTH), _paths(paths), _levels(spread, 130), _spread(spread)]
        loss = _curves(above, titles, lambda trace: dict(enumerate(trace.losses)))
        right = _curves(beneath, titles, lambda trace: trace.right)
        handles = [Line2D([], [], label=words, **look) for words, look in WEIGHTS.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        figure.legend(handles=above.lines, loc="outside upper right", ncols=2)
    return Drawing(figure, say, *weights, loss, right)


def _levels(axes: Axes, end: float) -> Part:
    """Draw an axis from the lowest to the highest level, with the levels and the thresholds between them."""
    levels, thresholds = LineCollection([], colors=PALE, linewidths=3), LineCollection([], **THRESHOLD)
    for lines in (levels, thresholds):
        axes.add_collection(lines, autolim=False)
    axes.set(xlim=(0, end), ylim=(-1.06, 1.06), yticks=[-1, 0, 1])
    axes.grid(visible=False)

    def update(view: View) -> None:
        count = view.trace.levels
        levels.set_segments([[(0, y), (end, y)] for y in (2 * code / count - 1 for code in range(count + 1))])
        thresholds.set_segments([[(0, y), (end, y)] for y in ((2 * code + 1) / count - 1 for code in range(count))])

    return Part(update, [levels, thresholds])


def _paths(axes: Axes) -> Part:
    """Draw the way of some weights, step after step, green if the weight has another level by now."""
    paths, ends = LineCollection([], linewidths=1), axes.scatter([], [], s=9)
    axes.add_collection(paths, autolim=False)
    axes.set(xlabel="training step", ylabel="weights between lowest and highest level")

    def update(view: View) -> None:
        trace = view.trace
        some = torch.linspace(0, trace.places.shape[1] - 1, SHOWN).long()
        ways = trace.places[: view.step + 1, some].T.tolist()
        is_new = trace.codes(view.step)[some] != trace.codes(0)[some]
        colors = [GREEN if new else GREY for new in is_new.tolist()]
        paths.set_segments([list(enumerate(way)) for way in ways])
        paths.set_colors(colors)
        ends.set_offsets([(view.step, way[-1]) for way in ways])
        ends.set_color(colors)

    return Part(update, [paths, ends])


def _spread(axes: Axes) -> Part:
    """Draw how all weights of the layer are spread over the same axis, now and at the start."""
    edges, nothing = EDGES.numpy(), [0.0] * (len(EDGES) - 1)
    horizontal: dict[str, Any] = {"orientation": "horizontal", "baseline": 0}
    now = axes.stairs(nothing, edges, fill=True, color=SKY, label="now", **horizontal)
    start = axes.stairs(nothing, edges, color=DARK, linewidth=1.2, label="start", **horizontal)
    axes.set(xlabel="weights", yticklabels=[])
    axes.legend(loc="upper right", bbox_to_anchor=(1.08, 1.0))

    def update(view: View) -> None:
        for bars, step in ((now, view.step), (start, 0)):
            bars.set_data(torch.histogram(view.trace.places[step].contiguous(), EDGES)[0].numpy())

    return Part(update, [now, start])


def _curves(axes: Axes, titles: tuple[str, ...], of: Callable[[Trace], Mapping[int, float]]) -> Part:
    """Draw a curve for each title: that of the view up to its step, and the others to their end."""
    curves = {title: axes.plot([], [], label=title, **look)[0] for title, look in looks(titles).items()}
    axes.set(xlim=(0, LENGTH))

    def update(view: View) -> None:
        for title, line in curves.items():
            known = of(view.curves[title]) if title in view.curves else {}
            shown = [step for step in known if title != view.title or step <= view.step]
            line.set_data(shown, [known[step] for step in shown])
            line.set_markevery(max(1, len(shown) // 6))

    return Part(update, [*curves.values()])


def still(curves: Mapping[str, Trace]) -> Figure:
    """Draw the end of the last training of ``curves``, which are all at the same bits, with the others beside it."""
    title = [*curves][-1]
    return picture(tuple(curves)).still(View(title, curves[title], curves[title].steps, curves))


def losses(curves: Mapping[str, Trace]) -> Figure:
    """Draw the loss of trainings, by title, over their steps, on axes that begin at 0."""
    steps = range(next(iter(curves.values())).steps + 1)
    lines = {title: trace.losses for title, trace in curves.items()}
    figure = plots.lines(steps, lines, xlabel="training step", ylabel="loss of all training images")
    figure.axes[0].set_ylim(0, 1.2 * max(max(line) for line in lines.values()))
    ends = (f"{title} from {line[0]:.2f} to {line[-1]:.2f}" for title, line in lines.items())
    figure.set_label("Loss over training: " + ", ".join(ends))
    return figure


def say(view: View) -> str:
    """The picture in one sentence."""
    trace, step = view.trace, view.step
    last = max(known for known in trace.right if known <= step)
    return (
        f"W{trace.bits}A{trace.bits}, {view.title}, step {step}: loss {trace.losses[step]:.2f}, "
        f"{trace.right[last]:.1f} % of the validation images right; {trace.changed(step)} of "
        f"{trace.places.shape[1]} weights have a new level, {trace.near(step)} lie at a threshold"
    )


def describe(view: View) -> str:
    """The numbers of a view and of its start, as HTML."""
    trace = view.trace
    start = f"At the start: loss {trace.losses[0]:.2f}, {trace.right[0]:.1f} %, {trace.near(0)} weights at a threshold"
    return card(say(view) + ".", f"{start} (within {100 * NEAR:.0f} % of a step).")


class Trainings(LiveTraining):
    """Trains when another rounding or other bits are chosen, and shows the weights while they move.

    Args:
        quantizers: the registered names of quantizers, by the words for them; the last one is chosen at the start.
        model: a digit net to start from; it is copied.
        data: images of digits.
    """

    def __init__(self, quantizers: Mapping[str, str], model: nn.Module, data: Data) -> None:
        self.names, self.model, self.data = dict(quantizers), model, data
        self.trainings: dict[tuple[str, int], Trace] = {}
        self.moment = slider("training step", 0, 0, STEPS)
        controls = {
            "rounding": buttons("rounding", list(quantizers), [*quantizers][-1]),
            "bits": slider("bitwidth (bits)", 2, BITS[0], BITS[-1]),
            "step": self.moment,
        }
        super().__init__(controls, self.view, picture(tuple(quantizers)), words=describe)

    def train(self, choice: tuple[str, int]) -> Iterator[Trace]:
        """Train with a rounding and bits."""
        rounding, bits = choice
        return train(self.model, self.names[rounding], bits, self.data, STEPS)

    def view(self, rounding: str, bits: int, step: int) -> View:
        """Show a training at a step, or at its last one if it has not come so far."""
        self.follow((rounding, bits), STEPS)
        trace = self.trainings[rounding, bits]
        known = {title: self.trainings[title, bits] for title in self.names if (title, bits) in self.trainings}
        return View(rounding, trace, min(step, trace.steps), known)


straight_through = Trainings  # as lessons call it
