"""Hostile answers. What they try is refused, or costs them their own part, and leaves nothing outside.

Nothing here may be run without all layers of the sandbox: it does what it says.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.classroom.made import FOLDER, ONE, TIGHT, Case, solved, written
from benchmarks.classroom.outside import KEY, MARK, Outside

IMPORTS = f"""import ctypes, math, mmap, multiprocessing, os, re, resource, signal, socket, struct, subprocess, sys
import threading, time, torch
from multiprocessing.shared_memory import SharedMemory
MARK, KEY = {MARK!r}, {KEY}"""
ATTEMPTS = '''
GOT = []


def attempt(name, *args):
    """Do what a line says; what is refused raises, or is a negative number, or the status of a command that failed."""
    try:
        found = eval(name, globals())
    except BaseException:
        return
    if not (isinstance(found, int) and found < 0):
        GOT.append(name)


def call(name, *args):
    """A function of the C library."""
    return getattr(ctypes.CDLL(None, use_errno=True), name)(*args)'''
ENDS = (
    "exit()", "quit(3)", "sys.exit('end')", "os._exit(0)", "os.abort()", "ctypes.string_at(0)",
    "raise KeyboardInterrupt", "raise BaseException('end')", "sys.setrecursionlimit(10**9); return sqnr(x, y)",
    "os.closerange(0, 1024)",
)  # fmt: skip
ENDLESS = {
    "loop": "while True:\n        pass",
    "sleep": "time.sleep(10_000)",
    "prints_on": "while True:\n        print('x' * 10_000)",
    "catches_all": "while True:\n        try:\n            time.sleep(1)\n        except BaseException: pass",
    "deaf": "ctypes.CDLL(None).prctl(1, 0)\n    ctypes.CDLL(None).setsid()\n    while True:\n        pass",
    "stops_clocks": "time.perf_counter = time.monotonic = time.time = lambda: 0.0\n    while True:\n        pass",
    "half_a_reply": "[write(end, b'\\0' * 4) for end in range(3, 64)]\n    time.sleep(10_000)",
    "threads_go_on": "t = threading.Thread(target=lambda: [None for _ in iter(int, 1)])\n    t.start()\n    t.join()",
}
GREEDY = {  # in one line: what it takes without an end, until it is refused
    "bytes": ("bytearray(10 * 2**30)", "MemoryError"),
    "tensor": ("torch.ones(10 * 2**30)", "memory"),
    "list": ("[bytes(2**20) for _ in iter(int, 1)]", "MemoryError"),
    "maps": ("[mmap.mmap(-1, 2**24) for _ in iter(int, 1)]", "memory|Error"),
    "pipes": ("[os.pipe() for _ in iter(int, 1)]", "Too many open files"),
    "threads": ("[threading.Thread(target=time.sleep, args=(99,)).start() for _ in iter(int, 1)]", "start new thread"),
    "files": ("[os.close(os.open(str(i), os.O_CREAT)) for i, _ in enumerate(iter(int, 1))]", "No space left"),
    "file": ("[open('a', 'ab').write(bytes(2**20)) for _ in iter(int, 1)]", "File too large"),
    "disk": ("[open(str(i), 'wb').write(bytes(2**23)) for i, _ in enumerate(iter(int, 1))]", "No space left"),
    "answer": ("torch.zeros(30_000_000)", "too large"),
}
FORGED = {
    "garbage": ("[write(end, b'\\xff' * 64) for end in range(3, 64)]", "cannot be read"),
    "brackets": ("reply('[' * 100_000)", "cannot be read"),
    "another_value": ("reply('{\"dict\": [[\"value\", 1], [\"args\", 3]]}')", "cannot be read"),
    "error": ("reply('{\"dict\": [[\"error\", {\"dict\": [[\"type\", \"\\\\ud800\\\\u0000\"]]}]]}')", "stops with"),
    "patched": ("from mebqat_lite.course.classroom import worker\n    worker.framed = lambda value: b'\\0' * 99\n"
                "    return 1.0", "no message|cannot be read"),
    "script": ("return type('<script>alert(1)</script>', (), {})()", "script"),
    "huge": ("return 10**9000", "too large"),
}  # fmt: skip
REPLY = """
def write(end, content):
    try:
        os.write(end, content)
    except OSError:
        pass


def reply(text):
    message = struct.pack(">I", len(text)) + text.encode()
    for end in range(3, 64):
        write(end, struct.pack(">Q", len(message)) + message)"""


def attempts(outside: Outside) -> dict[str, list[str]]:
    """Lines that must be refused, by what they are after."""
    mine, grader = str(outside.mine), FOLDER / "graders" / f"{ONE}.py"
    paths = [mine, "/etc/passwd", "/etc/shadow", str(grader), str(outside.folder)]
    return {
        "change_files": [
            f"os.chmod({mine!r}, 0o600)", f"os.utime({mine!r}, (1, 1))", f"os.chown({mine!r}, 1, 1)",
            f"os.setxattr({mine!r}, 'user.{MARK}', b'1')", f"open({mine!r}, 'a')", f"os.truncate({mine!r}, 0)",
            f"os.remove({mine!r})", f"os.rename({mine!r}, {mine + MARK!r})", f"os.mkdir({mine + MARK!r})",
            f"os.link({mine!r}, 'linked')", f"os.symlink('a', {mine + MARK!r})", "os.chmod(os.__file__, 0o777)",
            f"os.utime({str(outside.folder)!r})",
        ],
        "read_files": [
            *(f"os.open({path!r}, os.O_RDONLY)" for path in paths), f"os.stat({mine!r})",
            f"(os.symlink({mine!r}, 'a'), open('a').read())", f"os.open('/proc/{outside.process}/mem', os.O_RDONLY)",
        ],
        "connect": [
            f"socket.create_connection({outside.address!r}, 1)", f"socket.socket(1).connect({str(outside.socket)!r})",
            "socket.socket(1).bind('\\0' + MARK)", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "socket.create_server(('', 0))",
        ],
        "leave_memory": [
            "call('shmget', KEY, 4096, 0o1666)", "call('shmget', KEY, 0, 0o666)", "call('msgget', KEY, 0o1666)",
            "call('semget', KEY, 1, 0o1666)", "call('mq_open', b'/' + MARK.encode(), 0o102, 0o666, None)",
            "os.memfd_create(MARK)", "SharedMemory(MARK, True, 4096)", "open('/dev/shm/' + MARK, 'w')",
            "open('/tmp/' + MARK, 'w')", "call('syscall', 248, b'user', MARK.encode(), b'x', 1, -3)",
        ],
        "start_processes": [
            "os.fork()", "call('vfork')", "os.forkpty()", "subprocess.Popen([sys.executable, '-c', 'pass'])",
            "os.posix_spawn(sys.executable, ['a'], {})", "os.execv(sys.executable, ['a'])",
            "-abs(os.system('true')) or 1",
            "multiprocessing.get_context('fork').Process(target=print).start()",
            "call('syscall', 56, 17, 0, 0, 0, 0)", "call('syscall', 435, ctypes.create_string_buffer(88), 88)",
        ],
        "reach_processes": [
            f"os.kill({outside.process}, 0)", "os.kill(-1, 9)", f"call('ptrace', 16, {outside.process}, 0, 0)",
            f"resource.prlimit({outside.process}, resource.RLIMIT_NOFILE, (9, 9))",
            f"os.pidfd_open({outside.process})", "os.setpriority(os.PRIO_USER, 0, 19)", "call('unshare', 0x10000000)",
            f"os.sched_setaffinity({outside.process}, [0])",
            "call('chroot', b'.')", "call('mount', b'a', b'.', b'tmpfs', 0, None)", "call('umount2', b'/proc', 2)",
        ],
    }  # fmt: skip


HEADS = {"affine_range": "def affine_range(x, bits):\n    ", "sqnr": "def sqnr(x, y):\n    "}
ANSWERS = {
    "affine_range": "low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)\n"
    "    step = (high - low) / (2**bits - 1)\n    return step, round(-low / step)",
    "sqnr": "return 10 * math.log10(x.pow(2).sum() / (x - y).pow(2).sum())",
}


def by_two(kind: str, assignment: str, attacks: Mapping[str, tuple[str, str]], more: str) -> list[Case]:
    """Notebooks with two attacks each, (body, words of the message), one in either part."""
    left, found = list(attacks), []
    while left:
        names = dict(zip(HEADS, left[:2], strict=False))
        parts = {part: HEADS[part] + attacks[name][0] for part, name in names.items()}
        notebook = written(solved(assignment, parts, [IMPORTS + more]))
        says = tuple(attacks[name][1] for name in names.values())
        found.append(Case("hostile", "_".join([kind, *left[:2]]), assignment, notebook, dict.fromkeys(names, 0), says))
        left = left[2:]
    return found


def refused(outside: Outside) -> list[Case]:
    """Attempts that are refused, one by one: the answer after them is right, and gets its points."""
    groups, found = attempts(outside), []
    names = list(groups)
    for pair in zip(names[::2], names[1::2], strict=True):
        parts = {}
        for part, name in zip(HEADS, pair, strict=True):
            tried = f"for line in {groups[name]!r}:\n        attempt(line)\n    if GOT:\n"
            tried += "        raise RuntimeError(f'not refused: {GOT}')\n    "
            parts[part] = HEADS[part] + tried + ANSWERS[part]
        notebook = written(solved(ONE, parts, [IMPORTS + ATTEMPTS]))
        found.append(Case("hostile", "_".join(pair), ONE, notebook))
    return found


def cases(outside: Outside) -> list[Case]:
    """All hostile ones."""
    ended = {f"end_{number}": (body, "") for number, body in enumerate(ENDS)}
    endless = {name: (body, "longer than") for name, body in ENDLESS.items()}
    greedy = {name: (f"return {body}", words) for name, (body, words) in GREEDY.items()}
    return [
        *refused(outside),
        *by_two("ends", ONE, ended, REPLY),
        *by_two("endless", TIGHT, endless, REPLY),
        *by_two("takes", TIGHT, greedy, REPLY),
        *by_two("forges", ONE, FORGED, REPLY),
    ]
