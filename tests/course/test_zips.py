"""Zips, of a class or of a student, are graded like folders; a hostile one does nothing but get its line."""

import io
import os
import stat
import unicodedata
import warnings
import zipfile

import pytest
from made_course import RIGHT, graders, hand_in, sheet
from submissions import FOLDER

from mebqat_lite import cli
from mebqat_lite.course.classroom import course, zips
from mebqat_lite.course.classroom.handed import find
from mebqat_lite.course.classroom.zips import STUDENT, Bounds, unpacked


def zipped(files):
    """The bytes of a zip of files, text or bytes by name; a name may be a ``ZipInfo``."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings(action="ignore"):
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def found(tmp_path, submissions):
    """(student, assignment, reason, remark) by place."""
    assignments = course.load_assignments(graders(tmp_path / "graders"))
    (tmp_path / "room").mkdir()
    files = find(submissions, assignments, tmp_path / "room")
    return {str(f.place): (f.student, f.assignment, f.reason, f.remark) for f in files}


MINE = zipped({"99_made.ipynb": RIGHT})


@pytest.mark.parametrize(
    ("name", "student", "remark"),
    [
        ("Ann Lee_4711_assignsubmission_file_/99_made.ipynb", "Ann Lee", ""),
        ("Ann Lee_4711_assignsubmission_file_/work.zip", "Ann Lee", ""),
        ("Ann Lee_4711_assignsubmission_file_work.zip", "Ann Lee", ""),
        ("Ann Lee_4711_assignsubmission_file_work.ipynb", "Ann Lee", ""),
        ("leeann_LATE_123_45678_99_made.ipynb", "leeann", "late"),
        ("leeann_LATE_123_45678_my work.ipynb", "leeann", "late"),
        ("leeann_LATE_123_45678_my work.zip", "leeann", "late"),
        ("leeann_123_45678_99_made-1.zip", "leeann", ""),
        ("leeann_123_45678_Copy of 99_made (1).ipynb", "leeann", ""),
        ("Ann Lee_4711_assignsubmission_file_my_99_made.ipynb", "Ann Lee", ""),
        ("ann.zip", "ann", ""),
        ("99_made/ann.zip", "ann", ""),
    ],
)
def test_a_class_is_one_zip_or_a_folder_and_a_student_may_hand_in_a_zip(tmp_path, name, student, remark):
    files = {name: MINE if name.endswith("zip") else RIGHT}
    hand_in(tmp_path / "folder", files)
    hand_in(tmp_path, {"all.zip": zipped(files)})
    graded = (student, "99_made", "", remark)
    assert list(found(tmp_path, tmp_path / "folder").values()) == [graded]
    os.rename(tmp_path / "room", tmp_path / "before")
    assert list(found(tmp_path, tmp_path / "all.zip").values()) == [graded]


def test_a_zip_of_a_folder_is_that_folder_and_one_of_one_student_is_the_class(tmp_path):
    files = {"submitted/ann/99_made.ipynb": RIGHT, "submitted/ben/99_made.ipynb": RIGHT}
    hand_in(tmp_path, {"submitted (1).zip": zipped(files), "all.zip": zipped({"ann/99_made.ipynb": RIGHT})})
    about = found(tmp_path, tmp_path / "submitted (1).zip")
    assert [student for student, *_ in about.values()] == ["ann", "ben"]
    os.rename(tmp_path / "room", tmp_path / "before")
    assert [student for student, *_ in found(tmp_path, tmp_path / "all.zip").values()] == ["ann"]


def test_the_hand_out_zipped_again_and_a_notebook_of_another_name_are_known(tmp_path):
    again = {"ann/99_made.zip": zipped({"99_made/99_made.ipynb": RIGHT}), "ben/w.zip": zipped({"w/w.ipynb": RIGHT})}
    hand_in(tmp_path / "folder", again)
    assert [about[:3] for about in found(tmp_path, tmp_path / "folder").values()] == [
        ("ann", "99_made", ""), ("ben", "99_made", "")]  # fmt: skip


def a_link(name):
    about = zipfile.ZipInfo(name)
    about.external_attr = (stat.S_IFLNK | 0o777) << 16
    return about


HOSTILE = {  # what the zip of a student holds -> words of the line of the file
    "../../evil_99_made.ipynb": "leads out",
    "/evil/99_made.ipynb": "leads out",
    "C:\\evil\\99_made.ipynb": "leads out",
    "a\\..\\..\\99_made.ipynb": "leads out",
    "/".join("abcdefghi") + "/99_made.ipynb": "more than 8 folders",
    "inner.zip": "a zip within a zip",
    "solution.py": "no notebook",
}


@pytest.mark.parametrize(("name", "words"), HOSTILE.items())
def test_what_a_zip_must_not_hold_is_listed_and_nothing_is_written_outside(tmp_path, name, words):
    hand_in(tmp_path / "folder", {"ann/work.zip": zipped({name: MINE if name.endswith("zip") else RIGHT})})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    [(student, _, reason, _)] = found(tmp_path, tmp_path / "folder").values()
    after = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert student == "ann" and words in reason
    assert all(path.is_relative_to(tmp_path / "room") or path.parent.name == "graders" for path in after)


def test_a_link_is_not_followed_and_what_programs_add_has_no_line(tmp_path):
    files = {a_link("99_made.ipynb"): "/etc/passwd", "__MACOSX/._99_made.ipynb": "x", "a/.DS_Store": "x", "b/": ""}
    hand_in(tmp_path, {"a.zip": zipped(files)})
    assert [(str(place), why) for place, _, why in unpacked(tmp_path / "a.zip", tmp_path, STUDENT)] == [
        ("99_made.ipynb", "it is a link")]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "bounds", "words"),
    [
        ({f"{n}.txt": "" for n in range(4)}, Bounds(3, 1, 1), "4 files, more than 3"),
        ({"a.ipynb": b"0" * (3 << 20)}, Bounds(3, 1, 2), "3 MiB unpacked, more than 2"),
        ({"a.txt": os.urandom(3 << 20)}, Bounds(3, 2, 2), "3 MiB, more than 2"),
        ({}, STUDENT, "holds no file"),
    ],
)
def test_what_is_beyond_the_bounds_is_not_unpacked(tmp_path, files, bounds, words):
    hand_in(tmp_path, {"a.zip": zipped(files)})
    (tmp_path / "room").mkdir()
    [(place, _, why)] = unpacked(tmp_path / "a.zip", tmp_path / "room", bounds)
    assert words in why and not place.parts and not list((tmp_path / "room").iterdir())


def test_a_notebook_that_is_too_large_costs_no_other_of_its_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "LARGEST", 1 << 20)
    hand_in(tmp_path, {"a.zip": zipped({"a.ipynb": b"0" * (2 << 20), "b.ipynb": RIGHT})})
    first, second = unpacked(tmp_path / "a.zip", tmp_path, STUDENT)
    assert first[2] == "it has 2 MiB, more than 1" and not second[2] and second[1].read_text() == RIGHT


def test_a_size_that_the_zip_lies_about_and_a_damaged_entry_are_not_read(tmp_path):
    content = bytearray(zipped({"a.ipynb": b"0" * 100_000}))
    at = content.index(b"PK\1\2") + 24  # the unpacked size in the list of the zip
    content[at : at + 4] = (10).to_bytes(4, "little")
    hand_in(tmp_path, {"a.zip": bytes(content)})
    [(_, _, why)] = unpacked(tmp_path / "a.zip", tmp_path, STUDENT)
    assert why.startswith("it cannot be unpacked")
    assert max(path.stat().st_size for path in tmp_path.rglob("*.ipynb")) <= 10


def test_names_are_composed_and_utf_8_is_seen_without_its_flag(tmp_path):
    apart = unicodedata.normalize("NFD", "Zoë")
    content = zipped({f"{apart}/99_made.ipynb": RIGHT, "Jörg/99_made.ipynb": RIGHT})
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags, as macOS leaves them
        pieces = content.split(mark)
        plain = [piece[: at - 4] + b"\0\0" + piece[at - 2 :] for piece in pieces[1:]]
        content = mark.join([pieces[0], *plain])
    hand_in(tmp_path, {"all.zip": content})
    assert sorted(about[0] for about in found(tmp_path, tmp_path / "all.zip").values()) == ["Jörg", "Zoë"]


def test_of_several_files_the_newest_by_the_times_in_the_zip_is_graded(tmp_path):
    dated = [zipfile.ZipInfo(f"99_made ({n}).ipynb", (2026, 11, day, 12, 0, 0)) for n, day in enumerate((3, 9, 5))]
    no_date = zipfile.ZipInfo("99_made (9).ipynb", (1980, 0, 0, 0, 0, 0))
    hand_in(tmp_path / "folder", {"ann/a.zip": zipped(dict.fromkeys([*dated, no_date], RIGHT))})
    about = found(tmp_path, tmp_path / "folder")
    assert [place for place, (_, _, reason, _) in about.items() if not reason] == ["ann/a.zip/99_made (1).ipynb"]


def test_two_files_of_one_name_in_a_zip_are_one_submission(tmp_path):
    twice = {zipfile.ZipInfo("99_made.ipynb"): RIGHT, zipfile.ZipInfo("99_made.ipynb", (2026, 1, 1, 0, 0, 0)): RIGHT}
    hand_in(tmp_path / "folder", {"ann/a.zip": zipped(twice)})
    assignments = course.load_assignments(graders(tmp_path / "graders"))
    reasons = [file.reason for file in find(tmp_path / "folder", assignments, tmp_path)]
    assert len(reasons) == 2 and reasons.count("") == 1


def test_a_zip_is_graded_by_the_command_and_the_next_week_adds_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "grade", lambda submission, assignment, variant: ([], []))
    folder = graders(tmp_path / "graders")
    hand_in(tmp_path, {"one.zip": zipped({"ann/99_made.ipynb": RIGHT}), "two.zip": zipped({"ben/99_made.ipynb": "x"})})
    for name in ("one", "two"):
        command = ["grade", str(tmp_path / f"{name}.zip"), "--graders", str(folder), "--out", str(tmp_path / "grades")]
        assert cli.main(command) == 0
    rows = {row["student"]: row["file"] for row in sheet(tmp_path, "grades")}
    assert rows == {"ann": "ann/99_made.ipynb", "ben": "ben/99_made.ipynb"}
    assert "99_made.ipynb is no notebook" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "words"), [(b"x", "not a zip file"), (zipped({}), "holds no file")])
def test_a_zip_of_a_class_that_cannot_be_read_is_named(tmp_path, content, words, capsys):
    hand_in(tmp_path, {"all.zip": content})
    assert cli.main(["grade", str(tmp_path / "all.zip"), "--graders", str(graders(tmp_path / "graders"))]) == 2
    assert "all.zip: " in (said := capsys.readouterr().err) and words in said


def test_the_guide_says_the_bounds():
    words = f"more than {STUDENT.packed} MiB, {STUDENT.files:,} files or {STUDENT.unpacked} MiB of notebooks"
    assert words in " ".join((FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8").split())
