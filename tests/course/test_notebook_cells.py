"""What of a notebook counts: cells run as they stood, magics left out, and the last attempt of each part."""

import ast

import pytest

from mebqat_lite.course.classroom.attempts import choose
from mebqat_lite.course.classroom.cells import definitions, python
from mebqat_lite.course.classroom.running import ASKED, Served

STUB, ANSWER = "def f(x):\n    # your code\n    return ...", "def f(x):\n    return 2 * x"


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("%matplotlib inline\nimport torch", "pass\nimport torch"),
        ("!pip install \\\n  seaborn\nx = 1", "pass\npass\nx = 1"),
        ("%%time\nx = 1", "pass\nx = 1"),
        ("%%capture out\nx = 1", "pass\nx = 1"),
        ("%%bash\nrm x", ""),
        ("files = !ls\ny = %timeit f()\ntorch.round?\n?torch", "pass\npass\npass\npass"),
        ("if True:\n    !ls\n    x = 1", "if True:\n    pass\n    x = 1"),
        ("x = (7\n  % 4)", "x = (7\n  % 4)"),
        ('s = """\n%time\n!x"""', 's = """\n%time\n!x"""'),
        ("def f(:\n!ls", "def f(:\n!ls"),
    ],
)
def test_magics_and_shell_lines_are_left_out_and_nothing_else(source, left):
    assert python(source) == left


SPOILED = ["(" * 100_000, "-" * 100_000 + "1", "x = '\ud800'", "\x00", "1 +" * 50_000 + "1", "a" + ".a" * 100_000,
           "lambda:" * 100_000 + "1", "if x: pass\n" + "elif x: pass\n" * 3000, "def f(:",
           "raise NotImplementedError(1" + "+1" * 3000 + ")"]  # fmt: skip


@pytest.mark.parametrize("source", SPOILED, ids=lambda source: source[:12])
def test_a_spoiled_cell_stops_nobody(source):
    assert choose([("", source), ("", ANSWER)], "f").own == 1 and definitions(source) == ""
    served = Served([source, ANSWER], 1, "f", 5.0)
    assert served(3) == 6 and [skip["cell"] for skip in served.skipped] == [1]


def test_definitions_are_what_takes_no_time():
    source = "import torch\nK = [1, 2]\nbits = {[2, 4]}\nprint(1)\ndef f(): return K\nclass A: pass\nx = g(3)"
    kinds = [type(line) for line in ast.parse(definitions(source)).body]
    assert kinds == [ast.Import, ast.Assign, ast.FunctionDef, ast.ClassDef]


def served(*cells, own=-1):
    return Served(list(cells), own % len(cells), "f", 2.0)


@pytest.mark.parametrize(
    "before",
    ["TEN = 2 * 5", "A, TEN = 1, 10", "TEN: int = 10", "import functools\nTEN = functools.partial(int, '10')()",
     "import no_such_library\nTEN = 10", "from google.colab import drive\nTEN = 10", "display(3)\nTEN = 10",
     "TEN = 10\nexit()", "TEN = 10\nraise KeyboardInterrupt", "%matplotlib inline\nTEN = 10",
     "from __future__ import annotations\nTEN = 10", "TEN = 10\nwhile True: pass", "f = 3\nTEN = 10"],
)  # fmt: skip
def test_what_stands_before_runs_as_it_stood(before):
    assert served(before, "def f(x):\n    return TEN * x")(2) == 20


def test_a_constant_that_is_used_again_below_keeps_its_value_and_a_helper_below_is_found():
    own = "def f(x):\n    return LEVELS * more(x)"
    run = served("LEVELS = 4", own, "LEVELS = 9\ndef more(x): return g(x) + 1", "def g(x): return x", own=1)
    assert run(1) == 8
    assert served(own, "def more(x): return x", "LEVELS = 3", "LEVELS = 5", "def f(x): return 0", own=0)(1) == 3
    assert served("pi = 4", "def f(x):\n    return pi", "from math import *", own=1)(1) == 4


def test_an_error_whose_words_raise_is_left_out_too():
    error = "class Odd(Exception):\n    def __str__(self): return 1 / 0\nraise Odd"
    assert [skip["error"] for skip in served(error, ANSWER).skipped] == ["Odd"]


def test_what_is_left_out_is_said():
    run = served("import torch\nimport no_such_library", "x = (", "def f(x): return x\nf(1) + missing")
    assert [(skip["cell"], skip["line"], skip["text"]) for skip in run.skipped] == [
        (1, 2, "import no_such_library"), (2, 1, "x = ("), (3, 2, "f(1) + missing")]  # fmt: skip
    assert run.skipped[0]["error"] == "ModuleNotFoundError: No module named 'no_such_library'" and run(3) == 3
    assert run(ASKED) == {"there": True, "skipped": run.skipped}


@pytest.mark.parametrize("own", ["x = 1", "f = 3", "1 / 0", "def f(x:"])
def test_a_cell_that_does_not_define_the_function_has_none(own):
    assert not served("def f(x): return 1" if own == "1 / 0" else "1", own)(ASKED)["there"]


@pytest.mark.parametrize(
    ("cells", "own"),
    [
        ([ANSWER], 0),
        ([ANSWER, STUB], 0),
        ([ANSWER, "def f(x): raise NotImplementedError"], 0),
        ([ANSWER, "def f(x):\n    '''Words.'''\n    pass"], 0),
        ([ANSWER, "x = 3", "def f(x): return 3"], 2),
        ([ANSWER, "f = lambda x: 3"], 1),
        ([STUB, "if True:\n    def f(x): return 1"], 1),
        ([ANSWER, "def f(x: return 3"], 0),
        ([STUB, "def f(x: return 3"], 1),
        ([STUB, "f(3)", STUB], 2),
        ([ANSWER, "f = ..."], 0),
    ],
)
def test_the_last_attempt_counts(cells, own):
    assert choose([("", cell) for cell in cells], "f").own == own


def test_the_students_are_told_which_attempt_counts():
    chosen = choose([("f", ANSWER), ("", "x = 3"), ("f", STUB)], "f")
    assert chosen.note == "f is written in the code cells 1, 3: number 1 counts, the last attempt"
    assert choose([("f", ANSWER), ("", "x = 3")], "f").note == ""


def test_a_stub_copied_below_does_not_hide_a_function_from_the_parts_after_it():
    cells = [
        ("f", ANSWER),
        ("", "LEVELS = 2**2"),
        ("f", STUB),
        ("", "LEVELS = 4"),
        ("g", "def g(x): return f(x) * LEVELS"),
    ]
    chosen = choose(cells, "g")
    assert Served(chosen.cells, chosen.own, "g", 2.0)(1) == 8 and chosen.cells[3] == "LEVELS = 4"


def test_a_part_that_is_missing_is_said():
    with pytest.raises(LookupError, match="no cell of f"):
        choose([("", "x = 1"), ("", "def (")], "f")
