"""Run lessons from a fresh kernel and store them with their outputs.

``python notebooks/store.py [NAME.ipynb ...]``

The seconds that a lesson took are written into its metadata; a test holds the card to them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm.auto import tqdm

FOLDER = Path(__file__).parent
STATIC = "Interactive: run the notebook to move it. The figure beneath needs no kernel."


def store(path: Path) -> float:
    """Execute one notebook, keep its outputs, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", store_widget_state=False
    )
    client.record_timing = False
    started = time.perf_counter()
    client.execute(cwd=str(FOLDER))
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                output["data"]["text/plain"] = STATIC
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
