"""A folder of submissions: grade all, write feedback for each student and one sheet of grades."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mebqat_lite.course.classroom.grading import Assignment, grade
from mebqat_lite.course.classroom.kept import Graded, all_kept, fingerprint, keep, kept
from mebqat_lite.course.classroom.names import readable
from mebqat_lite.course.classroom.sandbox import isolation
from mebqat_lite.course.classroom.submission import Submission, SubmissionError, printable
from mebqat_lite.files import replace


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
                found.append((readable(path.relative_to(folder).parts[0]), name, path))
            elif path.stem.endswith(f"_{name}"):
                found.append((readable(path.stem.removesuffix(f"_{name}")), name, path))
    if not found:
        raise FileNotFoundError(
            f"no submissions in {folder}: they are STUDENT/NAME.ipynb, NAME one of {', '.join(names)}"
        )
    return found


def grade_folder(
    folder: Path, graders: Path, out: Path, variant: int = 0, workers: int | None = None, progress: bool = True
) -> list[Graded]:
    """Grade every submission in ``folder`` and write ``out/grades.csv`` and ``out/feedback/STUDENT/NAME.html``.

    Each result is written as it comes. What is graded already, by the same graders, is not graded again; the sheet
    holds all results that are in ``out``.
    """
    assignments = load_assignments(graders)
    found = find_submissions(folder, assignments)

    def one(item: tuple[str, str, Path]) -> Graded:
        student, name, path = item
        return _graded(student, assignments[name], path, graders / f"{name}.py", out, variant)

    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)  # the work is in the students' processes
    waiting = [pool.submit(one, item) for item in found]
    try:
        for _ in tqdm(as_completed(waiting), total=len(found), desc="grading", disable=not progress, leave=False):
            pass
    finally:  # also if it is stopped by hand
        pool.shutdown(cancel_futures=True)
        write_grades(out / "grades.csv", all_kept(out, assignments.values()))
    return [future.result() for future in waiting]


def _graded(student: str, assignment: Assignment, path: Path, grader: Path, out: Path, variant: int) -> Graded:
    """The result that is kept, or a new one, which is kept from now on."""
    try:
        mark = fingerprint(path, grader, student, variant)
    except (OSError, ValueError):
        mark = ""  # grading says why it cannot be read
    if mark and (known := kept(out, student, assignment, mark)) is not None:
        return known
    result = grade_file(student, assignment, path, variant)
    try:
        keep(out, result, mark)
    except Exception as error:
        return dataclasses.replace(result, problem=f"the result could not be written: {error}")
    return result


def grade_file(student: str, assignment: Assignment, path: Path, variant: int = 0) -> Graded:
    """Grade one notebook; a file that cannot be graded is worth nothing and says why."""
    try:
        submission = Submission.read(path, student)
        outcomes, notes = grade(submission, assignment, variant)
        return Graded(student, assignment, tuple(outcomes), submission.written, notes=tuple(notes))
    except SubmissionError as problem:
        return Graded(student, assignment, (), {}, str(problem))
    except Exception as error:
        return Graded(student, assignment, (), {}, printable(f"{path.name} stops its grading: {error!r}"))


COLUMNS = ("student", "assignment", "points", "of", "percent", "to_mark_by_hand", "parts", "problem")


def write_grades(path: Path, graded: Iterable[Graded]) -> None:
    """One line for each student and assignment: points, of how many, how many are marked by hand, and each part."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *map(_row, graded)])
    replace(path, text.getvalue().encode())


def _row(result: Graded) -> list[Any]:
    of, parts = result.assignment.points, result.assignment.parts
    each = "; ".join(f"{part.function} {_points(result, part.function)}/{part.points}" for part in parts)
    by_hand, percent = sum(result.assignment.written.values()), round(100 * result.points / of, 1)
    names = [_safe(result.student), result.assignment.name]
    return [*names, result.points, of, percent, by_hand, each, _safe(result.problems)]


def summary(graded: Sequence[Graded]) -> str:
    """A line for each student and assignment."""
    width = max(len(result.student) for result in graded)
    return "\n".join(
        f"{result.student:{width}}  {result.assignment.name}  {result.points:3} of {result.assignment.points}"
        + (f"  {result.problems}" if result.problems else "")
        for result in graded
    )


def _safe(text: str) -> str:
    """Text of a student's that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) else text


def _points(result: Graded, function: str) -> int:
    return sum(outcome.points for outcome in result.outcomes if outcome.part == function)


def notice() -> str:
    """What an instructor must know before grading."""
    return (
        "Submissions are programs that run on this machine. Here each part runs in "
        f"{isolation()}. Grade in a container or as a user of its own if you do not trust them."
    )
