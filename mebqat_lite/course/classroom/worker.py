"""The child process: runs a student's cells, then calls one of their functions as often as it is asked to.

Messages come and go over two pipes of its own; standard output is the student's. It knows no test and no answer.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import mebqat_lite
from mebqat_lite import paths
from mebqat_lite.course.classroom.confine import confine_files, limit_resources
from mebqat_lite.course.classroom.wire import WireError, receive, send

SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/opt", "/proc", "/sys/devices/system/cpu", "/dev/urandom")


def readable() -> list[Path]:
    """What Python, its libraries and this package need. An instructor's folder is not among it."""
    found = {Path(sys.prefix), Path(sys.base_prefix), Path(mebqat_lite.__file__).parent, paths.shipped()}
    found |= {Path(path) for path in sysconfig.get_paths().values()} | {Path(path) for path in SYSTEM}
    return sorted(found)


def main() -> None:
    """Serve until the instructor's process hangs up."""
    requests, replies = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    torch.set_num_threads(1)
    send(replies, {"ready": True})  # Python and PyTorch have started: from here on the time is the student's
    setup = receive(requests)
    started = time.perf_counter()
    here = Path.cwd()
    confined = confine_files(readable(), [here, Path("/dev/null")]) if setup["confine"] else False
    limit_resources(setup["memory"], setup["seconds"], setup["file_bytes"])
    space: dict[str, Any] = {"__name__": "__main__"}
    problem = _run_cells(setup["cells"], space)
    function, seconds = space.get(setup["function"]), time.perf_counter() - started
    send(replies, {"confined": confined, "problem": problem, "there": callable(function), "seconds": seconds})
    serve(function, requests, replies)


def _run_cells(cells: list[str], space: dict[str, Any]) -> dict[str, Any] | None:
    """Run the cells one after the other; what stopped them, if anything did."""
    for number, source in enumerate(cells, 1):
        name = f"<cell {number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        try:
            exec(compile(source, name, "exec"), space)
        except Exception as error:
            return described(error) | {"cell": number}
    return None


def serve(function: Any, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer calls ``{"args": [...], "upstream": tensor or None}`` until the stream ends."""
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return
        started = time.perf_counter()
        try:
            answer = call(function, request["args"], request["upstream"])
        except Exception as error:
            answer = {"error": described(error)}
        try:
            send(replies, answer | {"seconds": time.perf_counter() - started})
        except WireError as error:
            send(replies, {"error": {"type": "ValueError", "message": str(error), "place": ""}, "seconds": 0.0})


def call(function: Any, args: list[Any], upstream: Tensor | None) -> dict[str, Any]:
    """The function's value, what it left of its arguments, and, for ``upstream``, the gradients of the tensors."""
    if upstream is None:
        return {"value": function(*args), "args": args, "grads": None}
    args = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    value = function(*args)
    grads: list[Tensor | None] = [None] * len(args)
    if isinstance(value, Tensor) and value.requires_grad and value.shape == upstream.shape:
        leaves = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        found = torch.autograd.grad(value, [args[i] for i in leaves], upstream.to(value.dtype), allow_unused=True)
        for i, grad in zip(leaves, found, strict=True):
            grads[i] = grad
    return {"value": value, "args": args, "grads": grads}


def described(error: Exception) -> dict[str, Any]:
    """Type and message of an error, and the line of the student's code where it arose."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<cell "):
            place = f"in line {frame.lineno} of your cell: {frame.line}"
    if isinstance(error, SyntaxError) and (error.filename or "").startswith("<cell "):
        place = f"in line {error.lineno} of your cell: {(error.text or '').strip()}"
    return {"type": type(error).__name__, "message": str(error).strip()[:300], "place": place}


if __name__ == "__main__":
    main()
