"""Run lessons from a fresh kernel and store them with their outputs.

``python notebooks/store.py [NAME.ipynb ...]``

Guesses and exercises are left unanswered. Cells keep their metadata: tags such as
``nbval-check-output``, and ``"jupyter": {"outputs_hidden": true}`` of a cell that reveals what
was to be guessed. The seconds that a lesson took are written into its metadata; a test holds
the card to them.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm.auto import tqdm

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
STATIC = "Interactive: run the notebook to move it. The figure beneath needs no kernel."
# JupyterLab shows the first line of hidden outputs, which would give the answer away.
ANSWER = "The answer to your guess (JupyterLab keeps it closed until you run the cell):"


def run(notebook: NotebookNode) -> float:
    """Execute all cells in a fresh kernel, keep their outputs, and return the seconds it took.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises an error.
    """
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", store_widget_state=False
    )
    client.record_timing = False
    started = time.perf_counter()
    client.execute(cwd=str(FOLDER))
    return time.perf_counter() - started


def is_hidden(cell: NotebookNode) -> bool:
    """Whether the outputs of a cell are closed until it runs."""
    return bool(cell["metadata"].get("jupyter", {}).get("outputs_hidden"))


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join texts that a busy machine delivered in parts, so that no line is torn."""
    found: list[NotebookNode] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output.get("name") and output["name"] == last.get(
            "name"
        ):  # a stream after the same one
            last["text"] += output["text"]
        else:
            found.append(output)
    return found


def for_readers(cell: NotebookNode) -> None:
    """Put words in the place of what a page cannot show without a kernel, or must not yet."""
    if "outputs" in cell:
        cell.outputs = joined(cell.outputs)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if WIDGET in data and re.match(r"\w+\(|<", data.get("text/plain", "")):
            data["text/plain"] = STATIC  # in the place of its repr, which is for programmers
    if is_hidden(cell) and cell.get("outputs"):
        cell.outputs.insert(0, nbformat.v4.new_output("display_data", {"text/plain": ANSWER}))


def store(path: Path) -> float:
    """Execute one notebook, write it with its outputs, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    seconds = run(notebook)
    for cell in notebook.cells:
        for_readers(cell)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "mebqat_lite": {"seconds": round(seconds, 1)},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def main(names: list[str]) -> int:
    """Store the named lessons, or all."""
    paths = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in tqdm(paths, desc="lessons"):
        tqdm.write(f"{path.name}: {store(path):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
