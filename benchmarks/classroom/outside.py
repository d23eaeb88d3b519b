"""What lies outside of the submissions, and whether anything of it was changed or anything was left there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path

MARK, KEY = "left_over", 4711  # the name, and the number, of all that an attack tries to leave behind


class Outside:
    """A folder with a file that everybody may write, and two sockets that wait for a connection."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o777)
        self.folder, self.mine, self.socket, self.process = folder, folder / "mine.txt", folder / "s", os.getpid()
        self.mine.write_text("mine")
        self.mine.chmod(0o666)
        self._listening = [socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))]
        self._listening[0].bind(str(self.socket))
        self._listening[0].listen()
        self.address = self._listening[1].getsockname()
        for waiting in self._listening:
            waiting.setblocking(False)
        self._before = self._state()

    def _state(self) -> list[object]:
        """Names, kinds, modes, owners, times, attributes and contents."""
        found: list[object] = [self.mine.read_text()]
        for path in (self.folder, *sorted(self.folder.iterdir())):
            about = path.stat()
            found.append(
                (path.name, about.st_mode, about.st_uid, about.st_mtime_ns, about.st_nlink, os.listxattr(path))
            )
        return found

    def changes(self) -> list[str]:
        """What was changed or left, in words."""
        found = [] if self._state() == self._before else [f"{self.folder} is no longer {self._before}"]
        for waiting in self._listening:
            with contextlib.suppress(BlockingIOError):
                waiting.accept()
                found.append(f"a connection to {waiting.getsockname()}")
        libc = ctypes.CDLL(None)
        kept = {"shmget": (KEY, 0, 0), "msgget": (KEY, 0), "semget": (KEY, 0, 0)}
        found += [f"{name} {KEY}" for name, args in kept.items() if getattr(libc, name)(*args) != -1]
        found += [str(path) for path in (Path("/tmp") / MARK, Path("/dev/shm") / MARK) if path.exists()]
        return found

    def close(self) -> None:
        """Close the sockets."""
        for waiting in self._listening:
            waiting.close()


def processes(folder: Path) -> list[str]:
    """The commands that were started for parts below a folder, and are still running."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            home = f"HOME={folder}/part-".encode()
            if home in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
