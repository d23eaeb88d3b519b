"""When each submission came, as the platform or the instructor says. The times of files are not asked: a student can
set them, and a platform's zip often has those of the download.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from mebqat_lite.course.classroom.deadlines import time_of
from mebqat_lite.course.classroom.names import assignment_in, key
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.tables import read_table

TITLES = ("received", "Last modified (submission)")  # of the instructor, and of Moodle's grading worksheet
NAMED = 4  # of the first columns of a report, one says whose line it is
Arrivals = dict[tuple[str, str], str]  # a time by student and assignment


def written_down(path: Path) -> Arrivals:
    """The times in the column ``received`` of ``late.csv``; none without the file.

    Raises:
        ValueError: the file has lost its titles, or a text is no time.
    """
    if not path.exists():
        return {}
    head, *lines = read_table(path) or [[]]
    if not {"student", "assignment", "received"} <= set(head):
        raise ValueError(f"{path}: it has lost its titles student, assignment and received; it is left as it is")
    rows = [dict(zip(head, line, strict=False)) for line in lines]
    found = {(row["student"], row["assignment"]): row.get("received", "") for row in rows}
    return {whose: _time(text, f"{path}: {whose[0]}, {whose[1]}") for whose, text in found.items() if text.strip()}


def reported(path: Path, names: Collection[str], graded: Collection[str], roster: Roster) -> Arrivals:
    """The times in a report of the platform: Moodle's grading worksheet, or a CSV file with a column ``received``.

    Its assignment stands in a column ``assignment`` or in the file's name; else it is the only one that is ``graded``.

    Raises:
        ValueError: there is no such column, a text is no time, or it is not known which assignment it is about.
    """
    head, *lines = read_table(path) or [[]]
    titles = [key(title) for title in head]
    at = next((titles.index(key(title)) for title in TITLES if key(title) in titles), None)
    if at is None:
        raise ValueError(f"{path}: it has no column {TITLES[0]!r} or {TITLES[1]!r}, as Moodle in English writes it")
    default = assignment_in(path.stem, names)[0] or (next(iter(graded)) if len(set(graded)) == 1 else "")
    found = {}
    for line in lines:
        row = dict(zip(titles, line, strict=False))
        name, text = row.get("assignment", "").strip() or default, line[at].strip() if len(line) > at else ""
        if name not in names:
            raise ValueError(f"{path}: which assignment is it about? Let the file's name hold it, or add a column")
        if text.strip("-") and (student := roster.whose(line[:NAMED])):
            found[student, name] = _time(text, f"{path}: {student}")
    return found


def only(students: Iterable[str]) -> Roster | None:
    """A roster of those who have handed in, where none is given; None if there are none."""
    lines = [[student] for student in dict.fromkeys(students) if student]
    return Roster([["student"], *lines]) if lines else None


def _time(text: str, whose: str) -> str:
    """As it is written into ``late.csv``: a spreadsheet leaves it as it is."""
    try:
        return time_of(text).isoformat(timespec="seconds")
    except ValueError as problem:
        raise ValueError(f"{whose}: received {problem}") from None
