"""A folder of submissions: grade all, write feedback for each student and the sheets of the course."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm.auto import tqdm

from mebqat_lite.course.classroom.alike_page import write_alike
from mebqat_lite.course.classroom.attempts import answers
from mebqat_lite.course.classroom.by_hand import Marks, write_answers
from mebqat_lite.course.classroom.grading import Assignment, grade
from mebqat_lite.course.classroom.handed import Handed, find
from mebqat_lite.course.classroom.kept import Graded, all_kept, fingerprint, keep, kept
from mebqat_lite.course.classroom.late import Lateness
from mebqat_lite.course.classroom.release import handed_out
from mebqat_lite.course.classroom.roster import Roster, write_gradebook
from mebqat_lite.course.classroom.sandbox import isolation
from mebqat_lite.course.classroom.sheets import totals, write_checks, write_files, write_grades, write_roster
from mebqat_lite.course.classroom.submission import Submission, SubmissionError, printable


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


def grade_folder(
    submissions: Path,
    graders: Path,
    out: Path,
    variant: int = 0,
    workers: int | None = None,
    progress: bool = True,
    roster: Roster | None = None,
    student: str = "",
    deadlines: Path | None = None,
    received: Path | None = None,
) -> tuple[list[Graded], list[Handed]]:
    """Grade every submission in a folder or a zip, or one ``student``'s anew; what was graded, and all files.
    ``deadlines`` and ``received`` are files of `late.Lateness`.

    Each result is written as it comes, with ``out/feedback/STUDENT/NAME.html``; the sheets hold all results that are in
    ``out``. What is graded already, by the same graders, is not graded again.

    Raises:
        FileNotFoundError: there is nothing to grade.
        ValueError: a sheet of the instructor cannot be read; nothing is graded then.
    """
    assignments, marks = load_assignments(graders), Marks.read(out / "marks.csv")
    lateness = Lateness.read(out / "late.csv", deadlines, list(assignments), roster)
    with tempfile.TemporaryDirectory() as room:
        found = find(submissions, assignments, Path(room), roster)
        if received is not None:
            lateness.add_report(received, list(assignments), found, roster)
        due = [file for file in found if not file.reason and (not student or file.student == student)]
        if not due:
            write_files(out / "files.csv", found)
            raise FileNotFoundError(_nothing(submissions, found, student))

        def one(file: Handed) -> Graded:
            return _graded(file, assignments[file.assignment], graders, out, variant, bool(student), marks)

        pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)  # the work is in the students' processes
        waiting = [pool.submit(one, file) for file in due]
        try:
            for _ in tqdm(as_completed(waiting), total=len(due), desc="grading", disable=not progress, leave=False):
                pass
        finally:  # also if it is stopped by hand
            pool.shutdown(cancel_futures=True)
            every = list(all_kept(out, assignments.values()))
            write_sheets(out, every, found, roster, marks, lateness)
            write_alike(out / "alike.html", every, {name: handed_out(graders, name) for name in assignments})
        return [future.result() for future in waiting], found


def _nothing(submissions: Path, found: Sequence[Handed], student: str) -> str:
    """Why there is nothing to grade."""
    if student and (names := ", ".join(sorted({file.student for file in found if not file.reason}))):
        return f"no submission of {student} in {submissions}: there are those of {names}"
    why = "".join(f"; {file.name}: {file.reason}" for file in found[:3])
    return f"no submissions in {submissions}: they are STUDENT/NAME.ipynb{why}"


def write_sheets(
    out: Path,
    graded: Sequence[Graded],
    found: Sequence[Handed],
    roster: Roster | None,
    marks: Marks,
    lateness: Lateness,
) -> None:
    """All sheets, of what is graded until now."""
    points = totals(graded, marks)
    after = lateness.after(graded, points) if lateness.has_policy else None
    write_grades(out, graded, marks, after)
    lateness.write(out / "late.csv", graded, points)
    write_files(out / "files.csv", found)
    write_roster(out / "roster.csv", roster, graded, found)
    write_checks(out / "checks.csv", graded)
    marks.write(out / "marks.csv", graded)
    write_answers(out, graded)
    if roster is not None:
        names = sorted({one.assignment.name for one in graded})
        write_gradebook(out / "gradebook.csv", roster, points, names, after)


def _graded(
    file: Handed,
    assignment: Assignment,
    graders: Path,
    out: Path,
    variant: int,
    again: bool,
    marks: Marks,
) -> Graded:
    """The result that is kept, or a new one, which is kept from now on."""
    try:
        mark = fingerprint(file.path, graders / f"{assignment.name}.py", file.student, variant)
    except (OSError, ValueError):
        mark = ""  # grading says why it cannot be read
    result = kept(out, file.student, assignment, mark) if mark and not again else None
    if result is None:
        result = grade_file(file.student, assignment, file.path, variant)
    result = dataclasses.replace(result, file=file.name, remark=file.remark)
    try:
        keep(out, result, mark, marks.lines(result))
    except Exception as error:
        return dataclasses.replace(result, problem=f"the result could not be written: {error}")
    return result


def grade_file(student: str, assignment: Assignment, path: Path, variant: int = 0) -> Graded:
    """Grade one notebook; a file that cannot be graded is worth nothing and says why."""
    try:
        submission = Submission.read(path, student)
        outcomes, notes = grade(submission, assignment, variant)
        code = answers(submission.cells, (part.function for part in assignment.parts))
        shown = {function: printable("\n".join(source.splitlines())) for function, source in code.items()}
        return Graded(student, assignment, tuple(outcomes), submission.written, notes=tuple(notes), code=shown)
    except SubmissionError as problem:
        return Graded(student, assignment, (), {}, str(problem))
    except Exception as error:
        return Graded(student, assignment, (), {}, printable(f"{path.name} stops its grading: {error!r}"))


def notice() -> str:
    """What an instructor must know before grading."""
    return (
        "Submissions are programs that run on this machine. Here each part runs in "
        f"{isolation()}. Grade in a container or as a user of its own if you do not trust them."
    )
