"""Deadlines, extensions, free late days and a policy: in sheets and columns of their own."""

import pytest
from made_course import RIGHT, graders, hand_in, sheet

from mebqat_lite import cli
from mebqat_lite.course.classroom import course
from mebqat_lite.course.classroom.grading import Outcome
from mebqat_lite.course.classroom.late import MARKED, NO_DEADLINE, NO_TIME
from mebqat_lite.course.classroom.tables import read_table, write_table

NAMES = ("98_other_topic", "99_made")
DUE = "assignment,deadline,percent_per_day\n98_other_topic,2026-11-23T23:59,10\n99_made,2026-11-30T23:59,10\n"
MOODLE = """Identifier,Full name,Email address,Status,Grade,Last modified (submission)
Participant 1,Ann Lee,ann@x.org,Submitted,,"Wednesday, 2 December 2026, 12:05 AM"
Participant 2,Ben Roy,ben@x.org,Submitted,,"Monday, 30 November 2026, 11:59 PM"
Participant 3,Carl Poe,,No submission,,-
Participant 4,Somebody Else,,Submitted,,"Monday, 30 November 2026, 11:59 PM"
"""


@pytest.fixture
def whole(tmp_path, monkeypatch, capsys):
    """A function that grades ``submitted`` by the command, each with 3 points, and gives the lines of ``late.csv``."""
    monkeypatch.setattr(course, "grade", lambda *_: ([Outcome("double", "twice", 3, 3, "", 0)], []))
    folder = graders(tmp_path / "graders", *NAMES)
    hand_in(tmp_path, {"due.csv": DUE})

    def run(*more, deadlines="due.csv", status=0):
        command = ["grade", str(tmp_path / "submitted"), "--graders", str(folder), "--out", str(tmp_path / "grades")]
        command += ["--deadlines", str(tmp_path / deadlines)] if deadlines else []
        assert cli.main([*command, *map(str, more)]) == status
        if status:
            return capsys.readouterr().err
        return {(row["student"], row["assignment"]): row for row in sheet(tmp_path, "late")}

    return run


def days(row):
    """Late, used and left days."""
    return row["late_days"], row["free_days_used"], row["free_days_left"]


def write_received(tmp_path, times):
    """As an instructor does in a spreadsheet."""
    head, *lines = read_table(tmp_path / "grades" / "late.csv")
    for line in lines:
        line[head.index("received")] = times.get((line[0], line[1]), line[head.index("received")])
    write_table(tmp_path / "grades" / "late.csv", head, lines)


def test_moodles_worksheet_says_when_each_came_and_points_stay_as_they_are(tmp_path, whole):
    names = ("Ann Lee", "Ben Roy", "Carl Poe")
    hand_in(tmp_path / "submitted", {f"{name}_1_assignsubmission_file_/99_made.ipynb": RIGHT for name in names})
    hand_in(tmp_path, {"Grades-C-99_made-7.csv": MOODLE})
    rows = whole("--received", tmp_path / "Grades-C-99_made-7.csv")
    about = {student: (row["received"], row["late_days"], row["note"]) for (student, _), row in rows.items()}
    assert about == {"Ann Lee": ("2026-12-02T00:05:00", "2", ""), "Ben Roy": ("2026-11-30T23:59:00", "0", ""),
                     "Carl Poe": ("", "", NO_TIME)}  # fmt: skip
    off = [(row["percent_off"], row["points"], row["after_late_days"]) for row in rows.values()]
    assert off == [("20.0", "3", "2.4"), ("0.0", "3", "3.0"), ("0.0", "3", "3.0")]
    assert {row["points"] for row in sheet(tmp_path, "grades")} == {"3"}
    totals = [(row["99_made"], row["total"], row["total_after_late_days"]) for row in sheet(tmp_path, "course")]
    assert totals[0] == ("3", "3", "2.4")


ROSTER = "student,name,free_days,extra_days,Extra days 99_made\nann,Ann Lee,3,,\nben,Ben Roy,3,1,1\ncarl,Carl,,,\n"


def test_extensions_and_free_days_come_from_the_roster_and_are_used_up_in_the_order_of_deadlines(tmp_path, whole):
    hand_in(tmp_path / "submitted", {f"{s}/{name}.ipynb": RIGHT for s in ("ann", "ben", "carl") for name in NAMES})
    times = "student,assignment,received\n" + "".join(
        f"{student},98_other_topic,2026-11-25\n{student},99_made,2026-12-03T10:00\n" for student in ("Ann Lee", "ben")
    )
    hand_in(tmp_path, {"class.csv": ROSTER, "times.csv": times})
    rows = whole("--roster", tmp_path / "class.csv", "--received", tmp_path / "times.csv")
    assert days(rows["ann", "98_other_topic"]) == ("2", "2", "1")
    assert days(rows["ann", "99_made"]) == ("3", "1", "0") and rows["ann", "99_made"]["after_late_days"] == "2.4"
    assert days(rows["ben", "98_other_topic"]) == ("1", "1", "2")
    assert rows["ben", "99_made"]["deadline"] == "2026-12-02T23:59:00" and days(rows["ben", "99_made"]) == (
        "1",
        "1",
        "1",
    )
    assert days(rows["carl", "99_made"]) == ("", "0", "0")
    head, first, *_ = read_table(tmp_path / "grades" / "gradebook.csv")
    assert head == ["student", "name", "98_other_topic", "98_other_topic after late days",
                    "99_made", "99_made after late days"]  # fmt: skip
    assert first == ["ann", "Ann Lee", "3", "3.0", "3", "2.4"]


def test_canvas_marks_what_is_late_and_the_instructors_time_is_kept(tmp_path, whole):
    hand_in(tmp_path / "submitted", {"leeann_LATE_1_23456_99_made.ipynb": RIGHT, "royben_2_34567_99_made.ipynb": RIGHT})
    rows = whole()
    assert rows["leeann", "99_made"]["note"] == MARKED and rows["royben", "99_made"]["note"] == NO_TIME
    assert days(rows["leeann", "99_made"]) == ("", "", "") and rows["leeann", "99_made"]["after_late_days"] == ""
    assert [row["total_after_late_days"] for row in sheet(tmp_path, "course")] == ["", "3.0"]
    write_received(tmp_path, {("leeann", "99_made"): "2026-12-01 08:00"})
    for _ in range(2):  # it stays
        rows = whole()
        assert days(rows["leeann", "99_made"]) == ("1", "0", "0") and rows["leeann", "99_made"]["note"] == ""
        assert rows["leeann", "99_made"]["after_late_days"] == "2.7"


def test_what_is_left_is_not_known_after_a_late_one_without_a_time(tmp_path, whole):
    hand_in(tmp_path / "submitted", {f"leeann_LATE_1_23456_{name}.ipynb": RIGHT for name in NAMES})
    hand_in(tmp_path, {"class.csv": "student,free_days\nleeann,4\nx,0\n"})
    hand_in(tmp_path, {"t.csv": "student,assignment,received\nleeann,99_made,2026-12-01\n"})
    rows = whole("--roster", tmp_path / "class.csv", "--received", tmp_path / "t.csv")
    assert days(rows["leeann", "98_other_topic"]) == ("", "", "") and days(rows["leeann", "99_made"]) == ("1", "", "")
    write_received(tmp_path, {("leeann", "98_other_topic"): "2026-11-24"})
    rows = whole("--roster", tmp_path / "class.csv")
    assert days(rows["leeann", "99_made"]) == ("1", "1", "2")


def test_without_a_policy_no_points_go_and_without_deadlines_no_sheet_is_written(tmp_path, whole):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT})
    hand_in(tmp_path, {"bare.csv": "assignment;deadline\n99_made;2026-11-30\n"})
    hand_in(tmp_path, {"t.csv": "student,received\nann,2026-11-30T23:59:59\n"})
    command = ["grade", str(tmp_path / "submitted"), "--graders", str(tmp_path / "graders")]
    assert (
        cli.main([*command, "--out", str(tmp_path / "other")]) == 0 and not (tmp_path / "other" / "late.csv").exists()
    )
    [row] = whole("--received", tmp_path / "t.csv", deadlines="bare.csv").values()
    assert row["late_days"] == "0" and (row["percent_off"], row["after_late_days"]) == ("", "")
    assert "total_after_late_days" not in sheet(tmp_path, "course")[0]
    [row] = whole(deadlines=None).values()  # the sheet is never that of other deadlines; the time stays
    assert row["received"] == "2026-11-30T23:59:59" and row["deadline"] == "" and row["note"] == NO_DEADLINE


def test_regrading_and_a_grading_that_was_stopped_keep_the_times(tmp_path, whole, monkeypatch):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT, "ben/99_made.ipynb": RIGHT})
    hand_in(tmp_path, {"t.csv": "student,received\nann,2026-12-01T10:00\nben,2026-12-02T10:00\n"})
    right = course.grade

    def stops(submission, assignment, variant):
        if submission.student == "ben":
            raise KeyboardInterrupt
        return right(submission, assignment, variant)

    monkeypatch.setattr(course, "grade", stops)
    whole("--received", tmp_path / "t.csv", status=130)
    before = {row["student"]: (row["late_days"], row["note"]) for row in sheet(tmp_path, "late")}
    assert before == {"ann": ("1", ""), "ben": ("2", "not graded")}
    monkeypatch.setattr(course, "grade", right)
    for more in ((), ("--student", "ben"), ("--variant", "3")):
        rows = whole(*more)
        assert {student: row["late_days"] for (student, _), row in rows.items()} == {"ann": "1", "ben": "2"}
        assert not any(row["note"] for row in rows.values())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("due.csv", "", "its first line must be assignment,deadline"),
        ("due.csv", "name,deadline\n", "its first line must be assignment,deadline"),
        ("due.csv", "assignment,deadline\n99_mad,2026-11-30\n", "no assignment '99_mad'; there are 98_other_topic"),
        ("due.csv", "assignment,deadline\n99_made,2026-11-30\n99_made,2026-11-30\n", "99_made stands in it twice"),
        ("due.csv", "assignment,deadline\n99_made,30.11.2026 23:59\n", "99_made: '30.11.2026 23:59' is no time: write"),
        ("due.csv", "assignment,deadline\n99_made\n", "99_made: '' is no time"),
        ("due.csv", "assignment,deadline\n99_made,2026-11-30T23:59Z\n", "has a time zone"),
        ("due.csv", "assignment,deadline,percent_per_day\n99_made,2026-11-30,ten\n", "from 0 to 100, not 'ten'"),
        ("due.csv", "assignment,deadline,percent_per_day\n99_made,2026-11-30,nan\n", "from 0 to 100, not 'nan'"),
        ("class.csv", "student,extra_days\nann,two\nben,1\n", "extra_days of ann is 'two': write whole days"),
        ("class.csv", "student,free_days\nann,-1\nben,1\n", "free_days of ann is '-1'"),
        ("class.csv", "student,extra_days 99_mad\nann,1\n", "'extra_days 99_mad' is none of free_days, extra"),
        ("class.csv", "student,extra_days,Extra days\nann,1,2\n", "two columns"),
        ("t.csv", "student,when\nann,2026-12-01\n", "no column 'received' or 'Last modified (submission)'"),
        ("t.csv", "student,received\nann,gestern\n", "ann: received 'gestern' is no time"),
        ("t.csv", "student,assignment,received\nann,99_mad,2026-12-01\n", "which assignment is it about?"),
        ("grades/late.csv", "a,b\n", "it has lost its titles"),
        ("grades/late.csv", "student,assignment,received\nann,99_made,soon\n", "99_made: received 'soon' is no time"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_message_before_anything_is_graded(tmp_path, whole, name, content, words):
    hand_in(tmp_path / "submitted", {"ann/99_made.ipynb": RIGHT})
    hand_in(tmp_path, {"class.csv": "student\nann\n", "t.csv": "student,received\nann,\n"})
    hand_in(tmp_path, {name: content})
    said = whole("--roster", tmp_path / "class.csv", "--received", tmp_path / "t.csv", status=2)
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "grades" / "results").exists()
    assert (tmp_path / name).read_text() == content


def test_a_student_is_not_known_by_days(tmp_path, whole):
    hand_in(tmp_path / "submitted", {"ann2/99_made.ipynb": RIGHT})
    hand_in(tmp_path, {"class.csv": "student,extra_days\nann,2\nann2,\n"})
    assert list(whole("--roster", tmp_path / "class.csv")) == [("ann2", "99_made")]
