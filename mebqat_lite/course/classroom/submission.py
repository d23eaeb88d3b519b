"""A submitted notebook: which of its cells belong to a part."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


class SubmissionError(ValueError):
    """A file that is no notebook."""


@dataclass(frozen=True)
class Submission:
    """A student's notebook. ``cells`` are its code cells, (id or "", source), in order."""

    student: str
    path: Path
    cells: tuple[tuple[str, str], ...]
    written: dict[str, str]  # id -> text of the answers that are marked by hand

    @classmethod
    def read(cls, path: Path, student: str) -> Submission:
        """Read a notebook; SubmissionError if it is none."""
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            cells = [
                (cell["cell_type"], cell.get("metadata", {}).get("nbgrader", {}), "".join(cell["source"]))
                for cell in notebook["cells"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SubmissionError(f"{path.name} is no notebook: {error}") from None
        code = tuple((about.get("grade_id", ""), text) for kind, about, text in cells if kind == "code")
        written = {
            about["grade_id"]: text
            for kind, about, text in cells
            if kind == "markdown" and about.get("solution") and about.get("grade_id")
        }
        return cls(student, path, code, written)

    def cells_for(self, function: str) -> list[str]:
        """What is run for a part: imports and definitions of all other cells, then the part's own cell, whole.

        So a part may use what the student defined elsewhere, and no other cell can stop it. LookupError if no cell
        defines the function.
        """
        own = [index for index, (name, _) in enumerate(self.cells) if name == function]
        own = own or [index for index, (_, source) in enumerate(self.cells) if f"def {function}(" in source]
        if not own:
            raise LookupError(f"there is no cell of {function}: is it deleted, or the function renamed?")
        others = [definitions(source) for index, (_, source) in enumerate(self.cells) if index != own[-1]]
        return [*filter(None, others), self.cells[own[-1]][1]]


def definitions(source: str) -> str:
    """The imports, functions and classes of a cell, and constants; "" if Python cannot read it."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError):
        return ""
    return "\n".join(ast.unparse(line) for line in lines if isinstance(line, KEPT) or _is_constant(line))


def _is_constant(line: ast.stmt) -> bool:
    """``NAME = literal``."""
    if not isinstance(line, ast.Assign) or not all(isinstance(target, ast.Name) for target in line.targets):
        return False
    try:
        ast.literal_eval(line.value)
    except ValueError:
        return False
    return True
