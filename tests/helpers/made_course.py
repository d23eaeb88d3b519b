"""A course with one small assignment, and folders of submissions to it."""

import csv
import json

import nbformat
from submissions import GOOD, notebook

from mebqat_lite.course.classroom.course import grade_folder

GRADERS = """
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.exercises import expect
ASSIGNMENT = Assignment("NAME", (
    Part("double", ("x",), "Twice", 5, (Check("twice", 3, lambda s, rng: expect(s(1.5), 3.0, "1.5")),
                                        Check("whole", 2, lambda s, rng: expect(round(s(2.0)), 4.0, "2.0")))),
), {"words": 2})
"""


def graders(folder, *names):
    """A folder with a grader for each name."""
    folder.mkdir(exist_ok=True)
    for name in names or ("99_made",):
        (folder / f"{name}.py").write_text(GRADERS.replace("NAME", name))
    return folder


def text(*cells, words="My answer."):
    """The text of a notebook of (id, source) cells, with an answer in words."""
    made = notebook(*cells)
    about = {"nbgrader": {"grade_id": "words", "solution": True, "grade": True, "locked": False, "points": 2}}
    made.cells.append(nbformat.v4.new_markdown_cell(words, metadata=about))
    return nbformat.writes(made)


RIGHT = text(GOOD[0])


def hand_in(folder, files):
    """Write files, text or bytes by path."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def graded(tmp_path, **options):
    """Grade ``tmp_path/submitted``; the rows of the sheet by student."""
    grade_folder(
        tmp_path / "submitted", graders(tmp_path / "graders"), tmp_path / "grades", progress=False, workers=2, **options
    )
    return {row["student"]: row for row in sheet(tmp_path, "grades")}


def sheet(tmp_path, name):
    """The rows of a sheet."""
    return list(csv.DictReader((tmp_path / "grades" / f"{name}.csv").open(encoding="utf-8", newline="")))


def with_spoiled_metadata():
    """A right notebook whose cells say ``"nbgrader": null``."""
    made = json.loads(RIGHT)
    for cell in made["cells"]:
        cell["metadata"]["nbgrader"] = None
    return json.dumps(made)
