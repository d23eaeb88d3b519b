"""Submissions: what crosses to a student's process and back, what it may not do, and the sheet of grades."""

import csv
import json
import math
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite import cli
from mebqat_lite.course.classroom import confine, course, feedback, sandbox, wire
from mebqat_lite.course.classroom.grading import Assignment, Check, Part, grade, seed_of
from mebqat_lite.course.classroom.sandbox import Limits, Sandbox
from mebqat_lite.course.classroom.submission import Submission, SubmissionError, definitions
from mebqat_lite.course.exercises import expect

FOLDER = Path(__file__).parent.parent / "notebooks" / "assignments"
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and isolation are Linux's")
landlock = pytest.mark.skipif(not confine.landlock_version(), reason="this kernel has no Landlock")
namespaces = pytest.mark.skipif(not sandbox._unshare(), reason="unshare is not allowed here")

# --- what crosses ----------------------------------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def same(a, b):
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_plain_values_come_back_as_they_were(value):
    assert same(value, wire.decode(wire.encode(value)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, torch.int64, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype, shape):
    x = torch.randint(0, 2, shape).to(dtype)
    back = wire.decode(wire.encode({"x": [x, x.mT if len(shape) > 1 else x]}))
    assert torch.equal(back["x"][0], x) and back["x"][0].dtype == dtype


def test_what_does_not_travel_keeps_its_types_name():
    back = wire.decode(wire.encode([{1, 2}, object(), torch.nn.Linear(1, 1), ..., NotImplemented]))
    assert [type(value).__name__ for value in back[:3]] == ["set", "object", "Linear"]
    assert back[3] is ... and back[4] is NotImplemented


@pytest.mark.parametrize("message", [b"", b"123", b"\0\0\0\x05nonsense", b"\0\0\0\x02{}", b"\xff" * 40])
def test_bytes_that_are_no_message_are_refused(message):
    with pytest.raises(wire.WireError):
        wire.decode(message)


# --- a student's process ---------------------------------------------------------------------------------------


def run(*cells, args=(), function="f", seconds=3.0, **more):
    with Sandbox(cells, function, Limits(seconds=seconds, memory=2**30)) as box:
        return box.call(*args, **more), box


def test_a_function_is_called_with_what_the_cells_before_defined():
    value, box = run(
        "import torch\nk = 3", "def f(x, n):\n    print('hello')\n    return k * x + n", args=(torch.ones(2), 1)
    )
    assert value.tolist() == [4, 4] and box.printed == "hello\n"


def test_gradients_come_back():
    x, upstream = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0])
    (value, grads), _ = run("def f(x, k):\n    return k * x * x", args=(x, 2.0), upstream=upstream)
    assert value.tolist() == [2, 8] and grads[0].tolist() == [4, 80] and grads[1] is None


def test_an_input_changed_in_place_is_seen():
    x = torch.ones(2)
    run("def f(x):\n    return x.zero_()", args=(x,))
    assert x.tolist() == [0, 0]


def test_an_error_names_its_type_and_the_line_of_the_cell():
    with pytest.raises(Exception, match="name 'y' is not defined, in line 2 of your cell: return y") as caught:
        run("def f():\n    return y")
    assert type(caught.value).__name__ == "NameError"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("def f():\n    while True: pass", "longer than 3 seconds"),
        ("while True: pass", "longer than 3 seconds"),
        ("def f():\n    while True: print('x' * 10000)", "longer than 3 seconds"),
        ("def f():\n    exit()", r"ended its own process \(exit status 0\)"),
        ("import os\ndef f():\n    os._exit(3)", r"ended its own process \(exit status 3\)"),
        ("def f(:", "the code stops with SyntaxError.*line 1"),
        ("1 / 0\ndef f(): pass", "the code stops with ZeroDivisionError.*line 1 of your cell"),
        ("def g(): pass", "no function f"),
        ("f = 3", "no function f"),
        ("import os\ndef f():\n    for fd in range(3, 30):\n        try: os.write(fd, b'garbage' * 9)\n"
         "        except OSError: pass", "cannot be read"),
        ("def f():\n    import torch\n    return torch.zeros(30_000_000)", "too large"),
    ],
)  # fmt: skip
def test_what_a_part_must_not_do_ends_it_with_a_reason(cell, words):
    started = time.monotonic()
    with pytest.raises(Exception, match=words):
        run(cell)
    assert time.monotonic() - started < 60


@linux
def test_a_memory_hog_is_stopped():
    for size in ("bytearray(10 * 2**30)", "__import__('torch').ones(10 * 2**30, dtype=__import__('torch').uint8)"):
        with pytest.raises(Exception) as caught:
            run(f"def f():\n    return len({size})")
        assert "memory" in f"{type(caught.value).__name__}: {caught.value}".lower()


@landlock
@pytest.mark.parametrize(
    "line",
    [
        f"open({str(FOLDER / 'graders' / '01_quantization.py')!r}).read()",
        f"__import__('os').listdir({str(FOLDER)!r})",
        f"open({str(Path(__file__))!r}).read()",
        "open('/tmp/mebqat-lite-was-here', 'w')",
        "__import__('os').remove('/etc/hostname')",
        "__import__('socket').create_connection(('127.0.0.1', 9), 1)",
    ],
)
def test_other_peoples_files_and_the_network_are_out_of_reach(line):
    with pytest.raises(Exception, match=r"(?i)permission denied|unreachable|read-only") as caught:
        run(f"def f():\n    return {line}")
    assert type(caught.value).__name__ in ("PermissionError", "OSError")


def test_its_own_folder_may_be_written_and_is_gone_afterwards():
    value, box = run("import os\ndef f():\n    open('a.txt', 'w').write('x')\n    return os.getcwd()")
    assert value == box.folder.name and not Path(value).exists()


@namespaces
def test_a_process_left_running_ends_with_the_part(tmp_path):
    started = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1234)'], start_new_session=True)"
    run(f"import subprocess, sys\ndef f():\n    {started}\n    return 1")
    time.sleep(0.2)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"time.sleep(1234)" in line for line in running)


# --- submissions -----------------------------------------------------------------------------------------------


def notebook(*cells):
    """A notebook of (id, source) code cells."""
    made = nbformat.v4.new_notebook()
    for name, source in cells:
        about = {"nbgrader": {"grade_id": name, "solution": True, "grade": False, "locked": False}} if name else {}
        made.cells.append(nbformat.v4.new_code_cell(source, metadata=about))
    return made


def submission(tmp_path, *cells):
    path = tmp_path / "work.ipynb"
    nbformat.write(notebook(*cells), path)
    return Submission.read(path, "ann")


def test_definitions_keep_what_cannot_stop_a_part():
    source = (
        "import torch\nK = [1, 2]\nprint(1 / 0)\ndef f(): return K\nclass A: pass\nx = torch.ones(3)\nwhile True: pass"
    )
    kept = definitions(source)
    assert "while" not in kept and "print" not in kept and "x =" not in kept
    assert all(word in kept for word in ("import torch", "K = [1, 2]", "def f()", "class A"))
    assert definitions("def f(:") == ""


def grade_double(student, rng):
    x = float(torch.rand((), generator=rng))
    expect(student(x), 2 * x, f"x = {x:.3g}", [("this is x squared", x * x)])


def grade_sign(student, rng):
    expect(student(-1.0), -2.0, "x = -1")


DOUBLE = Part("double", ("x",), "Twice", 5, (Check("twice", 3, grade_double), Check("sign", 2, grade_sign)),
              Limits(seconds=3.0, memory=2**30))  # fmt: skip
TRIPLE = Part("triple", ("x",), "Thrice", 5, (Check("thrice", 4, lambda student, rng: expect(student(2.0), 6.0, "2")),),
              Limits(seconds=3.0, memory=2**30))  # fmt: skip
COURSE = Assignment("99_made", (DOUBLE, TRIPLE), {"words": 2})
GOOD = (("double", "def double(x):\n    return 2 * x"), ("triple", "def triple(x):\n    return x + double(x)"))


def points(tmp_path, *cells):
    found = grade(submission(tmp_path, *cells), COURSE)
    return [outcome.points for outcome in found], [outcome.message for outcome in found]


def test_a_right_submission_gets_all_points_and_uses_its_own_functions(tmp_path):
    assert points(tmp_path, *GOOD) == ([3, 2, 4], ["", "", ""])


@pytest.mark.parametrize(
    ("cells", "got", "words"),
    [
        ((("double", "def double(x):\n    return abs(2 * x)"), GOOD[1]), [3, 0, 4], "right is"),
        ((("double", "def double(x):\n    return x * x"), GOOD[1]), [0, 0, 4], "x squared"),
        ((("double", "def double(x): return 2 * x\nexit()"), GOOD[1]), [0, 0, 4], "ended its own process"),
        ((("double", "def double(x): return 2 * x\n1 / 0"), GOOD[1]), [0, 0, 4], "ZeroDivisionError"),
        ((("double", "def twice(x): return 2 * x"), ("triple", "def triple(x): return 3 * x")), [0, 0, 4], "renamed"),
        ((("", "while True: pass"), ("", "x ="), *GOOD), [3, 2, 4], ""),
        ((("triple", "def triple(x): return 3 * x"),), [0, 0, 4], "deleted"),
        ((("double", "def double(x): ..."), GOOD[1]), [0, 0, 0], "not attempted"),
        ((("", GOOD[0][1]), GOOD[1]), [3, 2, 4], ""),  # the cell's id is lost
    ],
)
def test_what_is_wrong_in_a_part_costs_that_part_alone(tmp_path, cells, got, words):
    found, said = points(tmp_path, *cells)
    assert found == got and any(words in message for message in said)


def test_a_regrade_gives_the_same_and_a_variant_another_input(tmp_path):
    wrong = (("double", "def double(x):\n    return x"), GOOD[1])
    assert points(tmp_path, *wrong) == points(tmp_path, *wrong)
    assert len({seed_of("ann", "99_made", variant) for variant in range(5)} | {seed_of("ben", "99_made")}) == 6


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"cells": 3}', '{"cells": [{}]}', "\x00"])
def test_a_file_that_is_no_notebook_says_so(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(SubmissionError, match="is no notebook"):
        Submission.read(tmp_path / "a.ipynb", "ann")


# --- a course --------------------------------------------------------------------------------------------------

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
    pages = {path.parent.name: path.read_text() for path in out.glob("feedback/*/99_made.html")}
    assert set(pages) == {"ann", "ben", "<b>=cmd", "carl"}
    assert "<b>=cmd" not in pages["<b>=cmd"] and "is no notebook" in pages["carl"]
    assert not any("http" in page for page in pages.values())  # readable without a network


def test_a_formula_is_no_formula():
    assert [course._safe(text) for text in ("=1", "+1", "-1", "@a", "ann")] == ["'=1", "'+1", "'-1", "'@a", "ann"]


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


def test_the_hand_outs_are_written_and_zipped(tmp_path, capsys):
    pytest.importorskip("nbgrader")
    assert cli.main(["assignments", "--out", str(tmp_path)]) == 0
    names = sorted(path.stem for path in (FOLDER / "source").glob("*/*.ipynb"))
    assert sorted(path.stem for path in tmp_path.glob("*.zip")) == names
    for name in names:
        shutil.unpack_archive(tmp_path / f"{name}.zip", tmp_path / "out")
        cells = json.loads((tmp_path / "out" / name / f"{name}.ipynb").read_text())["cells"]
        assert all(not cell.get("outputs") for cell in cells) and cells


def test_a_masters_notebook_gets_all_points_through_the_sandbox():
    name = "01_quantization"
    graded = course.grade_file(
        "ann", course.load_assignments(FOLDER / "graders")[name], FOLDER / "source" / name / f"{name}.ipynb"
    )
    assert graded.points == graded.assignment.points and graded.written["analysis"]
    shown = feedback.page("ann", graded.assignment, graded.outcomes)
    assert f"{graded.points} of {graded.points} points" in shown and "✗" not in shown
