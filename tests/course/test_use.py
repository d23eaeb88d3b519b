"""The lesson goes on with the learner's function, if its last check passed, else with the package's."""

import importlib
import pkgutil
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mebqat_lite import quantizers
from mebqat_lite.course import exercises
from mebqat_lite.course.exercises import Exercise, expect, lesson_01

NAMES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))
LESSONS = [importlib.import_module(f"mebqat_lite.course.exercises.{name}") for name in NAMES]
EXERCISES = [exercise for lesson in LESSONS for exercise in lesson.EXERCISES]


def _double(x: Tensor) -> Tensor:
    return 2 * x


def _total(x: Tensor) -> float:
    return float(x.sum())


def _both(x: Tensor) -> tuple[Tensor, int]:
    return 2 * x, len(x)


def grade(student, rng):
    """Of the sum and of the double: looser about types than the solution is."""
    x = torch.rand(3, generator=rng)
    got = student(x)
    expect(torch.as_tensor(np.asarray(got, dtype="float64")).sum().item(), 2 * float(x.sum()), "x")


def exercise(solution=_double, **options):
    name = solution.__name__.removeprefix("_")
    return Exercise(name, "9.1: Twice", 3, 1, "Write it.", ["Add."], solution, grade, **options)


def whose(one, capsys) -> str:
    """The line that ``use`` prints."""
    capsys.readouterr()
    one.use()
    line = capsys.readouterr().out
    assert line.startswith("From here on the lesson runs ") and line.count("\n") == 1
    return line.removeprefix("From here on the lesson runs ").strip()


OURS = "the package's `double`: yours did not pass its last check."
TODO = "the package's `double`: yours is not attempted yet."


def test_without_a_check_it_is_the_packages(capsys):
    one = exercise()
    assert whose(one, capsys) == TODO and one.use() is _double
    one.check(lambda x: ...)
    assert whose(one, capsys) == TODO
    one.check()
    assert whose(one, capsys) == TODO


def test_it_is_the_learners_after_a_passed_check(capsys):
    one = exercise()
    assert one.check(lambda x: x + x)
    assert whose(one, capsys) == "your `double`."
    assert torch.equal(one.use()(torch.ones(2)), torch.full((2,), 2.0))


def test_the_last_check_counts(capsys):
    one = exercise()
    one.check(lambda x: x + x)
    one.check(lambda x: x)
    assert whose(one, capsys) == OURS and one.use() is _double
    one.check(lambda x: x + x)
    one.check()
    assert whose(one, capsys) == TODO


def test_an_interrupted_check_did_not_pass(capsys):
    def stop(x):
        raise KeyboardInterrupt

    one = exercise()
    one.check(lambda x: x + x)
    with pytest.raises(KeyboardInterrupt):
        one.check(stop)
    assert whose(one, capsys) == OURS


def test_a_function_that_changes_its_input_is_not_used(capsys):
    one = exercise()
    assert not one.check(lambda x: x.mul_(2))
    assert whose(one, capsys) == OURS


def test_the_packages_public_function_is_named_and_used(capsys):
    assert lesson_01.fake_quantize.package is quantizers.fake_quantize
    lesson_01.fake_quantize.check()
    assert whose(lesson_01.fake_quantize, capsys) == "the package's `fake_quantize`: yours is not attempted yet."
    assert lesson_01.fake_quantize.use() is quantizers.fake_quantize


@pytest.mark.parametrize("one", EXERCISES, ids=lambda one: one.name)
def test_the_function_of_the_package_passes_the_check(one, capsys):
    assert one.check(one.package, seed=3), capsys.readouterr().out


def test_an_error_in_the_lesson_ends_in_the_learners_line():
    def mine(x):
        return 2 * x if len(x) == 3 else x[99]

    one = exercise()
    one.check(mine)
    with pytest.raises(IndexError) as caught:
        one.use()(torch.ones(2))
    assert traceback.extract_tb(caught.tb)[-1].name == "mine"
    assert one.use().__name__ == "mine" and one.use().__wrapped__ is mine


# --- results in the form of the solution -----------------------------------------------------------------------


@pytest.mark.parametrize("mine", [lambda x: x.double() * 2, lambda x: 2 * x.numpy(), lambda x: (2 * x).tolist(),
                                  lambda x: 2 * x.numpy().astype("float64")])  # fmt: skip
def test_a_tensor_comes_back_as_the_lesson_needs_it(mine):
    one = exercise()
    assert one.check(mine)
    got = one.use()(torch.tensor([1.0, 3.0]))
    assert isinstance(got, Tensor) and got.dtype == torch.float32 and got.tolist() == [2, 6]


def test_float64_stays_where_the_lesson_gives_float64():
    one = exercise()
    one.check(lambda x: 2 * x.double())
    assert one.use()(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_the_gradient_is_kept():
    one = exercise()
    one.check(lambda x: 2 * x.double())
    x = torch.ones(3, requires_grad=True)
    one.use()(x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


@given(st.floats(-1e6, 1e6, width=32))
def test_a_number_comes_back_as_a_number(value):
    one = exercise(_total)
    kinds = (np.float32, np.float64, torch.tensor, lambda v: torch.tensor([[v]]), np.array)
    for kind in kinds:
        one._checked = (lambda x, kind=kind: kind(value), "OK")
        got = one.use()(torch.ones(1))
        assert type(got) is float and got == value


@pytest.mark.parametrize("odd", [None, "2", torch.ones(2), [1.0, 2.0]])
def test_what_is_no_number_stays_as_it_is(odd):
    one = exercise(_total)
    one._checked = (lambda x: odd, "OK")
    assert one.use()(torch.ones(1)) is odd


def test_parts_of_a_tuple_come_back_in_form():
    one = exercise(_both)
    one._checked = (lambda x: [2 * x.numpy(), torch.tensor(len(x))], "OK")
    doubled, count = one.use()(torch.ones(2))
    assert doubled.tolist() == [2, 2] and type(count) is int
    one._checked = (lambda x: (x,), "OK")
    assert one.use()(torch.ones(2))[0].tolist() == [1, 1]
