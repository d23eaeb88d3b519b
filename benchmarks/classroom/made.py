"""Notebooks made from the masters of the assignments, and what each must get."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mebqat_lite import paths

ROOT = paths.checkout()
assert ROOT is not None, "the masters are in a checkout of the repository"
FOLDER = ROOT / "notebooks" / "assignments"
ONE, TWO, FOUR = "01_quantization", "02_quantization_aware_training", "04_bitwidths_as_tasks"
SIX, SEVEN = "06_new_classes_at_any_bitwidth", "07_compare_and_decide"
TIGHT = "91_tight_limits"  # the parts of ONE, with little time and memory


@dataclass(frozen=True)
class Case:
    """A notebook that a student hands in, as bytes, and what it must get.

    ``loses`` has the points that are left of each part that is not right; all other parts get all points. ``says`` are
    regular expressions, each of which must be found in a message, a note or the problem.
    """

    kind: str
    name: str
    assignment: str
    content: bytes
    loses: Mapping[str, int] = field(default_factory=dict)
    says: tuple[str, ...] = ()

    @property
    def student(self) -> str:
        """The kind and the name: it is the name of the folder too."""
        return f"{self.kind}_{self.name}"


@functools.cache
def _text(name: str) -> str:
    name = ONE if name == TIGHT else name
    return (FOLDER / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8")


def master(name: str) -> dict[str, Any]:
    """The solved notebook without its trials, which would be run before each part that stands below them."""
    made: dict[str, Any] = json.loads(_text(name))
    made["cells"] = [cell for cell in made["cells"] if id_of(cell) != "try_it"]
    return made


def id_of(cell: dict[str, Any]) -> str:
    """The name of a part, or "" of any other cell."""
    return str(cell["metadata"].get("nbgrader", {}).get("grade_id", ""))


def code(source: str) -> dict[str, Any]:
    """A code cell that a student has added."""
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source}


def solved(
    name: str, parts: Mapping[str, str | None] | None = None, above: Sequence[str] = (), below: Sequence[str] = ()
) -> dict[str, Any]:
    """The master with other sources of some parts (None: its cell is missing), and cells above and below all others."""
    made, changed = master(name), parts or {}
    cells = [cell for cell in made["cells"] if changed.get(id_of(cell), "") is not None]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["source"] = changed.get(id_of(cell)) or cell["source"]
    made["cells"] = [*map(code, above), *cells, *map(code, below)]
    return made


def written(notebook: Any) -> bytes:
    """A notebook as a file."""
    return json.dumps(notebook).encode()
