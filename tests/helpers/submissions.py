"""A small assignment and submissions to it."""

import nbformat

from mebqat_lite import paths

ROOT = paths.checkout()


FOLDER = ROOT / "notebooks" / "assignments"


def notebook(*cells):
    """A notebook of (id, source) code cells."""
    made = nbformat.v4.new_notebook()
    for name, source in cells:
        about = {"nbgrader": {"grade_id": name, "solution": True, "grade": False, "locked": False}} if name else {}
        made.cells.append(nbformat.v4.new_code_cell(source, metadata=about))
    return made


GOOD = (("double", "def double(x):\n    return 2 * x"), ("triple", "def triple(x):\n    return x + double(x)"))
