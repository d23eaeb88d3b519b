"""Each layer of the sandbox alone: what it takes from a submission that the others would leave to it."""

import contextlib
import ctypes
import functools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from submissions import FOLDER

from mebqat_lite import cli
from mebqat_lite.course.classroom import sandbox, syscalls
from mebqat_lite.course.classroom.sandbox import LAYERS, Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
EVALUATE = "import ctypes, os, resource, signal, socket, subprocess, sys, time\ndef f(line):\n    return eval(line)"
ALONE = {  # a mount namespace is needed for a view of its own; root's rights could undo it
    "view": ("namespaces", "view", "root"), "namespaces": ("namespaces",), "files": ("files",), "calls": ("calls",),
    "root": ("root",), "all": LAYERS,
}  # fmt: skip


def needs(name):
    """Skip, with the reason, where this machine does not grant a layer."""
    if missing := [layer for layer in ALONE[name] if layer not in sandbox.layers()]:
        pytest.skip(f"this machine does not grant {', '.join(missing)}")


@pytest.fixture(scope="module")
def evaluate():
    """A student's function that evaluates a line, in one process for each set of layers."""
    boxes = {}

    def started(name):
        needs(name)
        if name not in boxes:
            boxes[name] = Sandbox([EVALUATE], "f", Limits(seconds=60.0), wanted=ALONE[name])
        assert boxes[name].call("1 + 1") == 2
        return boxes[name].call

    yield started
    for box in boxes.values():
        box.close()


@pytest.fixture
def mine(tmp_path):
    """A file of the grader's that every user may read and write."""
    tmp_path.chmod(0o777)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "mine.txt").chmod(0o666)
    return tmp_path / "mine.txt"


def refused(call, line, words=r"(?i)permission denied|not permitted|read-only|no such file|unreachable"):
    with pytest.raises(Exception, match=words) as caught:
        call(line)
    assert type(caught.value).__name__ in ("PermissionError", "OSError", "FileNotFoundError", "ProcessLookupError")


@pytest.mark.parametrize("layer", ["files", "view", "all"])
def test_other_peoples_files_are_out_of_reach(evaluate, layer, mine):
    for path in (FOLDER / "graders" / "01_quantization.py", __file__, "/etc/passwd", mine):
        refused(evaluate(layer), f"open({str(path)!r}).read()")
    for path in (FOLDER, "/etc", Path.home(), "/home", "/"):
        refused(evaluate("files"), f"os.listdir({str(path)!r})")
    refused(evaluate(layer), f"open({str(mine)!r}, 'w')")
    refused(evaluate(layer), f"os.remove({str(mine)!r})")


@pytest.mark.parametrize("path", ["/etc/passwd", "/home", FOLDER, "/var", "/run"])
def test_what_is_not_pythons_is_not_even_there(evaluate, path):
    refused(evaluate("view"), f"os.stat({str(path)!r})", "No such file")


@pytest.mark.parametrize("layer", ["view", "calls", "all"])
@pytest.mark.parametrize(
    "line",
    ["os.chmod({!r}, 0o600)", "os.utime({!r}, (1, 1))", "os.setxattr({!r}, 'user.a', b'1')", "os.chown({!r}, -1, -1)"],
)
def test_what_a_file_is_stays_as_it_was(evaluate, layer, line, mine):
    before = mine.stat()
    refused(evaluate(layer), line.format(str(mine)))
    refused(evaluate(layer), line.format(os.__file__))
    assert (mine.stat().st_mode, mine.stat().st_mtime) == (before.st_mode, before.st_mtime)


@pytest.mark.parametrize("layer", ["view", "calls", "all"])
def test_a_unix_socket_by_path_is_out_of_reach(evaluate, layer, tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        refused(evaluate(layer), f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})")


@pytest.mark.parametrize("layer", ["namespaces", "calls", "all"])
def test_the_network_is_out_of_reach(evaluate, layer):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        refused(evaluate(layer), f"socket.create_connection({listening.getsockname()!r}, 1)")


@pytest.mark.parametrize("layer", ["namespaces", "calls", "all"])
def test_a_signal_reaches_no_other_process(evaluate, layer):
    refused(evaluate(layer), f"os.kill({os.getpid()}, 0)", "(?i)no such process|permission denied")


def shared(call):
    """The id of a piece of shared memory by a name, -1 if it is refused."""
    return call("ctypes.CDLL(None).shmget(4711, 4096, 0o1666)")


@pytest.mark.parametrize("layer", ["namespaces", "calls", "all"])
def test_shared_memory_is_not_left_to_the_next_student(evaluate, layer):
    shared(evaluate(layer))
    libc = ctypes.CDLL(None)
    assert libc.shmget(4711, 4096, 0o666) == -1


@pytest.mark.parametrize("layer", ["calls", "all"])
@pytest.mark.parametrize("line", ["os.fork()", "subprocess.run(['true'])", "os.posix_spawn('/bin/true', ['t'], {})",
                                  "os.execv('/bin/true', ['t'])"])  # fmt: skip
def test_no_other_process_is_started(evaluate, layer, line):
    refused(evaluate(layer), line)


def test_threads_may_be_started(evaluate):
    line = "(t := __import__('threading').Thread(target=print)).start() or t.join() or t.is_alive()"
    assert evaluate("all")(line) is False


def test_limits_of_other_processes_stay(evaluate):
    refused(evaluate("calls"), f"resource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (9, 9))")


@pytest.mark.skipif(os.getuid() != 0, reason="only root has rights of root to lose")
def test_root_is_a_user_in_there(evaluate, tmp_path):
    (tmp_path / "nobodys").write_text("x")
    os.chown(tmp_path / "nobodys", 12345, 12345)
    (tmp_path / "nobodys").chmod(0o600)
    refused(evaluate("root"), f"open({str(tmp_path / 'nobodys')!r})")


def test_the_view_cannot_be_undone(evaluate):
    for call in ("umount2(b'/usr', 2)", "mount(None, b'/usr', None, 4096 | 32, None)", "chroot(b'/proc/1/root')"):
        assert evaluate("view")(f"ctypes.CDLL(None).{call}") == -1


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["view", "all"])
def test_all_files_together_have_a_limit(layer):
    needs(layer)
    limits = Limits(seconds=20.0, folder_bytes=2**20, files=50)
    with Sandbox([EVALUATE], "f", limits, wanted=ALONE[layer]) as box:
        with pytest.raises(Exception, match="No space left"):
            box.call("[open(str(i), 'wb').write(b'x' * 300_000) for i in range(5)]")
        box.call("[os.remove(name) for name in os.listdir()]")
        with pytest.raises(Exception, match="No space left"):
            box.call("[open(str(i), 'wb').close() for i in range(60)]")


DAEMON = """
import ctypes, os, signal, time
def f():
    ctypes.CDLL(None).prctl(1, 0)
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            ctypes.CDLL(None).prctl(1, 0)
            if os.fork():
                os._exit(0)
            time.sleep(1234)
    os.setsid() if os.getpid() != os.getpgid(0) else None
    while True:
        time.sleep(1)
"""


def inside(namespace):
    """How many processes live in a PID namespace; those that have ended and wait to be counted do not."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_there = os.readlink(process / "ns" / "pid") == namespace
            found += is_there and (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return found


@pytest.mark.slow
def test_all_processes_end_with_the_part_whatever_they_did():
    needs("namespaces")
    with Sandbox([DAEMON], "f", Limits(seconds=3.0), wanted=ALONE["namespaces"]) as box:
        [first] = [int(p.name) for p in Path("/proc").glob("[0-9]*") if parent_of(p) == box.process.pid]
        namespace = os.readlink(f"/proc/{first}/ns/pid")
        with pytest.raises(sandbox.Stopped, match="longer than 3 s"):
            box.call()
    ended = time.monotonic()
    while inside(namespace) and time.monotonic() < ended + 20:
        time.sleep(0.1)
    assert inside(namespace) == 0


def parent_of(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.mark.skipif(os.getuid() != 0, reason="another user can be tried by root alone")
@pytest.mark.slow
def test_an_ordinary_user_has_the_same_layers(tmp_path):
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"TMPDIR={tmp_path}", sys.executable]
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    tried = subprocess.run([*user, "-c", "import torch"], capture_output=True, text=True, cwd="/")
    if tried.returncode:
        pytest.skip(f"user 65534 may not run this Python: {tried.stderr[-200:]}")
    code = "from mebqat_lite.course.classroom import sandbox; print(*sandbox.layers())"
    path = {"PYTHONPATH": str(Path(sandbox.__file__).parents[3])}
    found = subprocess.run([*user, "-c", code], capture_output=True, text=True, env=os.environ | path, cwd="/")
    assert found.stdout.split() == list(sandbox.layers()), found.stderr


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_the_filter_is_a_program_that_ends(machine):
    """Each step leads on to a later one, and the last one returns."""
    steps = syscalls.program(*syscalls.MACHINES[machine], own=7)
    for place, (code, yes, no, _) in enumerate(steps):
        assert code == syscalls.RETURN or place + 1 + max(yes, no) < len(steps)
    assert steps[-1] == (syscalls.RETURN, 0, 0, syscalls.ALLOW) and len(steps) < 4096


@pytest.mark.skipif(not Path("/usr/include/asm-generic/unistd.h").exists(), reason="the kernel's headers are not here")
def test_the_numbers_are_the_kernels():
    headers = {
        "aarch64": "/usr/include/asm-generic/unistd.h",
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    }
    numbers = syscalls.REFUSED | syscalls.OWN | {"clone": syscalls.CLONE, "clone3": syscalls.CLONE3}
    checked = 0
    for machine, path in headers.items():
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        known = dict(line.split()[1:3] for line in lines if line.startswith("#define __NR"))
        for name, ours in numbers.items():
            if (theirs := known.get(f"__NR_{name}", "")).isdigit():
                assert int(theirs) == ours[syscalls.MACHINES[machine][1]], (machine, name)
                checked += 1
    assert checked > 40


# ---------------------------------------------------------------- what is said


def granted(monkeypatch, *names):
    monkeypatch.setattr(sandbox, "layers", functools.cache(lambda: names))


def test_with_all_layers_nothing_is_open(monkeypatch):
    granted(monkeypatch, *LAYERS)
    assert sandbox.openings() == [] and "WARNING" not in sandbox.isolation()
    sandbox.require_isolation()


@pytest.mark.parametrize("names", [(), ("files",), ("root", "calls"), ("namespaces", "view", "root")])
def test_what_is_open_is_said_and_refused(monkeypatch, names):
    granted(monkeypatch, *names)
    said = sandbox.isolation()
    assert "WARNING" in said and all(name in said for name in LAYERS if name not in names)
    assert ("the network" in said) == (not {"calls", "namespaces"} & set(names))
    assert ("all files that you" in said) == (not {"files", "view"} & set(names))
    with pytest.raises(PermissionError, match="machine lacks"):
        sandbox.require_isolation()


def test_the_command_refuses_before_it_grades(monkeypatch, tmp_path, capsys):
    granted(monkeypatch, "files", "calls")
    assert cli.main(["grade", str(tmp_path), "--require-sandbox"]) == 2
    found = capsys.readouterr()
    assert "WARNING: this machine lacks namespaces" in found.out and "this machine lacks namespaces" in found.err


@pytest.mark.slow
def test_a_layer_that_is_missing_is_found_to_be(monkeypatch):
    monkeypatch.setattr(sandbox, "_unshare", lambda: ())
    with Sandbox([EVALUATE], "f", wanted=tuple(name for name in LAYERS if name != "namespaces")) as box:
        assert "view" not in box.layers  # an ordinary process may not mount; root's own mounts are left alone
