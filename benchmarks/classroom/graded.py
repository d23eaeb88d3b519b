"""A class of made submissions is handed in, graded and compared with what each must get."""

from __future__ import annotations

import csv
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.classroom import attacks, damage, habits, mistakes
from benchmarks.classroom.made import FOLDER, ONE, TIGHT, Case
from benchmarks.classroom.outside import Outside, processes
from mebqat_lite.course.classroom.course import grade_folder, load_assignments
from mebqat_lite.course.classroom.grading import Assignment
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.sandbox import LAYERS, Limits, layers

# For the endless and the greedy alone: a slow machine would stop a right answer too.
SHORT = Limits(seconds=3.0, memory=2**29, folder_bytes=2**25, files=200)
GRADER = "from benchmarks.classroom.graded import assignment\nASSIGNMENT = assignment({name!r}, {parts!r})\n"


def assignment(name: str, parts: Sequence[str]) -> Assignment:
    """An assignment with the checks of the real one, and those of its parts that are named (none: all)."""
    whole = load_assignments(FOLDER / "graders")[ONE if name == TIGHT else name]
    kept = [part for part in whole.parts if part.function in parts or not parts]
    if name == TIGHT:
        kept = [replace(part, limits=SHORT) for part in kept]
    return replace(whole, name=name, parts=tuple(kept))


def write_graders(folder: Path, parts: dict[str, Sequence[str]]) -> Path:
    """A folder of graders for the command, with the parts that are named."""
    folder.mkdir()
    for name, named in parts.items():
        (folder / f"{name}.py").write_text(GRADER.format(name=name, parts=tuple(named)))
    return folder


def all_cases(outside: Outside) -> list[Case]:
    """Every submission; no hostile one where a layer of the sandbox is missing."""
    found = [*habits.cases(), *mistakes.cases(), *damage.cases()]
    return [*found, *attacks.cases(outside)] if layers() == LAYERS else found


class Class:
    """Submissions in a folder, graded."""

    def __init__(self, folder: Path, parts: dict[str, Sequence[str]], workers: int | None = None) -> None:
        self.folder, self.outside = folder, Outside(folder / "outside")
        self.cases = {case.student: case for case in all_cases(self.outside)}
        graders, parts_of = write_graders(folder / "graders", parts), folder / "parts"
        parts_of.mkdir()
        for student, case in self.cases.items():
            (folder / "submitted" / student).mkdir(parents=True)
            (folder / "submitted" / student / f"{case.assignment}.ipynb").write_bytes(case.content)
        damage.place(folder / "submitted")
        before, tempfile.tempdir = tempfile.tempdir, str(parts_of)
        try:
            graded, self.found = grade_folder(folder / "submitted", graders, folder / "grades", workers=workers)
        finally:
            tempfile.tempdir = before
            damage.clear(folder / "submitted")
        self.graded = {result.student: result for result in graded}

    def faults(self, student: str) -> list[str]:
        """How a student's result differs from what it must be."""
        case, result = self.cases[student], self.graded.get(student)
        if result is None:
            return ["it was not graded"]
        said = [*(outcome.message for outcome in result.outcomes), *result.notes, result.problem]
        found = [f"no message has {words!r}" for words in case.says if not any(re.search(words, one) for one in said)]
        for part in result.assignment.parts:
            got = sum(outcome.points for outcome in result.outcomes if outcome.part == part.function)
            due = case.loses.get(part.function, part.points)
            found += [f"{got} and not {due} points for {part.function}"] * (got != due)
        return [f"{one}: {list(filter(None, said))}" for one in found] + self._faults_of_sheet(result)

    def _faults_of_sheet(self, result: Graded) -> list[str]:
        """What is wrong with the row and the page of a result."""
        rows = [row for row in self.sheet("grades") if row["student"] == result.student]
        page = self.folder / "grades" / "feedback" / result.student / f"{result.assignment.name}.html"
        found = [f"{len(rows)} rows"] * (len(rows) != 1)
        found += [f"the row has {row['points']} points" for row in rows if int(row["points"]) != result.points]
        if not page.exists() or "<script" in page.read_text(encoding="utf-8"):
            found.append("the page is missing, or holds a script")
        return found

    def sheet(self, name: str) -> list[dict[str, str]]:
        """The rows of a sheet."""
        with (self.folder / "grades" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def others(self) -> list[str]:
        """What is wrong with what is no student's fault: files that are not listed, what was left outside."""
        listed = {row["student"]: "" for row in self.sheet("roster")}
        for row in (*self.sheet("files"), *self.sheet("grades")):
            listed[row["student"]] = f"{listed.get(row['student'])} {' '.join(row.values())}"
        found = [f"{name} is not listed: {listed.get(name)}" for name, words in damage.LISTED.items()
                 if words not in listed.get(name, "")]  # fmt: skip
        found += [f"{name} has no row" for name in self.cases if name not in listed]
        left = os.listdir(self.folder / "parts")
        return [*found, *self.outside.changes(), *left, *processes(self.folder / "parts")]


def lines(made: Class, students: Iterable[str]) -> list[str]:
    """A line for each fault."""
    return [f"{student}: {fault}" for student in students for fault in made.faults(student)] + made.others()
