"""The first lessons run to their end whatever a reader answers: nbval runs them without any answer, this test with."""

import os
from pathlib import Path

import nbformat
import pytest
from lesson_runs import runs_with_answers
from lessons import FOLDER, REBUILT, printed

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", REBUILT[:5])
def test_a_lesson_runs_with_answers(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    runs_with_answers(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


# --- this test, on a made lesson -------------------------------------------------------------------------------

MADE = [
    "import torch\n\nfrom mebqat_lite.course import guess\nfrom mebqat_lite.course.exercises import lesson_01",
    "my = guess.number('How many?', high=10)\nother = guess.choice('Does it hold?', ['yes', 'no'])",
    "import matplotlib.pyplot as plt\n\nfrom mebqat_lite.course.widgets.mark import MarkOnAxes\n\n"
    "place = MarkOnAxes(plt.figure().add_subplot())",
    "print(guess.said(my, 4))\nprint(guess.said(other, 'no'))\nprint(guess.said(place, 0.2))",
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
    assert "You said 0.5; it is 0.2, 0.3 lower." in text
    assert "did not pass its last check" in printed(lesson.cells[4])
    assert "the lesson runs your `fake_quantize`" in printed(lesson.cells[5])


def test_a_lesson_that_stops_at_an_answer_is_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        runs_with_answers(made("1 / (my.value is None)"))
