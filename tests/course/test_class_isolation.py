"""One submission never costs another: what goes wrong is caught, named, and written with the rest."""

import contextlib
import os

import pytest
from made_course import RIGHT, graded, hand_in, text, with_spoiled_metadata
from submissions import GOOD

from mebqat_lite.course.classroom import course, grading
from mebqat_lite.course.classroom.kept import folder_name
from mebqat_lite.course.classroom.sandbox import Stopped
from mebqat_lite.course.classroom.submission import Submission, SubmissionError, printable

DOUBLE = "def double(x):\n    "
ODD = {  # student -> notebook, points of 5, words of the sheet's problem
    "ann": (RIGHT, "5", ""),
    "nan": (text(("double", DOUBLE + "return float('nan') if x == 2 else 2 * x")), "3", "whole: the check stops with"),
    "infinite": (text(("double", DOUBLE + "return float('inf') if x == 2 else 2 * x")), "3", "OverflowError"),
    "unhashable": (text(("", "bits = {[2, 4, 8]}"), GOOD[0]), "5", ""),
    "surrogate": (text(("double", DOUBLE + "raise ValueError('\\ud800')")), "0", ""),
    "long_sum": (text(("", "x = " + "1 + " * 3000 + "1"), GOOD[0]), "5", ""),
    "spoiled": (with_spoiled_metadata(), "5", ""),
    "marked": (b"\xef\xbb\xbf" + RIGHT.encode(), "5", ""),
    "brackets": ("[" * 100_000, "0", "is no notebook"),
}


@pytest.mark.slow
def test_every_file_gets_its_row_and_what_is_wrong_is_named(tmp_path):
    hand_in(tmp_path / "submitted", {f"{name}/99_made.ipynb": content for name, (content, *_) in ODD.items()})
    (tmp_path / "submitted" / "pipe").mkdir()
    os.mkfifo(tmp_path / "submitted" / "pipe" / "99_made.ipynb")
    (tmp_path / "submitted" / os.fsdecode(b"Andr\xe9")).mkdir()
    (tmp_path / "submitted" / os.fsdecode(b"Andr\xe9") / "99_made.ipynb").write_text(RIGHT)
    rows = graded(tmp_path)
    for name, (_, points, problem) in ODD.items():
        assert rows[name]["points"] == points and problem in rows[name]["problem"], rows[name]
        assert bool(problem) == bool(rows[name]["problem"]), rows[name]
    assert len(rows) == len(ODD) + len({"pipe", "Andr"})
    assert all(row["problem"][:1] != "'" for row in rows.values())
    pages = list((tmp_path / "grades" / "feedback").glob("*/99_made.html"))
    assert len(pages) == len(rows) and all(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("student", ["..", ".", "a/../../b", "", ".hidden", "a\\b", "x\n\x00y"])
def test_a_students_folder_lies_in_the_folder_of_the_grades(tmp_path, student):
    name = folder_name(student)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve() and name and not name.startswith(".")


def test_what_no_file_can_hold_is_replaced():
    assert printable("a\ud800b\x1b[2J\n") == "a?b?[2J\n"


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.ipynb")
    with pytest.raises(SubmissionError, match="no regular file"):
        Submission.read(tmp_path / "a.ipynb", "ann")


@pytest.fixture
def counted(monkeypatch):
    """Whose files were graded, without running them; grading ben's stops as Ctrl-C does."""
    names, stops = [], ["ben"]

    def grade(submission, assignment, variant):
        names.append(submission.student)
        if submission.student in stops:
            raise KeyboardInterrupt
        return [], []

    monkeypatch.setattr(course, "grade", grade)
    return names, stops


def test_a_grading_that_was_stopped_goes_on_and_grades_what_has_changed(tmp_path, counted):
    names, stops = counted
    hand_in(tmp_path / "submitted", {f"{name}/99_made.ipynb": RIGHT for name in ("ann", "ben")})
    with pytest.raises(KeyboardInterrupt):
        graded(tmp_path)
    assert (tmp_path / "grades" / "grades.csv").read_text().count("\n") == 2  # the head, and ann
    stops.clear()
    assert set(graded(tmp_path)) == {"ann", "ben"} and sorted(names[:2]) == ["ann", "ben"] and names[2:] == ["ben"]
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT + " "})
    graded(tmp_path)
    assert names[3:] == ["ann"]
    graded(tmp_path, variant=1)
    assert sorted(names[4:]) == ["ann", "ben"]


def test_a_result_that_is_damaged_is_graded_again(tmp_path, counted):
    names, _ = counted
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT})
    graded(tmp_path)
    (tmp_path / "grades" / "results" / "ann" / "99_made.json").write_text('{"outcomes": 3')
    assert set(graded(tmp_path)) == {"ann"} and names == ["ann", "ann"]


def test_a_part_whose_process_was_stopped_is_tried_again(tmp_path, monkeypatch):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT})

    def on_a_busy_machine(*_):
        raise Stopped("it took longer than 20 s")

    with monkeypatch.context() as busy:
        busy.setattr(grading, "opened", on_a_busy_machine)
        assert graded(tmp_path)["ann"]["points"] == "0"
    with monkeypatch.context() as idle:
        idle.setattr(grading, "opened", lambda *_: contextlib.nullcontext((lambda x: 2 * x, [])))
        assert graded(tmp_path)["ann"]["points"] == "5"
    monkeypatch.setattr(grading, "opened", on_a_busy_machine)
    assert graded(tmp_path)["ann"]["points"] == "5"  # a result that stands is not tried again


def test_an_error_of_the_grader_itself_is_a_problem_of_one_row(tmp_path, monkeypatch):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT})
    monkeypatch.setattr(course, "grade", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in graded(tmp_path)["ann"]["problem"]
