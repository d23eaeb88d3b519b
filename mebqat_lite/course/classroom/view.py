"""What the present process sees of the files: a root of its own, read-only but for one small folder.

It needs a mount namespace of the process's own and rights in it, which ``unshare --map-root-user --mount`` gives to
every user.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

BIND, DEEP, NO_DEVICES, NO_SETUID = 4096, 16384, 4, 2  # flags of mount
MOUNT_SETATTR, HERE, RECURSIVE, READ_ONLY, PLAIN = 442, -100, 0x8000, 1, 2  # the call has one number on all processors
DETACH = 2  # of umount2
OWN = "/proc/self/ns/mnt"
CAPABILITIES, DROP = 0x20080522, 24  # the version of linux/capability.h; of prctl


def namespace() -> str:
    """The name of the mount namespace of this process; "" if there are none."""
    return os.readlink(OWN) if os.path.lexists(OWN) else ""


def enter(outside: str, readable: Iterable[Path], folder: Path, size: int, files: int) -> None:
    """From now on, see ``readable`` alone, read-only, and an empty ``folder`` for ``size`` bytes in so many files.

    The folder lies in memory and is gone with the process. OSError if the kernel refuses, or if this is still the
    namespace ``outside``, whose processes would all see what is mounted here.
    """
    if namespace() in ("", outside):
        raise OSError("this is no mount namespace of its own")
    _mount("tmpfs", folder, "tmpfs", NO_SETUID, "mode=755")  # the new root lies on the folder
    for path in _outermost(readable):
        _show(path, folder)
    inner = folder / folder.relative_to("/")
    inner.mkdir(parents=True)
    _read_only(folder)
    _mount("tmpfs", inner, "tmpfs", NO_SETUID | NO_DEVICES, f"mode=700,size={size},nr_inodes={files}")
    os.chdir(folder)
    _call("pivot_root", b".", b".")  # the old root now lies above the new one
    _call("umount2", b".", DETACH)
    os.chdir(folder)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that are there and do not lie in another one."""
    found = {path for path in paths if path.exists()}
    return sorted(path for path in found if not found & set(path.parents))


def _show(path: Path, root: Path) -> None:
    """Bind a file or folder to its place below the new root, with all that is mounted in it."""
    place = root / path.relative_to("/")
    if path.is_dir():
        place.mkdir(parents=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    _mount(str(path), place, "none", BIND | DEEP, "")


def _read_only(root: Path) -> None:
    """All mounts from ``root`` on. A remount would reach one of them, and would have to repeat its other flags."""
    attributes = struct.pack("4Q", READ_ONLY | PLAIN, 0, 0, 0)  # set, clear, propagation, user namespace
    size = ctypes.c_size_t(len(attributes))
    _call("syscall", MOUNT_SETATTR, HERE, os.fsencode(root), RECURSIVE, attributes, size)


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())


def _call(name: str, *args: object) -> None:
    """A function of the C library that Python does not have."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def drop_capabilities() -> None:
    """Give up what makes root more than a user, for good: also the rights in a namespace of one's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        libc.prctl(DROP, number, 0, 0, 0)  # refused to a user, who has none to drop
    header, none = struct.pack("Ii", CAPABILITIES, 0), bytes(24)
    _call("capset", header, none)
