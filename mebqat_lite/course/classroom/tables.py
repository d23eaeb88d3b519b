"""CSV files that spreadsheets write and read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite.files import replace

FORMULAS = tuple("=+-@\t\r")  # a text that begins so is taken for a formula


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file whose texts no spreadsheet takes for formulas."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_safe(cell) for cell in row] for row in (head, *rows))
    replace(path, text.getvalue().encode())


def read_table(path: Path) -> list[list[str]]:
    """The lines of a CSV file that are not empty, as `write_table`, Moodle, Canvas and spreadsheets write it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")  # as older spreadsheets write it
    titles = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=titles.count))
    return [[_plain(cell) for cell in line] for line in lines if any(map(str.strip, line))]


def _safe(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell.startswith(FORMULAS) and cell != "-"  # a dash is Moodle's "no grade"
    return f"'{cell}" if is_formula else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULAS) else cell
