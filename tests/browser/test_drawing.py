"""The drawing pad in a real Chromium: drawn on with the mouse and by keys, it learns and answers."""

import json
import math
import os
from pathlib import Path

import pytest

from benchmarks.lab import notebook, run_all

pytestmark = pytest.mark.browser
CODE = """import mebqat_lite as mq
from mebqat_lite.course.widgets import draw_your_own, new_classes

glyphs = mq.datasets.load("glyphs")
few = glyphs.val.labels <= glyphs.val.labels.unique()[23]
split = mq.datasets.Split(glyphs.val.images[few], glyphs.val.labels[few])
networks = new_classes.shipped_networks(glyphs)
draw_your_own(new_classes.Embedded(networks, split, glyphs.train.images[:128]))"""
CROSS = [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]]
RING = [[(0.5 + 0.35 * math.cos(i / 5), 0.5 + 0.35 * math.sin(i / 5)) for i in range(33)]]
STROKE = [[(0.5, 0.15), (0.5, 0.85)]]
TITLE = "() => document.querySelector('.mq-widget .mq-touch-words')?.textContent"
QUERY, FIRST, SHOTS = 0, 1, 3  # the boxes: the query, and the first of the classes; boxes of a class


@pytest.fixture
def pad(page, server, lab):
    """A page with the widget alone, on a small screen."""
    (server[0] / "pad.ipynb").write_text(json.dumps(notebook(CODE)), encoding="utf-8")
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto(lab("pad.ipynb"))
    run_all(page)
    page.locator(".mq-pad canvas").first.wait_for()
    wait_for(page, "it is class")
    return page


def wait_for(page, words: str) -> str:
    page.wait_for_function(f"() => ({TITLE})()?.includes({json.dumps(words)})")
    return page.evaluate(TITLE)


def draw(page, index: int, strokes) -> None:
    """Draw with the mouse into a box."""
    box = page.locator(".mq-pad canvas").nth(index)
    box.scroll_into_view_if_needed()
    area = box.bounding_box()
    for stroke in strokes:
        for step, (x, y) in enumerate(stroke):
            page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"], steps=3)
            if step == 0:
                page.mouse.down()
        page.mouse.up()


def click(page, words: str) -> None:
    page.locator(".mq-widget").get_by_role("button", name=words, exact=True).click()


def visible(page) -> int:
    """How many boxes are seen."""
    return page.locator(".mq-pad canvas:visible").count()


def test_characters_drawn_with_the_mouse_are_learned_and_told_apart(pad):
    click(pad, "clear all")
    wait_for(pad, "there are none")
    assert visible(pad) == 2  # the query, and the first example of the first class
    for way, strokes in enumerate((CROSS, RING, STROKE)):
        draw(pad, FIRST + SHOTS * way, strokes)
        pad.wait_for_function(f"() => document.querySelectorAll('.mq-pad-column:not([hidden])').length === {way + 3}")
    wait_for(pad, "as the query")
    assert visible(pad) == 1 + 3 * 2 + 1  # one more box in each class, and one for a fourth class
    draw(pad, QUERY, RING)  # the same way, so that the right answer does not hang on a network's taste
    found = wait_for(pad, "class B")
    assert found.startswith("PN + PTQ-MSE at W2A2: class B. PN + PTQ-MSE 2: B")
    click(pad, "new query")
    wait_for(pad, "as the query")
    draw(pad, QUERY, CROSS)
    wait_for(pad, "W2A2: class A")
    area = pad.locator(".mq-touch-area")
    area.focus()
    pad.keyboard.press("ArrowDown")
    wait_for(pad, "MEBQAT-PN at W2A2: class A")
    pad.keyboard.press("ArrowRight")
    wait_for(pad, "MEBQAT-PN at W3A3: class A")


def test_a_box_is_drawn_in_and_emptied_by_keys(pad):
    click(pad, "clear all")
    wait_for(pad, "there are none")
    box = pad.locator(".mq-pad canvas").nth(FIRST)
    box.focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "ArrowDown", "Space"):
        pad.keyboard.press(key)
    wait_for(pad, "there is 1")
    assert "drawn" in box.get_attribute("aria-label")
    pad.keyboard.press("Delete")
    wait_for(pad, "there are none")
    pad.keyboard.press("Control+z")
    wait_for(pad, "there is 1")
    pad.locator(".mq-pad-cross:visible").first.click()
    wait_for(pad, "there are none")
    assert pad.locator(".jp-Cell").count() == 1  # JupyterLab took none of the keys


def test_example_characters_and_undo(pad):
    first = pad.evaluate(TITLE)
    click(pad, "example characters")
    pad.wait_for_function(f"() => ({TITLE})() !== {json.dumps(first)}")
    click(pad, "undo")
    wait_for(pad, first)
    assert pad.locator(".mq-error").count() == 0


def test_all_of_it_is_seen_at_once_on_a_small_screen(pad):
    widget = pad.locator(".mq-widget")
    widget.scroll_into_view_if_needed()
    inside = widget.bounding_box()
    page = pad.locator(".jp-NotebookPanel-notebook").bounding_box()
    assert inside["height"] < page["height"] and inside["width"] < page["width"]
    if folder := os.environ.get("MEBQAT_SCREENSHOTS"):  # to look at
        pad.screenshot(path=Path(folder) / "pad.png")
