"""A figure that follows its controls: drawn once by matplotlib, and after that only in its moving parts."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mebqat_lite.course.widgets.base import Live
from mebqat_lite.course.widgets.touch import Touch, nothing
from mebqat_lite.measure import plots

ABOVE = 10.0  # the order of drawing of the first moving part: above all that stays


@dataclass
class Drawing:
    """A figure whose moving parts follow a result. `LiveFigure` shows it live, and `plots.show` shows it still.

    Attributes:
        figure: the figure, with all of its parts in it.
        update: sets the moving parts to a result, and returns the picture in words, for those who do not see it. The
            words become the figure's label, which `plots.show` takes. It may change the rest too, such as the range of
            an axis, but then the whole figure is drawn again, which is slow.
        moving: the parts, within axes, that ``update`` changes. They are drawn in this order, above all others.
    """

    figure: Figure
    update: Callable[[Any], str]
    moving: Sequence[Artist]

    def __post_init__(self) -> None:
        for index, artist in enumerate(self.moving):
            artist.set_zorder(ABOVE + index)
        self.update = functools.partial(self._labelled, self.update)
        self._canvas: FigureCanvasAgg | None = None
        self._background: Any = None

    def _labelled(self, update: Callable[[Any], str], result: Any) -> str:
        words = update(result)
        self.figure.set_label(words)
        return words

    @property
    def width(self) -> int:
        """The width in the page, in CSS pixels, as `plots.show` has it."""
        return plots.pixels(self.figure)

    def png(self) -> bytes:
        """Draw the moving parts over the rest, which is drawn only if it changed, and return the picture as PNG."""
        canvas = self._canvas or self._start()
        if self._background is None or any(part.stale for part in self.figure.get_children()):
            canvas.draw()
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        canvas.restore_region(self._background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def _start(self) -> FigureCanvasAgg:
        """Take the figure from pyplot, which would show it beneath the cell, and its moving parts from the rest."""
        plt.close(self.figure)
        for artist in self.moving:
            artist.set_animated(True)  # so that a change of one does not count as a change of the figure
        self._canvas = FigureCanvasAgg(self.figure)
        return self._canvas

    def place(self, axes: Axes) -> list[float]:
        """Return ``[left, top, width, height]`` of axes as shares of the picture."""
        box = axes.get_window_extent().transformed(self.figure.transFigure.inverted())
        return [round(float(part), 4) for part in (box.x0, 1 - box.y1, box.width, box.height)]


class LiveFigure(Live):
    """Controls above one or more drawings, side by side, of what ``compute`` makes of the controls' values.

    Args:
        controls: widgets by the keywords of ``compute``.
        compute: a function without side effects; its last result is kept as ``result``.
        drawings: each is given the result.
        words: the numbers of a result as HTML, which stand beneath.
    """

    result: Any = None

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        compute: Callable[..., Any],
        *drawings: Drawing,
        words: Callable[[Any], str] = lambda result: "",
    ) -> None:
        self.drawings, self.describe = drawings, words
        narrower = {"flex": "0 1 auto", "min_width": "0"}  # on a narrow page
        self.pictures = [Touch(width=drawing.width, layout=narrower) for drawing in drawings]
        self.words = ipywidgets.HTML()
        self._touched: dict[int, tuple[Axes, Callable[[], bool]]] = {}
        super().__init__(controls, compute)
        self.parts[0].layout.max_width = f"{sum(drawing.width for drawing in drawings)}px"

    def empty(self) -> ipywidgets.Widget:
        """Make the widget that the drawings and the words go to."""
        return ipywidgets.VBox([ipywidgets.HBox(self.pictures), self.words])

    def _draw(self) -> None:
        for picture in self.pictures:
            picture.busy = True
        super()._draw()

    def show(self, result: Any) -> None:
        """Draw a result."""
        self.result = result
        for index, drawing in enumerate(self.drawings):
            words = drawing.update(result)
            self._hand_over(index, drawing.png(), words)
        self.words.value = self.describe(result)

    def clear(self) -> None:
        """Show nothing, after an error: an old picture would not be that of the controls."""
        for index in range(len(self.drawings)):
            self._hand_over(index, b"", "")
        self.words.value = ""

    def _hand_over(self, index: int, png: bytes, words: str) -> None:
        picture = self.pictures[index]
        with picture.hold_sync():  # all of it in one message
            picture.value, picture.alt, picture.busy = png, words, False
            picture.area = self._area(index) if png else []

    def _area(self, index: int) -> list[float]:
        """Where drawing number ``index`` can be touched now."""
        axes, can_touch = self._touched.get(index, (None, bool))
        return self.drawings[index].place(axes) if axes is not None and can_touch() else []

    def touch(
        self,
        axes: Axes,
        label: str,
        on_move: Callable[[float, float], None],
        on_key: Callable[[int, int], None] = nothing,
        on_press: Callable[[], None] = nothing,
        can_touch: Callable[[], bool] = lambda: True,
    ) -> None:
        """Let a hand touch the axes of one of the drawings.

        Args:
            axes: the axes; one for each drawing.
            label: what a touch does, in words that name the keys too.
            on_move: called with x and y, in the units of the axes, at a press and while the pointer is dragged.
            on_key: called with steps to the right and upwards: an arrow key is 1 step, with Shift 5.
            on_press: called for Enter and Space.
            can_touch: asked after each drawing whether the axes can be touched now.
        """
        [index] = [i for i, drawing in enumerate(self.drawings) if axes in drawing.figure.axes]
        picture, self._touched[index] = self.pictures[index], (axes, can_touch)

        def point(right: float, up: float) -> None:
            on_move(*to_data(axes, right, up))

        picture.on_point, picture.on_steps = self._guarded(point), self._guarded(on_key)
        picture.on_press = self._guarded(on_press)
        picture.label, picture.area = label, self._area(index)

    def _guarded(self, handler: Callable[..., None]) -> Callable[..., None]:
        """Wrap a handler so that its error is shown in place."""

        def handle(*place: Any) -> None:
            with self.showing_errors("touch"):
                handler(*place)

        return handle


def to_data(axes: Axes, right: float, up: float) -> tuple[float, float]:
    """Return x and y, in the units of the axes, of a place that is given in shares of the axes."""
    x, y = axes.transData.inverted().transform(axes.transAxes.transform((right, up)))
    return float(x), float(y)
