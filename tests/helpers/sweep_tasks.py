"""Tasks of a sweep whose runs are counted in files, and a small comparison."""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.engines import Task, opened, perform
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import Sweep, key
from mebqat_lite.recipe import Recipe


def times(path):
    """How often a task has been run: a line each in a file, whatever process it was in."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def work(count, value, bad=0, how="raise"):
    """A value, and a line in ``count``; the first ``bad`` times not."""
    with count.open("a") as file:
        file.write("x\n")
    if times(count) <= bad:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(f"no {value} today")
    return value


def task(folder, name, value=1.5, part=0, leaves=(), **how):
    call = functools.partial(work, folder / f"{name}.count", value, **how)
    return Task(folder / f"{name}.json", call, key(name, part), tuple(leaves))


def serial(tasks):
    return map(perform, tasks)


def count(folder):
    return {path.stem: times(path) for path in sorted(folder.glob("*.count"))}


def tick(path):
    """A line every 50 milliseconds, for ever."""
    while True:
        with path.open("a") as file:
            file.write("x\n")
        time.sleep(0.05)


# --- a comparison ----------------------------------------------------------------------------------------------------

SETUP = Setup(
    data="digits,val=60,test=90",
    options={"widths": (4, 4, 4, 4)},
    recipe=Recipe(steps=4, warm_steps=5, batch_size=32, lr=0.03),
)
NAMES, PAIRS = ["mebqat", "adabits", "qat", "ptq_mse"], ["W2A2", "W3A3", "FP"]


def run(folder, **options):
    fixed = {"pairs": PAIRS, "listed": ["W2A2", "W4A4"], "seeds": 1, "progress": False, "engine": "serial"}
    return compare(SETUP, NAMES, folder=folder, **{**fixed, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*-seed*")}


def timeless(outcome):
    return json.dumps({name: value for name, value in outcome.items() if name != "seconds"})


if __name__ == "__main__":  # a sweep of one task that never ends, in a folder
    folder = Path(sys.argv[1])
    with opened("loky", 2) as stream:
        Sweep(stream).run([Task(folder / "a.json", functools.partial(tick, folder / "ticks"), "k")])
