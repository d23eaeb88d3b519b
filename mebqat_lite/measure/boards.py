"""Draw numbers on coloured cells: tables, and the bitwidth pairs as a board whose values can change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from mebqat_lite.bits import FULL, WIDTHS, Bits, BitsLike
from mebqat_lite.learners import Classes
from mebqat_lite.measure.looks import LIGHT, PAGE, SMALLEST, VERMILION, WHITE, ink, pale, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

ACCURACY = Classes.measure
MIDDLE: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALLEST}
EMPTY: dict[bool, dict[str, Any]] = {  # cells without a value: of candidate pairs, and of the others
    True: {"facecolor": pale(LIGHT)},
    False: {"facecolor": WHITE, "hatch": "////"},
}


def tables(
    panels: Mapping[str, Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    xlabel: str = "",
    ylabel: str = "",
    limits: tuple[float, float] | None = None,
    decimals: int = 0,
    colours: str = "cividis",
) -> Figure:
    """Show tables of numbers, (rows, columns) each, on one scale of colours; NaN is an empty cell.

    Two stand side by side where their numbers fit.
    """
    values = {title: np.asarray(panel, dtype=float) for title, panel in panels.items()}
    low, high = limits or (min(map(np.nanmin, values.values())), max(map(np.nanmax, values.values())))
    wide, size = _room(values, rows, columns, decimals)
    tall = -(-len(values) // wide)
    with style(), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(tall, wide, figsize=(size[0], tall * size[1]), squeeze=False)
        for cell, (title, panel) in zip(axes.flat, values.items(), strict=False):
            image = cell.imshow(panel, cmap=colours, vmin=low, vmax=high, aspect="auto")
            _numbers(cell, panel, image, decimals)
            cell.set_xticks(range(len(columns)), columns)
            cell.set_yticks(range(len(rows)), rows)
            cell.set_title(title)
        for cell in axes.flat[len(values) :]:
            cell.remove()
        for cell in axes[:, 0]:
            cell.set_ylabel(ylabel)
        for cell in axes.flat[max(len(values) - wide, 0) : len(values)]:
            cell.set_xlabel(xlabel)
        figure.colorbar(image, ax=figure.axes, label=label)
    return figure


def _room(
    values: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], decimals: int
) -> tuple[int, tuple[float, float]]:
    """Find how many tables stand side by side, and the inches of their row: two if their numbers fit on the page."""
    numbers = [f"{value:.{decimals}f}" for panel in values.values() for value in panel.flat if np.isfinite(value)]
    narrow = 0.04 + 0.08 * max(map(len, [*numbers, *columns]))  # a letter of 9 points takes 0.08 inches
    wide = min(len(values), 2 if 2 * (0.5 + narrow * len(columns)) + 0.75 <= PAGE else 1)
    each = max(0.36, narrow + 0.1)
    names = 0.1 * max(map(len, rows))
    return wide, (min(1.0 + wide * (names + 0.5 + each * len(columns)), PAGE), 0.9 + 0.28 * len(rows))


def _numbers(axes: Axes, panel: np.ndarray, image: Any, decimals: int) -> None:
    """Write the numbers of a table into its cells, in letters that can be read on their colours."""
    for (row, column), value in np.ndenumerate(panel):
        if np.isfinite(value):
            color = ink(image.cmap(image.norm(value)))
            axes.text(column, row, f"{value:.{decimals}f}", color=color, **MIDDLE)


@dataclass
class Board:
    """A figure of the pairs as a board, whose values can be changed after it was drawn.

    ``figure`` is what is shown. ``moving`` lists the artists that `update` changes; all others stay as they are.
    """

    figure: Figure
    axes: Axes
    cells: PatchCollection  # the coloured cells of all 100 combinations, row by row
    texts: dict[Bits, Text]  # the numbers of all combinations
    frame: Rectangle  # around the chosen pair
    decimals: int = 0

    @property
    def moving(self) -> list[Artist]:
        """The cells, their numbers and the frame, in the order in which they are drawn."""
        return [self.cells, *self.texts.values(), self.frame]

    def update(self, values: Mapping[Any, float], chosen: BitsLike | None = None) -> str:
        """Show other values, by pair, and a frame around the ``chosen`` pair, and say in words what is shown.

        A pair without a value, or with NaN, is an empty cell. The words are also the figure's label, which `plots.show`
        takes as alternative text.

        Raises:
            ValueError: a pair has a width that is not on the board.
        """
        known = {_on_board(pair): float(value) for pair, value in values.items()}
        shown = np.array([known.get(pair, math.nan) for pair in self.texts])
        self.cells.set_array(np.ma.masked_invalid(shown))
        for text, value in zip(self.texts.values(), shown, strict=True):
            words = f"{value:.{self.decimals}f}" if np.isfinite(value) else ""
            text.set(text=words, color=ink(self.cells.cmap(self.cells.norm(value))))
        self.choose(chosen)
        words = self._words({pair: value for pair, value in known.items() if np.isfinite(value)}, chosen)
        self.figure.set_label(words)
        return words

    def choose(self, chosen: BitsLike | None) -> None:
        """Put the frame around a pair, or hide it for None.

        Raises:
            ValueError: the pair has a width that is not on the board.
        """
        self.frame.set_visible(chosen is not None)
        if chosen is not None:
            pair = _on_board(chosen)
            self.frame.set(xy=_corner(pair), linestyle="-" if pair.is_candidate else "--")

    def _words(self, known: Mapping[Bits, float], chosen: BitsLike | None) -> str:
        """Say how many pairs there are, the lowest and the highest value, and that of the chosen pair."""
        told = f"{self.axes.get_title()}: {len(known)} pairs".removeprefix(": ")
        if known:
            low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            told += f", from {known[low]:.{self.decimals}f} at {low} to {known[high]:.{self.decimals}f} at {high}"
        if chosen is None:
            return told
        pair = Bits.parse(chosen)
        return f"{told}; {pair}: {known[pair]:.{self.decimals}f}" if pair in known else f"{told}; {pair}: no value"

    def at(self, x: float, y: float) -> Bits | None:
        """Find the pair at a point, as `pair_at` does."""
        return pair_at(x, y)


GAP = 0.3  # cells between 16 bits and full precision


def _on_board(pair: BitsLike) -> Bits:
    bits = Bits.parse(pair)
    if bits.w not in WIDTHS or bits.a not in WIDTHS:
        raise ValueError(f"{bits} has no place on the board, whose widths are {', '.join(map(str, WIDTHS))}")
    return bits


def _corner(pair: Bits) -> tuple[float, float]:
    """The left upper corner of a pair's cell: activation bits rise to the right, weight bits downwards."""
    x, y = (WIDTHS.index(bits) + GAP * (bits == FULL) for bits in (pair.a, pair.w))
    return x, y


def pair_at(x: float, y: float) -> Bits | None:
    """Find the pair whose cell holds a point in the coordinates of a board's axes, or None beside the cells."""
    widths = {}
    for name, value in (("a", x), ("w", y)):
        for bits in WIDTHS:
            if 0 <= value - _corner(Bits(bits, bits))[0] < 1:
                widths[name] = bits
    return Bits(**widths) if len(widths) == 2 else None


def board(
    values: Mapping[Any, float],
    title: str = "",
    *,
    chosen: BitsLike | None = None,
    measure: str = ACCURACY,
    limits: tuple[float, float] | None = None,
    decimals: int = 0,
) -> Board:
    """Draw the values of the 75 pairs on a board: weight bits downwards, activation bits across, full precision apart.

    Hatched cells are combinations that are no candidate pairs (ECCV 2022, section 4.1).

    Args:
        values: by pair, such as ``{"W2A4": 97.0}`` or ``grid(...)["mean"]``; a pair without a value is an empty cell.
        title: what stands above the board.
        chosen: a pair that gets a frame.
        measure: what the values are, with the unit.
        limits: the values at the two ends of the colours; by default the tens below and above all values.
        decimals: digits after the point.
    """
    known = [value for _, value in values.items() if np.isfinite(value)]  # of a series, `values` is no method
    low, high = limits or (10 * math.floor(min(known, default=0) / 10), 10 * math.ceil(max(known, default=100) / 10))
    with style(), plt.rc_context({"axes.grid": False}):
        drawn = board_on(plt.subplots(figsize=(PAGE, 4.6))[1], (low, max(high, low + 1)), title, decimals)
        drawn.figure.colorbar(drawn.cells, label=measure)
    drawn.update(values, chosen)
    return drawn


def board_on(axes: Axes, limits: tuple[float, float], title: str = "", decimals: int = 0) -> Board:
    """Draw a `board` without values on axes that may be a part of a figure, with no scale of colours beside it."""
    pairs = [Bits(w, a) for w in WIDTHS for a in WIDTHS]
    for pair in pairs:
        axes.add_patch(Rectangle(_corner(pair), 1, 1, edgecolor=LIGHT, linewidth=0, **EMPTY[pair.is_candidate]))
    tiles = [Rectangle(_corner(pair), 1, 1) for pair in pairs]
    cells = PatchCollection(tiles, cmap="cividis", edgecolor=WHITE, linewidth=1)
    cells.set_clim(*limits)
    axes.add_collection(cells)
    frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, zorder=5)
    axes.add_patch(frame)
    corners = {pair: _corner(pair) for pair in pairs}
    texts = {pair: axes.text(x + 0.5, y + 0.5, "", **MIDDLE) for pair, (x, y) in corners.items()}
    _board_axes(axes, title)
    return Board(axes.figure.figure, axes, cells, texts, frame, decimals)


def _board_axes(axes: Axes, title: str) -> None:
    """Name the widths at the upper and the left side of a board."""
    places, names = [_corner(Bits(w, w))[0] + 0.5 for w in WIDTHS], [_width(w) for w in WIDTHS]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    end = len(WIDTHS) + GAP
    axes.set(xlim=(0, end), ylim=(end, 0), title=title, xlabel="activation bits", ylabel="weight bits")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _width(bits: int) -> str:
    return "FP" if bits == FULL else str(bits)


def heat_map(frame: pd.DataFrame, title: str = "") -> Figure:
    """Draw what a grid measured at many pairs as a `board`."""
    rows = zip(frame["w"], frame["a"], frame["mean"], strict=True)
    values = {Bits(int(w), int(a)): float(mean) for w, a, mean in rows}
    return board(values, title, measure=frame.attrs.get("measure", ACCURACY)).figure
