"""Grade a class of some seventy submissions, which takes some minutes: ``python -m benchmarks.classroom [FOLDER]``.

All parts are graded, but for the plan of assignment 07. The command prints each result, the time, and what is not as it
must be; it fails if there is such a thing. ``tests/course/test_class.py`` grades two parts of each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.classroom.graded import Class, lines
from benchmarks.classroom.made import FOUR, ONE, SEVEN, SIX, TIGHT, TWO
from benchmarks.machine import machine
from mebqat_lite.course.classroom.sheets import summary

PARTS = dict.fromkeys((ONE, TWO, FOUR, SIX, TIGHT), ()) | {SEVEN: ("worst_pairs", "dedicated_steps", "decide")}


def main(folder: Path) -> None:
    """Write the submissions, grade them, and check that each gets the points that it should."""
    started = time.perf_counter()
    made = Class(folder, PARTS)
    minutes = (time.perf_counter() - started) / 60
    print(summary(list(made.graded.values()), made.found))
    print(f"{len(made.cases)} submissions in {minutes:.1f} minutes; {machine()}")
    if wrong := lines(made, made.cases):
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
