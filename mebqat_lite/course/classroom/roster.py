"""The list of a course's students, and which of them a folder's name means."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from mebqat_lite.course.classroom.names import key, readable


class Roster:
    """Students in their order. A name is known by any text of the student's line, or by two of them together."""

    def __init__(self, lines: Iterable[Sequence[str]], at: int = 0) -> None:
        self.students: list[str] = []
        self._known: dict[str, set[str]] = {}
        for cells in lines:
            student = readable(cells[at])
            self.students.append(student)
            texts = [key(cell) for cell in cells if key(cell)]
            for name in [*texts, *map("".join, itertools.permutations(texts, 2))]:
                self._known.setdefault(name, set()).add(student)

    @classmethod
    def read(cls, path: Path) -> Roster:
        """A CSV file with a line of titles. The column ``student``, else the first, is what the sheets show.

        Raises:
            ValueError: it is no such file, or names a student twice.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = path.read_text(encoding="latin-1")  # as older spreadsheets write it
        titles = text.partition("\n")[0]
        mark = max(",;\t", key=titles.count)
        head, *lines = [
            line for line in csv.reader(text.splitlines(), delimiter=mark) if any(map(str.strip, line))
        ] or [[]]
        at = next((n for n, title in enumerate(head) if title.strip().casefold() == "student"), 0)
        lines = [line for line in lines if len(line) > at and line[at].strip()]
        if not lines:
            raise ValueError(f"{path}: no students in it: write a line of titles, then a line for each")
        roster = cls(lines, at)
        if len(set(roster.students)) < len(roster.students):
            raise ValueError(f"{path}: a student stands in it twice; give each another name in the column {head[at]!r}")
        return roster

    def who(self, name: str) -> str:
        """The student whom a name means; "" if none, or more than one."""
        found = self._known.get(key(name), set())
        return next(iter(found)) if len(found) == 1 else ""
