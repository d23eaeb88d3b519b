"""A figure that follows its controls: drawn once by matplotlib, and after that only in its moving parts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mebqat_lite.course.widgets.base import error_box
from mebqat_lite.course.widgets.touch import Touch, nothing
from mebqat_lite.measure import plots

LOG = logging.getLogger(__name__)
ABOVE = 10.0  # the order of drawing of the first moving artist: above all that stays
NARROWER = {"flex": "0 1 auto", "min_width": "0"}  # what a picture is on a narrow page


class Part(NamedTuple):
    """A part of a figure that follows a result.

    ``update`` sets the ``moving`` artists, which lie within axes, to a result. It may change the rest too, such as the
    range of an axis, but then the whole figure is drawn again, which is slow.
    """

    update: Callable[[Any], object]
    moving: Sequence[Artist]


class Drawing:
    """A figure whose parts follow a result. `LiveFigure` shows it live, and `plots.show` shows what `still` returns.

    Args:
        figure: the figure, with all of its parts in it.
        say: tells a result in words, for those who do not see the picture. They become the figure's label.
        parts: their moving artists are drawn in this order, above all others.
    """

    def __init__(self, figure: Figure, say: Callable[[Any], str], *parts: Part) -> None:
        self.figure, self.say, self.parts = figure, say, parts
        self.moving = [artist for part in parts for artist in part.moving]
        for index, artist in enumerate(self.moving):
            artist.set_zorder(ABOVE + index)
        self._canvas: FigureCanvasAgg | None = None
        self._background: Any = None

    def update(self, result: Any) -> str:
        """Set all parts to a result, and return it in words."""
        for part in self.parts:
            part.update(result)
        words = self.say(result)
        self.figure.set_label(words)
        return words

    def still(self, result: Any) -> Figure:
        """Set all parts to a result, and return the figure, which is labelled with what it shows."""
        self.update(result)
        self._background = None  # whoever shows the figure may lay it out anew
        return self.figure

    @property
    def width(self) -> int:
        """The width in the page, in CSS pixels, as `plots.show` has it."""
        return plots.pixels(self.figure)

    def png(self) -> bytes:
        """Draw the moving artists over the rest, which is drawn only if it changed, and return the picture as PNG."""
        canvas = self._canvas or self._start()
        if self._background is None or any(child.stale for child in self.figure.get_children()):
            canvas.draw()
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        canvas.restore_region(self._background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def _start(self) -> FigureCanvasAgg:
        """Take the figure from pyplot, which would show it beneath the cell, and its moving artists from the rest."""
        plt.close(self.figure)
        for artist in self.moving:
            artist.set_animated(True)  # so that a change of one does not count as a change of the figure
        self._canvas = FigureCanvasAgg(self.figure)
        return self._canvas

    def place(self, axes: Axes) -> list[float]:
        """Return ``[left, top, width, height]`` of axes as shares of the picture."""
        box = axes.get_window_extent().transformed(self.figure.transFigure.inverted())
        return [round(float(part), 4) for part in (box.x0, 1 - box.y1, box.width, box.height)]


class LiveFigure(ipywidgets.VBox):
    """Controls above one or more drawings, side by side, of what ``compute`` makes of the controls' values.

    ``compute`` runs at every change. The browser holds back all but the latest position of a slider while the kernel is
    busy, and a change that comes while ``compute`` runs is drawn once after it, so no outdated value is drawn. An
    exception is logged, and shown in place of the picture.

    Args:
        controls: widgets by the keywords of ``compute``.
        compute: a function of the controls' values; its last result is kept as ``result``.
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
        self.controls, self.compute, self.drawings, self.describe = dict(controls), compute, drawings, words
        self.pictures = [Touch(width=drawing.width, layout=NARROWER) for drawing in drawings]
        self.words, self.error = ipywidgets.HTML(), ipywidgets.HTML()
        self.problems: dict[str, str] = {}
        self._busy = self._stale = False
        above = ipywidgets.VBox(list(self.controls.values()))
        above.layout.max_width = f"{sum(drawing.width for drawing in drawings)}px"
        self.parts = [above, self.error, ipywidgets.VBox([ipywidgets.HBox(self.pictures), self.words])]
        super().__init__(self.parts)
        self.add_class("mq-widget")
        for control in self.controls.values():
            control.observe(self.update, "value")
        self.update()

    def update(self, _change: object = None) -> None:
        """Draw what the controls' present values lead to."""
        self._stale = True
        if self._busy:  # a change from inside compute: the loop below comes back to it
            return
        self._busy = True
        try:
            while self._stale:
                self._stale = False
                self._draw()
        finally:
            self._busy = False

    def _draw(self) -> None:
        for picture in self.pictures:
            picture.busy = True
        with self.showing_errors("picture"):
            self.show(self.compute(**{name: control.value for name, control in self.controls.items()}))
        if self.problems["picture"]:  # an old picture would not be that of the controls
            for picture in self.pictures:
                _hand_over(picture, b"", "")
            self.words.value = ""

    def show(self, result: Any) -> None:
        """Draw a result."""
        self.result = result
        for drawing, picture in zip(self.drawings, self.pictures, strict=True):
            words = drawing.update(result)
            _hand_over(picture, drawing.png(), words)
        self.words.value = self.describe(result)

    def still(self) -> Figure:
        """Return the figure of the first drawing as it is now, for a page without a kernel."""
        return self.drawings[0].still(self.result)

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
        both = zip(self.drawings, self.pictures, strict=True)
        [(drawing, picture)] = [(drawing, picture) for drawing, picture in both if axes in drawing.figure.axes]
        guard = self.showing_errors("touch")
        picture.on_point = guard(lambda right, up: on_move(*to_data(axes, right, up)))
        picture.on_steps, picture.on_press = guard(on_key), guard(on_press)
        picture.where = lambda: drawing.place(axes) if can_touch() else []
        picture.label, picture.area = label, picture.where()

    def button(self, words: str, act: Callable[[], None]) -> ipywidgets.Button:
        """Make a button that calls ``act``, whose error is shown in place."""
        made = ipywidgets.Button(description=words, layout={"width": "auto"})
        made.on_click(self.showing_errors("button")(lambda _button: act()))
        return made

    @contextlib.contextmanager
    def showing_errors(self, source: str) -> Iterator[None]:
        """Show an exception of the block, or of a function that this decorates, until the same source succeeds.

        It is shown with its type, and its traceback is logged.
        """
        self.problems[source] = ""
        try:
            yield
        except Exception as error:
            LOG.exception("a widget's callback failed")
            self.problems[source] = error_box(error)
        self.error.value = "".join(self.problems.values())


def _hand_over(picture: Touch, png: bytes, words: str) -> None:
    with picture.hold_sync():  # all of it in one message
        picture.value, picture.alt, picture.busy = png, words, False
        picture.area = picture.where() if png else []


class LiveTraining(LiveFigure):
    """A live figure of trainings that go on while one looks on, each until something else is chosen.

    Subclasses have `train`, and before they call this class's constructor they set ``trainings``, what is known, by
    what was chosen; it has ``steps``, which it has come to. ``moment`` is the slider that follows a training.
    """

    trainings: dict[Any, Any]
    moment: ipywidgets.IntSlider
    chosen: Any = None
    other: Any = None  # what was chosen before

    def train(self, choice: Any) -> Iterator[Any]:
        """Train, and yield what is known at first and after each turn."""
        raise NotImplementedError

    def follow(self, choice: Any, end: int) -> None:
        """Train what is chosen now, unless its training is known up to step ``end``."""
        if choice == self.chosen:
            return
        self.chosen, self.other = choice, self.chosen
        if choice not in self.trainings or self.trainings[choice].steps < end:
            work = self.training(choice)
            next(work)  # so that there is something to show
            self.in_turns(work)

    def training(self, choice: Any) -> Iterator[None]:
        """Train further in each turn, until the reader chooses something else."""
        for known in self.train(choice):
            if self.chosen != choice:
                return
            self.trainings[choice] = known
            self.moment.value = known.steps
            yield

    def in_turns(self, work: Iterator[None]) -> None:
        """Run the steps of ``work`` between the kernel's messages; all at once where no event loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with self.showing_errors("background"):
                for _ in work:
                    pass
            return
        self._task = loop.create_task(self._turns(work))  # held, or it could be collected half-way

    async def _turns(self, work: Iterator[None]) -> None:
        with self.showing_errors("background"):
            for _ in work:
                await asyncio.sleep(0.001)


def to_data(axes: Axes, right: float, up: float) -> tuple[float, float]:
    """Return x and y, in the units of the axes, of a place that is given in shares of the axes."""
    x, y = axes.transData.inverted().transform(axes.transAxes.transform((right, up)))
    return float(x), float(y)
