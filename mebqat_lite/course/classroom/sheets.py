"""The sheets of a course: a line for each result, one for each student, who is missing, and what every file is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite.course.classroom.handed import Handed
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.names import readable
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.files import replace

COLUMNS = ("student", "assignment", "points", "of", "percent", "to_mark_by_hand", "parts", "file", "remark", "problem")


def write_sheet(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file whose texts no spreadsheet takes for formulas."""
    text = io.StringIO(newline="")
    safe = ([_safe(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text).writerows([[_safe(title) for title in head], *safe])
    replace(path, text.getvalue().encode())


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) else text


def write_grades(out: Path, graded: Sequence[Graded]) -> None:
    """``grades.csv``, a line for each student and assignment, and ``course.csv``, one for each student."""
    write_sheet(out / "grades.csv", COLUMNS, map(_row, graded))
    names = sorted({result.assignment.name for result in graded})
    points = {(result.student, result.assignment.name): result.points for result in graded}
    rows = []
    for student in dict.fromkeys(result.student for result in graded):
        line = [points.get((student, name)) for name in names]
        rows.append([student, *("" if found is None else found for found in line), sum(filter(None, line))])
    write_sheet(out / "course.csv", ["student", *names, "total"], rows)


def _row(result: Graded) -> list[Any]:
    of, parts = result.assignment.points, result.assignment.parts
    each = "; ".join(f"{part.function} {_points(result, part.function)}/{part.points}" for part in parts)
    by_hand, percent = sum(result.assignment.written.values()), round(100 * result.points / of, 1)
    about = [each, result.file, result.remark, result.problems]
    return [result.student, result.assignment.name, result.points, of, percent, by_hand, *about]


def _points(result: Graded, function: str) -> int:
    return sum(outcome.points for outcome in result.outcomes if outcome.part == function)


def write_files(path: Path, folder: Path, found: Iterable[Handed]) -> None:
    """Every file of the last folder: whose, of which assignment, and whether it is graded, or why not."""
    head = ("file", "student", "assignment", "graded", "reason")
    rows = (
        [readable(str(file.path.relative_to(folder))), file.student, file.assignment, "no" if file.reason else "yes",
         file.reason or file.remark] for file in found
    )  # fmt: skip
    write_sheet(path, head, rows)


def write_roster(path: Path, roster: Roster | None, graded: Sequence[Graded], found: Sequence[Handed]) -> None:
    """For each student and assignment: graded, late, one of several files, not graded and why, or missing."""
    states = _states(graded, found)
    names = sorted({name for _, name in states if name})
    listed = roster.students if roster else []
    there = [*(file.student for file in found if file.student), *(one.student for one in graded)]
    rows = [
        [student, "yes" if student in listed or roster is None else "not recognised"]
        + [states.get((student, name), "missing") for name in names]
        for student in dict.fromkeys([*listed, *there])
    ]
    write_sheet(path, ["student", "in_roster", *names], rows)


def _states(graded: Sequence[Graded], found: Sequence[Handed]) -> Mapping[tuple[str, str], str]:
    """What is known of a student's assignment, in words."""
    states = {(file.student, file.assignment): f"not graded: {file.reason}" for file in found if file.reason}
    for one in graded:
        states[one.student, one.assignment.name] = ", ".join(filter(None, ["graded", one.remark]))
        if one.problem:
            states[one.student, one.assignment.name] = f"not graded: {one.problem}"
    return states


def summary(graded: Sequence[Graded], found: Sequence[Handed]) -> str:
    """A line for each student and assignment, and for each file that is not graded."""
    width = max((len(result.student) for result in graded), default=0)
    lines = [
        f"{result.student:{width}}  {result.assignment.name}  {result.points:3} of {result.assignment.points}"
        + (f"  {result.problems}" if result.problems else "")
        for result in graded
    ]
    return "\n".join([*lines, *(f"not graded: {readable(str(f.path))}: {f.reason}" for f in found if f.reason)])
