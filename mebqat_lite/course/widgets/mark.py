"""A guess that is marked on the axes of a figure, and the mark beside the truth when it is revealed."""

from __future__ import annotations

from typing import Any

import traitlets
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mebqat_lite.course.widgets.base import card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part, to_data
from mebqat_lite.measure.looks import BLACK

Value = float | None
STEP = 0.02  # of an axis, for an arrow key
LINE: dict[str, Any] = {"color": BLACK, "linestyle": (0, (1, 1.5)), "linewidth": 2}
ENDS: dict[str, tuple[str, str, tuple[int, int]]] = {  # where the words stand: how they are aligned, and points from it
    "y": ("right", "bottom", (-4, 2)),
    "x": ("left", "top", (4, -2)),
}
ASK = "Click in the figure to mark your guess, or press Tab until it has a frame and move the mark with the arrow keys."


class Mark:
    """A guess as it is drawn everywhere: a dotted line across the axes, and the words for it.

    ``axis`` is "y" or "x", as in `MarkOnAxes`. While the value is None, nothing is seen. Axes that scale themselves
    grow until they hold the value.
    """

    def __init__(self, axes: Axes, axis: str = "y", value: Value = None) -> None:
        if axis not in ENDS:
            raise ValueError(f'axis is {axis!r}; take "y" for a level or "x" for a position')
        self.axis = axis
        across = axes.get_xaxis_transform() if axis == "x" else axes.get_yaxis_transform()
        self.line = axes.add_line(Line2D([], [], transform=across, **LINE))
        ha, va, offset = ENDS[axis]
        look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "ha": ha, "va": va}
        self.words = axes.annotate("", (0.0, 0.0), offset, across, **look)
        self.artists = [self.line, self.words]
        if value is not None:
            axes.update_datalim([(value, value)], updatex=axis == "x", updatey=axis == "y")
            axes.autoscale_view()
        self.move(value)

    def move(self, value: Value) -> None:
        """Move the mark to a value, or hide it for None."""
        for artist in self.artists:
            artist.set_visible(value is not None)
        if value is not None:
            ends = [(value, 0.0), (value, 1.0)] if self.axis == "x" else [(0.0, value), (1.0, value)]
            self.line.set_data(*zip(*ends, strict=True))
            self.words.xy = ends[1]
            self.words.set_text(_words(value))


class MarkOnAxes(LiveFigure):
    """Ask for a guess, which is marked in a figure by pointer or keys: ``value`` is None until then.

    Args:
        axes: where the mark is placed; the rest of their figure is shown as it is.
        axis: "y" for a level or "x" for a position. The value is in the units of this axis.
    """

    value = traitlets.Any(None)

    def __init__(self, axes: Axes, axis: str = "y") -> None:
        self.axes, self.axis, self.place = axes, axis, (0.5, 0.5)
        self.mark = Mark(axes, axis)
        drawing = Drawing(axes.figure.figure, self._say, Part(self.mark.move, self.mark.artists))
        super().__init__({}, lambda: self.value, drawing, words=lambda value: card(_words(value)))
        self.touch(axes, "mark your guess", self._move, self._key, lambda: self._put(*self.place))
        self.observe(self.update, "value")

    def _say(self, value: Value) -> str:
        return ", ".join(filter(None, (self.axes.get_title(), _words(value))))

    def _move(self, x: float, y: float) -> None:
        to_share = self.axes.transAxes.inverted()
        right, up = to_share.transform(self.axes.transData.transform((x, y)))
        self._put(float(right), float(up))

    def _key(self, right: int, up: int) -> None:
        """Move the mark by steps along its axis; the first key sets it down in the middle and moves it from there."""
        self._put(*(min(max(part + STEP * by, 0.0), 1.0) for part, by in zip(self.place, (right, up), strict=True)))

    def _put(self, right: float, up: float) -> None:
        self.place = (right, up)
        self.value = to_data(self.axes, right, up)["xy".index(self.axis)]


def _words(value: Value) -> str:
    """A guess in words, or how to mark one."""
    return ASK if value is None else f"your guess: {value:,.4g}"
