"""Lessons as they are stored, and which of them are held to the form of the course."""

import ast
import importlib
import json
import re
from pathlib import Path

from mebqat_lite.course.exercises import Exercise

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
# A lesson joins when it has the form.
REBUILT = [
    "00_start_here",
    "01_quantization",
    "02_quantization_aware_training",
    "03_one_network_many_bitwidths",
    "04_bitwidths_as_tasks",
    "05_few_shot_learning",
    "06_new_classes_at_any_bitwidth",
    "07_compare_and_decide",
    "08_deploy",
]
WIDGET, FIGURE = "application/vnd.jupyter.widget-view+json", "image/png"
ASKS = ("number", "choice", "MarkOnAxes")  # what asks for a guess


def read(name: str) -> dict:
    """A lesson of the folder."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(lesson: dict) -> list[dict]:
    return [cell for cell in lesson["cells"] if cell["cell_type"] == "code"]


def markdown(lesson: dict) -> list[str]:
    return [source(cell) for cell in lesson["cells"] if cell["cell_type"] == "markdown"]


def shows(cell: dict, kind: str) -> int:
    """How many outputs of a kind a cell has."""
    return sum(kind in output.get("data", {}) for output in cell["outputs"])


def printed(cell: dict) -> str:
    """The text outputs of a cell."""
    parts = []
    for output in cell["outputs"]:
        if not {WIDGET, FIGURE} & set(output.get("data", {})):
            parts.append("".join(output.get("text") or output.get("data", {}).get("text/plain", "")))
    return "\n".join(parts)


def tree(cell: dict) -> ast.Module:
    """The code of a cell; lines for IPython alone are left away."""
    return ast.parse(re.sub(r"(?m)^[%!].*$", "", source(cell)))


def calls(cell: dict, *methods: str) -> list[tuple[str, int]]:
    """The exercises whose methods are called, such as ``lesson_01.fake_quantize``, and the lines where they are."""
    found = [node.func for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
    names = [(ast.unparse(f.value), f.lineno) for f in found if isinstance(f, ast.Attribute) and f.attr in methods]
    return sorted((call for call in names if re.fullmatch(r"lesson_\d\d\.\w+", call[0])), key=lambda call: call[1])


def exercise(name: str) -> Exercise:
    """An exercise by its name in a lesson, ``lesson_01.fake_quantize``."""
    module, _, own = name.partition(".")
    return getattr(importlib.import_module(f"mebqat_lite.course.exercises.{module}"), own)


def guesses(cell: dict) -> list[str]:
    """The names of the guesses that a cell asks for: ``my = guess.number(...)`` and its like."""
    found = []
    for node in ast.walk(tree(cell)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            asks = ast.unparse(node.value.func).rpartition(".")[2] in ASKS
            found += [target.id for target in node.targets if asks and isinstance(target, ast.Name)]
    return found


def reads(cell: dict) -> set[str]:
    """The names whose values a cell reads."""
    nodes = ast.walk(tree(cell))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
