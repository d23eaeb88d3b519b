"""Run a lesson with answers.

Each guess is answered. Each exercise is answered twice: at first wrongly, so that the lesson would go on as it does
without an answer, and then rightly, in another style than that of the solution. Both are in ``answers/lesson_NN.py``.
"""

import re

import nbformat
from lessons import calls, guesses, printed

from notebooks.store import run

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
