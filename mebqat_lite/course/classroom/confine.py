"""Taking rights away from the present process: memory, file sizes, files and connections (Linux's Landlock)."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

# linux/landlock.h
CREATE, ADD, RESTRICT = 444, 445, 446  # system calls, the same on all processors
EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
RIGHTS = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 5: 1 << 16}  # version -> one above its highest right on files
TCP, SIGNALS = 0b11, 0b11  # from version 4; from version 6 (abstract sockets and signals)
NO_NEW_PRIVILEGES = 38  # of prctl
OPEN_FILES = 256  # pipes hold memory that no other limit counts


class _Rules(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scope", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def landlock_version() -> int:
    """The version of Landlock that the kernel has; 0 if none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE, None, ctypes.c_size_t(0), 1))


def confine_files(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """From now on, open only what lies beneath these; no TCP, and no signal to a process outside. OSError if not."""
    version, libc = landlock_version(), ctypes.CDLL(None, use_errno=True)
    if not version:
        raise OSError("this kernel has no Landlock")
    every = max(limit for known, limit in RIGHTS.items() if known <= version) - 1
    rules = _Rules(every, TCP if version >= 4 else 0, SIGNALS if version >= 6 else 0)
    size = ctypes.sizeof(rules) if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(libc, CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    for allowed, paths in ((EXECUTE | READ | LIST, readable), (every, writable)):
        for path in filter(Path.exists, paths):
            _allow(libc, ruleset, path, allowed)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _checked(libc, RESTRICT, ruleset, 0)
    os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """A rule: ``rights`` beneath a folder, or on a file those that files have."""
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = _Beneath(rights if path.is_dir() else rights & ON_FILES, opened)
        _checked(libc, ADD, ruleset, 1, ctypes.byref(beneath), 0)
    finally:
        os.close(opened)


def _checked(libc: ctypes.CDLL, *call: object) -> int:
    if (found := libc.syscall(*call)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return found


def limit_resources(memory: int, seconds: int, file_bytes: int) -> None:
    """At most ``memory`` bytes more than now, ``seconds`` of processor time, and files of ``file_bytes``."""
    used = 0
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, used + memory)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
