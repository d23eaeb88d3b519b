"""A folder of submissions: grade all, write feedback for each student and one sheet of grades."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mebqat_lite.course.classroom.feedback import page
from mebqat_lite.course.classroom.grading import Assignment, Outcome, grade
from mebqat_lite.course.classroom.sandbox import isolation
from mebqat_lite.course.classroom.submission import Submission, SubmissionError


@dataclass(frozen=True)
class Graded:
    """What a student gets for an assignment; ``problem`` is why a file could not be graded at all."""

    student: str
    assignment: Assignment
    outcomes: tuple[Outcome, ...]
    written: Mapping[str, str]
    problem: str = ""

    @property
    def points(self) -> int:
        """That the machine gave."""
        return sum(outcome.points for outcome in self.outcomes)


def load_assignments(graders: Path) -> dict[str, Assignment]:
    """The assignments of an instructor's folder: ``ASSIGNMENT`` in each of its ``NN_topic.py``."""
    found = {}
    for path in sorted(graders.glob("[0-9][0-9]_*.py")):
        spec = importlib.util.spec_from_file_location(f"graders_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[path.stem] = module.ASSIGNMENT
    if not found:
        raise FileNotFoundError(f"no graders in {graders}: they are NN_topic.py")
    return found


def find_submissions(folder: Path, names: Iterable[str]) -> list[tuple[str, str, Path]]:
    """(student, assignment, path) of each notebook ``STUDENT/.../NAME.ipynb``, ``STUDENT/NAME.ipynb`` (nbgrader's
    ``submitted`` folder is of this form) or ``STUDENT_NAME.ipynb``, as learning platforms name downloads.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with submissions: STUDENT/NAME.ipynb each")
    found = []
    for path in sorted(folder.rglob("*.ipynb")):
        for name in names:
            if path.stem == name and path.parent != folder:
                found.append((path.relative_to(folder).parts[0], name, path))
            elif path.stem.endswith(f"_{name}"):
                found.append((path.stem.removesuffix(f"_{name}"), name, path))
    if not found:
        raise FileNotFoundError(
            f"no submissions in {folder}: they are STUDENT/NAME.ipynb, NAME one of {', '.join(names)}"
        )
    return found


def grade_folder(
    folder: Path, graders: Path, out: Path, variant: int = 0, workers: int | None = None, progress: bool = True
) -> list[Graded]:
    """Grade every submission in ``folder`` and write ``out/grades.csv`` and ``out/feedback/STUDENT/NAME.html``."""
    assignments = load_assignments(graders)
    found = find_submissions(folder, assignments)

    def one(item: tuple[str, str, Path]) -> Graded:
        return grade_file(item[0], assignments[item[1]], item[2], variant)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:  # the work is in the students' processes
        graded = list(tqdm(pool.map(one, found), total=len(found), desc="grading", disable=not progress, leave=False))
    for result in graded:
        target = out / "feedback" / result.student / f"{result.assignment.name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(result.student, result.assignment, result.outcomes, result.problem), encoding="utf-8")
    write_grades(out / "grades.csv", graded)
    return graded


def grade_file(student: str, assignment: Assignment, path: Path, variant: int = 0) -> Graded:
    """Grade one notebook; a file that is none is worth nothing and says why."""
    try:
        submission = Submission.read(path, student)
    except SubmissionError as problem:
        return Graded(student, assignment, (), {}, str(problem))
    return Graded(student, assignment, tuple(grade(submission, assignment, variant)), submission.written)


COLUMNS = ("student", "assignment", "points", "of", "percent", "to_mark_by_hand", "parts", "problem")


def write_grades(path: Path, graded: Iterable[Graded]) -> None:
    """One line for each student and assignment: points, of how many, how many are marked by hand, and each part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        sheet = csv.writer(file)
        sheet.writerow(COLUMNS)
        sheet.writerows(_row(result) for result in graded)
    partial.replace(path)


def _row(result: Graded) -> list[Any]:
    of, parts = result.assignment.points, result.assignment.parts
    each = "; ".join(f"{part.function} {_points(result, part.function)}/{part.points}" for part in parts)
    by_hand, percent = sum(result.assignment.written.values()), round(100 * result.points / of, 1)
    names = [_safe(result.student), result.assignment.name]
    return [*names, result.points, of, percent, by_hand, each, _safe(result.problem)]


def summary(graded: Sequence[Graded]) -> str:
    """A line for each student and assignment."""
    width = max(len(result.student) for result in graded)
    return "\n".join(
        f"{result.student:{width}}  {result.assignment.name}  {result.points:3} of {result.assignment.points}"
        + (f"  {result.problem}" if result.problem else "")
        for result in graded
    )


def _safe(text: str) -> str:
    """Text of a student's that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def _points(result: Graded, function: str) -> int:
    return sum(outcome.points for outcome in result.outcomes if outcome.part == function)


def notice() -> str:
    """What an instructor must know before grading."""
    return (
        "Submissions are programs that run on this machine. Here each part runs in "
        f"{isolation()}. Grade in a container or as a user of its own if you do not trust them."
    )
