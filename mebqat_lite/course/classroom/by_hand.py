"""Answers in words: a page for each question, and the marks that an instructor gives by hand."""

from __future__ import annotations

import collections
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mebqat_lite.course.classroom.feedback import HEAD, STYLE
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.submission import EMPTY
from mebqat_lite.course.classroom.tables import read_table, write_table
from mebqat_lite.files import replace

COLUMNS = ("student", "assignment", "question", "of", "mark", "comment", "answer", "note")
CHANGED = "the answer has changed since it was marked"
Key = tuple[str, str, str]


@dataclass
class Marks:
    """``marks.csv``: what an instructor wrote into the columns ``mark`` and ``comment`` is kept at every grading."""

    rows: dict[Key, dict[str, str]] = field(default_factory=dict)  # by student, assignment and question

    @classmethod
    def read(cls, path: Path) -> Marks:
        """The marks that are there; none without the file.

        Raises:
            ValueError: the file has lost its titles, or a mark is no number.
        """
        if not path.exists():
            return cls()
        head, *lines = read_table(path) or [[]]
        if not set(COLUMNS[:6]) <= set(head):
            raise ValueError(f"{path}: its titles must be {', '.join(COLUMNS)}; it is left as it is")
        rows = [dict(zip(head, line, strict=False)) for line in lines]
        for row in rows:
            try:
                _number(row.get("mark", ""))
            except ValueError:
                raise ValueError(f"{path}: the mark {row['mark']!r} of {row['student']} is no number") from None
        return cls({(row["student"], row["assignment"], row["question"]): row for row in rows})

    def write(self, path: Path, graded: Sequence[Graded]) -> None:
        """A line for each question of each result, and those that are there already."""
        same = _same_answers(graded)
        for one in graded:
            for question, of in one.assignment.written.items():
                found = _checksum(one.written.get(question, ""))
                row = self.rows.setdefault((one.student, one.assignment.name, question), {})
                is_other = bool(row.get("mark")) and row.get("answer") not in (None, "", found)
                others = [name for name in same[one.assignment.name, question, found] if name != one.student]
                notes = [CHANGED if is_other else "", f"the same answer as {', '.join(others)}" if others else ""]
                row |= {"of": str(of), "note": "; ".join(filter(None, notes))}
                row["answer"] = row["answer"] if is_other else found
        lines = [[*key, *(row.get(name, "") for name in COLUMNS[3:])] for key, row in sorted(self.rows.items())]
        write_table(path, COLUMNS, lines)

    def points(self, graded: Graded) -> float | None:
        """The marks of a result together; None until all its questions are marked."""
        marks = [self._mark(graded, question) for question in graded.assignment.written]
        return None if None in marks else sum(filter(None, marks))

    def lines(self, graded: Graded) -> list[str]:
        """What stands on the student's page of the answers that are marked."""
        found = []
        for question, of in graded.assignment.written.items():
            if (mark := self._mark(graded, question)) is not None:
                comment = self._row(graded, question).get("comment", "")
                found.append(f"{question}: {mark:g} of {of} points by hand. {comment}".strip())
        return found

    def _row(self, graded: Graded, question: str) -> dict[str, str]:
        return self.rows.get((graded.student, graded.assignment.name, question), {})

    def _mark(self, graded: Graded, question: str) -> float | None:
        return _number(self._row(graded, question).get("mark", ""))


def _same_answers(graded: Sequence[Graded]) -> dict[Key, list[str]]:
    """The students by (assignment, question, checksum of the answer), but of answers that nobody has begun."""
    found: dict[Key, list[str]] = collections.defaultdict(list)
    for one in graded:
        for question, text in one.written.items():
            if not EMPTY.fullmatch(text):
                found[one.assignment.name, question, _checksum(text)].append(one.student)
    return found


def _checksum(text: str) -> str:
    return f"{zlib.crc32(' '.join(text.split()).encode()):08x}"


def _number(text: str) -> float | None:
    """Read a mark; None if there is none, and a ValueError if it is no finite number."""
    mark = float(text.replace(",", ".")) if text.strip() else None
    if mark is not None and not math.isfinite(mark):
        raise ValueError(text)
    return mark


def write_answers(out: Path, graded: Sequence[Graded]) -> None:
    """``answers/NAME-QUESTION.html``: everybody's answer to one question, one below the other."""
    pages: dict[tuple[str, str], list[str]] = {}
    for one in graded:
        for question in one.assignment.written:
            text = one.written.get(question, "(the notebook has lost the mark of this cell: look into it)")
            answer = f'<h2>{escape(one.student)}</h2><p style="white-space: pre-wrap">{escape(text)}</p>'
            pages.setdefault((one.assignment.name, question), []).append(answer)
    for (name, question), answers in pages.items():
        title = f"{escape(name)}: {escape(question)}, {len(answers)} answers"
        page = f"{HEAD.format(title=title, style=STYLE)}<body><h1>{title}</h1>{''.join(answers)}</body></html>\n"
        replace(out / "answers" / f"{name}-{question}.html", page.encode())
