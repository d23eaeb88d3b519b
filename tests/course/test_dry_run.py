"""A student sees at home which cells count, which are left out, and what is not written yet."""

import pytest
from made_course import text
from submissions import FOLDER, GOOD

from mebqat_lite import cli
from mebqat_lite.course.classroom import parts
from mebqat_lite.course.classroom.dry_run import report
from mebqat_lite.course.classroom.sandbox import Stopped

STUB = ("triple", "def triple(x):\n    return ...")


def shown(tmp_path, content):
    path = tmp_path / "99_made.ipynb"
    path.write_text(content, encoding="utf-8")
    lines, good = report(path)
    return "\n".join(lines), good


@pytest.mark.slow
def test_all_that_counts_is_shown_by_one_command(tmp_path, capsys):
    path = tmp_path / "a.ipynb"
    path.write_text(text(("", "%matplotlib inline\nimport no_such_library"), *GOOD, STUB))
    assert cli.main(["check-submission", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in ("4 code cells", "double               attempted: code cell 2 counts", "2 words, marked by hand",
                  "triple               attempted: code cell 3 counts", "code cells 3, 4: number 3 counts",
                  "code cell 1, line 2, `import no_such_library` is left out: ModuleNotFoundError"):  # fmt: skip
        assert words in printed
    assert printed.count("no_such_library` is left out") == 1


@pytest.mark.slow
def test_a_part_that_cannot_be_called_says_why(tmp_path):
    words, good = shown(tmp_path, text(("double", "def double(x:\n    return 2"), ("triple", "x = 3")))
    assert not good and "the code stops with SyntaxError" in words and "no function triple" in words


def test_what_is_not_written_is_said_and_nothing_is_run_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(parts, "opened")
    words, good = shown(tmp_path, text(GOOD[0], STUB, words="YOUR ANSWER HERE"))
    assert not good and "not attempted: code cell 2 is as it was handed out" in words
    assert "words                not attempted" in words and "code cell 1 counts; it is not run on this system" in words


def test_no_test_is_run(tmp_path, monkeypatch):
    def opened(cells, function, limits=None):
        raise Stopped(f"nobody may call {function}")

    monkeypatch.setattr(parts, "opened", opened)
    assert "but nobody may call double" in shown(tmp_path, text(GOOD[0]))[0]


def test_a_notebook_without_marks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no cell has the mark of a part"):
        shown(tmp_path, text(("", "x = 1")))


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "source").glob("*/*.ipynb")))
def test_every_hand_out_names_the_command(name):
    assert "mebqat-lite check-submission" in (FOLDER / "source" / name / f"{name}.ipynb").read_text(encoding="utf-8")
