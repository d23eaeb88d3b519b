"""The child process: runs a student's cells, then calls one of their functions as often as it is asked to.

Messages come and go over two pipes of its own; standard output is the student's. It knows no test and no answer.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import mebqat_lite
from mebqat_lite import paths
from mebqat_lite.course.classroom import view
from mebqat_lite.course.classroom.confine import confine_files, limit_resources
from mebqat_lite.course.classroom.syscalls import refuse_calls
from mebqat_lite.course.classroom.wire import framed, receive, send

SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system/cpu")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PROCESSES = {True: ("/proc",), False: ("/proc/self", "/proc/cpuinfo", "/proc/meminfo")}  # of its own namespace, or all


def readable() -> list[Path]:
    """What Python, its libraries and this package need. An instructor's folder and /etc are not among it."""
    found = {Path(sys.prefix), Path(sys.base_prefix), Path(mebqat_lite.__file__).parent, paths.shipped()}
    named = (*sysconfig.get_paths().values(), *SYSTEM, *DEVICES, *PROCESSES[os.getpid() == 1])
    return sorted(found | {Path(path) for path in named})


def main() -> None:
    """Serve until the instructor's process hangs up."""
    requests, replies = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    torch.set_num_threads(1)
    send(replies, {"layers": confine(receive(requests))})  # all is started: from here on the time is the student's
    setup = receive(requests)
    space: dict[str, Any] = {"__name__": "__main__"}
    try:
        problem = _run_cells(setup["cells"], space)
        function = space.get(setup["function"])
        send(replies, {"problem": problem, "there": callable(function)})
        serve(function, requests, replies)
    except SystemExit as ended:  # PyTorch takes seconds to put itself away, which would be the student's
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


def confine(setup: dict[str, Any]) -> list[str]:
    """Give up, layer by layer, what a student must not have; the layers that the kernel granted."""
    here, allowed = Path.cwd(), readable()
    layers = {
        "view": lambda: view.enter(setup["outside"], allowed, here, setup["folder_bytes"], setup["files"]),
        "root": view.drop_capabilities,
        "files": lambda: confine_files(allowed, [here, Path("/dev/null")]),
        "calls": refuse_calls,
    }
    held = [name for name in layers if name in setup["layers"] and _granted(layers[name])]
    limit_resources(setup["memory"], setup["seconds"], setup["file_bytes"])
    return held


def _granted(layer: Callable[[], None]) -> bool:
    try:
        layer()
    except OSError:
        return False
    return True


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
        try:
            answer = framed(call(function, request["args"], request["upstream"]))
        except Exception as error:
            answer = framed({"error": described(error)})
        replies.write(answer)
        replies.flush()


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
