"""What the widgets share: controls, a picture made of their values, and errors shown in place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets

LOG = logging.getLogger(__name__)
CARD = "background:#fff;color:#000;padding:4px 8px;max-width:784px;line-height:1.5"
LABEL = "195px"  # the width of all labels, so that all controls begin beneath each other
ALERT = "background:#fff;color:#a00000;border:2px solid #a00000;padding:4px 8px;max-width:784px"


class Live(ipywidgets.VBox):
    """Controls above the picture that ``render`` makes of their values.

    ``render`` is called with a keyword for each control. What it returns goes to `show`: here HTML, and in
    `live.LiveFigure` a result that a figure draws. It runs at every change. The browser holds back all but the latest
    position of a slider while the kernel is busy, and a change that comes while ``render`` runs is drawn once after
    it, so no outdated value is drawn. An exception is logged and shown.
    """

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], render: Callable[..., Any]) -> None:
        self.controls, self.render = dict(controls), render
        self.picture, self.error = self.empty(), ipywidgets.HTML()
        self.problems: dict[str, str] = {}
        self._busy = self._stale = False
        self.parts = [ipywidgets.VBox(list(self.controls.values())), self.error, self.picture]
        super().__init__(self.parts)
        self.add_class("mq-widget")
        for control in self.controls.values():
            control.observe(self.update, "value")
        self.update()

    def empty(self) -> ipywidgets.Widget:
        """Make the widget that the picture goes to."""
        return ipywidgets.HTML()

    def show(self, result: Any) -> None:
        """Show what ``render`` returned."""
        self.picture.value = result

    def clear(self) -> None:
        """Show nothing, after an error: an old picture would not be that of the controls."""
        self.picture.value = ""

    def update(self, _change: object = None) -> None:
        """Draw the picture of the controls' present values."""
        self._stale = True
        if self._busy:  # a change from inside render: the loop below comes back to it
            return
        self._busy = True
        try:
            while self._stale:
                self._stale = False
                self._draw()
        finally:
            self._busy = False

    def _draw(self) -> None:
        is_shown = False
        with self.showing_errors("picture"):
            self.show(self.render(**{name: control.value for name, control in self.controls.items()}))
            is_shown = True
        if not is_shown:
            self.clear()

    @contextlib.contextmanager
    def showing_errors(self, source: str) -> Iterator[None]:
        """Show an exception of the block, with its type, until the same source succeeds; log its traceback."""
        problem = ""
        try:
            yield
        except Exception as error:
            LOG.exception("a widget's callback failed")
            problem = error_box(error)
        self.problems[source] = problem
        self.error.value = "".join(self.problems.values())

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


def labelled(words: str, slider: ipywidgets.Widget) -> ipywidgets.Widget:
    """Give a slider its label, and the width of the page."""
    slider.description, slider.style.description_width, slider.layout.width = words, LABEL, "auto"
    return slider


def buttons(words: str, options: Sequence[Any], value: Any) -> ipywidgets.ToggleButtons:
    """Make a labelled choice by buttons. (Not a menu: JupyterLab takes its arrow keys to move between cells.)"""
    style = {"description_width": LABEL, "button_width": "auto"}
    layout = {"width": "auto", "display": "flex"}  # the label beside the buttons
    return ipywidgets.ToggleButtons(options=options, value=value, description=words, style=style, layout=layout)


def error_box(error: Exception) -> str:
    """The type and the words of an exception, for a reader."""
    words = escape(f"{type(error).__name__}: {error}")
    return f'<div class="mq-error" role="alert" style="{ALERT}">{words}</div>'


def card(*paragraphs: str) -> str:
    """Paragraphs of HTML on white, legible under a light and a dark theme."""
    return f'<div style="{CARD}">{"<br>".join(paragraphs)}</div>'
