"""The graders, tried on right answers of several kinds and on every wrong answer that they claim to name.

The answers of each lesson stand in ``answers/lesson_NN.py``.
"""

import importlib
import inspect
import math
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from answers.lesson_00 import saved
from answers.lesson_01 import product
from graders import NAMES, SEEDS, faults

import mebqat_lite as mq
from mebqat_lite.course.exercises import (
    Exercise,
    Mistake,
    Student,
    checked,
    expect,
    in_words,
    lesson_00,
    lesson_01,
)

LESSONS = [importlib.import_module(f"mebqat_lite.course.exercises.{name}") for name in NAMES]
ANSWERS = [importlib.import_module(f"answers.{name}") for name in NAMES]
EXERCISES = [exercise for lesson in LESSONS for exercise in lesson.EXERCISES]
RIGHT = {name: answers for module in ANSWERS for name, answers in module.RIGHT.items()}
WRONG = {name: answers for module in ANSWERS for name, answers in module.WRONG.items()}
seeds = pytest.mark.parametrize("seeds", [SEEDS[:1], pytest.param(SEEDS[1:], marks=pytest.mark.slow)], ids=str)
every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


def test_no_two_exercises_have_one_name():
    assert len({exercise.name for exercise in EXERCISES}) == len(EXERCISES) == len(RIGHT) == len(WRONG)


@every
@seeds
def test_the_solution_is_right(exercise, seeds):
    for seed in seeds:
        assert exercise.check(exercise.reference, seed=seed)


@seeds
@pytest.mark.parametrize(("name", "answer"), [(name, f) for name in RIGHT for f in RIGHT[name]])
def test_other_right_answers_pass(name, answer, seeds, capsys):
    for seed in seeds:
        result = by_name(name).check(answer, seed=seed)
        assert result.status == "OK", result.line
        assert capsys.readouterr().out == f"[OK] {name}: right on every input that was tried\n"


def by_name(name):
    return next(exercise for exercise in EXERCISES if exercise.name == name)


@seeds
@pytest.mark.parametrize(("name", "message", "answer"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_wrong_answers_are_named(name, message, answer, seeds, capsys):
    for seed in seeds:
        result = by_name(name).check(answer, seed=seed)
        assert result.status == "try again"
        assert re.search(message, result.line), result.line
        assert capsys.readouterr().out == result.line + "\n"
        assert result.line.startswith(f"[try again] {name}: ") and result.line.endswith(f" (seed {seed})")


def test_faults_counts_what_a_grader_gets_wrong(monkeypatch):
    assert not faults("lesson_00", range(1))
    solved, named = lesson_00.saving.reference, WRONG["saving"][0]
    monkeypatch.setitem(ANSWERS[0].RIGHT, "saving", [named[1]])
    monkeypatch.setitem(ANSWERS[0].WRONG, "saving", [("any", solved), ("another name", named[1])])
    found = faults("lesson_00", range(3))
    assert sum(found.values()) == 9  # the messages of one fault may differ from seed to seed
    assert any("is accepted" in fault for fault in found) and any("right answer 1" in fault for fault in found)


@every
def test_every_exercise_has_many_wrong_answers(exercise):
    few = exercise.title[0] in "678"  # lessons
    assert len(WRONG[exercise.name]) >= (6 if few else 15) and len(RIGHT[exercise.name]) >= (2 if few else 10)


@every
def test_a_hard_coded_answer_fails(exercise):
    """What is right for one seed is wrong for the next."""
    recorded = []

    def record(*args):
        recorded.append(exercise.reference(*args))
        return recorded[-1]

    assert exercise.check(record, seed=5)
    replay = iter(recorded)
    assert not exercise.check(lambda *args: recorded[0], seed=6)
    assert not exercise.check(lambda *args: next(replay), seed=6)


# --- not attempted ---------------------------------------------------------------------------------------------


def placeholder(*args):
    raise NotImplementedError("write me")


def empty(*args):
    """To do."""


@every
@pytest.mark.parametrize(
    "function", [None, ..., placeholder, empty, lambda *_: ..., lambda *_: NotImplemented, torch.nn.Module()]
)
def test_not_attempted_is_not_wrong(exercise, function, capsys):
    result = exercise.check(function)
    assert result.status == "not attempted" and not result
    line = capsys.readouterr().out
    assert line.startswith(f"[not attempted] {exercise.name}: ") and line.count("\n") == 1
    assert "seed" not in line


def test_not_attempted_without_an_argument():
    assert (
        lesson_01.fake_quantize.check().line
        == "[not attempted] fake_quantize: write fake_quantize, then run this again"
    )


def test_none_later_is_a_mistake():
    result = lesson_00.saving.check(lambda used, baseline: saved(used, baseline) if used < baseline else None)
    assert result.status == "try again" and "every branch" in result.line


def test_a_library_that_cannot_is_a_mistake_not_a_placeholder():
    def half(x, w, s, t):
        torch.ones(2, dtype=torch.bool).logical_not().float().to(torch.complex64).floor()

    result = lesson_01.integer_matmul.check(half)
    assert result.status == "try again" and "of your function" in result.line

    def library(x, w, s, t):
        return torch.nn.Module()(x)

    result = lesson_01.integer_matmul.check(library)
    assert result.status == "try again" and "NotImplementedError" in result.line


# --- what a learner's function may do to the grader ------------------------------------------------------------


def boom(x, step, low, high):
    codes = x / step
    codes = codes / undefined  # noqa: F821
    return codes


@torch.no_grad()
def wrapped(x, step, low, high):
    codes = [x][3]
    return codes


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (boom, "it stops with NameError: name 'undefined' is not defined, in line 3 of your function: "
               "codes = codes / undefined"),
        (wrapped, r"it stops with IndexError: list index out of range, in line 3 of your function: codes = \[x\]\[3\]"),
        (lambda x: x, r"it stops with TypeError: .*takes 1 positional argument but 4 were given \(seed"),
        (lambda *_: torch.ones(2) @ torch.ones(3), "it stops with RuntimeError: .* in line 1 of your function"),
        (3.0, r"give the function itself, not what it returns: check\(fake_quantize\)"),
    ],
)  # fmt: skip
def test_an_exception_inside_is_one_line(function, text, capsys):
    result = lesson_01.fake_quantize.check(function)
    out = capsys.readouterr()
    assert re.search(text, result.line), result.line
    assert result.status == "try again"
    assert out.out.count("\n") == 1 and "Traceback" not in out.out and not out.err


def test_a_function_of_the_grader_says_itself_what_is_wrong():
    def handed_over(x):
        raise Mistake("give it a tensor")

    with pytest.raises(Mistake, match=r"^give it a tensor$"):
        Student(lambda f: f(1), ["f"])(handed_over)


def test_a_known_error_is_told_in_words_with_its_line():
    def answer(x):
        return x.backward()

    with pytest.raises(Mistake) as caught:
        Student(answer, ["x"])(1.0)
    told = in_words(caught.value, {"no such words": "?", "has no attribute 'backward'": "the loss is a number"})
    assert re.fullmatch(r"the loss is a number, in line 2 of your function: return x\.backward\(\)", str(told))
    assert in_words(caught.value, {"return x": "?"}) is caught.value  # the learner's line is not the error


def test_a_long_error_message_is_cut():
    def shout(*args):
        raise ValueError("no\n" * 500)

    assert len(lesson_01.fake_quantize.check(shout).line) < 400


def test_keyboard_interrupt_passes():
    def stop(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesson_01.fake_quantize.check(stop)


def test_input_changed_in_place_is_told_and_does_not_reach_the_grader():
    def spoil(x, step, low, high):
        x.zero_()
        return x

    assert "changes its input x in place" in lesson_01.fake_quantize.check(spoil).line

    def spoil_second(x, w, s, t):
        w.data = w.data.int()
        return product(x, w) * (s * t)

    assert "changes its input w_codes in place" in lesson_01.integer_matmul.check(spoil_second).line


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    for exercise in EXERCISES:
        exercise.check(exercise.reference)
    assert torch.equal(torch.rand(3), want)


def inputs(exercise, seed=None):
    """The arguments of every call of one check, as text."""
    seen = []

    def watch(*args):
        shown = [arg.sum() if isinstance(arg, torch.Tensor) else arg for arg in args]
        seen.append(str([arg for arg in shown if not isinstance(arg, torch.nn.Module)]))
        return exercise.reference(*args)

    return exercise.check(watch, seed=seed).seed, seen


@every
def test_a_seed_repeats_the_input_and_another_changes_it(exercise):
    assert inputs(exercise, 1) == inputs(exercise, 1)
    assert inputs(exercise, 1)[1] != inputs(exercise, 2)[1]
    seed, seen = inputs(exercise)  # a fresh one
    assert inputs(exercise, seed)[1] == seen


def test_fresh_seeds_differ_whatever_the_learner_seeds():
    drawn = set()
    for _ in range(5):
        torch.manual_seed(0)
        drawn.add(lesson_00.saving.check(saved).seed)
    assert len(drawn) > 1


def test_the_same_seed_gives_the_same_line():
    wrong = WRONG["best_step"][3][1]
    assert lesson_01.best_step.check(wrong, seed=7) == lesson_01.best_step.check(wrong, seed=7)


# --- what is shown ---------------------------------------------------------------------------------------------


def test_a_result_shows_nothing_more_in_a_notebook():
    formatters = pytest.importorskip("IPython.core.formatters")
    result = lesson_00.saving.check(saved, seed=1)
    assert formatters.DisplayFormatter().format(result) == ({}, {})
    assert repr(result) == "Result(name='saving', status='OK')"
    assert result and not lesson_00.saving.check(None)


@pytest.mark.slow
def test_a_cell_prints_the_line_once():
    """In a real kernel: one line of text, no second value, no traceback."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "from mebqat_lite.course.exercises import lesson_01\nlesson_01.fake_quantize",
        "def mine(x, step, low, high):\n    return x / zero\n\nlesson_01.fake_quantize.check(mine, seed=3)",
        "lesson_01.fake_quantize.check(None)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    [question], [failed], [not_attempted] = (cell.outputs for cell in notebook.cells)
    assert question.data["text/markdown"] == lesson_01.fake_quantize._repr_markdown_()
    assert failed.name == "stdout" and failed.text == (
        "[try again] fake_quantize: it stops with NameError: name 'zero' is not defined, "
        "in line 2 of your function: return x / zero (seed 3)\n"
    )
    assert not_attempted.text == "[not attempted] fake_quantize: write fake_quantize, then run this again\n"


@every
def test_an_exercise_shows_itself(exercise, capsys):
    markdown = exercise._repr_markdown_()
    assert exercise.name in markdown and exercise.title in markdown
    assert f"{exercise.minutes} minutes" in markdown and len(re.findall("[●○]", markdown)) == 3
    assert "●" in exercise.dots and "\n" not in repr(exercise) and exercise.title in repr(exercise)
    assert not any(line.startswith("    ") for line in markdown.splitlines())  # would be a code block
    assert not capsys.readouterr().out


@every
def test_hints(exercise, capsys):
    count = len(exercise.hints)
    for n in range(1, count + 1):
        exercise.hint(n)
        assert capsys.readouterr().out == f"Hint {n} of {count}: {exercise.hints[n - 1]}\n"
    exercise.hint()
    assert capsys.readouterr().out.startswith(f"Hint 1 of {count}: ")
    for n in (0, -1, 9):
        exercise.hint(n)
        assert capsys.readouterr().out == f"{exercise.name} has {count} hints: hint(1) to hint({count})\n"


@every
def test_the_printed_solution_runs_and_is_right(exercise, capsys):
    exercise.solution()
    source = capsys.readouterr().out
    assert source.startswith(f"def {exercise.name}(") and source.endswith("\n")
    names = {"torch": torch, "mq": mq}
    exec(source, names)
    assert exercise.check(names[exercise.name])
    assert next(iter(inspect.signature(names[exercise.name]).parameters)) in exercise.question


@every
def test_the_question_gives_the_signature(exercise):
    arguments = ", ".join(inspect.signature(exercise.reference).parameters)
    assert f"`{exercise.name}({arguments})`" in exercise.question


# --- the graders' own tools ------------------------------------------------------------------------------------


def test_checked_accepts_what_is_a_number():
    arrays = torch.tensor(2), torch.tensor([[2.0]]), torch.tensor(2.0).double(), np.array(2), np.array([2.0])
    for value in (2, 2.0, Fraction(2), Decimal(2), np.float32(2), np.int64(2), *arrays):
        assert float(checked(value, 0.0)) == float(checked(value, torch.tensor(0.0))) == 2
    for value in ("2", True, np.bool_(True), torch.tensor(True), [2.0], (2.0,), 2j, np.array([2j]), len, {2}):
        with pytest.raises(Mistake, match="return a number"):
            checked(value, 0.0)
    with pytest.raises(Mistake, match="ndarray of 2 values: return one number"):
        checked(np.ones(2), 0.0)


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], [[1.5, -2.0], [0.0, 1e-3]]])
@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor, np.array, list, tuple,
        lambda rows: torch.tensor(rows, dtype=torch.float64, requires_grad=True),
        lambda rows: np.array(rows, dtype=np.float32)[::-1][::-1],
        lambda rows: np.array(rows, order="F"),
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: [[torch.tensor(value) for value in row] for row in rows],
        lambda rows: [np.array(rows[0]), tuple(map(np.float64, rows[1]))],
    ],
)  # fmt: skip
def test_checked_accepts_what_holds_the_numbers_of_a_tensor(kind, values):
    found = checked(kind(values), torch.zeros(2, 2))
    assert found.dtype == torch.float64 and not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("12", "type str: return a tensor"),
        (2.0, "type float: return a tensor"),
        (["1", "2"], "type str: return a tensor"),
        ([1.0, None], "type NoneType: return a tensor"),
        (np.array(["1", None], dtype=object), "type ndarray: return a tensor"),
        ([True, False], "type bool: return a tensor"),
        (torch.ones(2) > 0, "dtype torch.bool"),
        (torch.ones(2, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.ones(2).half(), "float16, which keeps only three digits"),
        (np.ones(2, dtype=np.float16), "float16, which keeps only three digits"),
        ([[1.0], [1.0, 2.0]], "list of parts that differ in shape"),
        ([], r"shape \(0,\); it should be \(2,\)"),
        (torch.ones(3), r"shape \(3,\); it should be \(2,\)"),
        ([1.0, math.nan], "NaN or infinity"),
    ],
)
def test_checked_names_what_is_no_tensor(value, message):
    with pytest.raises(Mistake, match=message):
        checked(value, torch.zeros(2))


def test_expect_names_the_first_mistake_that_fits():
    x = torch.ones(3)
    expect(x, x, "x")
    with pytest.raises(Mistake, match=r"^second \(for x\)$"):
        expect(2 * x, x, "x", [("first", 3 * x), ("second", 2 * x), ("third", 2 * x)])
    with pytest.raises(Mistake, match=r"^for x: 1 of 3 values are wrong: it returns 5, right is 1$"):
        expect(torch.tensor([1.0, 5.0, 1.0]), x, "x", [("first", 3 * x)])
    with pytest.raises(
        Mistake, match=r"^much larger \(for x\)$"
    ):  # float32 rounds it by more than 1e-5 of the right one
        expect((1e7 / 3 * x), x, "x", [("much larger", 1e7 / 3 * x.double())])


def test_an_exercise_of_your_own(capsys):
    def _double(x):
        return 2 * x

    def grade(student, rng):
        x = float(torch.rand((), generator=rng))
        expect(student(x), 2 * x, f"x = {x:.3g}", [("this is x squared", x * x)])

    exercise = Exercise("double", "9.1: Twice", 3, 1, "Write `double(x)`.", ["Add."], _double, grade)
    assert exercise.check(lambda x: x + x)
    assert "this is x squared" in exercise.check(lambda x: x * x).line
    assert exercise._repr_markdown_() == "**Exercise 9.1: Twice** · ●●● · 1 minutes\n\nWrite `double(x)`."


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exercise in EXERCISES:
            exercise.check(exercise.reference)
