"""Measure again what the prose claims: ``python tests/claims.py [--slow]``.

Each entry of ``claims.toml`` names the words and the page that they stand on, the command that measures them, the file
that it writes, what to read there, the value as claimed, and a tolerance from the measured spread. CI measures the
quick ones (``test_claims.py``), this script also the slow ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import tempfile
import tomllib
import unittest.mock
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Claim:
    """An entry of the table; ``reads`` is a path into the file, or the difference of two: ``a.b.c - a.d.c``."""

    page: str
    says: str
    command: str  # {out} is a file that the command writes
    reads: str
    value: float
    tolerance: float
    spread: str  # where the tolerance comes from
    file: str = "{out}"
    slow: bool = False

    def measured(self, out: Path) -> float:
        """Run the command, in this process, and read the value."""
        words = shlex.split(self.command.format(out=out))
        silent = contextlib.redirect_stdout(io.StringIO())
        with contextlib.chdir(ROOT), silent, unittest.mock.patch.object(sys, "argv", words):
            try:
                runpy.run_module(words[0], run_name="__main__")
            except SystemExit as end:
                assert not end.code, f"{self.command} ended with status {end.code}"
        found = json.loads((ROOT / self.file.format(out=out)).read_text())
        first, *others = [value_at(found, path.strip()) for path in self.reads.split(" - ")]
        return first - sum(others)


def value_at(found: Any, path: str) -> float:
    """The number at a path such as ``accuracy.mebqat.W1A1.mean``."""
    for key in path.split("."):
        found = found[key]
    return float(found)


def claims() -> list[Claim]:
    """All entries of the table."""
    table = tomllib.loads((ROOT / "tests" / "claims.toml").read_text())
    return [Claim(**entry) for entry in table["claim"]]


def prose(page: str) -> str:
    """The text of a page, or the text cells of a notebook, on one line."""
    text = (ROOT / page).read_text()
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text)


def main(slow: bool) -> int:
    """Measure all claims, print a line for each, and return how many do not hold."""
    wrong = 0
    for claim in claims():
        if claim.slow and not slow:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = claim.measured(Path(folder) / "out.json")
        holds = abs(found - claim.value) <= claim.tolerance
        wrong += not holds
        print(
            f"[{'OK' if holds else 'NO'}] {claim.page}: {claim.says!r} {claim.value:g}, measured {found:.2f}",
            flush=True,
        )
    return wrong


if __name__ == "__main__":
    sys.exit(main("--slow" in sys.argv))
