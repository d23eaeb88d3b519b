"""A guess is asked in JupyterLab by controls with names, moved by keys and pointer, and answered by a later cell."""

import os
from pathlib import Path

import nbformat
import pytest
from test_lessons import errors_of

from benchmarks.lab import run_all
from notebooks.store import ANSWER, for_readers

pytestmark = pytest.mark.browser
CELLS = [
    "from mebqat_lite.course import guess\n\nmy_number = guess.number('How many percent?', unit='%')",
    "my_choice = guess.choice('Does it hold?', ['yes', 'no'])",
    "print(guess.said(my_number, 31.4))\nprint(guess.said(my_choice, 'yes'))",
]
NEXT = """async index => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = index;
  await jupyterapp.commands.execute('notebook:run-cell');
}"""
SHOWN = "() => jupyterapp.shell.currentWidget.content.widgets[2].outputArea.node.innerText"


def write(cells, path) -> None:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def asked(server, lab, page):
    """A page where all cells ran without a guess."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    cells[2].metadata["jupyter"] = {"outputs_hidden": True}
    write(cells, server[0] / "guess.ipynb")
    page.goto(lab("guess.ipynb"))
    run_all(page)
    assert errors_of(page) == []
    return page


def answered(asked, first: str) -> str:
    """What the last cell says when it is run again."""
    asked.wait_for_timeout(500)  # the page sends two changes one after the other, and a cell that is run overtakes them
    asked.evaluate(NEXT, 2)
    asked.wait_for_function(f"words => ({SHOWN})().startsWith(words)", arg=first)
    return asked.evaluate(SHOWN).strip()


def test_guesses_are_asked_by_keyboard_and_answered(asked):
    assert asked.evaluate(SHOWN).strip() == "It is 31.4 %.\nIt is yes."
    slider = asked.get_by_role("slider", name="How many percent?")
    assert slider.get_attribute("aria-valuetext") == "no guess yet"
    slider.focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowRight"):
        asked.keyboard.press(key)
    assert slider.get_attribute("aria-valuetext") == "53 %"
    group = asked.get_by_role("radiogroup", name="Does it hold?")
    group.get_by_role("radio", name="yes").focus()
    asked.keyboard.press("Space")
    asked.keyboard.press("ArrowRight")
    assert group.get_by_role("radio", name="no").is_checked()
    assert answered(asked, "You") == "You said 53 %; it is 31.4 %, 21.6 points lower.\nYou said no; it is yes."
    if folder := os.environ.get("MEBQAT_SCREENSHOTS"):  # to look at
        asked.screenshot(path=Path(folder) / "guess.png")


def test_a_press_where_the_slider_stands_is_a_guess(asked):
    slider = asked.get_by_role("slider", name="How many percent?")
    assert slider.bounding_box()["width"] > 500
    slider.click()
    assert answered(asked, "You").startswith("You said 50 %; it is 31.4 %, 18.6 points lower.\nIt is yes.")


def test_outputs_stored_hidden_are_hidden_until_the_cell_runs(server, lab, page):
    cell = nbformat.v4.new_code_cell("print('seen')", metadata={"jupyter": {"outputs_hidden": True}})
    cell.outputs = [nbformat.v4.new_output("stream", text="spoilt\n")]
    for_readers(cell)
    write([cell], server[0] / "hidden.ipynb")
    page.goto(lab("hidden.ipynb"))
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length")
    closed = page.locator(".jp-OutputPlaceholder")
    closed.wait_for()
    assert ANSWER in closed.inner_text()  # JupyterLab shows the first line, and no more
    assert page.get_by_text("spoilt").count() == 0
    run_all(page)
    page.get_by_text("seen", exact=True).wait_for()
