"""A submitted notebook: its code cells, and its answers in words."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMPTY = re.compile(r"\s*(YOUR ANSWER HERE)?\s*")  # an answer in words as nbgrader hands it out
LARGEST = 100 * 2**20  # bytes of a notebook, with all its pictures
MOST_CODE = 2**20  # characters of its code, which Python reads here: a tree of it takes some hundred times as much


class SubmissionError(ValueError):
    """A file that is no notebook, or one with too much code."""


@dataclass(frozen=True)
class Submission:
    """A student's notebook. ``cells`` are its code cells, (id or "", source), in order; ``parts`` the ids of those
    that the hand-out left open.
    """

    student: str
    path: Path
    cells: tuple[tuple[str, str], ...]
    written: dict[str, str]  # id -> text of the answers that are marked by hand
    parts: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, student: str) -> Submission:
        """Read a notebook; SubmissionError if it is none, or has too much code."""
        try:
            notebook = json.loads(content(path))  # also with a byte order mark
            cells = [(cell["cell_type"], _about(cell), "".join(cell["source"])) for cell in notebook["cells"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            words = str(error) or type(error).__name__
            raise SubmissionError(printable(f"{path.name} is no notebook: {words}")) from None
        code = tuple((_name(about), text) for kind, about, text in cells if kind == "code")
        if (size := sum(len(text) for _, text in code)) > MOST_CODE:
            raise SubmissionError(f"{printable(path.name)} has {size:,} characters of code, more than {MOST_CODE:,}")
        answers = [(about, text) for kind, about, text in cells if kind == "markdown" and about.get("solution")]
        written = {_name(about): printable(text) for about, text in answers if _name(about)}
        opened = (_name(about) for kind, about, _ in cells if kind == "code" and about.get("solution"))
        return cls(student, path, code, written, tuple(dict.fromkeys(filter(str.isidentifier, opened))))


def content(path: Path) -> bytes:
    """The bytes of a regular file; of a pipe, a read would never end."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > LARGEST:
        raise ValueError(f"it has {about.st_size >> 20} MiB, more than {LARGEST >> 20}")
    return path.read_bytes()


def _about(cell: dict[str, Any]) -> dict[str, Any]:
    """What nbgrader knows of a cell; empty where a student's editor has dropped or spoiled it."""
    metadata = cell.get("metadata")
    about = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return about if isinstance(about, dict) else {}


def _name(about: dict[str, Any]) -> str:
    name = about.get("grade_id")
    return printable(name) if isinstance(name, str) else ""


def printable(text: str) -> str:
    """The text without what no file in UTF-8 can hold (halves of a character) and without control characters."""
    whole = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in whole)
