"""Rebuilt lessons run to their end whatever a reader answers: nbval runs them without any answer, these tests with.

The answers to exercises are the solutions as they are printed, right answers of another style, and wrong ones, the last
two from ``answers/lesson_NN.py``. Every guess is answered too.
"""

import inspect
import os
import re
from pathlib import Path

import nbformat
import pytest
from lessons import FOLDER, REBUILT, calls, exercise, guesses, printed

from notebooks.store import run

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent
ANSWERS = {  # how the function is written in the cell, and what `use` then says of it
    "solutions": ("{solution}", "your `{own}`"),
    "other right answers": ("from answers.{module} import RIGHT\n\n{own} = RIGHT['{own}'][0]", "your `{own}`"),
    "wrong answers": (
        "from answers.{module} import WRONG\n\n{own} = WRONG['{own}'][0][1]",
        "did not pass its last check",
    ),
}
# What a reader could have said: the middle of a slider, the first option, the middle of the axes.
GUESS = """
def _some_guess(my):
    if hasattr(my, "axes"):
        x, y = sum(my.axes.get_xlim()) / 2, sum(my.axes.get_ylim()) / 2
        return {{"x": x, "y": y, "xy": (x, y)}}[my.axis]
    return my.options[0] if my.options else sum(my.limits[:2]) / 2


{name}.value = _some_guess({name})
"""


def printed_solution(name: str) -> str:
    """The solution of an exercise, under the name that the lesson asks for."""
    return inspect.getsource(exercise(name).reference).replace("def _", "def ", 1)


def answer(notebook: nbformat.NotebookNode, form: str) -> None:
    """Write answers into the cells that check an exercise or ask for a guess."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        for name, line in reversed(calls(cell, "check")):  # from below, so that the lines above stay where they are
            module, _, own = name.partition(".")
            words = {"solution": printed_solution(name), "module": module, "own": own}
            lines.insert(line - 1, form.format(**words))
        cell.source = "\n".join([*lines, *(GUESS.format(name=name) for name in guesses(cell))])


def said(notebook: nbformat.NotebookNode) -> list[str]:
    """What the lesson says about whose functions it goes on with."""
    text = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    return re.findall(r"From here on the lesson runs .*", text)


def runs_with(notebook: nbformat.NotebookNode, kind: str) -> None:
    """Run a lesson with answers of a kind, and assert that no cell raised and that it knows whose functions run."""
    form, words = ANSWERS[kind]
    used = [name for cell in notebook.cells if cell.cell_type == "code" for name, _ in calls(cell, "use")]
    answer(notebook, form)
    run(notebook)  # raises the error of a cell
    lines = said(notebook)
    assert len(lines) == len(used) > 0
    for name, line in zip(used, lines, strict=True):
        assert words.format(own=name.partition(".")[2]) in line


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", REBUILT)
def test_a_lesson_runs_with_any_answers(name, kind, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    runs_with(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), kind)


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


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_are_written_into_a_made_lesson(kind, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    lesson = made()
    runs_with(lesson, kind)
    assert "You said 5; it is 4, 1 lower.\nYou said yes; it is no." in (text := printed(lesson.cells[3]))
    assert "You said (0.5, 0.5); it is (0.5, 0)." in text


def test_a_lesson_that_stops_at_an_answer_is_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        runs_with(made("1 / (my.value is None)"), "solutions")
