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
THERE_AND_BACK = ["ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowLeft"]
UPWARDS = {"ArrowRight": "ArrowUp", "ArrowLeft": "ArrowDown"}
DOWNWARDS = {"ArrowRight": "ArrowDown", "ArrowLeft": "ArrowUp"}  # for a board, which may begin in its upper left corner
IS_AT_END = "handle => Number(handle.ariaValueNow) >= Number(handle.ariaValueMax)"
# A picture that moves by itself, such as that of a training, has come to rest for a second.
SETTLED = """async widget => {
  const seen = () => [...widget.querySelectorAll('.mq-touch img')].map(image => image.src).join();
  const before = seen();
  await new Promise(done => setTimeout(done, 1000));
  return seen() === before;
}"""
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
    for slider in widget.locator(".noUi-handle").all():
        page.wait_for_function(SETTLED, arg=widget.element_handle())
        for key in THERE_AND_BACK[:: -1 if slider.evaluate(IS_AT_END) else 1]:
            times.append(press(page, widget, slider, key))
    for area in widget.locator(".mq-touch-area:not([hidden])").all():
        other = DOWNWARDS if "board of pairs" in (area.get_attribute("title") or "") else UPWARDS
        for key in THERE_AND_BACK:
            times.append(press(page, widget, area, key, other[key]))  # some can be moved along one axis only
    for choice in widget.locator(".widget-toggle-buttons").all():
        first, *others = choice.locator("button").all()
        for button in (*others, first):
            if "mod-active" not in button.get_attribute("class"):
                times.append(press(page, widget, button, "Space"))
    return times


def press(page, widget, control, *keys: str) -> float:
    """Press keys on a control and wait for the changed picture; returns milliseconds."""
    control.focus()
    try:
        return waited(page, widget, lambda: [page.keyboard.press(key) for key in keys])
    except TimeoutError:
        shown = [*page.locator(".mq-error").all_inner_texts(), control.evaluate("c => c.outerHTML")]
        pytest.fail(f"{keys} made no new picture: {shown}")
