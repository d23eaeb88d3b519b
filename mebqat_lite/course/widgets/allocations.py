"""Lesson 08: bits for each layer, of one network for all pairs beside a rounded one, and what they cost and read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from mebqat_lite.bits import Bits
from mebqat_lite.course.widgets.base import buttons, card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure import plots
from mebqat_lite.measure.costs import by_layer
from mebqat_lite.measure.evaluate import scores
from mebqat_lite.measure.looks import BLACK, DARK, LIGHT, PAGE, SKY, WHITE, looks, pale
from mebqat_lite.switching.state import quantized_layers

WIDTHS = (1, 2, 3, 4)  # bits that the weights of a layer may have
ACTIVATIONS = 4  # bits of all activations
MEASURED = 256  # training images on which norm statistics are measured
TOUCH = "the bits: click a cell, or take the arrow keys: up and down for the layer, left and right for its bits"
Choice = tuple[int, ...]  # the weight bits of each layer
HALO = [withStroke(linewidth=3, foreground=WHITE)]  # so that numbers can be read on lines and points


@dataclass(frozen=True)
class Search:
    """All allocations of some networks, each measured on the validation images with norm statistics of its own.

    Attributes:
        layers: the number of weights of each layer whose bits are chosen, by its name.
        accuracy: ``accuracy[title][choice]`` in percent.
        costs: by choice, ``bytes`` and ``bitops`` of these layers, and ``bitops of all`` layers, for an image.
    """

    layers: dict[str, int]
    accuracy: dict[str, dict[Choice, float]]
    costs: dict[Choice, dict[str, int]]
    data: Data = field(repr=False)
    networks: dict[str, nn.Module] = field(repr=False)

    def confirm(self, choice: Choice) -> dict[str, float]:
        """Measure an allocation on the test images, in percent, by title."""
        test = self.data.test
        return {title: _measure(net, self.data, test, [choice])[choice] for title, net in self.networks.items()}


def search(networks: Mapping[str, nn.Module], data: Data) -> Search:
    """Measure all allocations of `WIDTHS` to the layers of some networks of the same shape, which do not change.

    Raises:
        DataError: the labels of the data are no classes.
    """
    data.val.of_classes("the widget of bits for each layer")
    first = next(iter(networks.values()))
    sites = quantized_layers(first).items()
    layers = {name: layer.weight.numel() for name, layer in sites if layer.site.role == "body"}
    choices = list(itertools.product(WIDTHS, repeat=len(layers)))
    accuracy = {title: _measure(net, data, data.val, choices) for title, net in networks.items()}
    costs = {choice: _costs(first, data.val.images[0], choice) for choice in choices}
    return Search(layers, accuracy, costs, data, dict(networks))


def setting(model: nn.Module, choice: Sequence[int]) -> dict[str, Bits]:
    """The map of layers to pairs that `mq.at` takes, for these weight bits of the layers in the body."""
    names = [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"]
    return {name: Bits(bits, ACTIVATIONS) for name, bits in zip(names, choice, strict=True)}


def _measure(model: nn.Module, data: Data, split: Split, choices: Sequence[Choice]) -> dict[Choice, float]:
    """The accuracy of allocations in percent; their norm statistics are measured on the training images."""
    maps = [setting(model, choice) for choice in choices]
    return dict(zip(choices, scores(model, split, maps, calibration=data.train.images[:MEASURED]), strict=True))


def _costs(model: nn.Module, image: Tensor, choice: Choice) -> dict[str, int]:
    table = by_layer(model, image, setting(model, choice))
    inside = table[~table.edge]
    found = {"bytes": inside.bytes, "bitops": inside.bitops, "bitops of all": table.bitops}
    return {name: int(column.sum()) for name, column in found.items()}


@dataclass(frozen=True)
class AllocationResult:
    """One allocation: what it costs and what the networks read with it."""

    choice: Choice
    costs: dict[str, int]  # as in `Search`, and ``file``: bytes, with all that is no code
    accuracy: dict[str, float]  # percent of the validation images, by title


def compute(found: Search, rest: int, choice: Sequence[int]) -> AllocationResult:
    """Look an allocation up. ``rest`` is the bytes of a file that are no codes.

    Raises:
        ValueError: the choice is not among those that were measured.
    """
    key = tuple(choice)
    if key not in found.costs:
        raise ValueError(f"choose {len(found.layers)} of the widths {', '.join(map(str, WIDTHS))}, not {key}")
    costs = found.costs[key]
    accuracy = {title: row[key] for title, row in found.accuracy.items()}
    return AllocationResult(key, costs | {"file": costs["bytes"] + rest}, accuracy)


def picture(found: Search) -> Drawing:
    """Draw the bits of each layer as a board, and the accuracy of all allocations over the bytes of their codes.

    The drawing takes results of `compute`. Its first axes are those of the board: a row for each layer, one unit high,
    and a column for each of `WIDTHS`.
    """
    with plots.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3.7), width_ratios=(1, 1.9))
        parts = _board(left, found.layers), _cloud(right, found)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Drawing(figure, say, *parts)


def _board(axes: Axes, layers: Mapping[str, int]) -> Part:
    """Draw a row of cells for each layer; the cells up to its bits are filled."""
    cells = {
        (row, bits): axes.add_patch(Rectangle((i + 0.06, row + 0.15), 0.88, 0.7, edgecolor=DARK))
        for row in range(len(layers))
        for i, bits in enumerate(WIDTHS)
    }
    axes.set(xlim=(0, len(WIDTHS)), ylim=(len(layers), 0), title="weight bits of each layer")
    axes.set_xticks([i + 0.5 for i in range(len(WIDTHS))], map(str, WIDTHS))
    names = [f"layer {row}\n{count:,} weights" for row, count in enumerate(layers.values(), 1)]
    axes.set_yticks([row + 0.5 for row in range(len(layers))], names)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)

    def update(result: AllocationResult) -> None:
        for (row, bits), cell in cells.items():
            cell.set_facecolor(SKY if bits <= result.choice[row] else LIGHT)

    return Part(update, [*cells.values()])


def _cloud(axes: Axes, found: Search) -> Part:
    """Draw a point for each allocation, a line through those of equal bits, and a mark on the chosen one."""
    marks, words, styles = {}, {}, looks(found.accuracy)
    uniform = [(bits,) * len(found.layers) for bits in WIDTHS]
    for title, row in reversed(found.accuracy.items()):  # the first one lies above the others
        look = {"color": styles[title]["color"], "marker": styles[title]["marker"]}
        dots = {"color": pale(look["color"], 0.5), "marker": look["marker"], "linestyle": "none", "markersize": 4}
        axes.plot([found.costs[c]["bytes"] for c in row], list(row.values()), **dots)
        sizes = [found.costs[c]["bytes"] for c in uniform]
        axes.plot(sizes, [row[c] for c in uniform], label=f"{title}; line: equal bits", **styles[title])
        [marks[title]] = axes.plot([], [], markeredgecolor=BLACK, markersize=13, **look)
        bold = {"color": look["color"], "fontweight": "bold", "ha": "center", "path_effects": HALO}
        words[title] = axes.annotate("", (0, 0), (0, 0), textcoords="offset points", **bold)
    title = f"all {len(found.costs)} allocations"
    axes.set(xlabel="bytes of the codes", ylabel="accuracy (%), validation", title=title)
    axes.set_ylim(min(min(row.values()) for row in found.accuracy.values()) - 4, 104)
    axes.margins(x=0.12)

    def update(result: AllocationResult) -> None:
        size, best = result.costs["bytes"], max(result.accuracy, key=result.accuracy.__getitem__)
        for title, value in result.accuracy.items():
            marks[title].set_data([size], [value])
            words[title].xy = (size, value)
            # The number of the best one stands above it, and the others beneath, so that none meet.
            place, side = ((0, 9), "bottom") if title == best else ((0, -9), "top")
            words[title].set(text=f"{value:.1f}", position=place, va=side)

    return Part(update, [*marks.values(), *words.values()])


def say(result: AllocationResult) -> str:
    """The picture in one sentence."""
    read = ", ".join(f"{title} {value:.1f} %" for title, value in result.accuracy.items())
    return f"weight bits {' '.join(map(str, result.choice))}, {result.costs['bytes']:,} bytes of codes: {read}"


def describe(result: AllocationResult) -> str:
    """The numbers of a result, as HTML."""
    costs = result.costs
    return card(
        f"<b>{say(result)}</b> of the validation images",
        f"the whole file: {costs['file']:,} bytes; bit operations for an image: {costs['bitops']:,} in these layers, "
        f"{costs['bitops of all']:,} in all",
    )


def still(found: Search, rest: int, choice: Sequence[int]) -> Figure:
    """Draw one allocation among all, as a figure that is labelled with what it shows."""
    return picture(found).still(compute(found, rest, choice))


class Allocations(LiveFigure):
    """The widget: choose the bits of each layer, and confirm one choice on the test images.

    Args:
        found: what `search` found.
        rest: the bytes of a file that are no codes.
    """

    def __init__(self, found: Search, rest: int) -> None:
        self.found, self.row = found, 0
        self.confirming = self.button("confirm on the test images (works once)", self._confirm)
        self.confirmed = ipywidgets.HTML()
        controls = {f"layer {i}": buttons(f"layer {i}", WIDTHS, 2) for i in range(1, len(found.layers) + 1)}
        drawing = picture(found)
        super().__init__(controls, lambda **bits: compute(found, rest, [*bits.values()]), drawing, words=describe)
        self.children = [*self.parts, self.confirming, self.confirmed]
        self.touch(drawing.figure.axes[0], TOUCH, lambda x, y: self._put(int(y), int(x) + 1), self._key)

    def _put(self, row: int, bits: int) -> None:
        self.row = int(np.clip(row, 0, len(self.controls) - 1))
        self.controls[f"layer {self.row + 1}"].value = int(np.clip(bits, WIDTHS[0], WIDTHS[-1]))

    def _key(self, right: int, up: int) -> None:
        row = int(np.clip(self.row - up, 0, len(self.controls) - 1))
        self._put(row, self.result.choice[row] + right)

    def _confirm(self) -> None:
        """Measure the present choice on the test images, and never another one."""
        if self.confirming.disabled:
            return
        self.confirming.disabled = True
        read = self.found.confirm(self.result.choice)
        rows = (f"{t}: {self.result.accuracy[t]:.1f} % of the validation images, {v:.1f} % of the test images"
                for t, v in read.items())  # fmt: skip
        self.confirmed.value = card(f"<b>bits {' '.join(map(str, self.result.choice))}, confirmed</b>", *rows)


layer_bits = Allocations  # as lessons call it
