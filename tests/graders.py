"""Try every known answer on many seeds: ``python tests/graders.py [SEEDS [NAME ...]]``, some minutes for 100 seeds.

NAME is ``lesson_01`` or ``assignment_02``; without one all are tried. It counts right answers that a grader rejects,
wrong ones that it accepts, and mistakes that it does not name as ``answers/NAME.py`` says. Each of these is printed;
the command fails if there is one.
"""

import builtins
import collections
import contextlib
import importlib
import io
import pkgutil
import re
import sys
import unittest.mock
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from guide import ASSIGNMENTS

from mebqat_lite.course import exercises
from mebqat_lite.course.classroom import worker
from mebqat_lite.course.classroom.grading import Part, grade_function

NAMES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))
SEEDS = range(5)  # of the tests, on each of which they try each answer; the quick tests try it on the first


def faults(lesson: str, seeds: Iterable[int]) -> collections.Counter:
    """How often each fault occurred in a lesson's exercises, by its description."""
    answers = importlib.import_module(f"answers.{lesson}")
    found: collections.Counter = collections.Counter()
    for exercise in importlib.import_module(f"{exercises.__name__}.{lesson}").EXERCISES:
        right, wrong = answers.RIGHT[exercise.name], answers.WRONG[exercise.name]
        for seed in seeds:
            for number, answer in enumerate([exercise.reference, *right]):
                if not (result := exercise.check(answer, seed=seed)):
                    found[f"right answer {number}: {line(result)}"] += 1
            for number, (message, answer) in enumerate(wrong):
                result = exercise.check(answer, seed=seed)
                if result.status != "try again":
                    found[f"{exercise.name}, wrong answer {number} ({message}) is accepted"] += 1
                elif not re.search(message, result.line):
                    found[f"wrong answer {number} ({message}): {line(result)}"] += 1
    return found


def assignment_faults(assignment: str, seeds: Iterable[int]) -> collections.Counter:
    """How often each fault occurred in the parts of an assignment, by its description."""
    answers = importlib.import_module(f"answers.{assignment}")
    [graded] = [one for name, one in ASSIGNMENTS.items() if name[:2] == assignment[-2:]]
    found: collections.Counter = collections.Counter()
    for part in graded.parts:
        for seed in seeds:
            for number, answer in enumerate(answers.RIGHT[part.function]):
                if any(lost := messages(answer, part, seed)):
                    found[f"{part.function}, right answer {number}: {' '.join(lost)[:150]}"] += 1
            for number, (message, answer) in enumerate(answers.WRONG[part.function]):
                lost = list(filter(None, messages(answer, part, seed)))
                if not lost:
                    found[f"{part.function}, wrong answer {number} ({message}) is accepted"] += 1
                elif not any(re.search(message, one) for one in lost):
                    found[f"{part.function}, wrong answer {number} ({message}): {lost[0][:100]}"] += 1
    return found


def messages(function: Callable[..., Any], part: Part, seed: int) -> list[str]:
    """What each check of a part says to a function of this process, "" where it is right."""

    def call(*args: Any, upstream: Any = None) -> Any:
        answer = worker.call(function, list(args), upstream)
        return answer["value"] if upstream is None else (answer["value"], answer["grads"])

    @contextlib.contextmanager
    def anew() -> Iterator[Callable[..., Any]]:
        """As another process would call it, in which the hash of a text is another one."""
        plain = builtins.hash
        with unittest.mock.patch("builtins.hash", lambda value: plain(f"+{value}" if type(value) is str else value)):
            yield call

    return [outcome.message for outcome in grade_function(call, part, seed, anew)]


def line(result: exercises.Result) -> str:
    """What was printed, without the seed, so that the same fault is counted and not repeated."""
    return re.sub(r" \(seed \d+\)$", "", result.line)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    total = 0
    for name in sys.argv[2:] or [*NAMES, *(f"assignment_{assignment[:2]}" for assignment in ASSIGNMENTS)]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = (assignment_faults if name.startswith("assignment") else faults)(name, range(count))
        print(
            f"{name}: {sum(found.values())} faults in {count} seeds",
            *(f"{n} x {fault}" for fault, n in found.items()),
            sep="\n  ",
            flush=True,
        )
        total += sum(found.values())
    sys.exit(total > 0)
