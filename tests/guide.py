"""The table of assignments in the instructor's guide: ``python tests/guide.py`` writes it."""

import re

import nbformat

from mebqat_lite import paths
from mebqat_lite.course.classroom.course import load_assignments

ROOT = paths.checkout()

FOLDER = ROOT / "notebooks" / "assignments"
ASSIGNMENTS = load_assignments(FOLDER / "graders")


def master(name):
    """The notebook with the solutions."""
    return FOLDER / "source" / name / f"{name}.ipynb"


HEAD = "| assignment | after lessons | points by machine + by hand | minutes |\n|---|---|---|---|\n"


def rows():
    """The guide's table."""
    lines = [HEAD]
    for name, assignment in ASSIGNMENTS.items():
        card = nbformat.read(master(name), as_version=4).cells[0].source
        title = card.splitlines()[0].partition(": ")[2]
        needs = re.search(r"\*\*You need\*\* (.*?)\.", card)[1]
        minutes = re.search(r"\*\*Time\*\* about (\d+) minutes", card)[1]
        points = f"{assignment.points} + {sum(assignment.written.values())}"
        lines.append(f"| `{name}`: {title} | {needs} | {points} | {minutes} |\n")
    return "".join(lines)


if __name__ == "__main__":
    guide = FOLDER / "INSTRUCTOR.md"
    before, rest = guide.read_text().split("<!-- assignments -->\n")
    after = rest.split("<!-- /assignments -->")[1]
    guide.write_text(f"{before}<!-- assignments -->\n{rows()}<!-- /assignments -->{after}")
