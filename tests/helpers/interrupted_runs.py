"""Short training runs that can be interrupted, killed, continued and compared to the bit."""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from mebqat_lite import files, fit, models, quantize
from mebqat_lite.cli import main
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe

STEPS = 12
RUNS = {  # name: quantizer, method, options
    "mebqat dorefa": ("dorefa", "mebqat", {}),
    "mebqat lsq": ("lsq", "mebqat", {"schedule": "milestones"}),
    "qat start": ("dorefa", "qat", {"bits": "W2A2", "teacher": "start"}),
    "dropout": ("dorefa", "mebqat", {"m": 3}),
}


IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = Data("made", Split(IMAGES, torch.arange(64) % 10), None, None, ())
FAST = Recipe(steps=4, batch_size=16, lr=0.003, schedule="constant", teacher="fp")


def net(quantizer="dorefa", seed=0, dropout=False):
    torch.manual_seed(seed)
    model = models.digit_net(widths=(4, 4, 4, 4))
    if dropout:
        model.body.insert(2, nn.Dropout(0.4))
        model = nn.Sequential(model)  # no stem to share: each pair draws its own mask
    return quantize(model, quantizer, sample=IMAGES)


def train(name, path=None, seed=0, **options):
    """One of RUNS; a continued run starts from other weights and another random state, which must not matter."""
    quantizer, method, extra = RUNS[name]
    seed = seed if path is not None and Path(path).exists() else 0
    model = net(quantizer, seed, dropout=name == "dropout")
    fixed = {"steps": STEPS, "batch_size": 16, "progress": False, "device": "cpu"}
    run = fit(model, DATA, method, path=path, **{**fixed, **extra, **options})
    return run, model


def result(run, model):
    return {"losses": run.losses, "costs": asdict(run.costs)}, model.state_dict()


def assert_same(mine, other):
    assert mine[0] == other[0]
    assert mine[1].keys() == other[1].keys()
    assert [n for n in mine[1] if not torch.equal(mine[1][n], other[1][n])] == []


# --- processes that are killed ----------------------------------------------------------------------------------


def count_lines(path):
    return path.read_text().count("\n") if path.is_file() else 0


def wait_for_lines(path, more, process):
    """Wait until a file has so many more lines than now, or the process that writes it is gone."""
    wanted = count_lines(path) + more
    while count_lines(path) < wanted and process.is_alive():
        time.sleep(0.001)


def kill_and_restart(function, arguments, moment, kills=3):
    """Call a function in a process until it ends by itself, after it was killed ``kills`` times, at a moment each.

    The processes are forked from one that has imported what they need: they start in no time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mebqat_lite.cli", "mebqat_lite.train", "sklearn.datasets", "torch._dynamo"])
    killed = 0
    for _attempt in range(kills + 6):
        process = context.Process(target=function, args=arguments)
        process.start()
        if killed < kills:
            moment(process)
            process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    assert (killed, process.exitcode) == (kills, 0)


def work(folder):
    """What a killed process does: all RUNS, one after the other, each from its checkpoint; a line for each step."""
    torch.set_num_threads(1)
    step = Loop.step

    def told(loop):
        step(loop)
        with (folder / "steps").open("a") as file:
            file.write(f"{loop.run.costs.steps}\n")

    Loop.step = told
    for name in RUNS:
        numbers, state = result(*train(name, folder / name, seed=os.getpid(), save_every=1))
        files.write(folder / f"{name}.end", state, {"kind": "end"})
        (folder / f"{name}.json").write_text(json.dumps(numbers))


def command(words, folder):
    """What a killed process does: a command of `mebqat-lite` in a folder."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.exit(main(words))
