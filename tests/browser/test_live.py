"""Live figures in a real Chromium: the right picture comes after a key and after a drag, and all has a name."""

import json
import os
import re
from pathlib import Path

import pytest

from benchmarks import widgets
from benchmarks.lab import notebook, run_all

pytestmark = pytest.mark.browser
BYTES = "image => fetch(image.src).then(r => r.arrayBuffer()).then(b => [...new Uint8Array(b)])"
SLOW = """import time
import matplotlib.pyplot as plt
from mebqat_lite.course.widgets.base import slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part

figure, axes = plt.subplots(figsize=(3, 2))
[line] = axes.plot([0, 1], [0, 1])


def update(n):
    line.set_ydata([0, n / 5])


def compute(n):
    time.sleep(1.0 if n == 2 else 0.0)
    return 6 // (4 - n) and n


drawing = Drawing(figure, "n is {}".format, Part(update, [line]))
LiveFigure({"n": slider("a number", 1, 0, 5)}, compute, drawing)"""
MARK = """import matplotlib.pyplot as plt
from mebqat_lite.course.widgets.mark import MarkOnAxes

figure, axes = plt.subplots(figsize=(4, 3))
axes.set(xlim=(0, 10), ylim=(0, 100))
guess = MarkOnAxes(axes)
guess"""

TURN = """import mebqat_lite as mq
from mebqat_lite.course.widgets import your_turn
from mebqat_lite.datasets.episodes import Episodes

your_turn(Episodes(mq.datasets.glyphs().val, ways=5, shots=1, queries=2, seed=1)[0])"""


@pytest.fixture
def shown(page, server, lab):
    """The widget that a cell makes, alone on a page, as ``shown(code)``."""

    def show(code):
        (server[0] / "live.ipynb").write_text(json.dumps(notebook(code)), encoding="utf-8")
        page.goto(lab("live.ipynb"))
        run_all(page)
        widget = page.locator(".mq-widget")
        widget.locator(".mq-touch img[src]").first.wait_for()
        return widget

    return show


def wait_for(widget, words) -> None:
    widget.get_by_role("img", name=words).wait_for()


def same_here(code):
    """The widget that the same code makes in this process."""
    *lines, last = code.splitlines()
    names = {}
    exec("\n".join(lines), names)
    return eval(last, names)


def drag(page, area, *places) -> None:
    """Press at the first place, in shares of the area from its lower left corner, and move on to the others."""
    box = area.bounding_box()
    for number, (right, up) in enumerate(places):
        page.mouse.move(box["x"] + right * box["width"], box["y"] + (1 - up) * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_the_right_picture_comes_after_a_key_and_after_a_drag(page, shown):
    code = widgets.CASES["playground"].code
    widget, here = shown(code), same_here(code)
    image, area = widget.locator(".mq-touch img"), widget.locator(".mq-touch-area")
    here.controls["bits"].value = 5
    widget.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    wait_for(widget, re.compile("bitwidth 5, clip 3.0"))
    assert bytes(image.evaluate(BYTES)) == here.pictures[0].value
    drag(page, area, (0.7, 0.5), (0.75, 0.4), ((6.4 + 2.0) / 12.8, 0.9))
    wait_for(widget, re.compile("bitwidth 5, clip 2.0"))
    here.controls["clip"].value = 2.0
    assert bytes(image.evaluate(BYTES)) == here.pictures[0].value
    area.focus()
    for key in ("ArrowLeft", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    wait_for(widget, re.compile("bitwidth 5, clip 2.9"))
    here.controls["clip"].value = 2.9
    assert bytes(image.evaluate(BYTES)) == here.pictures[0].value
    assert widget.locator(".mq-error").count() == 0 and page.locator(".jp-Cell").count() == 1


def test_what_cannot_be_touched_has_no_area(page, shown):
    widget = shown(widgets.CASES["playground"].code)
    widget.get_by_role("button", name="DoReFa (tanh, rounded)").click()
    wait_for(widget, re.compile("DoReFa"))
    assert not widget.locator(".mq-touch-area").is_visible()


def test_every_control_has_a_name_and_fills_its_row(page, shown):
    widget = shown(widgets.CASES["playground"].code)
    for role, name in [("slider", "bitwidth (bits)"), ("slider", "clip (std. deviations)"), ("group", "quantizer")]:
        assert widget.get_by_role(role, name=name, exact=True).count() == 1
    pressed = widget.get_by_role("button", pressed=True)
    assert pressed.all_inner_texts() == ["uniform signed (LSQ grid)"]
    assert widget.get_by_role("application", name=re.compile("arrow keys")).count() == 1
    lengths = [track.bounding_box()["width"] for track in widget.locator(".noUi-target").all()]
    assert min(lengths) > 0.5 * widget.locator("img").bounding_box()["width"] and len(set(lengths)) == 1
    if folder := os.environ.get("MEBQAT_SCREENSHOTS"):  # to look at
        widget.screenshot(path=Path(folder) / "playground.png")


def test_work_that_takes_long_shows_a_sign_and_an_error_stands_in_place(page, shown):
    widget = shown(SLOW)
    sign, touch = widget.get_by_role("status"), widget.locator(".mq-touch")
    widget.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.mq-touch').getAttribute('aria-busy') === 'true'")
    assert sign.inner_text() == "working …" and sign.is_visible()
    wait_for(widget, "n is 2")
    assert touch.get_attribute("aria-busy") == "false" and not sign.is_visible()
    page.keyboard.press("ArrowRight")
    wait_for(widget, "n is 3")
    page.keyboard.press("ArrowRight")
    alert = widget.get_by_role("alert")
    alert.wait_for()
    assert "ZeroDivisionError" in alert.inner_text() and not widget.locator(".mq-touch img").is_visible()


def test_a_guess_is_marked_by_pointer_and_by_keys(page, shown):
    widget = shown(MARK)
    wait_for(widget, re.compile("Click in the figure"))
    area = widget.get_by_role("application", name="mark your guess")
    box = area.bounding_box()
    area.click(position={"x": 0.4 * box["width"], "y": 0.75 * box["height"]})
    wait_for(widget, re.compile("^your guess"))
    assert marked(widget) == pytest.approx(25, abs=0.5)
    before = widget.locator("img").get_attribute("alt")
    page.keyboard.press("Shift+ArrowDown")
    page.wait_for_function("before => document.querySelector('.mq-touch img').alt !== before", arg=before)
    assert marked(widget) == pytest.approx(15, abs=0.5)


def marked(widget) -> float:
    """The guess in the picture's words."""
    words = widget.locator("img").get_attribute("alt")
    return float(words.removeprefix("your guess: "))


def test_each_press_answers_once_however_far_it_is_dragged(page, shown):
    widget = shown(TURN)
    area = widget.locator(".mq-touch-area")
    wait_for(widget, re.compile("question 1 of 10"))
    drag(page, area, (0.5, 0.5), (0.52, 0.5), (0.9, 0.4))
    wait_for(widget, re.compile("question 2 of 10, the frame is around example 3"))
    for number in (3, 4):  # at one place, where the pointer does not move in between
        drag(page, area, (0.1, 0.5))
        wait_for(widget, re.compile(f"question {number} of 10, the frame is around example 1"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait_for(widget, re.compile("question 5 of 10, the frame is around example 2"))
    assert widget.locator(".mq-error").count() == 0
