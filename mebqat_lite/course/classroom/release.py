"""Student versions of the assignments: no solution, no hidden test, no output. By nbgrader, whose cells they are."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from mebqat_lite.course.classroom.submission import Submission

VERSION = 4  # of the notebook format


SOLUTION = re.compile(r"(?ms)^([ \t]*)### BEGIN SOLUTION.*?### END SOLUTION[^\n]*")
STUB = "return ..."


def handed_out(graders: Path, name: str) -> list[str]:
    """The code cells of a hand-out, from its master beside the folder of the graders; none if it is not there."""
    master = graders.parent / "source" / name / f"{name}.ipynb"
    if not master.is_file():
        return []
    return [SOLUTION.sub(rf"\1{STUB}", text) for _, text in Submission.read(master, "").cells]


def student_version(notebook: Any) -> Any:
    """A master notebook (nbformat node) without solutions, hidden tests and outputs, its graded cells locked."""
    from nbgrader import preprocessors

    resources: dict[str, Any] = {}
    for step in (
        preprocessors.LockCells(),
        preprocessors.ClearSolutions(code_stub={"python": STUB}),
        preprocessors.ClearOutput(),
        preprocessors.ClearHiddenTests(),
    ):
        notebook, resources = step(notebook, resources)
    return notebook


def release(source: Path, out: Path) -> list[Path]:
    """Write the student version of each ``source/NAME/NAME.ipynb``, and ``NAME.zip`` with it, into ``out``."""
    import nbformat

    masters = sorted(path for path in source.glob("*/*.ipynb") if path.stem == path.parent.name)
    if not masters:
        raise FileNotFoundError(f"no assignments in {source}: they are NAME/NAME.ipynb")
    written = []
    for master in masters:
        folder = out / master.stem
        folder.mkdir(parents=True, exist_ok=True)
        notebook = student_version(nbformat.read(master, as_version=VERSION))
        nbformat.write(notebook, folder / master.name)
        with zipfile.ZipFile(out / f"{master.stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(folder / master.name, f"{master.stem}/{master.name}")
        written += [folder / master.name, out / f"{master.stem}.zip"]
    return written
