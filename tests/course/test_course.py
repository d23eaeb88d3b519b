"""A course: a folder of submissions is graded, hand-outs are written."""

import csv
import json
import shutil

import nbformat
import pytest
from submissions import FOLDER, GOOD, notebook

from mebqat_lite import cli
from mebqat_lite.course.classroom import course, feedback, tables

GRADERS = """
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.exercises import expect
ASSIGNMENT = Assignment("99_made", (
    Part("double", ("x",), "Twice", 5, (Check("twice", 3, lambda s, rng: expect(s(1.5), 3.0, "1.5")),)),
), {"words": 2})
"""


@pytest.fixture
def folder(tmp_path):
    """Submissions in the three forms, one of them by a hostile name, and graders."""
    (tmp_path / "graders").mkdir()
    (tmp_path / "graders" / "99_made.py").write_text(GRADERS)
    submitted = tmp_path / "submitted"
    for place in ("ann", "ben/99_made", "<b>=cmd"):
        (submitted / place).mkdir(parents=True)
        nbformat.write(notebook(GOOD[0]), submitted / place / "99_made.ipynb")
    (submitted / "carl_99_made.ipynb").write_text("broken")
    return tmp_path


@pytest.mark.slow
def test_a_folder_is_graded_by_one_command(folder, capsys):
    out = folder / "grades"
    command = ["grade", str(folder / "submitted"), "--graders", str(folder / "graders"), "--out", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "Submissions are programs that run on this machine" in printed and "carl" in printed
    rows = list(csv.DictReader((out / "grades.csv").open()))
    assert {row["student"]: row["points"] for row in rows} == {"ann": "3", "ben": "3", "<b>=cmd": "3", "carl": "0"}
    assert {row["to_mark_by_hand"] for row in rows} == {"2"}
    assert all(row["parts"] == f"double {row['points']}/3" for row in rows)
    assert (out / "course.csv").read_text().splitlines()[0] == "student,99_made,total"
    pages = {path.parent.name: path.read_text() for path in out.glob("feedback/*/99_made.html")}
    assert set(pages) == {"ann", "ben", "<b>=cmd", "carl"}
    assert "<b>=cmd" not in pages["<b>=cmd"] and "is no notebook" in pages["carl"]
    assert not any("http" in page for page in pages.values())  # readable without a network


def test_a_formula_is_no_formula(tmp_path):
    tables.write_table(tmp_path / "a.csv", ["=title"], [["=1", -1, "@a", "ann", "", "-", "-1"]])
    assert (tmp_path / "a.csv").read_text().split() == ["'=title", "'=1,-1,'@a,ann,,-,'-1"]
    assert tables.read_table(tmp_path / "a.csv") == [["=title"], ["=1", "-1", "@a", "ann", "", "-", "-1"]]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["grade", "nowhere"], "no folder nowhere"),
        (["grade", "."], "no submissions in"),
        (["grade", ".", "--graders", "."], "no graders in"),
        (["assignments", "--source", "."], "no assignments in"),
    ],
)
def test_a_wrong_folder_is_named(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2 and words in capsys.readouterr().err


@pytest.mark.slow
def test_the_hand_outs_are_written_and_zipped(tmp_path, capsys):
    pytest.importorskip("nbgrader")
    assert cli.main(["assignments", "--out", str(tmp_path)]) == 0
    names = sorted(path.stem for path in (FOLDER / "source").glob("*/*.ipynb"))
    assert sorted(path.stem for path in tmp_path.glob("*.zip")) == names
    for name in names:
        shutil.unpack_archive(tmp_path / f"{name}.zip", tmp_path / "out")
        cells = json.loads((tmp_path / "out" / name / f"{name}.ipynb").read_text())["cells"]
        assert all(not cell.get("outputs") for cell in cells) and cells


@pytest.mark.slow
def test_a_masters_notebook_gets_all_points_through_the_sandbox():
    name = "01_quantization"
    graded = course.grade_file(
        "ann", course.load_assignments(FOLDER / "graders")[name], FOLDER / "source" / name / f"{name}.ipynb"
    )
    assert graded.points == graded.assignment.points and graded.written["analysis"]
    shown = feedback.page("ann", graded.assignment, graded.outcomes)
    assert f"{graded.points} of {graded.points} points" in shown and "✗" not in shown
