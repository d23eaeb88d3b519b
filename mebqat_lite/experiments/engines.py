"""Where jobs run: in this process, in processes of this machine (joblib), on a cluster of Dask.

A job writes its result file itself, last and atomically, so that what it found is not lost with who asked for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mebqat_lite.files import write_json

ONE_AT_A_TIME = threading.Lock()  # in a process: jobs share PyTorch's random numbers and their number of threads
JOIN = 60  # seconds that a cluster's first worker may take
Record = dict[str, Any]  # {"key", "value"}, or {"key", "error", "traceback"}, or, of a task that has begun, {"key"}


class EngineError(RuntimeError):
    """An engine that cannot start."""


@dataclass(frozen=True)
class Task:
    """One job: a call without arguments whose value, JSON, is kept in the file ``result``.

    call: can be pickled (`functools.partial` of a function of an importable module). key: of all that the value depends
    on, see `sweeps.key`. leaves: files that the call writes; without them the result does not count.
    """

    result: Path
    call: Callable[[], Any]
    key: str
    leaves: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What the task is called: its file's name."""
        return self.result.stem

    def read(self) -> Record:
        """What the result file says; {} if there is none, a damaged one, or that of another key."""
        try:
            record = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) and record.get("key") == self.key else {}

    def found(self) -> Record:
        """The record with its value, or {} where the task is still to be run."""
        record = self.read()
        return record if "value" in record and all(path.is_file() for path in self.leaves) else {}


def perform(task: Task) -> tuple[str, Record]:
    """Run a task in this process and write its result file; an exception is a record too, so that it ends one job."""
    try:
        with ONE_AT_A_TIME:
            write_json(task.result, {"key": task.key})  # has begun: what stood there does not count any more
            write_json(task.result, {"key": task.key, "value": task.call()})
        return task.name, json.loads(task.result.read_text())  # the numbers that every later call reads
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        record = {"key": task.key, "error": reason, "traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            write_json(task.result, record)
        return task.name, record


Answer = tuple[str, Record | BaseException]  # a task's name, and its record, or why its worker gave none
Stream = Callable[[Sequence[Task]], Iterator[Answer]]  # runs tasks; answers when each ends
Engine = Callable[[int, str], AbstractContextManager[Stream]]  # of a number of processes, and of an address or ""


@contextlib.contextmanager
def on_joblib(backend: str, workers: int, address: str) -> Iterator[Stream]:
    """A backend of joblib. Its pool raises where a worker dies; `sweeps.Sweep` builds it again."""
    from joblib import Parallel, delayed

    if address:
        raise EngineError("only the engine dask takes an address")
    pool = Parallel(workers, backend=backend, batch_size=1, return_as="generator_unordered")
    yield lambda tasks: pool(delayed(_perform_for)(os.getpid(), task) for task in tasks)


def _perform_for(parent: int, task: Task) -> tuple[str, Record]:
    """`perform` in a process that ends with its parent: where that is killed, loky's would work on and then wait."""
    if os.getppid() == parent:
        _end_with(parent)
    return perform(task)


@functools.cache  # one watch in a process
def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Dask is called without joblib: where one worker dies, joblib gives up the whole call, with the jobs of all other
# machines.


@contextlib.contextmanager
def _dask(workers: int, address: str) -> Iterator[Stream]:
    """The Dask cluster at ``address`` (``tcp://host:8786``), or one of ``workers`` processes on this machine."""
    distributed = _package("distributed", "dask")

    def stream(tasks: Sequence[Task]) -> Iterator[Answer]:
        names = {client.submit(perform, task, pure=False, retries=0): task.name for task in tasks}
        for future in distributed.as_completed(names):
            error = future.exception()
            yield future.result() if error is None else (names[future], error)

    with contextlib.ExitStack() as stack:
        _reach(address)
        if not address:
            here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": "ERROR"}
            address = stack.enter_context(distributed.LocalCluster(**here)).scheduler_address
        client = stack.enter_context(distributed.Client(address))
        try:
            client.wait_for_workers(1, timeout=JOIN)
        except TimeoutError as error:
            raise EngineError(f"no worker joined {address} in {JOIN} s: start one, `dask worker {address}`") from error
        yield stream


def _reach(address: str) -> None:
    """Refuse an address (``tcp://host:port``, ``host:port``) where nobody answers."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise EngineError(f"nothing answers at {address} ({error}): start the cluster, or correct it") from error


def _package(module: str, engine: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f'engine "{engine}" needs {module}: pip install "mebqat_lite[{engine}]"') from error


ENGINES: dict[str, Engine] = {
    "serial": functools.partial(on_joblib, "sequential"),
    "loky": functools.partial(on_joblib, "loky"),
    "dask": _dask,
}
GONE = {"ray": "dask, which runs on a cluster too; benchmarks/README.md shows how another engine is registered"}


@contextlib.contextmanager
def opened(engine: str = "loky", workers: int | None = None, address: str = "") -> Iterator[Stream]:
    """An engine, ready to run tasks; what it started is stopped at the end.

    Raises:
        ValueError: an unknown engine, or no worker.
        EngineError: its package is not installed, it takes no address, or nothing answers there.
    """
    if engine not in ENGINES:
        instead = f": take {GONE[engine]}" if engine in GONE else f"; choose one of {', '.join(ENGINES)}"
        raise ValueError(f"no engine {engine!r}{instead}")
    if workers is not None and workers < 1:
        raise ValueError(f"a sweep needs at least 1 process, not {workers}")
    with ENGINES[engine](workers or os.cpu_count() or 1, address) as stream:
        yield stream
