"""Rebuilt lessons run to their end whatever a reader answers: nbval runs them without any answer, this test with.

It answers each guess. It answers each exercise twice: at first wrongly, so that the lesson would go on as it does
without an answer, and then rightly, in another style than that of the solution. Both are in ``answers/lesson_NN.py``.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from lessons import FOLDER, REBUILT, calls, guesses, printed

from notebooks.store import run

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent
# These lines stand before the line that checks the function.
ANSWERS = """
from answers.{module} import RIGHT, WRONG

{own} = WRONG["{own}"][0][1]
{module}.{own}.check({own})
{module}.{own}.use()
{own} = RIGHT["{own}"][0]
"""
# What a reader could have said: the middle of a slider, the first option, the middle of the axes.
GUESS = """
def _some_guess(my):
    if hasattr(my, "axes"):
        x, y = sum(my.axes.get_xlim()) / 2, sum(my.axes.get_ylim()) / 2
        return {{"x": x, "y": y, "xy": (x, y)}}[my.axis]
    return my.options[0] if my.options else sum(my.limits[:2]) / 2


{name}.value = _some_guess({name})
"""


def answer(notebook: nbformat.NotebookNode) -> None:
    """Write answers into the cells that check an exercise or ask for a guess."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        for name, line in reversed(calls(cell, "check")):  # from below, so that the lines above stay where they are
            module, _, own = name.partition(".")
            lines.insert(line - 1, ANSWERS.format(module=module, own=own))
        cell.source = "\n".join([*lines, *(GUESS.format(name=name) for name in guesses(cell))])


def runs_with_answers(notebook: nbformat.NotebookNode) -> None:
    """Run a lesson with answers, and assert that no cell raised and that it knows whose functions run."""
    used = [name for cell in notebook.cells if cell.cell_type == "code" for name, _ in calls(cell, "use")]
    answer(notebook)
    run(notebook)  # raises the error of a cell
    text = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    refused = [line for line in text.splitlines() if "did not pass its last check" in line]
    taken = re.findall(r"From here on the lesson runs your `(\w+)`", text)
    assert taken == [name.partition(".")[2] for name in used] != []
    assert len(refused) == len(taken)


@pytest.mark.parametrize("name", REBUILT)
def test_a_lesson_runs_with_answers(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    runs_with_answers(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


# --- this test, on a made lesson -------------------------------------------------------------------------------

MADE = [
    "import torch\n\nfrom mebqat_lite.course import guess\nfrom mebqat_lite.course.exercises import lesson_01",
    "my = guess.number('How many?', high=10)\nother = guess.choice('Does it hold?', ['yes', 'no'])",
    "import matplotlib.pyplot as plt\n\nfrom mebqat_lite.course.widgets.mark import MarkOnAxes\n\n"
    "place = MarkOnAxes(plt.figure().add_subplot(), 'xy')",
    "print(guess.said(my, 4))\nprint(guess.said(other, 'no'))\nprint(guess.said(place, (0.5, 0.0)))",
    "def fake_quantize(x, step, low, high):\n    return ...\n\n\nlesson_01.fake_quantize.check(fake_quantize)",
    "fake_quantize = lesson_01.fake_quantize.use()\nfake_quantize(torch.ones(2), 0.3, 0, 3) + torch.ones(2)",
]


def made(*more: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (*MADE, *more)])


def test_answers_are_written_into_a_made_lesson(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    lesson = made()
    runs_with_answers(lesson)
    assert "You said 5; it is 4, 1 lower.\nYou said yes; it is no." in (text := printed(lesson.cells[3]))
    assert "You said (0.5, 0.5); it is (0.5, 0)." in text
    assert "did not pass its last check" in printed(lesson.cells[4])
    assert "the lesson runs your `fake_quantize`" in printed(lesson.cells[5])


def test_a_lesson_that_stops_at_an_answer_is_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        runs_with_answers(made("1 / (my.value is None)"))
