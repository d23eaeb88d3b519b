"""Try every known answer on many seeds: ``python tests/graders.py [SEEDS [LESSON ...]]``, some minutes for 100 seeds.

It counts right answers that a grader rejects, wrong ones that it accepts, and mistakes that it does not name as
``answers/lesson_NN.py`` says. Each of these is printed; the command fails if there is one.
"""

import collections
import contextlib
import importlib
import io
import pkgutil
import re
import sys
from collections.abc import Iterable

from mebqat_lite.course import exercises

NAMES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))


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


def line(result: exercises.Result) -> str:
    """What was printed, without the seed, so that the same fault is counted and not repeated."""
    return re.sub(r" \(seed \d+\)$", "", result.line)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    total = 0
    for lesson in sys.argv[2:] or NAMES:
        with contextlib.redirect_stdout(io.StringIO()):
            found = faults(lesson, range(count))
        print(
            f"{lesson}: {sum(found.values())} faults in {count} seeds",
            *(f"{n} x {fault}" for fault, n in found.items()),
            sep="\n  ",
            flush=True,
        )
        total += sum(found.values())
    sys.exit(total > 0)
