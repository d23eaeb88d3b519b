"""Interrupted runs: continued to the identical bit, refused where they are not the same run, and failed ones."""

import json
import math
import random
import time

import pytest
import torch
import torch.nn.functional as F
from interrupted_runs import (
    DATA,
    FAST,
    IMAGES,
    RUNS,
    assert_same,
    kill_and_restart,
    net,
    result,
    train,
    wait_for_lines,
    work,
)

from mebqat_lite import CheckpointError, TrainingError, files, fit
from mebqat_lite.bits import FP, Bits
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.learners import Supervised
from mebqat_lite.loop import Loop
from mebqat_lite.switching.state import setting_of


class Interrupted(BaseException):
    pass


def interrupt(monkeypatch, name, path, point, seed, save_every=3):
    """Run until the back-propagation number ``point`` (of this attempt) has been counted; raise there."""
    backpropagate, left = Tensor_backward, [point]

    def backward(self, *args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        return backpropagate(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(torch.Tensor, "backward", backward)
        train(name, path, seed, save_every=save_every)


Tensor_backward = torch.Tensor.backward


@pytest.mark.parametrize("name", list(RUNS))
def test_an_interrupted_run_ends_as_if_it_had_not_been(name, tmp_path, monkeypatch):
    whole = result(*train(name))
    path, rng = tmp_path / "run", random.Random(3)
    passes = {"qat start": 2, "dropout": 3}.get(name, 5)  # backward calls a step; a shared stem has one of its own
    for seed, steps in enumerate((1, 4, 0, 5, 5), start=1):  # whole steps before; 0, 3, 3, 6, 9 of them are saved
        interrupt(monkeypatch, name, path, steps * passes + rng.randint(1, passes), seed)
    assert files.read(path, "training")[1]["run"]["costs"]["steps"] == 9
    assert_same(result(*train(name, path, seed=8)), whole)
    assert_same(result(*train(name, path, seed=9)), whole)  # a finished run is not trained again


@pytest.mark.slow
def test_runs_that_are_killed_at_random_end_the_same(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)  # shown if the test fails
    rng = random.Random(seed)

    def moment(process):
        wait_for_lines(tmp_path / "steps", rng.randint(2, 11), process)  # of 48 steps, a line each
        time.sleep(rng.uniform(0, 0.03))  # within a step or the writing of a checkpoint

    kill_and_restart(work, [tmp_path], moment)
    for name in RUNS:
        numbers = json.loads((tmp_path / f"{name}.json").read_text())
        tensors, _ = files.read(tmp_path / f"{name}.end", "end")
        assert_same((numbers, tensors), result(*train(name)))


# --- files of other runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.5}, "mebqat, lr 0.01 there, 0.5 here"),
        ({"seed": 7, "m": 3}, "m 4 there, 3 here"),
        ({"steps": 99}, "steps 12 there, 99 here"),
        ({"teacher": "labels"}, "teacher .* there, 'labels' here"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, change, words):
    train("mebqat dorefa", tmp_path / "run", save_every=4)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(CheckpointError, match=rf"run belongs to another run \(.*{words}.*give another path"):
        train("mebqat dorefa", tmp_path / "run", **change)
    assert (tmp_path / "run").read_bytes() == before


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    fit(net(), DATA, "fp", steps=2, path=tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(fp, same recipe\)"):
        fit(net(), DATA, "ptq_naive", steps=2, path=tmp_path / "run", progress=False)


@pytest.mark.parametrize(("there", "here"), [("dorefa", "lsq"), ("lsq", "dorefa"), ("dorefa", "sat")])
def test_a_checkpoint_of_another_quantizer_is_refused(tmp_path, there, here):
    options = {"steps": 4, "batch_size": 16, "path": tmp_path / "run", "progress": False}
    fit(net(there), DATA, **options)
    with pytest.raises(CheckpointError):
        fit(net(here), DATA, **options)


def test_options_given_as_lists_are_the_same_recipe(tmp_path):
    options = {"milestones": [0.25, 0.5], "schedule": "milestones", "path": tmp_path / "run"}
    assert_same(result(*train("mebqat dorefa", **options)), result(*train("mebqat dorefa", **options)))


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run"
    interrupt(monkeypatch, "dropout", path, 13, seed=1)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(files.os, "replace", full)
        train("dropout", path, seed=2, save_every=1)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert_same(result(*train("dropout", path, seed=3)), result(*train("dropout")))


# --- runs that fail -----------------------------------------------------------------------------------------


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def spoiled(step):
    """Data with a NaN in an image of the batch number ``step`` of the first epoch, and in none before."""
    rest = Split(IMAGES.clone(), torch.arange(64))
    index = Loop(net(), rest, "fp", FAST).source.task(step).labels[0]
    rest.images[index] = math.nan
    return Data("spoiled", Split(rest.images, DATA.train.labels), None, None, ())


def failed(step=2):
    """A run whose batch number ``step`` is bad: the model, and one that was stopped before it."""
    model, stopped = net(), net()
    with pytest.raises(TrainingError) as caught:
        fit(model, spoiled(step), "mebqat", FAST, progress=False)
    fit(stopped, DATA, "mebqat", FAST, steps=step, progress=False)
    return model, stopped, str(caught.value)


@pytest.mark.parametrize("step", [1, 3])
def test_a_loss_that_is_not_finite_stops_before_the_update(step):
    model, stopped, message = failed(step)
    for words in ("the loss is nan", f"step {step}", "FP", "lr (now 0.003)", "images"):
        assert words in message
    mine, other = parameters(model), parameters(stopped)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_the_pair_that_failed_is_named(monkeypatch):
    def losses(self, model, task, pairs):
        yield FP, F.cross_entropy(model(task.images), task.labels)
        yield Bits(2, 5), torch.tensor(math.inf)

    model = net()
    before = parameters(model)
    monkeypatch.setattr(Supervised, "losses", losses)
    with pytest.raises(TrainingError, match=r"the loss is inf at step 0, W2A5: lower lr \(now 0.003\)"):
        fit(model, DATA, "mebqat", FAST, progress=False)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_bad_batch_leaves_finite_statistics():
    model, stopped, _ = failed()
    assert [n for n, t in model.state_dict().items() if not torch.isfinite(t.float()).all()] == []
    mine, other = dict(model.named_buffers()), dict(stopped.named_buffers())
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize("left", ["by the user", "by a failed run"])
def test_gradients_left_from_before_do_not_count(monkeypatch, left):
    model, fresh = net(), net()
    if left == "by the user":
        F.cross_entropy(model.eval()(IMAGES), DATA.train.labels).backward()
    else:

        def losses(self, model, task, pairs):
            yield FP, F.cross_entropy(model.train()(task.images), task.labels)
            yield Bits(2, 2), torch.tensor(math.inf)

        with monkeypatch.context() as patch, pytest.raises(TrainingError):
            patch.setattr(Supervised, "losses", losses)
            fit(model, DATA, "mebqat", FAST, progress=False)
        fresh.load_state_dict(model.state_dict())
    for network in (model, fresh):
        fit(network, DATA, "mebqat", FAST, steps=2, progress=False)
    mine, other = parameters(model), parameters(fresh)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_failed_run_leaves_no_hooks_and_a_model_that_tracks():
    model, _, _ = failed()
    assert setting_of(model).track_running
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_save_every_must_be_a_number_of_steps():
    with pytest.raises(ValueError, match="save_every must be at least 1, not 0"):
        fit(net(), DATA, "fp", FAST, save_every=0, progress=False)
