"""Grade some forty submissions by one command, which takes some minutes: ``python -m benchmarks.classroom [FOLDER]``.

They are right, awkward, wrong, broken and hostile notebooks of assignment 01, made from its master. The command prints
the points of each and the time. It fails if a right one lost a point, if a hostile part cost the points of another
part, or if a line of the sheet is missing.
"""

from __future__ import annotations

import copy
import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.machine import machine
from mebqat_lite.course.classroom.course import grade_folder
from mebqat_lite.course.classroom.sheets import summary

FOLDER = Path(__file__).parent.parent / "notebooks" / "assignments"
NAME = "01_quantization"
PART = "sqnr"  # the part that is replaced; it is worth 3 of 16 points
HEAD = "def sqnr(x, y):\n    "
RIGHT = {
    "in_place_of_sum": "return 10 * torch.log10(x.pow(2).mean() / (x - y).pow(2).mean())",
    "by_norms": "return 20 * math.log10(float(x.norm() / (x - y).norm()))",
    "in_a_loop": "a = sum(v * v for v in x.flatten().tolist())\n"
    "    b = sum(v * v for v in (x - y).flatten().tolist())\n    return 10 * math.log10(a / b)",
    "prints": "print('hello')\n    return 10 * torch.log10(x.pow(2).sum() / (x - y).pow(2).sum())",
    "own_helper": "return 10 * math.log10(power(x) / power(x - y))\n\n"
    "def power(x):\n    return float(x.double().pow(2).sum())",
}
WRONG = {
    "natural_log": "return 10 * torch.log(x.pow(2).sum() / (x - y).pow(2).sum())",
    "twice": "return 20 * torch.log10(x.pow(2).sum() / (x - y).pow(2).sum())",
    "sign": "return -10 * torch.log10(x.pow(2).sum() / (x - y).pow(2).sum())",
    "absolute": "return 10 * torch.log10(x.abs().sum() / (x - y).abs().sum())",
    "constant": "return 12.0",
    "text": "return '12 dB'",
    "changes_input": "x -= y\n    return 10 * torch.log10(y.pow(2).sum() / x.pow(2).sum())",
}
ABOVE = {  # other cells, above the parts
    "magics": "%matplotlib inline\n!pip install seaborn\nimport seaborn_that_is_missing\ndisplay(3)",
    "raises": "bits = {[2, 4, 8]}",
    "exits": "import os\nos._exit(0)",
    "runs_on": "while True:\n    pass",
}
HOSTILE = {
    "exit": "exit()",
    "at_once": "import os\n    os._exit(0)",
    "endless": "while True:\n        pass",
    "hog": "z = bytearray(10 * 2**30)\n    return len(z)",
    "tensor_hog": "return torch.ones(10 * 2**30).sum()",
    "prints_on": "while True:\n        print('x' * 10_000)",
    "child": "import subprocess, sys\n    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "start_new_session=True)\n    return 1.0",
    "reads_tests": f"return open({str(FOLDER / 'graders' / f'{NAME}.py')!r}).read()",
    "writes": f"open({str(FOLDER / 'was_here')!r}, 'w').write('x')\n    return 1.0",
    "network": "import socket\n    socket.create_connection(('127.0.0.1', 9), 1)",
    "deaf": "import ctypes, os\n    ctypes.CDLL(None).prctl(1, 0)\n    ctypes.CDLL(None).setsid()\n"
    "    while True:\n        pass",
    "forges": "import os\n    for end in range(3, 1024):\n        try:\n            os.write(end, b'\\xff' * 64)\n"
    "        except OSError:\n            pass\n    return 1.0",
    "stops_its_clock": "import time\n    time.perf_counter = time.monotonic = lambda: 0.0\n"
    "    while True:\n        pass",
    "changes_modes": f"import os\n    os.chmod({str(FOLDER)!r}, 0o777)\n    return 1.0",
    "fork_bomb": "import os\n    for _ in range(50):\n        os.fork()\n    return 1.0",
}


def master() -> Any:
    """Read the master, which is the solved notebook."""
    return nbformat.read(FOLDER / "source" / NAME / f"{NAME}.ipynb", as_version=4)


def with_part(source: str) -> Any:
    """Make a copy of the master in which the cell of `PART` is ``source``."""
    made = master()
    [cell] = [cell for cell in made.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == PART]
    cell.source = source
    return made


def awkward() -> dict[str, str]:
    """Make right notebooks, as text, that a student's editor or habits have marked; each is worth all points."""
    found = {}
    for name, source in ABOVE.items():
        made = master()
        made.cells.insert(1, nbformat.v4.new_code_cell(source))
        found[name] = nbformat.writes(made)
    made, spoiled = master(), master()
    made.cells.append(nbformat.v4.new_code_cell(f"{HEAD}return ..."))
    for cell in spoiled.cells:
        cell.metadata["nbgrader"] = None
    return found | {
        "stub_below": nbformat.writes(made),
        "null": nbformat.writes(spoiled),
        "mark": "\ufeff" + found["exits"],
    }


def broken() -> dict[str, str]:
    """Make damaged notebooks, as text, by student."""
    without = master()
    without.cells = [c for c in without.cells if c.metadata.get("nbgrader", {}).get("grade_id") != PART]
    lost = copy.deepcopy(master())
    for cell in lost.cells:
        cell.metadata.pop("nbgrader", None)
    text = nbformat.writes(master())
    return {
        "cut_off": text[: len(text) // 2],
        "empty": "",
        "missing_cell": nbformat.writes(without),
        "renamed": nbformat.writes(with_part("def signal_to_noise(x, y):\n    return 1.0")),
        "syntax": nbformat.writes(with_part("def sqnr(x, y:\n    return 1.0")),
        "ids_lost": nbformat.writes(lost),
        "top_level_error": nbformat.writes(with_part(f"{HEAD}return 1.0\n1 / 0")),
    }


def submissions() -> dict[str, tuple[str, int]]:
    """Make all submissions: ``(notebook, points that it should get)`` by student, whose name begins with the kind."""
    found = {f"right_{name}": (nbformat.writes(with_part(HEAD + body)), 16) for name, body in RIGHT.items()}
    found |= {f"awkward_{name}": (text, 16) for name, text in awkward().items()}
    for kind, bodies in (("wrong", WRONG), ("hostile", HOSTILE)):
        found |= {f"{kind}_{name}": (nbformat.writes(with_part(HEAD + body)), 13) for name, body in bodies.items()}
    due = {"cut_off": 0, "empty": 0, "ids_lost": 16}
    return found | {f"broken_{name}": (text, due.get(name, 13)) for name, text in broken().items()}


def main(folder: Path) -> None:
    """Write the submissions, grade them, and check that each gets the points that it should."""
    handed = submissions()
    for student, (text, _) in handed.items():
        (folder / "submitted" / student).mkdir(parents=True)
        (folder / "submitted" / student / f"{NAME}.ipynb").write_text(text, encoding="utf-8")
    started = time.perf_counter()
    graded, found = grade_folder(folder / "submitted", FOLDER / "graders", folder / "grades")
    minutes = (time.perf_counter() - started) / 60
    print(summary(graded, found))
    rows = {row["student"]: int(row["points"]) for row in csv.DictReader((folder / "grades" / "grades.csv").open())}
    wrong = {student: (rows.get(student), due) for student, (_, due) in handed.items() if rows.get(student) != due}
    print(f"{len(rows)} submissions in {minutes:.1f} minutes; {machine()}")
    if wrong or (FOLDER / "was_here").exists():
        raise SystemExit(f"points that are not what is due: {wrong}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
