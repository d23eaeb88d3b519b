"""What plans are worth in assignment 07, on every hidden split: ``python tests/capstone.py``, half an hour.

A plan that trains W1A1 alone, or the baseline with one setting changed, gets at most half of the points; the
plans of ``answers/assignment_07.py`` that are right get all. The command prints the points and fails otherwise.
(W2A2 alone, with a learning rate of 0.06 to 0.1, is the best single pair: it passes on up to 7 of the 20 splits.)
"""

import ast
import collections
import sys

import nbformat
import torch
from answers import assignment_07
from guide import ASSIGNMENTS, master

from mebqat_lite.course.classroom.grading import GradedStudent, Mistake

NAME, SPLITS = "07_compare_and_decide", range(20)  # the hidden splits by number
[CHOOSE] = [part for part in ASSIGNMENTS[NAME].parts if part.function == "choose"]
CHANGES = {
    "guaranteed": [["FP"], ["W1A1"], ["W2A2"], ["FP", "W1A1"]],
    "m": [1, 2, 3],
    "exclude": [[1], [3, 5, 7], [16]],
    "teacher": ["fp", "next"],
    "lr": [0.003, 0.02, 0.03, 0.06, 0.1],
    "steps": [75],
    "norm_stats": ["recalibrated"],
}


def baseline() -> dict:
    """The plan that the notebook hands out."""
    [source] = [
        cell.source for cell in nbformat.read(master(NAME), as_version=4).cells if "BASELINE = {" in cell.source
    ]
    [value] = [node.value for node in ast.parse(source).body if ast.unparse(node).startswith("BASELINE = ")]
    return ast.literal_eval(value)


def one_change() -> list[dict]:
    """The baseline, and the baseline with one setting changed."""
    return [baseline(), *(baseline() | {name: value} for name, values in CHANGES.items() for value in values)]


def only_w1a1() -> list[dict]:
    """Plans that train W1A1 alone, after warm starts of several lengths."""
    rates = {300: 0.03, 200: 0.06, 100: 0.1}
    settings = [{"warm_steps": warm, "steps": 600 - warm, "lr": rate} for warm, rate in rates.items()]
    return [assignment_07.PLAN | {"guaranteed": ["W1A1"], "m": 1} | setting for setting in settings]


def points(plan: dict, split: int) -> int:
    """The points of a plan on the hidden split of this number."""
    student, found = GradedStudent(lambda: plan, ()), 0
    for check in CHOOSE.checks:
        try:
            check.grade(student, torch.Generator().manual_seed(len(CHOOSE.checks) * split))
            found += check.points
        except Mistake:
            pass
    return found


if __name__ == "__main__":
    right = [answer() for answer in assignment_07.RIGHT["choose"]]
    wrong = False
    for plan in [*right, *only_w1a1(), *one_change()]:
        got = [points(plan, split) for split in SPLITS]
        print(f"points {dict(collections.Counter(got))}: {plan}", flush=True)
        wrong |= min(got) < CHOOSE.points if plan in right else max(got) > CHOOSE.points / 2
    sys.exit(wrong)
