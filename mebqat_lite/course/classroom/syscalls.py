"""System calls that the present process gives up for good: Linux's seccomp, which every user may ask for.

With them go all ways to start a process, so that limits of a process are limits of a submission; to connect; to send a
signal to another process; to change owner, mode, time or attributes of a file; to keep memory outside the process.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

# The numbers of each call on x86_64 and on aarch64, from the kernel's asm/unistd.h; 0: there is no such call.
REFUSED = {
    **{"fork": (57, 0), "vfork": (58, 0), "execve": (59, 221), "execveat": (322, 281)},  # processes
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},  # and those of others
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140)},
    **{"pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438)},
    **{"chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)},  # what files are
    **{"chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54)},
    **{"utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466)},
    **{"socket": (41, 198)},  # of any kind: also UNIX sockets, which have a path
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180)},  # memory that stays
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "add_key": (248, 217), "keyctl": (250, 219)},
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39)},  # what it sees
    **{"pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425)},
}
OWN = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "prlimit64": (302, 261)}  # by the process's id
CLONE, CLONE3 = (56, 220), (435, 435)
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # the audit's name of each, and its column above
X32 = 0x40000000  # numbers from here on are x86_64's calls by another table
THREAD = 0x00010000  # clone's flag for a thread of this process

# linux/filter.h and linux/seccomp.h: a program reads words of (number, machine, ..., arguments) and returns a verdict
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
DENIED, MISSING = ERROR | 13, ERROR | 38  # EACCES; ENOSYS
SECCOMP, FILTER, NO_NEW_PRIVILEGES = 22, 2, 38  # of prctl


class _Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step))]


def refuse_calls() -> None:
    """From now on, the calls above end with "permission denied", in all threads that are started. OSError if not."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise OSError("no system calls are known for this machine")
    steps = [_Step(*step) for step in program(*MACHINES[platform.machine()], os.getpid())]
    whole = _Program(len(steps), (_Step * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)  # Python has no prctl
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.prctl(SECCOMP, FILTER, ctypes.byref(whole), 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: int, column: int, own: int) -> list[tuple[int, int, int, int]]:
    """Steps (code, how many to skip if yes, how many if no, value); a process may signal and limit only itself."""
    steps = [(LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    steps += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, DENIED)]
    for number in filter(None, (numbers[column] for numbers in REFUSED.values())):
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENIED)]
    steps += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, MISSING)]  # its flags lie in memory; clone takes its place
    steps += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 0, 1, THREAD)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENIED)]
    for name, numbers in OWN.items():
        itself = 0 if name == "prlimit64" else own  # 0 is the calling process there, and its whole group for kill
        steps += [(EQUAL, 0, 5, numbers[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, own)]
        steps += [(EQUAL, 0, 1, itself), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENIED)]
    return [*steps, (RETURN, 0, 0, ALLOW)]
