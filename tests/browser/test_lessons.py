"""The lessons run in JupyterLab, and every control of their widgets moves the picture by keyboard."""

import json
import os
import re
from pathlib import Path

import pytest

from mebqat_lite import paths

ROOT = paths.checkout()

try:
    from playwright.sync_api import TimeoutError
except ModuleNotFoundError:  # the fixture `browser` says so
    TimeoutError = None

pytestmark = pytest.mark.browser
LESSONS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SECONDS = 1000  # playwright counts milliseconds
# What JupyterLab itself writes as errors, whatever the notebook holds.
NOISE = ()

KERNEL = """async () => {
  const context = jupyterapp.shell.currentWidget.sessionContext;
  await context.ready;
  await context.session.kernel.info;
}"""
RUN_ALL = """() => {
  window.ran = null;
  jupyterapp.commands.execute('notebook:run-all-cells').then(
    () => { window.ran = 'yes'; }, error => { window.ran = String(error); });
}"""
READY = "w => w.querySelector('svg') && !w.querySelector('.widget-hprogress')?.checkVisibility()"
CELLS = "() => JSON.stringify(jupyterapp.shell.currentWidget.content.model.toJSON().cells)"
# Note the time of the next key press and that of the change of the picture which follows it.
WATCH = """widget => {
  const picture = () => widget.querySelector('svg')?.outerHTML;
  const before = picture();
  window.pressed = window.changed = null;
  document.addEventListener('keydown', () => { window.pressed ??= performance.now(); }, {capture: true});
  new MutationObserver((_, observer) => {
    if (window.pressed === null || !picture() || picture() === before) return;
    window.changed = performance.now();
    observer.disconnect();
  }).observe(widget, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture
def page(browser, request):
    """A fresh profile's page; it must not have logged an error when the test ends."""
    errors = []
    context = browser.new_context(viewport={"width": 1250, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30 * SECONDS)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    unknown = [error for error in errors if not any(re.search(known, error) for known in request.module.NOISE)]
    assert not unknown, f"the browser's console: {unknown}"


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


def run_all(page) -> None:
    """Wait for the kernel, or the command would be lost without a word; then run all cells."""
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate(KERNEL)
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => window.ran !== null", timeout=240 * SECONDS)
    assert page.evaluate("() => window.ran") == "yes"


def errors_of(page) -> list:
    """Error outputs, and code cells that did not run."""
    code = [cell for cell in json.loads(page.evaluate(CELLS)) if cell["cell_type"] == "code" and cell["source"]]
    wrong = [out["evalue"] for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    return wrong + [cell["source"] for cell in code if cell["execution_count"] is None]


def move_everything(page, widget) -> list[float]:
    """Move each slider there and back, press each button; milliseconds from each key to its new picture."""
    times = []
    for slider in widget.locator(".noUi-handle").all():
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
    widget.evaluate(WATCH)
    page.keyboard.press(key)
    try:
        page.wait_for_function("() => window.changed !== null", timeout=10 * SECONDS)
    except TimeoutError:
        shown = [*page.locator(".mq-error").all_inner_texts(), control.evaluate("c => c.outerHTML")]
        pytest.fail(f"{key} made no new picture: {shown}")
    return page.evaluate("() => window.changed - window.pressed")
