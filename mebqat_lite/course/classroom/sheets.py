"""The sheets of a course: a line for each result, one for each student, who is missing, and what every file is."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite.course.classroom.by_hand import Marks
from mebqat_lite.course.classroom.handed import Handed
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.tables import write_table

COLUMNS = (
    "student",
    "assignment",
    "points",
    "of",
    "percent",
    "to_mark_by_hand",
    "by_hand",
    "parts",
    "file",
    "remark",
    "problem",
)


def write_grades(
    out: Path, graded: Sequence[Graded], marks: Marks, after: Mapping[tuple[str, str], float | None] | None = None
) -> None:
    """``grades.csv``, a line for each student and assignment, and ``course.csv``, one for each student.

    Points in ``course.csv`` are those of the machine and, once all questions of the result are marked, those by hand.
    What a policy for late days leaves, ``after``, has a column of its own, which is empty where it is not yet known.
    """
    write_table(out / "grades.csv", COLUMNS, (_row(result, marks) for result in graded))
    names, points = sorted({result.assignment.name for result in graded}), totals(graded, marks)
    rows = []
    for student in dict.fromkeys(result.student for result in graded):
        line = [points.get((student, name), "") for name in names]
        total = sum(value for value in line if not isinstance(value, str))
        rows.append([student, *line, total, *([] if after is None else [_left(student, after)])])
    more = [] if after is None else ["total_after_late_days"]
    write_table(out / "course.csv", ["student", *names, "total", *more], rows)


def _left(student: str, after: Mapping[tuple[str, str], float | None]) -> float | str:
    values = [value for (whose, _), value in after.items() if whose == student]
    return "" if None in values else sum(filter(None, values))


def totals(graded: Iterable[Graded], marks: Marks) -> dict[tuple[str, str], float]:
    """The points by (student, assignment): of the machine, and by hand."""
    return {(one.student, one.assignment.name): one.points + (marks.points(one) or 0) for one in graded}


def _row(result: Graded, marks: Marks) -> list[Any]:
    of, parts = result.assignment.points, result.assignment.parts
    each = "; ".join(f"{part.function} {_points(result, part.function)}/{part.points}" for part in parts)
    by_hand, percent = sum(result.assignment.written.values()), round(100 * result.points / of, 1)
    about = [marks.points(result), each, result.file, result.remark, result.problems]
    return [result.student, result.assignment.name, result.points, of, percent, by_hand, *about]


def _points(result: Graded, function: str) -> int:
    return sum(outcome.points for outcome in result.outcomes if outcome.part == function)


def write_files(path: Path, found: Iterable[Handed]) -> None:
    """Every file of the last folder: whose, of which assignment, and whether it is graded, or why not."""
    head = ("file", "student", "assignment", "graded", "reason")
    rows = (
        [file.name, file.student, file.assignment, "no" if file.reason else "yes", file.reason or file.remark]
        for file in found
    )
    write_table(path, head, rows)


def write_roster(path: Path, roster: Roster | None, graded: Sequence[Graded], found: Sequence[Handed]) -> None:
    """For each student and assignment: graded, late, one of several files, not graded and why, or missing."""
    states = _states(graded, found)
    names = sorted({name for _, name in states if name})
    listed = roster.students if roster else []
    there = [*(file.student for file in found if file.student), *(one.student for one in graded)]
    other = {file.student: f"missing, but there is a file: {file.reason}" for file in found if not file.assignment}
    rows = [
        [student, "yes" if student in listed or roster is None else "not recognised"]
        + [states.get((student, name)) or other.get(student, "missing") for name in names]
        for student in dict.fromkeys([*listed, *there])
    ]
    write_table(path, ["student", "in_roster", *names], rows)


def _states(graded: Sequence[Graded], found: Sequence[Handed]) -> Mapping[tuple[str, str], str]:
    """What is known of a student's assignment, in words."""
    states = {(file.student, file.assignment): f"not graded: {file.reason}" for file in found if file.reason}
    for one in graded:
        states[one.student, one.assignment.name] = ", ".join(filter(None, ["graded", one.remark]))
        if one.problem:
            states[one.student, one.assignment.name] = f"not graded: {one.problem}"
    return states


def write_checks(path: Path, graded: Sequence[Graded]) -> None:
    """How many students got each check right, and how many each message; numbers in a message stand as #."""
    counts: collections.Counter[tuple[str, str, str, str]] = collections.Counter()
    of = collections.Counter(result.assignment.name for result in graded)
    for result in graded:
        for outcome in result.outcomes:
            words = re.sub(r"-?\d[\d.e+-]*", "#", outcome.message) or "right"
            counts[result.assignment.name, outcome.part, outcome.check, words] += 1
    place = {about[:3]: number for number, about in reversed(list(enumerate(counts)))}
    ordered = sorted(counts, key=lambda about: (place[about[:3]], -counts[about]))
    rows = ([*about, counts[about], round(100 * counts[about] / of[about[0]], 1)] for about in ordered)
    write_table(path, ("assignment", "part", "check", "message", "students", "percent"), rows)


def summary(graded: Sequence[Graded], found: Sequence[Handed]) -> str:
    """A line for each student and assignment, and for each file that is not graded."""
    width = max((len(result.student) for result in graded), default=0)
    lines = [
        f"{result.student:{width}}  {result.assignment.name}  {result.points:3} of {result.assignment.points}"
        + (f"  {result.problems}" if result.problems else "")
        for result in graded
    ]
    return "\n".join([*lines, *(f"not graded: {f.name}: {f.reason}" for f in found if f.reason)])
