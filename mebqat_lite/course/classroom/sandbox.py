"""The parent's side: a student's function in a process of its own, with limits. The checks stay here.

Submissions are programs of other people that run on this machine. On Linux each part runs without files outside its
own folder and Python's (Landlock), without network and without processes that outlive it (`unshare`), as far as the
kernel allows; `isolation` says what is in force. For what remains use a container or a user of its own.
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
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from mebqat_lite.course.classroom.confine import landlock_version
from mebqat_lite.course.classroom.wire import WireError, receive, send

UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
SHOWN = 4000  # characters of a student's output that are kept


class Stopped(Exception):
    """A part that cannot be graded further; the words are for the student."""


@dataclass(frozen=True)
class Limits:
    """What a part of a submission may use."""

    seconds: float = 20.0  # in all calls together, and while the cells run
    memory: int = 2 * 2**30  # bytes beyond Python and PyTorch
    file_bytes: int = 10 * 2**20
    start: float = 120.0  # seconds to start Python and PyTorch, which are not the student's


@functools.cache
def _unshare() -> tuple[str, ...]:
    """The command that takes network and processes away; empty where the system has none."""
    if shutil.which("unshare") is None:
        return ()
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    return UNSHARE if tried.returncode == 0 else ()


def isolation() -> str:
    """What keeps a submission from the rest of the machine here, in words."""
    parts = ["a process of its own with limits of time, memory and file size"]
    parts += ["no files outside its folder and Python's"] if landlock_version() else []
    parts += ["no network, no processes that outlive it"] if _unshare() else []
    return "; ".join(parts)


class Sandbox:
    """One part of a submission: its cells have run, and ``call`` runs the function in them.

    Args:
        cells: the student's code, cell by cell.
        function: the name of the function that the part asks for.
        limits: time, memory, file size.
    """

    def __init__(self, cells: Sequence[str], function: str, limits: Limits | None = None) -> None:
        self.limits, self.function, self.left = limits or Limits(), function, (limits or Limits()).seconds
        self.late = False
        self.printed, self._seen = "", 0
        self.folder = tempfile.TemporaryDirectory(prefix="part-", ignore_cleanup_errors=True)
        self._start()
        try:
            self._begin(list(cells))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        code = "from mebqat_lite.course.classroom.worker import main; main()"
        command = [*_unshare(), sys.executable, "-u", "-P", "-c", code, str(theirs_in), str(theirs_out)]
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        environment |= {"HOME": self.folder.name, "TMPDIR": self.folder.name, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=self.folder.name,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        for end in (theirs_in, theirs_out):
            os.close(end)
        self.requests, self.replies = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self.reader = threading.Thread(target=self._drain, daemon=True)
        self.reader.start()

    def _drain(self) -> None:
        """Read what the student prints, keep its beginning, and let the rest go."""
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while chunk := self.process.stdout.read1(65536):  # type: ignore[attr-defined]
                if self._seen < SHOWN:
                    self.printed += chunk.decode(errors="replace")[: SHOWN - self._seen]
                self._seen += len(chunk)

    def _begin(self, cells: list[str]) -> None:
        """Run the cells, once Python and PyTorch have started."""
        limits = self.limits
        self._answer(None, limits.start)
        setup = {"cells": cells, "function": self.function, "confine": bool(landlock_version())}
        setup |= {"memory": limits.memory, "file_bytes": limits.file_bytes}
        setup |= {"seconds": int(limits.seconds + limits.start)}  # of the processor
        began = self._answer(setup, self.left)
        self.left -= began["seconds"]
        if began["problem"]:
            raise Stopped(f"the code stops with {_words(began['problem'])}")
        if not began["there"]:
            raise Stopped(f"there is no function {self.function}: is it renamed, or its cell missing?")

    def call(self, *args: Any, upstream: Tensor | None = None) -> Any:
        """What the student's function returns for ``args``.

        With ``upstream`` a pair comes back: the value, and for each argument the gradient that arrives there, or None.
        A tensor that the function changed in place is changed here too. What it raises is raised here, with its type's
        name and the line.
        """
        answer = self._answer({"args": list(args), "upstream": upstream}, self.left)
        self.left -= answer.get("seconds", 0.0)
        if "error" in answer:
            raise _error(answer["error"])
        for mine, theirs in zip(args, answer["args"], strict=True):
            if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
                mine.data = theirs
        return answer["value"] if upstream is None else (answer["value"], answer["grads"])

    def _answer(self, request: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer, for so many seconds."""
        watch = threading.Timer(max(seconds, 0.0), self._stop_late)
        watch.start()
        try:
            if request is not None:
                send(self.requests, request)
            answer = receive(self.replies)
        except (EOFError, OSError):
            raise Stopped(self._why()) from None
        except WireError as error:
            raise Stopped(f"its answer cannot be read: {error}") from None
        finally:
            watch.cancel()
        if not isinstance(answer, dict):
            raise Stopped("its answer cannot be read")
        return answer

    def _stop_late(self) -> None:
        self.late = True
        self._kill()

    def _why(self) -> str:
        """Why the process is gone."""
        if self.late:
            return f"it took longer than {self.limits.seconds:g} s: an endless loop?"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}: too much memory or output?"
        return f"it ended its own process (exit status {code}): leave out exit() and quit()"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and all that it started, and remove its folder."""
        self._kill()
        for stream in (self.requests, self.replies):
            with contextlib.suppress(OSError):
                stream.close()
        self.process.wait()
        self.reader.join(2)
        if self.process.stdout:
            self.process.stdout.close()
        self.folder.cleanup()


def _words(problem: dict[str, str]) -> str:
    return ", ".join(part for part in (f"{problem['type']}: {problem['message']}", problem["place"]) if part)


def _error(problem: dict[str, str]) -> Exception:
    """An error as the student's process had it."""
    known = {"NotImplementedError": NotImplementedError}
    kind = known.get(problem["type"]) or type(problem["type"], (Exception,), {})
    place = f", {problem['place']}" if problem["place"] else ""
    return kind(f"{problem['message']}{place}")
