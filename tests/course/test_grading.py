"""Submissions graded part by part: what is wrong in one costs nothing in another."""

import nbformat
import pytest
import torch
from submissions import GOOD, notebook

from mebqat_lite.course.classroom.feedback import page
from mebqat_lite.course.classroom.grading import Assignment, Check, Part, grade, seed_of
from mebqat_lite.course.classroom.sandbox import Limits
from mebqat_lite.course.classroom.submission import Submission, SubmissionError
from mebqat_lite.course.exercises import expect


def submission(tmp_path, *cells):
    path = tmp_path / "work.ipynb"
    nbformat.write(notebook(*cells), path)
    return Submission.read(path, "ann")


def grade_double(student, rng):
    x = float(torch.rand((), generator=rng))
    expect(student(x), 2 * x, f"x = {x:.3g}", [("this is x squared", x * x)])


def grade_sign(student, rng):
    expect(student(-1.0), -2.0, "x = -1")


DOUBLE = Part("double", ("x",), "Twice", 5, (Check("twice", 3, grade_double), Check("sign", 2, grade_sign)),
              Limits(seconds=3.0, memory=2**30))  # fmt: skip
TRIPLE = Part("triple", ("x",), "Thrice", 5, (Check("thrice", 4, lambda student, rng: expect(student(2.0), 6.0, "2")),),
              Limits(seconds=3.0, memory=2**30))  # fmt: skip
COURSE = Assignment("99_made", (DOUBLE, TRIPLE), {"words": 2})


def points(tmp_path, *cells, assignment=COURSE):
    found, _ = grade(submission(tmp_path, *cells), assignment)
    return [outcome.points for outcome in found], [outcome.message for outcome in found]


def test_a_right_submission_gets_all_points_and_uses_its_own_functions(tmp_path):
    assert points(tmp_path, *GOOD) == ([3, 2, 4], ["", "", ""])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "got", "words"),
    [
        ((("double", "def double(x):\n    return abs(2 * x)"), GOOD[1]), [3, 0, 4], "right is"),
        ((("double", "def double(x):\n    return x * x"), GOOD[1]), [0, 0, 4], "x squared"),
        ((("double", "import os\nos._exit(1)"), ("triple", "def triple(x): return 3 * x")), [0, 0, 4], "own process"),
        ((("double", "def double(x): return 1 / 0"), ("triple", "def triple(x): return 3 * x")), [0, 0, 4], "ZeroDiv"),
        ((("double", "def double(x:\n    return 1"), ("triple", "def triple(x): return 3 * x")), [0, 0, 4], "line 1"),
        ((("double", "def double(x): return 2 * x\nexit()"), GOOD[1]), [3, 2, 4], ""),
        ((("double", "double(3)\ndef double(x): return 2 * x\n1 / 0"), GOOD[1]), [3, 2, 4], ""),
        ((("", "import os\nos._exit(0)"), ("", "import math"), *GOOD), [3, 2, 4], ""),
        ((("double", "def twice(x): return 2 * x"), ("triple", "def triple(x): return 3 * x")), [0, 0, 4], "renamed"),
        ((("", "while True: pass"), ("", "x ="), *GOOD), [3, 2, 4], ""),
        ((("triple", "def triple(x): return 3 * x"),), [0, 0, 4], "deleted"),
        ((("double", "def double(x): ..."), GOOD[1]), [0, 0, 0], "not attempted"),
        ((("", GOOD[0][1]), GOOD[1]), [3, 2, 4], ""),  # the cell's id is lost
    ],
)
def test_what_is_wrong_in_a_part_costs_that_part_alone(tmp_path, cells, got, words):
    found, said = points(tmp_path, *cells)
    assert found == got and any(words in message for message in said)


@pytest.mark.slow
def test_a_regrade_gives_the_same_and_a_variant_another_input(tmp_path):
    wrong, alone = ("double", "def double(x):\n    return x"), Assignment("99_made", (DOUBLE,))
    assert points(tmp_path, wrong, assignment=alone) == points(tmp_path, wrong, assignment=alone)
    assert len({seed_of("ann", "99_made", variant) for variant in range(5)} | {seed_of("ben", "99_made")}) == 6


def grade_same(student, rng):
    here, [there] = student("ann"), student.in_another_process(("ann",))
    expect(there, here, "the same call in another process")


@pytest.mark.slow
@pytest.mark.parametrize(("value", "got"), [("len(name)", 1), ("hash(name)", 0)])
def test_a_check_may_ask_a_second_process_in_which_text_has_another_hash(tmp_path, value, got):
    part = Part("number", ("name",), "A number", 5, (Check("same", 1, grade_same),))
    handed = submission(tmp_path, ("number", f"def number(name):\n    return {value}"))
    outcomes, _ = grade(handed, Assignment("99_made", (part,)))
    assert [outcome.points for outcome in outcomes] == [got], outcomes


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"cells": 3}', '{"cells": [{}]}', "\x00"])
def test_a_file_that_is_no_notebook_says_so(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(SubmissionError, match="is no notebook"):
        Submission.read(tmp_path / "a.ipynb", "ann")


@pytest.mark.slow
def test_what_is_left_out_and_which_attempt_counts_stands_in_the_notes_and_on_the_page(tmp_path):
    stub = ("double", "def double(x):\n    return ...")
    handed = submission(
        tmp_path, ("", "import no_such_library\nimport math"), ("", "__import__('os')._exit(0)"), *GOOD, stub
    )
    outcomes, notes = grade(handed, COURSE)
    assert sum(outcome.points for outcome in outcomes) == 9
    shown = page("ann", COURSE, outcomes, notes=notes)
    for words in ("code cell 1, line 1, `import no_such_library` is left out", "code cells 3, 5: number 3 counts",
                  "triple: of the cells before it only imports"):  # fmt: skip
        assert sum(words in note for note in notes) == 1 and words in shown
    assert "Which cells count" not in page("ann", COURSE, outcomes)
