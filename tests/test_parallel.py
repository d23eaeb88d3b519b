"""Two processes that share each batch: the gradients of one, runs that resume, one writer, and errors of one of them.

The processes are real and talk by gloo on the CPU. They run this file, `work`, once for most tests, and leave what
they found in a folder.
"""

import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mebqat_lite import TrainingError, files, fit, models, quantize
from mebqat_lite.cli import main
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.experiments.run_folder import read_metrics
from mebqat_lite.files import CheckpointError
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe
from mebqat_lite.scale.parallel import ProcessError, Processes
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.state import norm_layers, setting_of

pytestmark = pytest.mark.usefixtures("one_thread")
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
SAME = [name for name in RUNS if name != "dropout"]  # as one process
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


# --- what each of the two processes does -----------------------------------------------------------------------


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
    files.replace = lambda path, content: (written.append(Path(path).name), replace(path, content))
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


# --- what they found -------------------------------------------------------------------------------------------


def run(*command, cwd, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The tensors and the words of both processes."""
    folder = tmp_path_factory.mktemp("two")
    ended = run(sys.executable, __file__, str(folder), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    tensors = [files.read(folder / f"{rank}.tensors", "found")[0] for rank in (0, 1)]
    return folder, tensors, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def assert_close(mine, other, tolerance=1e-10):
    assert {n: gap for n, gap in gaps(mine, other).items() if not gap <= tolerance} == {}


def test_there_are_two_processes_on_the_cpu(found):
    for rank, said in enumerate(found[2]):
        assert (said["rank"], said["count"], said["device"]) == (rank, 2, "cpu")


@pytest.mark.parametrize("name", SAME)
def test_a_step_has_the_gradients_of_one_process(found, name):
    alone = step(loop_of(name))
    assert sum(n.startswith("grad/") for n in alone) > 5
    for tensors in found[1]:
        assert_close(part(tensors, f"step/{name}/"), alone)


def test_running_statistics_moved_and_are_those_of_the_whole_batch(found):
    before = state(net())
    moved = part(found[1][0], "step/mebqat dorefa/state/")
    names = [f"{norm}.running_var" for norm in norm_layers(net())]
    assert len(names) == 4 and not any(torch.equal(moved[name], before[name]) for name in names)


@pytest.mark.parametrize("name", SAME)
def test_a_run_ends_as_that_of_one_process(found, name):
    alone = run_of(name)
    assert len(alone["losses"]) == STEPS
    for tensors in found[1]:
        assert_close(part(tensors, f"run/{name}/"), alone)


@pytest.mark.parametrize("name", NORMS)
def test_every_batch_norm_is_that_of_the_whole_batch(found, name):
    alone = through_norm(name)
    parts = [part(tensors, f"norm/{name}/") for tensors in found[1]]
    both = {n: torch.cat([p[n] for p in parts]) if n in ("out", "x") else parts[0][n] for n in parts[0]}
    assert_close(both, alone, 1e-12)


def test_both_processes_have_the_same_bits(found):
    first, second = found[1]
    shared = [n for n in first if not n.startswith("norm/")]
    assert len(shared) > 100 and [n for n in shared if not torch.equal(first[n], second[n])] == []


def test_all_start_from_the_values_of_the_first(found):
    assert_close(part(found[1][1], "copied/"), state(net(seed=0)), 0)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_the_unbroken_one(found, name):
    for tensors in found[1]:
        assert_close(part(tensors, f"resumed/{name}/"), part(tensors, f"run/{name}/"), 0)


def test_dropout_differs_between_processes(found):
    """With one mask for both the states that a checkpoint keeps would be the same."""
    states = part(files.read(found[0] / "dropout", "training")[0], "random/")
    assert states.keys() == {"cpu", "cpu/1"} and not torch.equal(states["cpu"], states["cpu/1"])


def test_one_process_writes_and_logs(found):
    runs = [name for name in RESUMED for _ in range(3)]  # at steps 2, 4 and 6
    assert [said["written"] for said in found[2]] == [[*runs, "warm.fp", "warm"], []]
    assert [said["steps"] for said in found[2]] == [[1, 2, 3, 4, 5], []]


def test_a_run_is_not_resumed_on_another_number_of_devices(found):
    words = "trained with 2 devices, this run is with plain passes: take the same"
    with pytest.raises(CheckpointError, match=words):
        run_of("dropout", path=found[0] / "dropout")


def test_a_checkpoint_from_before_there_were_devices_is_resumed(tmp_path):
    path = tmp_path / "a.training"
    options = {"steps": 2, "batch_size": 16, "path": path, "progress": False}
    fit(net(), DATA, **options)
    tensors, meta = files.read(path, "training")
    assert meta["speed"] == {} and "random/cpu" in tensors
    for older in ({"amp": False, "compile": False, "vectorized": False, "devices": 1}, {"amp": False}):
        files.write(path, tensors, {**meta, "speed": older})
        fit(net(), DATA, **options)


def test_a_bad_image_of_one_process_stops_both_before_the_update(found):
    for said in found[2]:
        assert "the loss is nan at step 2, FP: lower lr" in said["bad"]["message"] and said["bad"]["differ"] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused(found, name):
    for said in found[2]:
        assert REFUSED[name][2] in said["refused"][name]


def test_a_checkpoint_that_one_machine_does_not_see_is_refused(found):
    for rank, said in enumerate(found[2]):
        assert f"only-{rank} must be where all processes read it" in said["refused"]["a file of one"]


def test_a_writer_that_fails_fails_in_both(found):
    assert all("No space left on device" in said["full"] for said in found[2])


def test_a_process_that_fails_alone_does_not_leave_the_other_waiting(found):
    first, second = (said["alone"] for said in found[2])
    assert second == "rank 1 of 2: ZeroDivisionError: division by zero"
    assert first.startswith("rank 0 of 2: ")


def test_nothing_of_the_processes_stays_on_the_model(found):
    assert not any(said["hook"] for said in found[2])


# --- the command line --------------------------------------------------------------------------------------------

TRAIN = ["train", "--steps", "4", "--warm-steps", "2", "--batch-size", "15", "--no-tensorboard"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def model_of(folder):
    return files.read(folder / "a.safetensors", "model")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What ``mebqat-lite train --devices 2`` leaves and prints."""
    folder = tmp_path_factory.mktemp("command")
    script = str(Path(sys.executable).parent / "mebqat-lite")
    ended = run(script, *TRAIN, "--devices", "2", "--out", "a.safetensors", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


def test_the_command_leaves_one_of_everything(trained):
    folder, ended = trained
    assert names(folder) == ["a.run", "a.safetensors", "a.training", "a.training.fp"]
    assert ended.stdout.count("6 steps, 18 back-propagations") == ended.stdout.count("Written: a.safetensors") == 1
    assert names(folder / "a.run") == ["environment.json", "metrics.jsonl", "recipe.json", "result.json"]
    assert [record["step"] for record in read_metrics(folder / "a.run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((folder / "a.run" / "recipe.json").read_text())["devices"] == 2
    assert main(["evaluate", "--checkpoint", str(folder / "a.safetensors"), "--bits", "W2A2"]) == 0


def test_torchrun_gives_the_same_model(trained, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "mebqat_lite", *TRAIN, "--devices", "2", "--out", "a.safetensors"]
    ended = run(*command, cwd=tmp_path, TMPDIR=str(tmp_path))  # torchrun leaves folders there
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Written: a.safetensors") == 1
    assert_close(model_of(tmp_path), model_of(trained[0]), 0)


def test_an_error_of_all_processes_is_one_line(tmp_path):
    """A rate of 1e30 leaves no finite loss; both processes know after the same step."""
    rate = ["--lr", "1e30", "--set", "clip=1e30", "--set", "schedule=constant"]
    ended = run(sys.executable, "-m", "mebqat_lite", *TRAIN, *rate, "--devices", "2", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch(r"mebqat-lite: the loss is nan at step 1, FP: lower lr .*\n", ended.stderr)


@pytest.fixture
def called(monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mebqat-lite", *words])
        return main()

    return call


def test_without_fabric_the_message_has_the_cure(called, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for package in ("lightning_fabric", "lightning", "lightning.fabric"):
        monkeypatch.setitem(sys.modules, package, None)
    assert called(*TRAIN, "--devices", "2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "mebqat_lite[fabric]"' in error and not names(tmp_path)


def test_one_device_needs_no_fabric(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert main([*TRAIN, "--out", "a.safetensors"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--devices", "0"), "--devices and --nodes must be at least 1, not 0 and 1"),
        (("--nodes", "-1"), "must be at least 1, not 1 and -1"),
    ],
)
def test_devices_that_cannot_be(called, capsys, words, message):
    assert called(*TRAIN, *words) == 2
    assert message in capsys.readouterr().err


def test_more_devices_than_gpus_are_refused(called, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert called(*TRAIN, "--devices", "2") == 2
    assert "there are 1 GPUs, not 2" in capsys.readouterr().err


def test_a_call_from_python_starts_no_processes(capsys):
    """They would run Python's own command line again, here all tests."""
    assert main([*TRAIN, "--devices", "2"]) == 2
    assert "several devices need a command line of its own" in capsys.readouterr().err


def test_processes_of_torchrun_that_were_not_asked_for_are_refused(called, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert called(*TRAIN) == 2
    assert re.search("torchrun started 2 processes: give --devices", capsys.readouterr().err)


def test_a_fabric_that_was_not_launched_is_refused():
    from lightning_fabric import Fabric

    with pytest.raises(ValueError, match=r"call fabric\.launch\(\) before fit"):
        fit(net(), DATA, passes=Fast(fabric=Fabric(accelerator="cpu", devices=2, strategy="ddp")))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
