"""The grader's ends of the pipes to a student's process: nothing here waits beyond a deadline."""

from __future__ import annotations

import os
import select
import struct
import time
from typing import Any

from mebqat_lite.course.classroom.wire import LIMIT, WireError, decode, framed

SHOWN = 4000  # characters of a student's output that are kept
CHUNK = 65536


class Late(Exception):
    """The deadline is over."""


class Pipes:
    """Requests out, replies in, and what the student prints, whose beginning is kept in ``printed``.

    All three are file descriptors, and belong to the object from here on.
    """

    def __init__(self, requests: int, replies: int, output: int) -> None:
        self.requests, self.replies, self.output = requests, replies, output
        self.printed, self.printing = b"", True
        os.set_blocking(requests, False)

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request; Late, EOFError or OSError if there is none, WireError if it is no message."""
        deadline = time.monotonic() + seconds
        self._write(framed(request), deadline)
        (size,) = struct.unpack(">Q", self._read(8, deadline))
        if size > LIMIT:
            raise WireError(f"a message of {size} bytes")
        return decode(self._read(size, deadline))

    def _write(self, message: bytes, deadline: float) -> None:
        while message:
            self._wait(self.requests, select.POLLOUT, deadline)
            message = message[os.write(self.requests, message[:CHUNK]) :]

    def _read(self, count: int, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < count:
            self._wait(self.replies, select.POLLIN, deadline)
            if not (chunk := os.read(self.replies, min(CHUNK, count - len(found)))):
                raise EOFError("the other process is gone")
            found += chunk
        return bytes(found)

    def _wait(self, end: int, event: int, deadline: float) -> None:
        """Until a pipe is ready. What is printed meanwhile is read, or the printing process would wait for us."""
        poll = select.poll()
        poll.register(end, event)
        if self.printing:
            poll.register(self.output, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [found for found, _ in poll.poll(1000 * left)]
            if self.output in ready and not self.read_output():
                poll.unregister(self.output)
            if end in ready:
                return
        raise Late

    def read_output(self) -> bool:
        """Read a piece of what is printed; False at its end."""
        chunk = os.read(self.output, CHUNK)
        self.printed = (self.printed + chunk)[: 4 * SHOWN]
        self.printing = bool(chunk)
        return self.printing

    def close(self) -> None:
        """Close all ends, after what was printed and not read yet."""
        while self.printing and select.select([self.output], [], [], 0)[0] and len(self.printed) < SHOWN:
            self.read_output()
        for end in (self.requests, self.replies, self.output):
            os.close(end)
