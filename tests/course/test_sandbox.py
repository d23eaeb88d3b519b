"""A student's process: what it may do, what it may not, and why it ended."""

import sys
import time
from pathlib import Path

import pytest
import torch
from submissions import FOLDER

from mebqat_lite.course.classroom import confine, sandbox
from mebqat_lite.course.classroom.sandbox import Limits, Sandbox

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and isolation are Linux's")
landlock = pytest.mark.skipif(not confine.landlock_version(), reason="this kernel has no Landlock")
namespaces = pytest.mark.skipif(not sandbox._unshare(), reason="unshare is not allowed here")


def run(*cells, args=(), function="f", seconds=3.0, **more):
    with Sandbox(cells, function, Limits(seconds=seconds, memory=2**30)) as box:
        return box.call(*args, **more), box


def test_a_function_is_called_with_what_the_cells_before_defined():
    value, box = run(
        "import torch\nk = 3", "def f(x, n):\n    print('hello')\n    return k * x + n", args=(torch.ones(2), 1)
    )
    assert value.tolist() == [4, 4] and box.printed == "hello\n"


@pytest.mark.slow
def test_gradients_come_back():
    x, upstream = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0])
    (value, grads), _ = run("def f(x, k):\n    return k * x * x", args=(x, 2.0), upstream=upstream)
    assert value.tolist() == [2, 8] and grads[0].tolist() == [4, 80] and grads[1] is None


@pytest.mark.slow
def test_an_input_changed_in_place_is_seen():
    x = torch.ones(2)
    run("def f(x):\n    return x.zero_()", args=(x,))
    assert x.tolist() == [0, 0]


def test_an_error_names_its_type_and_the_line_of_the_cell():
    with pytest.raises(Exception, match="name 'y' is not defined, in line 2 of your cell: return y") as caught:
        run("def f():\n    return y")
    assert type(caught.value).__name__ == "NameError"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("def f():\n    while True: pass", "longer than 1 s: an endless loop"),
        ("while True: pass", "longer than 1 s: an endless loop"),
        ("def f():\n    while True: print('x' * 10000)", "longer than 1 s: an endless loop"),
        ("def f():\n    exit()", r"ended its own process \(exit status 0\)"),
        ("import os\ndef f():\n    os._exit(3)", r"ended its own process \(exit status 3\)"),
        ("def f(:", "the code stops with SyntaxError.*line 1"),
        ("1 / 0\ndef f(): pass", "the code stops with ZeroDivisionError.*line 1 of your cell"),
        ("def g(): pass", "no function f"),
        ("f = 3", "no function f"),
        ("import os\ndef f():\n    for fd in range(3, 999):\n        try: os.write(fd, b'garbage' * 9)\n"
         "        except OSError: pass", "cannot be read"),
        ("def f():\n    import torch\n    return torch.zeros(30_000_000)", "too large"),
    ],
)  # fmt: skip
def test_what_a_part_must_not_do_ends_it_with_a_reason(cell, words):
    started = time.monotonic()
    with pytest.raises(Exception, match=words):
        run(cell, seconds=1.0 if "while" in cell else 3.0)
    assert time.monotonic() - started < 60


@linux
@pytest.mark.slow
def test_a_memory_hog_is_stopped():
    for size in ("bytearray(10 * 2**30)", "__import__('torch').ones(10 * 2**30, dtype=__import__('torch').uint8)"):
        with pytest.raises(Exception) as caught:
            run(f"def f():\n    return len({size})")
        assert "memory" in f"{type(caught.value).__name__}: {caught.value}".lower()


@pytest.fixture(scope="module")
def evaluate():
    """A student's function that evaluates what it is given, in a process for all these tests."""
    with Sandbox(["def f(line):\n    return eval(line)"], "f") as box:
        yield box.call


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
def test_other_peoples_files_and_the_network_are_out_of_reach(evaluate, line):
    assert evaluate("1 + 1") == 2
    with pytest.raises(Exception, match=r"(?i)permission denied|unreachable|read-only") as caught:
        evaluate(line)
    assert type(caught.value).__name__ in ("PermissionError", "OSError")


@pytest.mark.slow
def test_its_own_folder_may_be_written_and_is_gone_afterwards():
    value, box = run("import os\ndef f():\n    open('a.txt', 'w').write('x')\n    return os.getcwd()")
    assert value == box.folder.name and not Path(value).exists()


@namespaces
@pytest.mark.slow
def test_a_process_left_running_ends_with_the_part(tmp_path):
    started = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1234)'], start_new_session=True)"
    run(f"import subprocess, sys\ndef f():\n    {started}\n    return 1")
    time.sleep(0.2)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"time.sleep(1234)" in line for line in running)
