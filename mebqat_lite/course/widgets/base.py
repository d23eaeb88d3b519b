"""What the widgets share: controls with their labels, and words on white."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets

CARD = "background:#fff;color:#000;padding:4px 8px;max-width:784px;line-height:1.5"
LABEL = "195px"  # the width of all labels, so that all controls begin beneath each other
ALERT = "background:#fff;color:#a00000;border:2px solid #a00000;padding:4px 8px;max-width:784px"


def labelled(words: str, slider: ipywidgets.Widget) -> ipywidgets.Widget:
    """Give a slider its label, and the width of the page."""
    slider.description, slider.style.description_width, slider.layout.width = words, LABEL, "auto"
    return slider


def slider(words: str, value: int, low: int, high: int, step: int = 1) -> ipywidgets.IntSlider:
    """Make a labelled slider over whole numbers."""
    return labelled(words, ipywidgets.IntSlider(value, low, high, step))


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
