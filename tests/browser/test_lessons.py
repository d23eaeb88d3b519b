"""The lessons run in JupyterLab, and every control of their widgets moves the picture by keyboard."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.lab import READY, run_all, waited
from mebqat_lite import paths

ROOT = paths.checkout()

try:
    from playwright.sync_api import TimeoutError
except ModuleNotFoundError:  # the fixture `browser` says so
    TimeoutError = None

pytestmark = pytest.mark.browser
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CELLS = "() => JSON.stringify(jupyterapp.shell.currentWidget.content.model.toJSON().cells)"


@pytest.mark.parametrize("notebook", LESSONS)
def test_lesson_runs_and_its_widgets_follow_the_keyboard(notebook, lab, page, latencies):
    page.goto(lab(notebook))
    run_all(page)
    assert errors_of(page) == []
    widgets = page.locator(".mq-widget")
    widgets.first.wait_for()
    for widget in widgets.all():
        widget.scroll_into_view_if_needed()
        page.wait_for_function(READY, arg=widget.element_handle())
        latencies.setdefault(notebook, []).extend(move_everything(page, widget))
        assert page.locator(".mq-error").count() == 0
    if folder := os.environ.get("MEBQAT_SCREENSHOTS"):  # to look at
        for index, widget in enumerate(widgets.all()):
            widget.screenshot(path=Path(folder) / f"{notebook[:2]}-{index}.png")


def errors_of(page) -> list:
    """Error outputs, and code cells that did not run."""
    code = [cell for cell in json.loads(page.evaluate(CELLS)) if cell["cell_type"] == "code" and cell["source"]]
    wrong = [out["evalue"] for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    return wrong + [cell["source"] for cell in code if cell["execution_count"] is None]


def move_everything(page, widget) -> list[float]:
    """Move each slider and what can be touched there and back, press each button; milliseconds from each key on."""
    times = []
    for slider in widget.locator(".noUi-handle, .mq-touch-area:not([hidden])").all():
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowLeft"):
            times.append(press(page, widget, slider, key))
    for choice in widget.locator(".widget-toggle-buttons").all():
        first, *others = choice.locator("button").all()
        for button in (*others, first):
            if "mod-active" not in button.get_attribute("class"):
                times.append(press(page, widget, button, "Space"))
    return times


def press(page, widget, control, key: str) -> float:
    """Press a key on a control and wait for the changed picture; returns milliseconds."""
    control.focus()
    try:
        return waited(page, widget, lambda: page.keyboard.press(key))
    except TimeoutError:
        shown = [*page.locator(".mq-error").all_inner_texts(), control.evaluate("c => c.outerHTML")]
        pytest.fail(f"{key} made no new picture: {shown}")
