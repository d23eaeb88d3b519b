"""Which files of a folder are submissions: whose, of which assignment, and why a file is not graded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mebqat_lite.course.classroom.attempts import ATTEMPTED, choose
from mebqat_lite.course.classroom.grading import Assignment
from mebqat_lite.course.classroom.names import LATE, assignment_in, key, readable, student_of, without_copy
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.submission import Submission, SubmissionError

DEEPEST = 8  # folders within each other
IGNORED = {"__MACOSX", ".ipynb_checkpoints", ".git", ".DS_Store", "Thumbs.db", "desktop.ini"}  # made by programs


@dataclass(frozen=True)
class Handed:
    """A file as it was found. ``reason`` is why it is not graded; "" if it is. ``remark``: late, or one of several.

    ``origin`` is what the student's name was taken from.
    """

    path: Path
    student: str = ""
    assignment: str = ""
    reason: str = ""
    remark: str = ""
    origin: str = ""


def find(folder: Path, assignments: Mapping[str, Assignment], roster: Roster | None = None) -> list[Handed]:
    """Every file in the folder; at most one for each student and assignment is without a ``reason``.

    The folder in ``folder`` is the student; of a file that lies directly in it, what stands before the assignment's
    name. A notebook is known by its name, by that of a folder around it, or by its parts.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with submissions: STUDENT/NAME.ipynb each")
    found = _told_apart([_recognised(folder, path, why, assignments) for path, why in _files(folder)])
    if roster is not None:
        found = [replace(file, student=roster.who(file.student) or file.student) for file in found]
    return _one_each(found, assignments)


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, why it cannot be taken or "") of all files, in the order of their names."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        yield from ((here / name, "it is a link") for name in folders if (here / name).is_symlink())
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        if len(here.relative_to(folder).parts) == DEEPEST and folders:
            yield here / folders[0], f"it lies in more than {DEEPEST} folders"
            folders.clear()
        for name in sorted(files):
            if name not in IGNORED and not name.startswith("._"):
                yield here / name, _unfit(here / name)


def _unfit(path: Path) -> str:
    if path.is_symlink():
        return "it is a link"
    if path.suffix.casefold() == ".zip":
        return "it is an archive: unpack it"
    return "" if path.suffix.casefold() == ".ipynb" else "it is no notebook (.ipynb)"


def _recognised(folder: Path, path: Path, why: str, assignments: Mapping[str, Assignment]) -> Handed:
    """Whose file it is, and of which assignment."""
    *around, _ = path.relative_to(folder).parts
    name, start = assignment_in(path.stem, assignments)
    if around and key(around[0]) in map(key, assignments):  # a folder of one assignment, with its students in it
        start = start if name else len(path.stem)
        name, around = name or assignment_in(around[0], assignments)[0], around[1:]
    for place in reversed(around[1:]):
        name = name or assignment_in(place, assignments)[0]
    if not why and not name:
        name, why = _by_contents(path, assignments)
    before = without_copy(readable(path.stem)[: max(start, 0)])
    origin = without_copy(around[0]) if around else before
    if not why and not student_of(origin):
        why = "nobody's name stands in it: put it into a folder with the student's name"
    late = "late" if LATE.search(origin) or LATE.search(before) else ""
    return Handed(path, student_of(origin), name, why, late, origin)


def _told_apart(found: list[Handed]) -> list[Handed]:
    """Two students of one name, whom the platform's number tells apart, keep that number."""
    origins: dict[tuple[str, str], set[str]] = {}
    for file in found:
        origins.setdefault((file.student, file.assignment), set()).add(file.origin)
    several = {file.student for file in found if file.assignment and len(origins[file.student, file.assignment]) > 1}
    return [replace(file, student=file.origin) if file.student in several else file for file in found]


def _by_contents(path: Path, assignments: Mapping[str, Assignment]) -> tuple[str, str]:
    """(the assignment more than half of whose parts are in the notebook, why there is none)."""
    try:
        submission = Submission.read(path, "")
    except SubmissionError as problem:
        return "", f"its name is that of no assignment, and {problem}"
    share = {name: len(_worth(submission, one)) / len(one.parts) for name, one in assignments.items()}
    best = max(share, key=lambda name: share[name])
    return (best, "") if share[best] > 0.5 else ("", "neither its name nor its parts are those of an assignment")


def _worth(submission: Submission, assignment: Assignment) -> list[int]:
    """How far each part that is there is written, as `choose` says."""
    found = []
    for part in assignment.parts:
        try:
            found.append(choose(submission.cells, part.function).worth)
        except LookupError:
            continue
    return found


def _one_each(found: list[Handed], assignments: Mapping[str, Assignment]) -> list[Handed]:
    """Of several files of a student for an assignment the newest in which something is written is graded."""
    groups: dict[tuple[str, str], list[Handed]] = {}
    for file in found:
        if not file.reason:
            groups.setdefault((file.student, file.assignment), []).append(file)
    changed: dict[Path, Handed] = {}
    for files in filter(lambda files: len(files) > 1, groups.values()):
        best = max(files, key=lambda file: _rank(file, assignments))
        other = f"{readable(best.path.name)} is graded, the newest in which something is written"
        changed |= {file.path: replace(file, reason=other) for file in files}
        changed[best.path] = replace(best, remark=", ".join(filter(None, [best.remark, f"one of {len(files)} files"])))
    return [changed.get(file.path, file) for file in found]


def _rank(file: Handed, assignments: Mapping[str, Assignment]) -> tuple[bool, bool, float, str]:
    """Readable, something written, newer, further in the order of names."""
    try:
        written = ATTEMPTED in _worth(Submission.read(file.path, ""), assignments[file.assignment])
    except SubmissionError:
        return False, False, 0.0, ""
    return True, written, file.path.stat().st_mtime, file.path.stem
