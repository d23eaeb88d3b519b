"""Zips, of a class or of one student: their notebooks are taken out, and all else is listed with the reason.

A zip is written by whoever hands it in. No name in it decides where a file is written, and what would not fit into the
bounds is not unpacked.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mebqat_lite.course.classroom.kept import folder_name
from mebqat_lite.course.classroom.names import is_of_a_program, readable
from mebqat_lite.course.classroom.submission import LARGEST

TAKEN = (".ipynb", ".zip")
UTF8 = 0x800  # a flag of an entry: its name is in UTF-8
ENCRYPTED = 0x1
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Bounds:
    """Of one zip: how many files it may hold, and the MiB that it has and that what is taken from it may have."""

    files: int
    packed: int
    unpacked: int


CLASS = Bounds(20_000, 8_000, 8_000)
STUDENT = Bounds(1_000, 50, 200)
Entry = tuple[PurePosixPath, Path, str]  # its place in the zip, the file to read, why it cannot be taken or ""


def is_zip(name: str) -> bool:
    """Whether the name of a file is that of a zip."""
    return name.casefold().endswith(".zip")


def unpacked(archive: Path, room: Path, bounds: Bounds) -> list[Entry]:
    """The files of a zip, in the order of their names. What is taken lies in folders of ``room``.

    If nothing can be taken, there is one entry, of the zip itself, that says why.
    """
    try:
        if not archive.is_file():
            raise ValueError("it is no regular file")
        _check(archive.stat().st_size, bounds.packed, "")
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            if len(members) > bounds.files:
                raise ValueError(f"it holds {len(members):,} files, more than {bounds.files:,}")
            size = sum(info.file_size for info in members if info.filename.casefold().endswith(TAKEN))
            _check(size, bounds.unpacked, " unpacked")
            found = sorted(_entries(opened, members, archive, room), key=lambda entry: str(entry[0]))
    except DAMAGED as problem:
        return [(PurePosixPath(), archive, f"this zip cannot be unpacked: {problem or type(problem).__name__}")]
    return found or [(PurePosixPath(), archive, "this zip holds no file")]


def _check(size: int, most: int, what: str) -> None:
    if size > most << 20:
        raise ValueError(f"it has {size >> 20:,} MiB{what}, more than {most:,}")


def _entries(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], archive: Path, room: Path) -> Iterator[Entry]:
    for info in members:
        parts = _name(info).replace("\\", "/").split("/")
        place = PurePosixPath(*(readable(part) for part in parts if part.strip(". ")))
        if is_of_a_program(place.parts):
            continue
        why = _unfit(info, parts, place)
        try:
            yield place, archive if why else _take(opened, info, place.name, room), why
        except DAMAGED as problem:
            yield place, archive, f"it cannot be unpacked: {problem or type(problem).__name__}"


def _name(info: zipfile.ZipInfo) -> str:
    """The name of an entry; macOS writes UTF-8 without the flag that says so."""
    try:
        return info.filename if info.flag_bits & UTF8 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _unfit(info: zipfile.ZipInfo, parts: list[str], place: PurePosixPath) -> str:
    """Why an entry is not taken; "" if it is."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return "it is a link"
    if parts[0] == "" or ".." in parts or parts[0][1:2] == ":":
        return "its path leads out of the zip"
    if not place.name.casefold().endswith(TAKEN):
        return "it is no notebook (.ipynb)"
    if info.flag_bits & ENCRYPTED:
        return "it has a password"
    return f"it has {info.file_size >> 20} MiB, more than {LARGEST >> 20}" if info.file_size > LARGEST else ""


def _take(opened: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, room: Path) -> Path:
    """Write an entry into a new folder of ``room``, with the time that the zip has kept."""
    path = Path(tempfile.mkdtemp(dir=room)) / folder_name(name)[-60:]
    with opened.open(info) as source, path.open("xb") as target:
        shutil.copyfileobj(source, target)  # `source` ends at the size that was checked, whatever is packed
    try:
        changed = time.mktime((*info.date_time, 0, 0, -1))
        os.utime(path, (changed, changed))
    except (ValueError, OverflowError, OSError):
        pass  # it is no time
    return path
