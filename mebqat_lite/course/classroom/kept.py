"""Results as files: each is written as it comes, so that a grading that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mebqat_lite
from mebqat_lite.course.classroom.feedback import page
from mebqat_lite.course.classroom.grading import Assignment, Outcome
from mebqat_lite.course.classroom.submission import content, printable
from mebqat_lite.files import replace


@dataclass(frozen=True)
class Graded:
    """What a student gets for an assignment; ``problem`` is why a file could not be graded at all."""

    student: str
    assignment: Assignment
    outcomes: tuple[Outcome, ...]
    written: Mapping[str, str]
    problem: str = ""
    notes: tuple[str, ...] = ()  # for the student: what of the cells counts
    file: str = ""  # its path in the folder of submissions
    remark: str = ""  # late, one of several files
    code: Mapping[str, str] = field(default_factory=dict)  # the source of each part

    @property
    def points(self) -> int:
        """That the machine gave."""
        return sum(outcome.points for outcome in self.outcomes)

    @property
    def problems(self) -> str:
        """What the instructor should look at, in a line."""
        odd = [f"{o.part}, {o.check}: {o.message}" for o in self.outcomes if o.unforeseen]
        return "; ".join(dict.fromkeys(filter(None, [self.problem, *odd])))


def fingerprint(notebook: Path, grader: Path, student: str, variant: int) -> str:
    """Of all that decides a result: the notebook, the grader, the student, the variant and the package's version."""
    digest = hashlib.sha256(f"{mebqat_lite.__version__}/{variant}/{student}".encode())
    for path in (notebook, grader):
        digest.update(content(path))
    return digest.hexdigest()


def keep(out: Path, graded: Graded, mark: str, by_hand: Sequence[str] = ()) -> None:
    """Write a result as ``out/results/STUDENT/NAME.json``, and as a page of feedback for the student.

    ``mark`` is its `fingerprint`; ``by_hand`` are lines on the answers in words.
    """
    folder, name = folder_name(graded.student), graded.assignment.name
    shown = page(graded.student, graded.assignment, graded.outcomes, graded.problem, graded.notes, by_hand)
    replace(out / "feedback" / folder / f"{name}.html", shown.encode())
    fields = {"fingerprint": mark, "student": graded.student, "problem": graded.problem, "notes": graded.notes}
    fields |= {"file": graded.file, "remark": graded.remark}
    answers = {
        "written": dict(graded.written),
        "code": dict(graded.code),
        "outcomes": [asdict(outcome) for outcome in graded.outcomes],
    }
    text = json.dumps({**fields, **answers}, indent=1, ensure_ascii=False)
    replace(out / "results" / folder / f"{name}.json", text.encode())


def kept(out: Path, student: str, assignment: Assignment, mark: str) -> Graded | None:
    """The result that an earlier grading of the same file left; None if there is none, or one with a problem, or of a
    process that was stopped.
    """
    found = _read(out / "results" / folder_name(student) / f"{assignment.name}.json", assignment, mark)
    if found is None or found.problems or any(outcome.stopped for outcome in found.outcomes):
        return None
    return found


def all_kept(out: Path, assignments: Iterable[Assignment]) -> Iterator[Graded]:
    """Every result in ``out``, by student and assignment, also of earlier runs."""
    names = {assignment.name: assignment for assignment in assignments}
    for path in sorted(out.glob("results/*/*.json")):
        if path.stem in names and (found := _read(path, names[path.stem])) is not None:
            yield found


def _read(path: Path, assignment: Assignment, mark: str | None = None) -> Graded | None:
    """A result, unless it is damaged or of other contents than ``mark`` says."""
    try:
        fields = json.loads(path.read_bytes())
        outcomes = tuple(Outcome(**outcome) for outcome in fields["outcomes"])
        if mark is None or fields["fingerprint"] == mark:
            about = (fields["written"], fields["problem"], tuple(fields["notes"]), fields["file"], fields["remark"])
            return Graded(fields["student"], assignment, outcomes, *about, fields.get("code", {}))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def folder_name(student: str) -> str:
    """A student's name as that of one folder, which lies in the folder above and is not hidden."""
    name = printable(student).translate(str.maketrans("/\\\n\t", "____")).strip()
    return f"_{name.lstrip('.')}" if name.startswith(".") or not name else name
