"""A picture in the page that a hand can touch: by mouse, finger, pen or keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets


def nothing(*_: object) -> None:
    """Do nothing: what a touch does until somebody listens."""


class Touch(anywidget.AnyWidget):
    """Show a PNG, and tell where its area is touched.

    Python sets the picture and the area that can be touched, ``(left, top, width, height)`` in shares of the picture.
    The page answers with shares of that area: 0 to 1 to the right, and 0 to 1 upwards, and with the number of the press
    that a place belongs to, which tells a new press from a drag. While Python is busy, the page holds back all but the
    latest place; arrow keys are counted, so that none is lost.

    The handlers are `on_point`, called with a place for each press and each move with the button held down; `on_steps`,
    called with whole numbers of steps to the right and upwards (an arrow key is 1 step, with Shift 5); and `on_press`,
    called without arguments for Enter and Space.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    # what Python tells the page
    value = traitlets.Bytes(b"").tag(sync=True)  # a PNG; empty: nothing is shown
    alt = traitlets.Unicode("").tag(sync=True)  # the picture in words
    width = traitlets.Int(0).tag(sync=True)  # CSS pixels; a narrow page shrinks the picture
    busy = traitlets.Bool(False).tag(sync=True)
    area: Any = traitlets.List().tag(sync=True)  # empty: nothing can be touched
    label = traitlets.Unicode("").tag(sync=True)  # what touching the area does
    # what the page tells Python
    point: Any = traitlets.List().tag(sync=True, echo_update=False)  # right, up, number of the press
    steps: Any = traitlets.List([0, 0]).tag(sync=True, echo_update=False)  # all steps so far
    presses = traitlets.Int(0).tag(sync=True, echo_update=False)

    where: Callable[[], list[float]] = staticmethod(list)  # the area now, as `LiveFigure.touch` finds it
    on_point: Callable[[float, float], None] = staticmethod(nothing)
    on_steps: Callable[[int, int], None] = staticmethod(nothing)
    on_press: Callable[[], None] = staticmethod(nothing)

    @traitlets.observe("point")
    def _pointed(self, change: Mapping[str, Any]) -> None:
        self.on_point(*change["new"][:2])

    @traitlets.observe("steps")
    def _stepped(self, change: Mapping[str, Any]) -> None:
        (right, up), (old_right, old_up) = change["new"], change["old"]
        self.on_steps(right - old_right, up - old_up)

    @traitlets.observe("presses")
    def _pressed(self, _change: object) -> None:
        self.on_press()
