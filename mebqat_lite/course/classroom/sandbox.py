"""The parent's side: a student's function in a process of its own, with limits. The checks stay here.

Submissions are programs of other people that run on this machine. What keeps them apart from it are layers, each of
which the kernel may refuse: namespaces of their own (`unshare`), a root of their own (`view`), Landlock (`confine`),
and no system calls that reach out (`syscalls`). `isolation` says what is in force, and what is open.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from mebqat_lite.course.classroom.pipes import SHOWN, Late, Pipes
from mebqat_lite.course.classroom.view import namespace
from mebqat_lite.course.classroom.wire import WireError

UNSHARE = (
    *("unshare", "--user", "--map-root-user", "--net", "--ipc", "--mount", "--pid", "--fork"),
    *("--kill-child", "--mount-proc"),
)
LAYERS = ("namespaces", "view", "root", "files", "calls")
# What is open where one of the layers is missing: (any of these closes it, words)
OPEN = (
    (("calls", "namespaces"), "the network"),
    (("calls", "view"), "UNIX sockets, and the owner, mode and time of files that belong to you"),
    (("files", "view"), "all files that you may read or write"),
    (("view",), "the names and sizes of files, and the disk, which many small files may fill"),
    (("calls", "namespaces"), "processes that outlive the part, signals to yours, and shared memory"),
    (("calls",), "memory and processor time of several processes together"),
    (("root", "namespaces"), "the rights of root, if you are root"),
)


class Stopped(Exception):
    """A part that cannot be graded further; the words are for the student."""


@dataclass(frozen=True)
class Limits:
    """What a part of a submission may use."""

    seconds: float = 20.0  # in all calls together, and while the cells run
    memory: int = 2 * 2**30  # bytes beyond Python and PyTorch
    file_bytes: int = 10 * 2**20
    folder_bytes: int = 64 * 2**20  # all files together
    files: int = 1000
    start: float = 120.0  # seconds to start Python and PyTorch, which are not the student's


@functools.cache
def _unshare() -> tuple[str, ...]:
    """The command that gives namespaces of its own; empty where the system has none."""
    if shutil.which("unshare") is None:
        return ()
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    return UNSHARE if tried.returncode == 0 else ()


@functools.cache
def layers() -> tuple[str, ...]:
    """Those of `LAYERS` that this machine grants, found out by a process that asks for all, once."""
    tried = tuple(name for name in LAYERS if name not in ("namespaces", "view") or _unshare())
    with Sandbox(["def nothing(): ..."], "nothing", wanted=tried) as sandbox:
        return sandbox.layers


def openings() -> list[str]:
    """What of this machine is open to a submission, in words."""
    return [words for closing, words in OPEN if not set(closing) & set(layers())]


def isolation() -> str:
    """What keeps a submission from the rest of the machine here, and what does not, in words."""
    limits = "a process of its own with limits of time, memory and file size"
    missing = ", ".join(name for name in LAYERS if name not in layers())
    if not missing:
        return f"{limits}, which sees Python and an empty folder, starts no process and reaches no network"
    return f"{limits}. WARNING: this machine lacks {missing}. Open to submissions: {'; '.join(openings()) or 'nothing'}"


def require_isolation() -> None:
    """Raise unless all layers are in force."""
    if missing := [name for name in LAYERS if name not in layers()]:
        raise PermissionError(
            f"this machine lacks {', '.join(missing)}. Open to submissions: {'; '.join(openings()) or 'nothing'}. "
            "Grade on Linux 5.13 or newer, where `unshare --user` is allowed, or leave out --require-sandbox"
        )


class Sandbox:
    """One part of a submission: its cells have run, and ``call`` runs the function in them.

    Args:
        cells: the student's code, cell by cell.
        function: the name of the function that the part asks for.
        limits: time, memory, file size.
        wanted: of `LAYERS`, those to try. By default all that this machine has, and nothing is run without them.
    """

    def __init__(
        self, cells: Sequence[str], function: str, limits: Limits | None = None, wanted: Sequence[str] | None = None
    ) -> None:
        self.limits, self.function = limits or Limits(), function
        self.left, self.ended = self.limits.seconds, ""
        self.must_hold, wanted = wanted is None, layers() if wanted is None else wanted
        self.folder = tempfile.TemporaryDirectory(prefix="part-", ignore_cleanup_errors=True)
        self.pipes = self._start(_unshare() if "namespaces" in wanted else ())
        try:
            self._begin(list(cells), wanted)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def printed(self) -> str:
        """The beginning of what the student's code printed."""
        return self.pipes.printed.decode(errors="replace")[:SHOWN]

    def _start(self, around: tuple[str, ...]) -> Pipes:
        (theirs_in, ours_out), (ours_in, theirs_out), (output, prints) = os.pipe(), os.pipe(), os.pipe()
        code = "from mebqat_lite.course.classroom.worker import main; main()"
        command = [*around, sys.executable, "-u", "-P", "-c", code, str(theirs_in), str(theirs_out)]
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        here = (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", ""))  # the worker is of this package
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, here)), "HOME": self.folder.name}
        environment |= {"TMPDIR": self.folder.name, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=self.folder.name,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=prints,
            stderr=prints,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        for end in (theirs_in, theirs_out, prints):
            os.close(end)
        self.first: int | None = None
        return Pipes(ours_out, ours_in, output)

    def _begin(self, cells: list[str], wanted: Sequence[str]) -> None:
        """Take the process's rights away, once Python and PyTorch have started, and run the cells."""
        limits, inside = self.limits, [name for name in wanted if name != "namespaces"]
        setup = {"layers": inside, "memory": limits.memory, "file_bytes": limits.file_bytes}
        setup |= {"folder_bytes": limits.folder_bytes, "files": limits.files, "outside": namespace()}
        setup |= {"seconds": int(limits.seconds + limits.start)}  # of the processor
        held = self._answer(setup, limits.start)["layers"]  # no code of the student's has run yet
        self.layers = tuple(name for name in wanted if name == "namespaces" or name in held)
        if self.must_hold and self.layers != tuple(wanted):
            raise Stopped("it was not run: the sandbox could not be set up as before")
        self.first = _child_of(self.process.pid) if "namespaces" in wanted else None
        began = self._timed({"cells": cells, "function": self.function})
        if problem := began.get("problem"):
            raise Stopped(f"the code stops with {_words(problem)}")
        if not began.get("there"):
            raise Stopped(f"there is no function {self.function}: is it renamed, or its cell missing?")

    def call(self, *args: Any, upstream: Tensor | None = None) -> Any:
        """What the student's function returns for ``args``.

        With ``upstream`` a pair comes back: the value, and for each argument the gradient that arrives there, or None.
        A tensor that the function changed in place is changed here too. What it raises is raised here, with its type's
        name and the line.
        """
        answer = self._timed({"args": list(args), "upstream": upstream})
        if "error" in answer:
            raise _error(answer["error"])
        try:
            for mine, theirs in zip(args, answer["args"], strict=True):
                if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
                    mine.data = theirs
            return answer["value"] if upstream is None else (answer["value"], list(answer["grads"]))
        except (KeyError, TypeError, ValueError, RuntimeError):  # no answer of our worker's
            raise self._stopped("its answer cannot be read") from None

    def _timed(self, request: dict[str, Any]) -> dict[str, Any]:
        """An answer for which the student's time runs, by our clock."""
        started = time.monotonic()
        try:
            return self._answer(request, self.left)
        finally:
            self.left -= time.monotonic() - started

    def _answer(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer, for so many seconds; a part that failed once has ended."""
        if self.ended:
            raise Stopped(self.ended)
        try:
            answer = self.pipes.ask(request, seconds)
        except Late:
            raise self._stopped(f"it took longer than {self.limits.seconds:g} s: an endless loop?") from None
        except (EOFError, OSError):
            raise self._stopped(self._why()) from None
        except WireError as error:
            raise self._stopped(f"its answer cannot be read: {error}") from None
        if not isinstance(answer, dict):
            raise self._stopped("its answer cannot be read")
        return answer

    def _stopped(self, why: str) -> Stopped:
        """End the process, and say why from here on."""
        self.ended = why
        self._kill()
        return Stopped(why)

    def _why(self) -> str:
        """Why the process is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code is None:
            return "it closed the pipe to the grader, which is not its own"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}: too much memory or output?"
        return f"it ended its own process (exit status {code}): leave out exit() and quit()"

    def _kill(self) -> None:
        """End all: the first process of the namespace, with which each other one ends, and the group outside."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.first is not None:
                signal.pidfd_send_signal(self.first, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and all that it started, and remove its folder."""
        self._kill()
        self.process.wait()
        self.pipes.close()
        if self.first is not None:
            os.close(self.first)
            self.first = None
        self.folder.cleanup()


def _child_of(parent: int) -> int | None:
    """A handle of a process's child, which stays right if the number is given to another process."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(parent):
                return os.pidfd_open(int(status.parent.name))
    return None


def _words(problem: Any) -> str:
    """A problem as the worker describes it, or whatever it says in its place."""
    if not isinstance(problem, dict):
        return "an error without words"
    kind, message, place = (str(problem.get(key, "")) for key in ("type", "message", "place"))
    return ", ".join(part for part in (f"{kind}: {message}", place) if part)


def _error(problem: Any) -> Exception:
    """An error as the student's process had it."""
    problem = problem if isinstance(problem, dict) else {}
    name, message, place = (str(problem.get(key, ""))[:1000] for key in ("type", "message", "place"))
    if name == "NotImplementedError":
        kind: type[Exception] = NotImplementedError
    else:
        kind = type(name.replace("\0", "") or "Exception", (Exception,), {})
    return kind(", ".join(part for part in (message, place) if part))
