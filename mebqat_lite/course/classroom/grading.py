"""Points for a submission, part by part: what goes wrong in one costs nothing in another.

A part is a function that the student writes; each of its checks is worth points of its own. The checks run here, on
fresh random input, and raise a `Mistake` that names what is wrong; the function runs in a `Sandbox`.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mebqat_lite.course.classroom.parts import opened
from mebqat_lite.course.classroom.sandbox import Limits, Stopped
from mebqat_lite.course.classroom.submission import Submission, printable
from mebqat_lite.course.exercises import Mistake, Student

Call = Callable[..., Any]  # `Sandbox.call`, or a function of this process that does the same
Anew = Callable[[], contextlib.AbstractContextManager[Call]]  # the call of the same function in a process of its own


class GradedStudent(Student):
    """A student's function as graders call it."""

    def __init__(self, call: Call, names: Sequence[str], anew: Anew) -> None:
        super().__init__(functools.partial(call), names)
        self.call, self.anew = call, anew

    def in_another_process(self, *calls: Sequence[Any]) -> list[Any]:
        """The values for several calls, (arguments) each, in a second process, where Python hashes text otherwise."""
        with self.anew() as call:
            other = GradedStudent(call, self.names, self.anew)
            return [other(*args) for args in calls]

    def gradients(self, *args: Any, upstream: Tensor) -> tuple[Any, list[Tensor | None]]:
        """The value, and for each argument the gradient that arrives there for ``upstream``, or None."""
        found: tuple[Any, list[Tensor | None]]
        found = self.on_copies(functools.partial(self.call, upstream=upstream), args, lambda pair: pair[0])
        return found

    def explain(self, error: Exception) -> Exception:
        """As for a function in this process; but where the process is gone, that is the reason."""
        return error if isinstance(error, Stopped) else super().explain(error)


Grade = Callable[[Any, torch.Generator], None]


@dataclass(frozen=True)
class Check:
    """Something that a right answer does, worth points."""

    title: str
    points: int
    grade: Grade


@dataclass(frozen=True)
class Part:
    """A function that the student writes. ``arguments`` are their names; ``minutes`` typical."""

    function: str
    arguments: tuple[str, ...]
    title: str
    minutes: int
    checks: tuple[Check, ...]
    limits: Limits = field(default_factory=Limits)

    @property
    def points(self) -> int:
        """Of all checks."""
        return sum(check.points for check in self.checks)


@dataclass(frozen=True)
class Assignment:
    """The graded parts of a notebook, ``NN_topic``, and the points of its written answers, marked by hand."""

    name: str
    parts: tuple[Part, ...]
    written: dict[str, int] = field(default_factory=dict)  # id of the cell -> points

    @property
    def points(self) -> int:
        """That the machine gives."""
        return sum(part.points for part in self.parts)


@dataclass(frozen=True)
class Outcome:
    """A check of a submission."""

    part: str
    check: str
    points: int
    of: int
    message: str  # for the student; "" if right
    seed: int
    unforeseen: bool = False  # the check itself stopped: the instructor should look at it
    stopped: bool = False  # the student's process was: perhaps by a busy machine, so the next grading tries again


def seed_of(student: str, assignment: str, variant: int = 0) -> int:
    """The seed of a student's random input: the same at each grading, another for each student and variant."""
    return zlib.crc32(f"{variant}/{assignment}/{student}".encode())


def grade(submission: Submission, assignment: Assignment, variant: int = 0) -> tuple[list[Outcome], list[str]]:
    """Grade all parts of a submission: outcomes, and notes on what of its cells counts. It never raises for what is
    in it.
    """
    seed = seed_of(submission.student, assignment.name, variant)
    graded = [grade_part(submission, part, seed) for part in assignment.parts]
    notes = dict.fromkeys(printable(note) for _, found in graded for note in found)
    return [outcome for outcomes, _ in graded for outcome in outcomes], list(notes)


def grade_part(submission: Submission, part: Part, seed: int) -> tuple[list[Outcome], list[str]]:
    """Each check of a part on fresh input of its own; once the student's process is gone, the others fail with it."""
    try:
        with opened(submission.cells, part.function, part.limits) as (call, notes):
            return grade_function(call, part, seed, functools.partial(_another, submission, part)), notes
    except LookupError as problem:
        return [_outcome(part, check, str(problem.args[0]), seed) for check in part.checks], []
    except Stopped as problem:
        return [_outcome(part, check, str(problem), seed, stopped=True) for check in part.checks], []
    except Exception as error:
        words = _unforeseen("the part", error)
        return [_outcome(part, check, words, seed, unforeseen=True) for check in part.checks], []


@contextlib.contextmanager
def _another(submission: Submission, part: Part) -> Iterator[Call]:
    """A second process of a part."""
    with opened(submission.cells, part.function, part.limits) as (call, _):
        yield call


def grade_function(call: Call, part: Part, seed: int, anew: Anew) -> list[Outcome]:
    """Each check of a part, on a function that is called as `Sandbox.call` is."""
    student = functools.partial(GradedStudent, call, part.arguments, anew)
    return [_grade_check(student(), part, check, seed + number) for number, check in enumerate(part.checks)]


def _grade_check(student: GradedStudent, part: Part, check: Check, seed: int) -> Outcome:
    try:
        check.grade(student, torch.Generator().manual_seed(seed))
    except NotImplementedError as found:
        return _outcome(part, check, f"not attempted: {found}", seed)
    except Mistake as found:
        return _outcome(part, check, str(found), seed)
    except Stopped as found:
        return _outcome(part, check, str(found), seed, stopped=True)
    except Exception as error:  # of a value that the check did not reckon with
        return _outcome(part, check, _unforeseen("the check", error), seed, unforeseen=True)
    return _outcome(part, check, "", seed)


def _unforeseen(what: str, error: Exception) -> str:
    """Words for an error that no check has words for."""
    words = f"{what} stops with {type(error).__name__}: {str(error)[:200]}"
    return f"{words}. Is what your function returns of the kind that is asked for? Your instructor sees this line too."


def _outcome(part: Part, check: Check, message: str, seed: int, **why: bool) -> Outcome:
    points, words = 0 if message else check.points, " ".join(printable(message).split())
    return Outcome(part.function, check.title, points, check.points, words, seed, **why)
