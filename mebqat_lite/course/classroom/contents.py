"""Every file of what was handed in: of a folder, of a zip of a class, and of the zips of students in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mebqat_lite.course.classroom.names import is_of_a_program, key
from mebqat_lite.course.classroom.zips import CLASS, STUDENT, is_zip, unpacked

DEEPEST = 8  # folders within each other


@dataclass(frozen=True)
class File:
    """``place``: in what was handed in; ``path``: where it is read; ``why`` it cannot be taken, or ""."""

    place: PurePosixPath
    path: Path
    why: str = ""


def files_in(submissions: Path, room: Path) -> Iterator[File]:
    """All files, in the order of their names; zips are unpacked into ``room``, and have the place of a folder.

    Raises:
        FileNotFoundError: there is no such folder or zip.
        ValueError: the zip of the class cannot be unpacked.
    """
    if submissions.is_dir():
        for place, why in _walk(submissions):
            path = submissions / place
            yield from _students(place, path, room) if not why and is_zip(place.name) else [File(place, path, why)]
    elif submissions.is_file() and is_zip(submissions.name):
        yield from _class(submissions, room)
    else:
        raise FileNotFoundError(f"no folder {submissions} with submissions: STUDENT/NAME.ipynb each, nor a zip of them")


def _walk(folder: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """(place, why it cannot be taken or "") of each file of a folder."""
    for at, folders, files in os.walk(folder):
        here = PurePosixPath(Path(at).relative_to(folder).as_posix())
        folders[:] = sorted(name for name in folders if not is_of_a_program([name]))
        yield from ((here / name, "it is a link") for name in folders if (folder / here / name).is_symlink())
        if len(here.parts) == DEEPEST and folders:
            yield here / folders[0], f"it lies in more than {DEEPEST} folders"
            folders.clear()
        for name in sorted(files):
            if not is_of_a_program([name]):
                yield here / name, _unfit(folder / here / name)


def _unfit(path: Path) -> str:
    if path.is_symlink():
        return "it is a link"
    return "" if path.suffix.casefold() in (".ipynb", ".zip") else "it is no notebook (.ipynb)"


def _class(archive: Path, room: Path) -> Iterator[File]:
    """The files of a class; a folder that holds all of them and has the zip's name is none of a student."""
    entries = unpacked(archive, room, CLASS)
    if [place for place, *_ in entries] == [PurePosixPath()]:
        raise ValueError(f"{archive}: {entries[0][2]}")
    tops = {place.parts[0] for place, *_ in entries}
    is_around = len(tops) == 1 and key(archive.stem).startswith(key(*tops)) and all(e[0].parts[1:] for e in entries)
    for place, path, why in entries:
        place = PurePosixPath(*place.parts[1:]) if is_around else place
        yield from _students(place, path, room) if not why and is_zip(place.name) else [_taken(place, path, why)]


def _students(place: PurePosixPath, archive: Path, room: Path) -> Iterator[File]:
    for inner, path, why in unpacked(archive, room, STUDENT):
        why = why or ("it is a zip within a zip: unpack it" if is_zip(inner.name) else "")
        yield _taken(place / inner, path, why)


def _taken(place: PurePosixPath, path: Path, why: str) -> File:
    is_deep = len(place.parts) > DEEPEST + 1
    return File(place, path, why or (f"it lies in more than {DEEPEST} folders" if is_deep else ""))
