"""What was late, by how many days, what is left of the free late days, and what a policy leaves of the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mebqat_lite.course.classroom.arrivals import Arrivals, only, reported, written_down
from mebqat_lite.course.classroom.deadlines import Days, Deadline, days_of, read_deadlines
from mebqat_lite.course.classroom.handed import Handed
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.tables import write_table

COLUMNS = ("student", "assignment", "received", "deadline", "extra_days", "late_days", "free_days_used",
           "free_days_left", "percent_off", "points", "after_late_days", "note")  # fmt: skip
DAY = timedelta(days=1)
NO_TIME = "no time is known: it counts as in time"
MARKED = "marked as late, by how much is not known: write the time into received"
NO_DEADLINE = "no deadline is given"
Key = tuple[str, str]


@dataclass(frozen=True)
class Line:
    """Of a student and an assignment. ``late``, ``used`` and ``left`` are in days; None is not known."""

    until: datetime | None = None
    extra: int = 0
    late: int | None = None
    used: int | None = None
    left: int | None = None
    percent: float | None = 0.0
    note: str = ""


@dataclass
class Lateness:
    """The deadlines, what the roster gives, and when each submission came."""

    deadlines: Mapping[str, Deadline] = field(default_factory=dict)
    days: Mapping[str, Days] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=dict)

    @classmethod
    def read(cls, sheet: Path, deadlines: Path | None, names: Sequence[str], roster: Roster | None) -> Lateness:
        """From the file of deadlines, the roster, and what stands in ``sheet``, which is ``late.csv``, already.

        Raises:
            ValueError: a date or a number in them cannot be read.
        """
        due = read_deadlines(deadlines, names) if deadlines else {}
        return cls(due, days_of(roster, names), written_down(sheet))

    def add_report(self, path: Path, names: Sequence[str], found: Sequence[Handed], roster: Roster | None) -> None:
        """Take the times of a report of the platform; they replace those that are there.

        Raises:
            ValueError: it cannot be read.
        """
        roster = roster or only(file.student for file in found)
        if roster is not None:
            graded = {file.assignment for file in found if not file.reason}
            self.arrivals |= reported(path, names, graded, roster)

    @property
    def has_policy(self) -> bool:
        """Whether late days take points off."""
        return any(deadline.percent for deadline in self.deadlines.values())

    def lines(self, graded: Sequence[Graded]) -> dict[Key, Line]:
        """For each result, and each submission that has come: by student, each in the order of the deadlines."""
        marked = {(one.student, one.assignment.name): "late" in one.remark.split(", ") for one in graded}
        found: dict[Key, Line] = {}
        for student in sorted({student for student, _ in (*marked, *self.arrivals)}):
            names = {name for other, name in (*marked, *self.arrivals) if other == student}
            found |= {(student, name): line for name, line in self._lines_of(student, names, marked)}
        return found

    def _lines_of(self, student: str, names: set[str], marked: Mapping[Key, bool]) -> Iterator[tuple[str, Line]]:
        """The free days are used up in the order of the deadlines."""
        days = self.days.get(student, Days({}))
        left: int | None = days.free
        for name in sorted(names, key=lambda name: (self._until(name), name)):
            if name not in self.deadlines:
                yield name, Line(note=NO_DEADLINE)
                continue
            extra = days.extra.get(name, 0)
            until, received = self._until(name) + extra * DAY, self.arrivals.get((student, name))
            late = _days_late(received, until)
            is_open = late is None and marked.get((student, name), False)
            used = None if is_open or (left is None and late) else min(left or 0, late or 0)
            left = None if used is None or left is None else left - used
            percent = self._percent(name, late or 0, used)
            note = MARKED if is_open else NO_TIME if late is None else ""
            yield name, Line(until, extra, late, used, left, percent, note)

    def _percent(self, name: str, late: int, used: int | None) -> float | None:
        a_day = self.deadlines[name].percent
        if used is None and a_day:
            return None
        return min(100.0, a_day * (late - (used or 0)))

    def _until(self, name: str) -> datetime:
        return self.deadlines[name].until if name in self.deadlines else datetime.max

    def after(self, graded: Sequence[Graded], points: Mapping[Key, float]) -> dict[Key, float | None]:
        """What the policy leaves of the points; None where it is not known by how many days a submission is late."""
        lines = self.lines(graded)
        return {whose: _after(lines[whose].percent, value) for whose, value in points.items()}

    def write(self, path: Path, graded: Sequence[Graded], points: Mapping[Key, float]) -> None:
        """``late.csv``, if there is a deadline or a time, or the sheet already."""
        if not (self.deadlines or self.arrivals or path.exists()):
            return
        after = self.after(graded, points) if self.has_policy else {}
        rows = []
        for whose, line in self.lines(graded).items():
            until = line.until.isoformat(timespec="seconds") if line.until else ""
            note = line.note if whose in points else "not graded"
            about: list[Any] = [self.arrivals.get(whose, ""), until, line.extra, line.late, line.used, line.left]
            percent = line.percent if self.has_policy else None
            rows.append([*whose, *about, percent, points.get(whose), after.get(whose), note])
        write_table(path, COLUMNS, rows)


def _days_late(received: str | None, until: datetime) -> int | None:
    """The days that have begun after the deadline; None without a time."""
    return max(0, math.ceil((datetime.fromisoformat(received) - until) / DAY)) if received else None


def _after(percent: float | None, points: float) -> float | None:
    return None if percent is None else round(points * (1 - percent / 100), 2)
