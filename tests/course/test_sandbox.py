"""A student's process: what it may do, what it may not, and why it ended."""

import sys
import time
from pathlib import Path

import pytest
import torch

from mebqat_lite.course.classroom import sandbox
from mebqat_lite.course.classroom.sandbox import Limits, Sandbox

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")


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


@pytest.mark.slow
def test_its_own_folder_may_be_written_and_is_gone_afterwards():
    value, box = run("import os\ndef f():\n    open('a.txt', 'w').write('x')\n    return os.getcwd()")
    assert value == box.folder.name and not Path(value).exists()


# Code that finds the pipe to the grader, which is the last descriptor but one of those that can be written to.
FORGE = """
import json, os, struct
def reply(text, blob=b""):
    message = struct.pack(">I", len(text)) + text.encode() + blob
    send(struct.pack(">Q", len(message)) + message)
def send(content):
    for end in range(3, 1024):
        try:
            os.write(end, content)
        except OSError:
            pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "send(b'\\xff' * 64)",  # a message of 2**64 bytes
        "reply('[' * 100_000)",
        "reply('[1, 2]')",
        'reply(\'{"dict": [["value", 1], ["args", 3]]}\')',
    ],
)
def test_a_forged_reply_is_that_submissions_problem(body):
    with Sandbox([f"{FORGE}\ndef f(x):\n    {body}\n    return 1"], "f", Limits(seconds=3.0)) as box:
        with pytest.raises(sandbox.Stopped, match="cannot be read"):
            box.call(torch.ones(2))
        with pytest.raises(sandbox.Stopped, match="cannot be read"):
            box.call(torch.ones(2))  # and so it stays


@pytest.mark.slow
@pytest.mark.parametrize("error", ["1", '{"dict": [["type", "A\\\\u0000\\\\ud800"], ["message", "\\\\ud800"]]}'])
def test_a_forged_error_can_be_written_to_a_file(error):
    body = f'reply(\'{{"dict": [["error", {error}]]}}\')'
    with pytest.raises(Exception) as caught, Sandbox([f"{FORGE}\ndef f():\n    {body}"], "f") as box:
        box.call()
    f"{type(caught.value).__name__}: {caught.value}".encode()


@pytest.mark.slow
@pytest.mark.parametrize("body", ["send(b'\\0' * 4); os.kill(os.getpid(), signal.SIGSTOP)", "os.closerange(3, 1024)"])
def test_half_a_reply_or_none_at_all_is_waited_for_until_the_deadline(body):
    started = time.monotonic()
    with pytest.raises(sandbox.Stopped, match=r"longer than 1 s|own process|closed the pipe|ended by"):
        run(f"import signal, time{FORGE}\ndef f():\n    {body}\n    time.sleep(60)", seconds=1.0)
    assert time.monotonic() - started < 40


@pytest.mark.slow
def test_a_request_that_is_not_read_is_waited_for_until_the_deadline():
    cell = f'{FORGE}\nimport time\nanswer = \'{{"dict": [["problem", null], ["there", true]]}}\''
    box = Sandbox([f"{cell}\nreply(answer)\ntime.sleep(60)\ndef f(): ..."], "f", Limits(seconds=2.0))
    with box, pytest.raises(sandbox.Stopped, match="longer than 2 s"):
        box.call(torch.ones(4_000_000))


@pytest.mark.slow
def test_the_graders_clock_counts_whatever_the_student_does_to_its_own():
    stopped = "import time\ntime.perf_counter = time.monotonic = time.time = lambda: 0.0"
    with Sandbox([f"{stopped}\ndef f():\n    time.sleep(0.7)\n    return 1"], "f", Limits(seconds=2.0)) as box:
        assert box.call() == 1 and box.left < 1.4
        with pytest.raises(sandbox.Stopped, match="longer than 2 s"):
            [box.call() for _ in range(3)]


def test_a_value_that_does_not_travel_is_named_and_ends_nothing():
    cell = "import torch\ndef f(line):\n    y = []\n    y.append(y)\n    return eval(line, {'y': y, 'torch': torch})"
    with Sandbox([cell], "f") as box:
        cases = {"y": "holds itself", "torch.ones(2, device='meta')": "device meta", "10**9000": "too large"}
        for line, words in cases.items():
            with pytest.raises(Exception, match=words):
                box.call(line)
        assert box.call("1") == 1
