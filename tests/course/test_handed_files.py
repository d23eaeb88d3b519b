"""Every file is found, however it is named: it is graded, or listed with the reason."""

import os
import unicodedata

import pytest
from made_course import RIGHT, graders, hand_in, sheet, text

from mebqat_lite import cli
from mebqat_lite.course.classroom import course
from mebqat_lite.course.classroom.handed import find
from mebqat_lite.course.classroom.names import student_of
from mebqat_lite.course.classroom.roster import Roster

NAMES = ("98_other_topic", "99_made")
STUB = text(("double", "def double(x):\n    return ..."))


def found(tmp_path, files, roster=None):
    """(student, assignment, reason, remark) by path."""
    folder = hand_in(tmp_path / "submitted", files)
    assignments = course.load_assignments(graders(tmp_path / "graders", *NAMES))
    files = find(folder, assignments, tmp_path, roster)
    return {str(f.place): (f.student, f.assignment, f.reason, f.remark) for f in files}


@pytest.mark.parametrize(
    "name",
    ["99_made.ipynb", "99_made (1).ipynb", "99_made(1).ipynb", "99_made-Copy1.ipynb", "99_made-1.ipynb",
     "99_made_final.ipynb", "Copy of 99_made.ipynb", "99_made.IPYNB", "99_MADE.ipynb", "99 made.ipynb",
     "deeper/99_made.ipynb", "99_made/work.ipynb", "99_made/deeper/work.ipynb", "ben_99_made.ipynb"],
)  # fmt: skip
def test_the_folder_is_the_student_and_the_assignment_is_known_by_its_name(tmp_path, name):
    assert list(found(tmp_path, {f"ann/{name}": STUB}).values()) == [("ann", "99_made", "", "")]


@pytest.mark.parametrize(
    ("name", "student", "remark"),
    [
        ("ann_99_made.ipynb", "ann", ""),
        ("Ann Lee_4711_assignsubmission_file_99_made.ipynb", "Ann Lee", ""),
        ("Ann Lee_4711_assignsubmission_file_/99_made.ipynb", "Ann Lee", ""),
        ("leeann_123_45678_99_made-1.ipynb", "leeann", ""),
        ("leeann_LATE_123_45678_99_made.ipynb", "leeann", "late"),
        ("s_2024_001_99_made.ipynb", "s_2024_001", ""),
        ("99_made/ann/work.ipynb", "ann", ""),
        ("99_made/ann.ipynb", "ann", ""),
        ("99_made/ann_4711_assignsubmission_file_/99_made.ipynb", "ann", ""),
    ],
)
def test_what_platforms_add_is_taken_off(tmp_path, name, student, remark):
    assert list(found(tmp_path, {name: RIGHT}).values()) == [(student, "99_made", "", remark)]


def test_a_notebook_of_another_name_is_known_by_its_parts(tmp_path):
    folder = graders(tmp_path / "graders", "99_made")
    assignments = course.load_assignments(folder)
    hand_in(tmp_path / "submitted", {"ann/homework.ipynb": RIGHT, "ben/homework.ipynb": text(("", "x = 1"))})
    first, second = find(tmp_path / "submitted", assignments, tmp_path)
    assert (first.assignment, first.reason) == ("99_made", "") and "nor its parts" in second.reason


def test_what_is_not_graded_has_a_reason_and_what_systems_add_has_no_line(tmp_path):
    files = {"ann/99_made.py": "", "ann/99_made.zip": "", "99_made.ipynb": RIGHT, "Copy of 99_made.ipynb": RIGHT,
             "ann/notes.ipynb": "x", "__MACOSX/ann/._99_made.ipynb": "x", "ann/.ipynb_checkpoints/99_made.ipynb": "x",
             "/".join("abcdefghij") + "/99_made.ipynb": RIGHT, "ann/.DS_Store": "",
             "ann/99_made/timestamp.txt": "2026-11-30"}  # fmt: skip
    hand_in(tmp_path / "submitted", {"ann/real.txt": ""})
    os.symlink(tmp_path, tmp_path / "submitted" / "linked")
    os.symlink("real.txt", tmp_path / "submitted" / "ann" / "99_made link.ipynb")
    reasons = {name: about[2] for name, about in found(tmp_path, files).items()}
    words = {"ann/99_made.py": "no notebook", "ann/99_made.zip": "not a zip file", "99_made.ipynb": "nobody's name",
             "Copy of 99_made.ipynb": "nobody's name", "ann/notes.ipynb": "is no notebook", "linked": "a link",
             "ann/99_made link.ipynb": "a link", "ann/real.txt": "no notebook",
             "a/b/c/d/e/f/g/h/i": "more than 8"}  # fmt: skip
    assert set(reasons) == set(words) and all(words[name] in reason for name, reason in reasons.items())


def test_of_several_files_the_newest_with_something_written_is_graded(tmp_path):
    files = {"ann/99_made.ipynb": RIGHT, "ann/99_made (1).ipynb": RIGHT + " ", "ann/99_made (2).ipynb": STUB,
             "ann/99_made-broken.ipynb": "x"}  # fmt: skip
    hand_in(tmp_path / "submitted", files)
    for age, name in enumerate(files):
        os.utime(tmp_path / "submitted" / name, (1e9 + age, 1e9 + age))
    about = found(tmp_path, {})
    assert about["ann/99_made (1).ipynb"] == ("ann", "99_made", "", "one of 4 files")
    assert all("99_made (1).ipynb is graded" in about[name][2] for name in files if "(1)" not in name)


def test_two_spellings_of_a_name_are_one_student_and_two_students_of_one_name_are_two(tmp_path):
    both = [unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")]
    assert len({about[0] for about in found(tmp_path, {f"{name}/99_made.ipynb": RIGHT for name in both}).values()}) == 1
    same = {f"Jo Lee_{number}_assignsubmission_file_/99_made.ipynb": RIGHT for number in (1, 2)}
    about = found(tmp_path / "other", same)
    assert [student_of(student) for student, *_ in about.values()] == ["Jo Lee"] * 2
    assert not any(reason for _, _, reason, _ in about.values()) and len({about[0] for about in about.values()}) == 2


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_roster_knows_a_student_by_any_of_the_texts_of_the_line(tmp_path, mark):
    lines = [
        ["First name", "Last name", "student", "mail"],
        ["Ann", "Léa", "s1", "ann@x.org"],
        ["Ben", "Lea", "s2", ""],
    ]
    (tmp_path / "r.csv").write_bytes("\n".join(map(mark.join, lines)).encode("utf-8-sig"))
    roster = Roster.read(tmp_path / "r.csv")
    assert roster.students == ["s1", "s2"]
    known = {
        "s1": "s1",
        "ANN Lea": "s1",
        "leaann": "s1",
        "Ann": "s1",
        "Lea": "",
        "ann@x.org": "s1",
        "ben lea": "s2",
        "x": "",
    }
    assert {name: roster.who(name) for name in known} == known


@pytest.mark.parametrize(
    ("content", "words"), [("", "no students"), ("student\n", "no students"), ("s\na\na\n", "twice")]
)
def test_a_roster_that_cannot_be_is_refused(tmp_path, content, words):
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        Roster.read(tmp_path / "r.csv")


@pytest.fixture
def whole(tmp_path, monkeypatch, capsys):
    """A function that grades a folder by the command, without running the notebooks."""
    monkeypatch.setattr(course, "grade", lambda submission, assignment, variant: ([], []))
    folder = graders(tmp_path / "graders", *NAMES)
    (tmp_path / "class.csv").write_text("student,name\na1,Ann Lee\nb2,Ben\nc3,Carl\n")

    def run(*more):
        command = ["grade", str(tmp_path / "submitted"), "--graders", str(folder), "--out", str(tmp_path / "grades")]
        return cli.main([*command, *more]), capsys.readouterr()

    return run


def test_the_sheets_show_who_is_missing_late_twice_or_not_recognised_and_keep_the_other_assignments(tmp_path, whole):
    files = {"Ann Lee/99_made.ipynb": RIGHT, "Ann Lee/99_made (1).ipynb": STUB, "ben_LATE_1_23456_99_made.ipynb": RIGHT,
             "dora/99_made.ipynb": "x", "Carl/99_made.zip": "", "Ede/answer.pdf": ""}  # fmt: skip
    hand_in(tmp_path / "submitted", files)
    status, printed = whole("--roster", str(tmp_path / "class.csv"))
    assert status == 0 and "not graded:" in printed.out
    state = {row["student"]: (row["in_roster"], row["99_made"]) for row in sheet(tmp_path, "roster")}
    assert state["a1"] == ("yes", "graded, one of 2 files") and state["b2"] == ("yes", "graded, late")
    assert state["c3"] == ("yes", "not graded: this zip cannot be unpacked: File is not a zip file")
    assert state["Ede"] == ("not recognised", "missing, but there is a file: it is no notebook (.ipynb)")
    assert state["dora"][0] == "not recognised" and "no notebook" in state["dora"][1]
    assert {row["file"] for row in sheet(tmp_path, "files")} == set(files)

    for name in list(files):
        (tmp_path / "submitted" / name).unlink()
    hand_in(tmp_path / "submitted", {"Ann Lee/98_other_topic.ipynb": RIGHT})
    assert whole("--roster", str(tmp_path / "class.csv"))[0] == 0
    assert {(row["student"], row["assignment"]) for row in sheet(tmp_path, "grades")} >= {
        ("a1", "98_other_topic"), ("a1", "99_made"), ("b2", "99_made")}  # fmt: skip
    [ann] = [row for row in sheet(tmp_path, "course") if row["student"] == "a1"]
    assert list(ann) == ["student", "98_other_topic", "99_made", "total"]
    state = {row["student"]: row for row in sheet(tmp_path, "roster")}
    assert state["b2"]["98_other_topic"] == "missing" and state["b2"]["99_made"] == "graded, late"


def test_feedback_of_one_student_is_never_written_over_anothers_and_nothing_outside(tmp_path, whole):
    hand_in(tmp_path / "submitted", {"alice/99_made.ipynb": RIGHT, "mallory/alice_99_made.ipynb": STUB,
                                     ".._99_made.ipynb": RIGHT, "..x_99_made.ipynb": RIGHT})  # fmt: skip
    before = set(tmp_path.iterdir()) | {tmp_path / "grades"}
    assert whole()[0] == 0 and set(tmp_path.iterdir()) == before
    pages = {path.parent.name for path in (tmp_path / "grades" / "feedback").glob("*/*")}
    assert pages == {"alice", "mallory", "x"}


def test_one_student_is_graded_anew(tmp_path, whole):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT, "ben/99_made.ipynb": RIGHT})
    status, printed = whole("--student", "ann")
    assert status == 0 and [row["student"] for row in sheet(tmp_path, "grades")] == ["ann"]
    status, printed = whole("--student", "eve")
    assert status == 2 and "no submission of eve" in printed.err and "ann, ben" in printed.err
