"""What each of two processes does that share each batch, and small networks for them.

Run as a script it is one of the processes: it does all there is to do, once, and leaves what it found in a folder.
"""

import contextlib
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mebqat_lite import TrainingError, files, fit, models, quantize
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe
from mebqat_lite.scale.parallel import ProcessError, Processes
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.state import setting_of

IMAGES = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = Data("made", Split(IMAGES, torch.arange(60) % 10), None, None, ())
STEPS = 6
RUNS = {  # name: quantizer, method, options
    "mebqat dorefa": ("dorefa", "mebqat", {}),  # a stem that all pairs share, and FP as a teacher
    "mebqat lsq, odd batch": ("lsq", "mebqat", {"batch_size": 15}),
    "mebqat sat, augmented": ("sat", "mebqat", {"batch_size": 15, "pad": 1, "flip": True}),
    "adabits": ("dorefa", "adabits", {"batch_size": 15}),  # a norm set for each pair
    "qat fp": ("dorefa", "qat", {"bits": "W2A2", "teacher": "fp"}),  # a teacher's pass of its own
    "qat start": ("dorefa", "qat", {"bits": "W2A2", "teacher": "start"}),  # a network that is kept as a teacher
    "dropout": ("dorefa", "mebqat", {"m": 3}),
}


RESUMED = ["mebqat dorefa", "mebqat lsq, odd batch", "dropout"]
NORMS = {  # name: layer, shape of the batch's input without the batch
    "2d": (functools.partial(nn.BatchNorm2d, 3), (3, 4, 4)),
    "1d of features": (functools.partial(nn.BatchNorm1d, 3), (3,)),
    "1d, no gain": (functools.partial(nn.BatchNorm1d, 3, affine=False), (3, 5)),
    "3d, cumulative": (functools.partial(nn.BatchNorm3d, 3, momentum=None), (3, 2, 2, 2)),
    "no running statistics": (functools.partial(nn.BatchNorm2d, 3, track_running_stats=False), (3, 2, 2)),
}
REFUSED = {  # name: method, options, words
    "an episode": ("mebqat_pn", {"ways": 2, "shots": 1, "queries": 2}, "an episode cannot be cut"),
    "a small batch": ("mebqat", {"batch_size": 1}, "a batch of 1 is too small for 2 devices: raise batch_size"),
    "compiled": ("mebqat", {"compiled": True}, "compile does not go with several devices"),
}


def recipe_of(name):
    _, _, options = RUNS[name]
    return Recipe(steps=STEPS, batch_size=16).with_options(**options)


def net(quantizer="dorefa", seed=0, dropout=False):
    """The digits' network, without a maximum: of sums of few-bit products several are often the largest, and which one
    is, up to the last digit of a mean, decides where the gradient goes.
    """
    torch.manual_seed(seed)
    model = models.digit_net(widths=(4, 4, 4, 4)).double()
    for block in model.body:
        if isinstance(block, nn.Sequential):
            for name, layer in block.named_children():
                if isinstance(layer, nn.MaxPool2d):
                    setattr(block, name, nn.AvgPool2d(layer.kernel_size))
    if dropout:
        model.body.insert(2, nn.Dropout(0.4))
        model = nn.Sequential(model)
    return quantize(model, quantizer, sample=IMAGES)


def state(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def loop_of(name, passes=None):
    quantizer, method, _ = RUNS[name]
    return Loop(net(quantizer), DATA.train, method, recipe_of(name), passes)


def step(loop):
    """One step: the gradients that the optimizer saw, what is left, and the loss."""
    seen, update = {}, loop.optimizer.step

    def noted():
        seen.update({f"grad/{n}": p.grad.clone() for n, p in loop.parameters.items() if p.grad is not None})
        update()

    loop.optimizer.step = noted
    loop.step()
    loop.optimizer.step = update
    return seen | {f"state/{n}": t for n, t in state(loop.model).items()} | {"loss": torch.tensor(loop.run.losses[-1:])}


def run_of(name, seed=0, **options):
    """What a run leaves: its losses and the model."""
    quantizer, method, _ = RUNS[name]
    model = net(quantizer, seed, dropout=name == "dropout")
    run = fit(model, DATA, method, recipe_of(name), progress=False, device="cpu", **options)
    return state(model) | {"losses": torch.tensor(run.losses, dtype=torch.float64)}


def gaps(mine, other):
    assert mine.keys() == other.keys() and mine
    return {n: (t - other[n]).abs().max().item() for n, t in mine.items() if t.numel()}


def norm_layer(name):
    """A norm of a quantized model, its input, (7, 3, ...), and the gradient of its output."""
    make, shape = NORMS[name]
    torch.manual_seed(1)
    norm, x, grad = make().double(), *torch.randn(2, 7, *shape, dtype=torch.float64)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(math.prod(shape), 2, dtype=torch.float64))
    quantize(model, sample=x, keep=[])
    assert isinstance(model[0], SwitchableNorm)
    return model, 3 * x + 5, grad


def through_norm(name, processes=None):
    """What a norm makes of its part of two batches, forward and backward; gradients of its parameters are added up."""
    model, x, grad = norm_layer(name)
    processes = processes or Processes()
    if processes.count > 1:
        processes.sizes = [4, 3]
        x, grad = (t.tensor_split(2)[processes.rank] for t in (x, grad))
    processes.join(model)
    found = {}
    for _ in range(2):  # the second one moves what the first one left
        x = x.detach().requires_grad_()
        out = model[0](x)
        out.backward(grad)
        found |= {"out": out.detach(), "x": x.grad}
        x = 2 * x + 1
    processes.add_gradients(model[0].parameters())
    found |= {f"grad/{n}": p.grad for n, p in model[0].named_parameters()}
    return found | {f"state/{n}": t for n, t in model[0].state_dict().items()}


class Interrupted(Exception):
    pass


def interrupted_run(name, **options):
    """The run, stopped twice, in both processes, and continued from other weights."""
    whole_step = Loop.step
    for seed, last in enumerate((3, 5, 99)):

        def until(loop, last=last):
            if loop.run.costs.steps == last:
                raise Interrupted
            whole_step(loop)

        Loop.step = until
        try:
            return run_of(name, seed, save_every=2, **options)
        except Interrupted:
            pass
        finally:
            Loop.step = whole_step


def spoiled(fabric):
    """A run with a bad image in the part that the second process has of the third batch, beside a run of two steps."""
    options = {"steps": 4, "batch_size": 16, "schedule": "constant", "progress": False, "passes": Fast(fabric=fabric)}
    split = Split(IMAGES, torch.arange(60))
    third = Loop(net(), split, "mebqat", Recipe(batch_size=16)).source.task(2).labels
    images = IMAGES.clone()
    images[third[-1]] = math.nan
    bad, stopped = net(), net()
    try:
        fit(bad, Data("bad", Split(images, DATA.train.labels), None, None, ()), **options)
    except TrainingError as error:
        fit(stopped, DATA, **{**options, "steps": 2})
        mine, other = state(bad), state(stopped)
        return {"message": str(error), "differ": [n for n in mine if not torch.equal(mine[n], other[n])]}


def refusals(folder, fabric):
    found = {}
    for name, (method, options, _) in REFUSED.items():
        options = dict(options)
        try:
            passes = Fast(fabric=fabric, compiled=options.pop("compiled", False))
            fit(net(), DATA, method, steps=1, progress=False, passes=passes, **options)
        except ValueError as error:
            found[name] = str(error)
    try:
        path = folder / f"only-{fabric.global_rank}"  # as on a disk that only one machine has
        (folder / "only-1").touch()
        fit(net(), DATA, steps=1, path=path, progress=False, passes=Fast(fabric=fabric))
    except ValueError as error:
        found["a file of one"] = str(error)
    held = files.locked(folder / "held") if fabric.global_rank == 0 else contextlib.nullcontext()
    try:
        with held:
            fit(net(), DATA, steps=1, path=folder / "held", progress=False, passes=Fast(fabric=fabric))
    except OSError as error:
        found["a file of another run"] = str(error)
    return found


def failing_writer(processes):
    def work():
        raise OSError(28, "No space left on device")

    try:
        processes.first(work)
    except OSError as error:
        return str(error)


def failing_alone(fabric):
    """Only the second process fails, within a forward pass, and goes; the first one must not wait for ever."""
    model = net()
    if fabric.global_rank == 1:
        model.body[1].register_forward_hook(lambda *_: 1 / 0)
    try:
        fit(model, DATA, steps=1, batch_size=16, progress=False, passes=Fast(fabric=fabric))
    except ProcessError as error:
        return str(error)
    finally:
        dist.destroy_process_group()


def work(folder):
    from mebqat_lite.scale.launch import fabric_for

    torch.set_num_threads(1)
    fabric = fabric_for(2, 1)
    fabric.launch()
    rank, processes, written, replace = fabric.global_rank, Processes(fabric), [], files.replace
    said, tensors, logged = {"rank": rank, "count": processes.count, "device": str(processes.device)}, {}, []
    for name in RUNS:
        tensors |= {f"step/{name}/{n}": t for n, t in step(loop_of(name, Fast(fabric=fabric))).items()}
        tensors |= {f"run/{name}/{n}": t for n, t in run_of(name, passes=Fast(fabric=fabric)).items()}
    for name in NORMS:
        tensors |= {f"norm/{name}/{n}": t for n, t in through_norm(name, Processes(fabric)).items()}
    unlike = net(seed=rank)
    for buffer in unlike.buffers():
        buffer += rank
    processes.copy(unlike)
    tensors |= {f"copied/{n}": t for n, t in state(unlike).items()}
    files.replace = lambda path, *what: (written.append(Path(path).name), replace(path, *what))
    for name in RESUMED:
        found = interrupted_run(name, path=folder / name, passes=Fast(fabric=fabric))
        tensors |= {f"resumed/{name}/{n}": t for n, t in found.items()}
    model, how = net(), {"steps": 2, "warm_steps": 3, "batch_size": 16, "path": folder / "warm"}
    fit(model, DATA, "qat", bits="W2A2", passes=Fast(fabric=fabric), log=logged.append, progress=False, **how)
    files.replace = replace
    said |= {"bad": spoiled(fabric), "refused": refusals(folder, fabric), "full": failing_writer(processes)}
    said |= {"hook": setting_of(model).norm is not None, "written": written}
    said["steps"] = [record["step"] for record in logged]
    said["alone"] = failing_alone(fabric)
    files.write(folder / f"{rank}.tensors", tensors, {"kind": "found"})
    (folder / f"{rank}.json").write_text(json.dumps(said))


def run(*command, cwd, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=120)


def assert_close(mine, other, tolerance=1e-10):
    assert {n: gap for n, gap in gaps(mine, other).items() if not gap <= tolerance} == {}


if __name__ == "__main__":
    work(Path(sys.argv[1]))
