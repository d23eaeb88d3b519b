"""What a grader will see of a notebook, for its student: which cells count, and what is left out. No test is run."""

from __future__ import annotations

from pathlib import Path

from mebqat_lite.course.classroom.attempts import STUB, choose
from mebqat_lite.course.classroom.submission import EMPTY, Submission

LINE = "  {:20} {}"


def report(path: Path) -> tuple[list[str], bool]:
    """The lines that a student is shown, and whether all is written, and every part can be called.

    Raises:
        ValueError: the file is no notebook, or has no cell for an answer.
    """
    submission = Submission.read(path, "")
    if not submission.parts:
        why = "no cell has the mark of a part. Grading goes by the functions' names then; write into the hand-out"
        raise ValueError(f"{path}: {why} to see them here")
    states = {name: _part(submission, name) for name in submission.parts}
    answers = {name: len(text.split()) for name, text in submission.written.items() if not EMPTY.fullmatch(text)}
    lines = [f"{path.name}: {len(submission.cells)} code cells"]
    lines += [LINE.format(name, words) for name, (_, words, _) in states.items()]
    for name in submission.written:
        words = f"{answers[name]} words, marked by hand" if name in answers else "not attempted"
        lines.append(LINE.format(name, words))
    if notes := dict.fromkeys(f"  {note}" for *_, found in states.values() for note in found):
        lines += ["For each part the cells above it are run as they stand; what stops there costs nothing:", *notes]
    return lines, all(good for good, *_ in states.values()) and len(answers) == len(submission.written)


def _part(submission: Submission, function: str) -> tuple[bool, str, list[str]]:
    """Whether a part can be called, in words, and notes on the other cells."""
    try:
        chosen = choose(submission.cells, function)
    except LookupError as problem:
        return False, str(problem.args[0]), []
    cell = f"code cell {chosen.own + 1}"
    if chosen.worth == STUB:
        return False, f"not attempted: {cell} is as it was handed out", []
    try:
        from mebqat_lite.course.classroom.parts import opened
    except ImportError:  # Windows cannot limit a process
        return True, f"attempted: {cell} counts; it is not run on this system", list(filter(None, [chosen.note]))
    try:
        with opened(submission.cells, function) as (_, notes):
            return True, f"attempted: {cell} counts", notes
    except Exception as problem:  # of the student's process, whatever it is
        return False, f"{cell} counts, but {problem}", []
