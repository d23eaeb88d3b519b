"""Names of files and folders: as they are shown, whose they are, and of which assignment."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

from mebqat_lite.course.classroom.submission import printable

COPY = re.compile(r"(?i)^(copy of|kopie von|copie de|copia de)\b")
MOODLE = re.compile(r"_\d+_assignsubmission_[a-z]+$")
LATE = re.compile(r"[ _-]LATE(?=$|[ _-])")
CANVAS = re.compile(r"_\d+_\d{5,}$")
MARKED = re.compile(r"(.+?_\d+_(?:assignsubmission_[a-z]+|\d{5,}))_")  # what either platform puts before a file's name
OF_PROGRAMS = {"__MACOSX", ".ipynb_checkpoints", ".git", ".DS_Store", "Thumbs.db", "desktop.ini", "timestamp.txt"}


def is_of_a_program(parts: Iterable[str]) -> bool:
    """Whether a program has made this file or a folder around it, so that no list needs a line for it."""
    return any(part in OF_PROGRAMS or part.startswith("._") for part in parts)


def readable(name: str) -> str:
    """The name of a file or a folder in composed characters (NFC), also if it is no UTF-8 but Latin-1."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeError:
        text = name.encode("utf-8", "surrogateescape").decode("latin-1")
    return printable(unicodedata.normalize("NFC", text)).strip()


def student_of(origin: str) -> str:
    """The student in the name of a folder, or in what stands before an assignment's name in that of a file.

    Moodle adds ``_4711_assignsubmission_file_``, Canvas ``_LATE_123_45678``.
    """
    return LATE.sub("", CANVAS.sub("", MOODLE.sub("", origin))).strip(" _-.")


def owner_in(stem: str, start: int) -> str:
    """What says whose a file is that lies in no student's folder: what a platform has put before its name, or else what
    stands before the assignment's name, which begins at ``start`` (-1: it is not there).
    """
    marked = MARKED.match(stem[:start] if start >= 0 else stem)
    return without_copy(marked[1] if marked else stem[: max(start, 0)])


def without_copy(text: str) -> str:
    """A name without what a copy has before it, and without separators at its ends."""
    return COPY.sub("", readable(text)).strip(" _-.")


def assignment_in(text: str, names: Iterable[str]) -> tuple[str, int]:
    """The assignment whose name stands in a file's, whatever stands around it, and where.

    ("", -1) if none or two do.
    """
    found = {name: match.start() for name in names if (match := _pattern(name).search(readable(text)))}
    return next(iter(found.items())) if len(found) == 1 else ("", -1)


def _pattern(name: str) -> re.Pattern[str]:
    words = r"[\W_]+".join(map(re.escape, name.split("_")))
    return re.compile(rf"(?i)(?<![^\W_]){words}(?![^\W_])")


def key(name: str) -> str:
    """What two spellings of a name share: its letters and digits, without case and accents."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in plain if c.isalnum())
