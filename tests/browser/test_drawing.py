"""The drawing pad in a real Chromium: drawn on with the mouse and by keys, it learns and answers."""

import json
import math
import re

import pytest

from benchmarks.lab import notebook, run_all

pytestmark = pytest.mark.browser
CODE = "from mebqat_lite.course.widgets import draw_your_own\n\ndraw_your_own()"
CROSS = [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]]
RING = [[(0.5 + 0.35 * math.cos(i / 5), 0.5 + 0.35 * math.sin(i / 5)) for i in range(33)]]
STROKE = [[(0.5, 0.15), (0.5, 0.85)]]
TITLE = "() => document.querySelector('.mq-widget svg title')?.textContent"


@pytest.fixture
def pad(page, server, lab):
    """A page with the widget alone."""
    (server[0] / "pad.ipynb").write_text(json.dumps(notebook(CODE)), encoding="utf-8")
    page.set_viewport_size({"width": 1250, "height": 1400})
    page.goto(lab("pad.ipynb"))
    run_all(page)
    page.locator(".mq-pad canvas").nth(15).wait_for()
    wait_for(page, "answers")
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


def test_characters_drawn_with_the_mouse_are_learned_and_told_apart(pad):
    click(pad, "clear all")
    wait_for(pad, "there are none")
    for way, strokes in enumerate((CROSS, RING, STROKE)):
        draw(pad, 3 * way, strokes)
    wait_for(pad, "question mark")
    draw(pad, 15, RING)  # the same way, so that the right answer does not hang on a network's taste
    found = wait_for(pad, "answers")
    assert re.search(r"PN \+ PTQ-MSE at W2A2 answers B \(\d+ %\)$", found)
    click(pad, "new query")
    wait_for(pad, "question mark")
    draw(pad, 15, CROSS)
    wait_for(pad, "answers A")
    click(pad, "MEBQAT-PN")
    assert "answers A" in wait_for(pad, "MEBQAT-PN at W2A2 answers")
    pad.locator(".mq-widget .noUi-handle").first.focus()
    pad.keyboard.press("ArrowRight")
    assert "answers A" in wait_for(pad, "MEBQAT-PN at W3A2")


def test_a_box_is_drawn_in_and_emptied_by_keys(pad):
    click(pad, "clear all")
    wait_for(pad, "there are none")
    box = pad.locator(".mq-pad canvas").first
    box.focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "ArrowDown", "Space"):
        pad.keyboard.press(key)
    wait_for(pad, "there is 1")
    assert "drawn" in box.get_attribute("aria-label")
    pad.keyboard.press("Delete")
    wait_for(pad, "there are none")
    pad.keyboard.press("Control+z")
    wait_for(pad, "there is 1")
    pad.locator(".mq-pad-cross").first.click()
    wait_for(pad, "there are none")
    assert pad.locator(".jp-Cell").count() == 1  # JupyterLab took none of the keys


def test_example_characters_and_undo(pad):
    first = pad.evaluate(TITLE)
    click(pad, "example characters")
    pad.wait_for_function(f"() => ({TITLE})() !== {json.dumps(first)}")
    click(pad, "undo")
    wait_for(pad, first)
    assert pad.locator(".mq-error").count() == 0
