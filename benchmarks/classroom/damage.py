"""Files that are damaged, or no notebooks at all, and things that only have the name of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.classroom.made import FOUR, ONE, SEVEN, SIX, TWO, Case, code, id_of, master, solved, written

DEEP = 1500  # folders within each other: longer than a path may be
NOTHING = {"affine_range": 0, "affine_quantize": 0, "sqnr": 0}
# What is listed with a reason, and no notebook: student -> words of the sheets
LISTED = {"pipe": "no regular file", "link": "it is a link", "deep": "more than 8 folders",
          "archive": "cannot be unpacked", "folder": "it is no notebook"}  # fmt: skip


def spoiled() -> bytes:
    """The master of 01 without the marks of its cells: null, or no metadata at all."""
    made = master(ONE)
    for number, cell in enumerate(made["cells"]):
        cell["metadata"] = {"nbgrader": None} if number % 2 else None
    return written(made)


def twice() -> bytes:
    """All cells have the ids of others: the functions' names count."""
    made = master(ONE)
    for cell in made["cells"]:
        if id_of(cell):
            cell["metadata"]["nbgrader"]["grade_id"] = "sqnr"
    return written(made)


def of_cells() -> list[Case]:
    """Notebooks in which something is missing or spoiled: only what it belongs to is lost."""
    surrogate = json.dumps("x = '\ud800'").encode()
    odd = written(solved(ONE, above=["MARK"])).replace(b'"MARK"', surrogate)
    raises = solved(ONE, {"sqnr": "def sqnr(x, y):\n    raise ValueError('\\ud800\\x1b[2J<script>')"})
    long_sum = "total = " + "1 + " * 3000 + "1"
    gone = solved(TWO, {"lsq": None})
    renamed = solved(FOUR, {"mean_gradients": "def mean_gradient(gradients, pairs, limit):\n    return {}"})
    brackets = solved(SIX, {"normalized": "def normalized(*args):\n    return " + "[" * 300 + "1" + "]" * 300})
    syntax = solved(SEVEN, {"decide": "def decide(table, needed, budget, margin:\n    return 'none'"})
    stops = solved(
        ONE, {"sqnr": "def sqnr(x, y):\n    return 1.0\n\n1 / 0", "affine_range": "1 / 0\ndef affine_range():"}
    )

    def broken(name: str, assignment: str, made: bytes, loses: dict[str, int] | None = None, *says: str) -> Case:
        return Case("broken", name, assignment, made, loses or {}, says)

    return [
        broken("long_sum", ONE, written(solved(ONE, above=[long_sum, "[" * 100_000])), {}, "is left out"),
        broken("null", ONE, spoiled()),
        broken("ids_twice", ONE, twice()),
        broken("surrogate", ONE, odd),
        broken("raises_surrogate", ONE, written(raises), {"sqnr": 0}, "ValueError"),
        broken("cell_gone", TWO, written(gone), {"lsq": 0}, "there is no cell of lsq"),
        broken("renamed", FOUR, written(renamed), {"mean_gradients": 0}, "there is no function mean_gradients"),
        broken("nested", SIX, written(brackets), {"normalized": 0}, "nested"),
        broken("syntax", SEVEN, written(syntax), {"decide": 0}, "SyntaxError.*line 1"),
        broken(
            "stops", ONE, written(stops), {"sqnr": 0, "affine_range": 0}, "IndentationError", "it returns 1, right is"
        ),
        broken("no_outputs", ONE, json.dumps({"cells": [code("x = 1")]}).encode(), NOTHING, "no cell of sqnr"),
    ]


def of_files() -> list[Case]:
    """Files that can be read in another way, or not at all: they get all points, or none and the reason."""
    right = written(master(ONE))
    about = right.replace(b"# Assignment 01", "# Ma solution é".encode("latin-1"))
    lost = {
        "cut_off": (right[: len(right) // 2], "is no notebook"),
        "empty": (b"", "is no notebook"),
        "latin_1": (about, "is no notebook"),
        "brackets": (b"[" * 100_000, "is no notebook"),
        "list": (b"[]", "is no notebook"),
        "old_form": (json.dumps({"worksheets": [{"cells": []}]}).encode(), "is no notebook"),
        "cells_null": (b'{"cells": [null, {"cell_type": "code", "source": null}]}', "is no notebook"),
        "zeros": (b"\0" * 1000, "is no notebook"),
    }
    found = [Case("broken", name, ONE, text, NOTHING, (words,)) for name, (text, words) in lost.items()]
    marked = Case("right", "byte_order_mark", ONE, b"\xef\xbb\xbf" + right)
    return [*found, marked, Case("right", "utf_16", ONE, right.decode().encode("utf-16"))]


def cases() -> list[Case]:
    """All broken ones."""
    return [*of_cells(), *of_files()]


def place(folder: Path) -> None:
    """Put what is `LISTED` into a folder of submissions."""
    for name in LISTED:
        (folder / name).mkdir(parents=True)
    file = f"{ONE}.ipynb"
    os.mkfifo(folder / "pipe" / file)
    (folder / "link" / file).symlink_to("/dev/zero")
    (folder / "archive" / f"{ONE}.zip").write_bytes(b"PK")
    (folder / "folder" / file).mkdir()
    (folder / "folder" / "notes.txt").write_text("mine")
    here = os.open(folder / "deep", os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def clear(folder: Path) -> None:
    """Take away the deep folders, which are too deep for most programs that delete."""
    top = folder / "deep"
    while (top / "d").exists():
        if (top / "d" / "d").exists():
            (top / "d" / "d").rename(top / "next")
        (top / "d").rmdir()
        if (top / "next").exists():
            (top / "next").rename(top / "d")
