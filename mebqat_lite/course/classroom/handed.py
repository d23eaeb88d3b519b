"""Which files of a folder are submissions: whose, of which assignment, and why a file is not graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mebqat_lite.course.classroom.attempts import ATTEMPTED, choose
from mebqat_lite.course.classroom.contents import File, files_in
from mebqat_lite.course.classroom.grading import Assignment
from mebqat_lite.course.classroom.names import LATE, assignment_in, key, owner_in, readable, student_of, without_copy
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.submission import Submission, SubmissionError
from mebqat_lite.course.classroom.zips import is_zip


@dataclass(frozen=True)
class Handed:
    """A file as it was found. ``reason`` is why it is not graded; "" if it is. ``remark``: late, or one of several.

    ``place`` is where it lies in what was handed in, ``path`` where it is read; the two differ if it comes out of a
    zip. ``origin`` is what the student's name was taken from.
    """

    place: PurePosixPath
    path: Path
    student: str = ""
    assignment: str = ""
    reason: str = ""
    remark: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        """Its place, in words for the sheets."""
        return readable(str(self.place))


def find(
    submissions: Path, assignments: Mapping[str, Assignment], room: Path, roster: Roster | None = None
) -> list[Handed]:
    """Every file in a folder or a zip; at most one for each student and assignment is without a ``reason``.

    The folder in it is the student; of a file or a zip that lies directly in it, what stands before the assignment's
    name. A notebook is known by its name, by that of a folder or a zip around it, or by its parts. Zips are unpacked
    into the folder ``room``.

    Raises:
        FileNotFoundError: there is no such folder or zip.
        ValueError: it is a zip that cannot be unpacked.
    """
    found = _told_apart([_recognised(file, assignments) for file in files_in(submissions, room)])
    if roster is not None:
        found = [replace(file, student=roster.who(file.student) or file.student) for file in found]
    return _one_each(found, assignments)


def _recognised(file: File, assignments: Mapping[str, Assignment]) -> Handed:
    """Whose file it is, and of which assignment."""
    *outer, last = file.place.parts
    around, stem = [_stem(place) if is_zip(place) else place for place in outer], readable(_stem(last))
    (name, start), why, inner = assignment_in(stem, assignments), file.why, around[1:]
    if around and key(around[0]) in map(key, assignments):  # a folder of one assignment, with its students in it
        start = start if name else len(stem)
        name, around = name or assignment_in(around[0], assignments)[0], around[1:]
    elif is_zip(file.place.parts[0]):  # of a student: it stands for the folder
        inner, around = [*around], [_owner_of_zip((around or [stem])[0], assignments)]
    for place in reversed(inner):
        name = name or assignment_in(place, assignments)[0]
    if not why and not name:
        name, why = _by_contents(file.path, assignments)
    before = owner_in(stem, start)
    origin = without_copy(around[0]) if around else before
    if not why and not student_of(origin):
        why = "nobody's name stands in it: put it into a folder with the student's name"
    late = "late" if LATE.search(origin) or LATE.search(before) else ""
    return Handed(file.place, file.path, student_of(origin), name, why, late, origin)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _owner_of_zip(stem: str, assignments: Mapping[str, Assignment]) -> str:
    """As of a file of that name; where no assignment and no platform stands in it, the whole name."""
    start = assignment_in(stem, assignments)[1]
    return owner_in(readable(stem), start) or (stem if start < 0 else "")


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
        other = f"{readable(best.place.name)} is graded, the newest in which something is written"
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
