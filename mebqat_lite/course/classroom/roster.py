"""The list of a course's students, and which of them a folder's name means."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mebqat_lite.course.classroom.names import assignment_in, key, readable
from mebqat_lite.course.classroom.tables import read_table, write_table

DAYS = ("extradays", "freedays")  # how the titles of columns begin that are no names, see `deadlines.days_of`
AFTER = "after late days"  # ends the title of a column of a gradebook
NOBODY = ("points possible", "student, test")  # lines of Canvas


class Roster:
    """Students in their order, of a table with a line of titles.

    What the sheets show is the column ``student``; without one, the first in which every line has a text of its own.
    A folder's name means the student in whose line it stands, alone or as two texts together. ``days`` are the columns
    of extensions and free days, which are no names: (title, text by student) each.

    Raises:
        ValueError: the table has no students, or no such column.
    """

    def __init__(self, table: Sequence[Sequence[str]]) -> None:
        titles = table[0] if table else []
        days = [at for at, title in enumerate(titles) if key(title).startswith(DAYS)]
        self.head, *self.lines = [[text for n, text in enumerate(line) if n not in days] for line in table] or [[]]
        at = self._column()
        self.of_line = [self._student(line, at) for line in self.lines]
        self.students = list(filter(None, self.of_line))
        if not self.students:
            raise ValueError("no students in it: write a line of titles, then a line for each")
        if len(set(self.students)) < len(self.students):
            raise ValueError("a student stands in it twice: add a column student with a name for each")
        self.days = [(titles[n], self._texts(table[1:], n)) for n in days]
        self._known: dict[str, set[str]] = {}
        for student, line in zip(self.of_line, self.lines, strict=True):
            for name in _spellings(line) if student else ():
                self._known.setdefault(name, set()).add(student)

    def _texts(self, lines: Sequence[Sequence[str]], at: int) -> dict[str, str]:
        pairs = zip(self.of_line, lines, strict=True)
        return {student: line[at].strip() for student, line in pairs if student and len(line) > at}

    @classmethod
    def read(cls, path: Path) -> Roster:
        """A CSV file; Moodle's and Canvas's exports of their gradebooks are such files."""
        try:
            return cls(read_table(path))
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None

    def _column(self) -> int:
        titles = [title.strip().casefold() for title in self.head]
        if "student" in titles:
            return titles.index("student")
        columns = [[self._student(line, at) for line in self.lines] for at in range(len(titles))]
        return next((at for at, texts in enumerate(columns) if all(texts) and len(set(texts)) == len(texts)), 0)

    @staticmethod
    def _student(line: Sequence[str], at: int) -> str:
        text = readable(line[at]) if len(line) > at else ""
        return "" if text.casefold().startswith(NOBODY) else text

    def who(self, name: str) -> str:
        """The student whom a name means; "" if none, or more than one."""
        found = self._known.get(key(name), set())
        return next(iter(found)) if len(found) == 1 else ""

    def whose(self, line: Sequence[str]) -> str:
        """The student of a line of another table; "" if none, or more than one."""
        found = {self.who(name) for name in _spellings(line)} - {""}
        return found.pop() if len(found) == 1 else ""


def _spellings(line: Sequence[str]) -> Iterator[str]:
    """Each text of a line, "Lee, Ann" also turned, and each two of the first eight together."""
    yield from filter(None, map(key, line))
    yield from (key("".join(reversed(text.split(",")))) for text in line if text.count(",") == 1)
    yield from map("".join, itertools.permutations(filter(None, map(key, line[:8])), 2))


def write_gradebook(
    path: Path,
    roster: Roster,
    points: Mapping[tuple[str, str], float],
    names: Sequence[str],
    after: Mapping[tuple[str, str], float | None] | None = None,
) -> None:
    """The roster with the points of each assignment, in the column whose title names it, else in one of its own.

    ``points`` is by (student, assignment), and so is what a policy for late days leaves, ``after``, which has columns
    of its own. Moodle and Canvas import the file if the roster is their own export.
    """
    head = list(roster.head)
    rows: list[list[str | float]] = [[*line, *[""] * (len(head) - len(line))] for line in roster.lines]
    for name in names:
        of_points = [at for at, title in enumerate(head) if assignment_in(title, [name])[0] and AFTER not in title]
        _fill(head, rows, of_points, name, [points.get((student, name)) for student in roster.of_line])
        if after is not None:
            title = f"{name} {AFTER}"
            same = [at for at, other in enumerate(head) if other == title]
            _fill(head, rows, same, title, [after.get((student, name)) for student in roster.of_line])
    write_table(path, head, rows)


def _fill(
    head: list[str], rows: list[list[str | float]], at: Sequence[int], title: str, values: Sequence[float | None]
) -> None:
    """Write values into the last of the columns ``at``, or into a new one."""
    if not at:
        head.append(title)
        for row in rows:
            row.append("")
    place = at[-1] if at else len(head) - 1
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            row[place] = value
