"""Answers in words on one page, marks that regrading keeps, counts of each check, and a platform's gradebook."""

import pytest
from made_course import RIGHT, graded, graders, hand_in, sheet, text
from submissions import GOOD

from mebqat_lite.course.classroom import course
from mebqat_lite.course.classroom.by_hand import CHANGED
from mebqat_lite.course.classroom.grading import Outcome
from mebqat_lite.course.classroom.roster import Roster
from mebqat_lite.course.classroom.tables import read_table, write_table


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Ann has everything, the others a message with numbers; nothing is run."""

    def grade(submission, assignment, variant):
        good = submission.student in ("=ann", "s1")
        words = "" if good else f"it returns 0.{len(submission.student)}e-3, right is -2"
        return [Outcome("double", "twice", 3 * good, 3, words, 0), Outcome("double", "whole", 2, 2, "", 0)], []

    monkeypatch.setattr(course, "grade", grade)


def mark(tmp_path, student, mark, comment=""):
    """As an instructor does in a spreadsheet."""
    head, *lines = read_table(tmp_path / "grades" / "marks.csv")
    for line in lines:
        if line[0] == student:
            line[head.index("mark")], line[head.index("comment")] = mark, comment
    write_table(tmp_path / "grades" / "marks.csv", head, lines)


def test_marks_by_hand_are_kept_counted_and_shown(tmp_path):
    hand_in(tmp_path / "submitted", {f"{name}/99_made.ipynb": RIGHT for name in ("=ann", "ben")})
    graded(tmp_path)
    assert [row["of"] for row in sheet(tmp_path, "marks")] == ["2", "2"]
    mark(tmp_path, "=ann", "1,5", "Why <6> dB?")
    rows = graded(tmp_path, variant=3)
    assert [row["by_hand"] for row in rows.values()] == ["1.5", ""]
    assert [row["total"] for row in sheet(tmp_path, "course")] == ["6.5", "2"]
    page = (tmp_path / "grades" / "feedback" / "=ann" / "99_made.html").read_text()
    assert "words: 1.5 of 2 points by hand. Why &lt;6&gt; dB?" in page
    marks = {row["student"]: row for row in sheet(tmp_path, "marks")}
    assert marks["'=ann"]["mark"] == "1,5" and marks["ben"]["mark"] == ""


def test_two_students_of_one_answer_are_noted_but_not_those_without_any(tmp_path):
    answers = {
        "ann": "Six dB.",
        "ben": "Six  dB.\n",
        "carl": "Other.",
        "di": "YOUR ANSWER HERE",
        "eve": "YOUR ANSWER HERE",
    }
    files = {f"{name}/99_made.ipynb": text(GOOD[0], words=words) for name, words in answers.items()}
    hand_in(tmp_path / "submitted", files)
    graded(tmp_path)
    notes = {row["student"]: row["note"] for row in sheet(tmp_path, "marks")}
    assert notes == {"ann": "the same answer as ben", "ben": "the same answer as ann", "carl": "", "di": "", "eve": ""}


def test_an_answer_that_changed_after_its_mark_is_noted(tmp_path):
    hand_in(tmp_path / "submitted", {"ben/99_made.ipynb": RIGHT})
    graded(tmp_path)
    mark(tmp_path, "ben", "2")
    hand_in(tmp_path / "submitted", {"ben/99_made.ipynb": text(GOOD[0], words="Another answer.")})
    for _ in range(2):  # it stays noted
        graded(tmp_path)
        [row] = sheet(tmp_path, "marks")
        assert row["mark"] == "2" and row["note"] == CHANGED


@pytest.mark.parametrize(("content", "words"), [("a,b\n", "titles must be"), ("", "titles must be")])
def test_a_spoiled_sheet_of_marks_is_left_as_it_is(tmp_path, content, words):
    hand_in(tmp_path / "submitted", {"ben/99_made.ipynb": RIGHT})
    hand_in(tmp_path / "grades", {"marks.csv": content})
    with pytest.raises(ValueError, match=words):
        graded(tmp_path)
    assert (tmp_path / "grades" / "marks.csv").read_text() == content


@pytest.mark.parametrize("words", ["good", "nan", "inf"])
def test_a_mark_that_is_no_number_is_named_before_anything_is_graded(words, tmp_path):
    hand_in(tmp_path / "submitted", {"ben/99_made.ipynb": RIGHT})
    graded(tmp_path)
    mark(tmp_path, "ben", words)
    with pytest.raises(ValueError, match=f"mark '{words}' of ben is no number"):
        graded(tmp_path)


def test_the_answers_to_a_question_stand_on_one_page(tmp_path):
    files = {
        "ann/99_made.ipynb": text(GOOD[0], words="<script>6 dB"),
        "ben/99_made.ipynb": RIGHT,
        "eve/99_made.ipynb": "x",
    }
    hand_in(tmp_path / "submitted", files)
    graded(tmp_path)
    page = (tmp_path / "grades" / "answers" / "99_made-words.html").read_text()
    assert "3 answers" in page and page.index("&lt;script&gt;6 dB") < page.index("My answer.") < page.index(
        "look into it"
    )


def test_each_check_and_each_message_is_counted(tmp_path):
    hand_in(tmp_path / "submitted", {f"{name}/99_made.ipynb": RIGHT for name in ("=ann", "ben", "carl", "di")})
    graded(tmp_path)
    counts = [(row["check"], row["message"], row["students"], row["percent"]) for row in sheet(tmp_path, "checks")]
    wrong = "it returns #, right is #"
    assert counts == [("twice", wrong, "3", "75.0"), ("twice", "right", "1", "25.0"), ("whole", "right", "4", "100.0")]


CANVAS = """Student,ID,SIS Login ID,99_made (4711),Final
"Lee, Ann",1,s1,,
"Lee, Bo",2,s2,,
    Points Possible,,,5,
"""
MOODLE = "First name,Surname,ID number,Email address\nAnn,Lee,s1,ann@x.org\nAnn,Bo,s2,\n"


@pytest.mark.parametrize(
    ("gradebook", "folder", "head", "filled"),
    [
        (CANVAS, "leeann_7_12345_99_made.ipynb", "Student,ID,SIS Login ID,99_made (4711),Final", ["2", "", "5"]),
        (CANVAS, "Ann Lee/99_made.ipynb", "Student,ID,SIS Login ID,99_made (4711),Final", ["2", "", "5"]),
        (MOODLE, "Ann Lee_3_assignsubmission_file_/99_made.ipynb",
         "First name,Surname,ID number,Email address,99_made", ["2", ""]),
        ("student,name\ns1,Ann Lee\ns2,Bo\n", "Ann Lee/99_made.ipynb", "student,name,99_made", ["5", ""]),
    ],
)  # fmt: skip
def test_the_export_of_a_platform_is_the_roster_and_comes_back_filled(tmp_path, gradebook, folder, head, filled):
    hand_in(tmp_path / "submitted", {folder: RIGHT})
    hand_in(tmp_path, {"class.csv": gradebook})
    graders(tmp_path / "graders")
    graded(tmp_path, roster=Roster.read(tmp_path / "class.csv"))
    titles, *lines = read_table(tmp_path / "grades" / "gradebook.csv")
    assert ",".join(titles) == head
    at = next(n for n, title in enumerate(titles) if "99_made" in title)
    assert [line[at] for line in lines] == filled
    assert [line[:2] for line in lines] == [line[:2] for line in read_table(tmp_path / "class.csv")[1:]]
    assert "not recognised" not in [row["in_roster"] for row in sheet(tmp_path, "roster")]
