"""Run jobs in this process, in several processes of this machine (joblib), or on a cluster (Dask).

Each job writes its own result file, atomically and at its end. So its result is kept even if the process that asked
for it has died.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
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

from mebqat_lite.files import plain, write_json

ONE_AT_A_TIME = threading.Lock()  # jobs in one process would share PyTorch's random numbers and number of threads
JOIN = 60  # seconds to wait for the first worker of a cluster
# {"key", "value", "sha256"}, or {"key", "error", "traceback"} after an error, or {"key"} while the task runs
Record = dict[str, Any]


class EngineError(RuntimeError):
    """An engine cannot start."""


@dataclass(frozen=True)
class Task:
    """One job: a call without arguments, whose value is kept as JSON in the file ``result``.

    Args:
        result: the path of the result file.
        call: a function that can be pickled, such as a `functools.partial` of a function in an importable module.
        key: a checksum of everything that the value depends on, see `sweeps.key`.
        leaves: files that the call writes. If one of them is missing, the result does not count.
    """

    result: Path
    call: Callable[[], Any]
    key: str
    leaves: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The name of the task, which is that of its result file without the ending."""
        return self.result.stem

    def read(self) -> Record:
        """Read the record in the result file; it is {} if the file is missing, is damaged, or has another key."""
        try:
            record = json.loads(self.result.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and record.get("key") == self.key else {}

    def found(self) -> Record:
        """Return the record if it holds a value that is whole, or {} if the task must still be run."""
        record = self.read()
        is_whole = "value" in record and record.get("sha256") == _sum(record["value"])
        return record if is_whole and all(path.is_file() for path in self.leaves) else {}


def _sum(value: Any) -> str:
    """Compute the checksum of a value as it is written to JSON and read again."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def perform(task: Task) -> tuple[str, Record]:
    """Run a task in this process, write its result file, and return the task's name and its record.

    An exception becomes a record too, so that it does not end other jobs.
    """
    try:
        with ONE_AT_A_TIME:
            write_json(task.result, {"key": task.key})  # the task has begun, and an old result does not count any more
            value = plain(task.call())
            write_json(task.result, {"key": task.key, "value": value, "sha256": _sum(value)})
        return task.name, json.loads(task.result.read_text())  # the same numbers that later calls read
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        record = {"key": task.key, "error": reason, "traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            write_json(task.result, record)
        return task.name, record


Answer = tuple[str, Record | BaseException]  # a task's name, with its record or the reason why its worker gave none
Stream = Callable[[Sequence[Task]], Iterator[Answer]]  # runs tasks, and yields an answer whenever one ends
Engine = Callable[[int, str], AbstractContextManager[Stream]]  # takes a number of processes, and an address or ""


@contextlib.contextmanager
def on_joblib(backend: str, workers: int, address: str) -> Iterator[Stream]:
    """Run tasks on a backend of joblib.

    If a worker dies, the whole pool raises an error, and `sweeps.Sweep` starts it again.
    """
    from joblib import Parallel, delayed

    if address:
        raise EngineError("only the engine dask takes an address")
    pool = Parallel(workers, backend=backend, batch_size=1, return_as="generator_unordered")
    yield lambda tasks: pool(delayed(_perform_for)(os.getpid(), task) for task in tasks)


def _perform_for(parent: int, task: Task) -> tuple[str, Record]:
    """Call `perform` in a process that ends with its parent.

    If the parent is killed, a process of loky would otherwise finish its work and then wait for more.
    """
    if os.getppid() == parent:
        _end_with(parent)
    return perform(task)


@functools.cache  # a process starts only one watch
def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Dask is called without joblib: if one worker dies, joblib gives up the whole call, including the jobs on all other
# machines.


@contextlib.contextmanager
def _dask(workers: int, address: str) -> Iterator[Stream]:
    """Run tasks on the Dask cluster at ``address`` (``tcp://host:8786``), or on ``workers`` processes started here."""
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
    """Raise an EngineError if nothing answers at an address (``tcp://host:port`` or ``host:port``)."""
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
    """Open an engine so that it can run tasks; whatever it started is stopped at the end of the block.

    Raises:
        ValueError: the engine is unknown, or ``workers`` is below 1.
        EngineError: the package of the engine is not installed, it takes no address, or nothing answers there.
    """
    if engine not in ENGINES:
        instead = f": take {GONE[engine]}" if engine in GONE else f"; choose one of {', '.join(ENGINES)}"
        raise ValueError(f"no engine {engine!r}{instead}")
    if workers is not None and workers < 1:
        raise ValueError(f"a sweep needs at least 1 process, not {workers}")
    with ENGINES[engine](workers or os.cpu_count() or 1, address) as stream:
        yield stream
