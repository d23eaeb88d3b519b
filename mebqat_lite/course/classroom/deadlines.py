"""Deadlines of assignments, and the days that the roster gives: extensions and free late days."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path

from mebqat_lite.course.classroom.names import key
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.tables import read_table

OF_MOODLE = ("%A, %d %B %Y, %I:%M %p", "%A, %d %B %Y, %H:%M")  # in English, with a clock of 12 or of 24 hours


@dataclass(frozen=True)
class Deadline:
    """When an assignment is due, and the percent of the points that each started day after it takes off."""

    until: datetime
    percent: float = 0.0


@dataclass(frozen=True)
class Days:
    """Of a student: days that are added to each deadline, by assignment, and free late days for the whole course."""

    extra: Mapping[str, int]
    free: int = 0


def time_of(text: str, of_day: time = time.min) -> datetime:
    """A time as it is written: 2026-11-30T23:59, or as an English Moodle does. A date alone has the time ``of_day``.

    Raises:
        ValueError: it is no time, or one with a time zone.
    """
    text = " ".join(text.split())
    try:
        return datetime.combine(date.fromisoformat(text), of_day)
    except ValueError:
        pass
    for form in OF_MOODLE:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: write it like 2026-11-30T23:59") from None
    if found.tzinfo is not None:
        raise ValueError(f"{text!r} has a time zone: write all times by one clock, like 2026-11-30T23:59")
    return found


def read_deadlines(path: Path, names: Collection[str]) -> dict[str, Deadline]:
    """The deadlines of a CSV file with the columns assignment, deadline and, for a policy, percent_per_day.

    Raises:
        ValueError: a column is missing, an assignment is not in ``names`` or there twice, or a value cannot be.
    """
    head, *lines = read_table(path) or [[]]
    titles = [key(title) for title in head]
    if not {"assignment", "deadline"} <= set(titles):
        raise ValueError(f"{path}: its first line must be assignment,deadline or assignment,deadline,percent_per_day")
    found: dict[str, Deadline] = {}
    for line in lines:
        row = dict(zip(titles, map(str.strip, line), strict=False))
        name = row.get("assignment", "")
        if name not in names:
            raise ValueError(f"{path}: there is no assignment {name!r}; there are {', '.join(names)}")
        if name in found:
            raise ValueError(f"{path}: {name} stands in it twice")
        try:
            until = time_of(row.get("deadline", ""), time(23, 59, 59))
            found[name] = Deadline(until, _percent(row.get("percentperday", "")))
        except ValueError as problem:
            raise ValueError(f"{path}: {name}: {problem}") from None
    return found


def _percent(text: str) -> float:
    try:
        value = float(text.rstrip("% ").replace(",", ".") or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"percent_per_day must be a number from 0 to 100, not {text!r}")
    return value


def days_of(roster: Roster | None, names: Collection[str]) -> dict[str, Days]:
    """What the columns ``free_days``, ``extra_days`` and ``extra_days NAME`` of the roster give to each student.

    Raises:
        ValueError: another title begins so, or a text is no whole number of days.
    """
    if roster is None:
        return {}
    of_one = {f"extra_days {name}": name for name in names}
    known = {key(title): title for title in ("free_days", "extra_days", *of_one)}
    given: dict[str, dict[str, int]] = {}
    for title, texts in roster.days:
        if known.get(key(title), title) in given:
            raise ValueError(f"the roster has two columns {title!r}: leave one")
        if key(title) not in known:
            raise ValueError(f"the roster's column {title!r} is none of {', '.join(known.values())}")
        given[known[key(title)]] = {student: _whole(text, title, student) for student, text in texts.items()}

    def number(title: str, student: str) -> int:
        return given.get(title, {}).get(student, 0)

    found = {}
    for student in roster.students:
        extra = {name: number("extra_days", student) + number(title, student) for title, name in of_one.items()}
        found[student] = Days(extra, number("free_days", student))
    return found


def _whole(text: str, title: str, student: str) -> int:
    if not (text or "0").isdecimal() or len(text) > 3:
        raise ValueError(f"the roster's {title} of {student} is {text!r}: write whole days, 0 to 999, or nothing")
    return int(text or 0)
