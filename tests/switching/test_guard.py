"""A forward pass runs at the bits that its caller means: repeated in backward, beside threads, beside tasks."""

import asyncio
import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split

X = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


class Net(nn.Module):
    """Three convolutions; ``repeat`` says how their activations are computed again in backward."""

    def __init__(self, repeat="no"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        blocks = [[nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()] for _ in range(2)]
        self.blocks = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
        self.repeat = repeat

    def forward(self, x):
        h = self.first(x).relu()
        if self.repeat == "sequential":
            h = checkpoint_sequential(self.blocks, 2, h, use_reentrant=False)
        elif self.repeat == "no":
            h = self.blocks(h)
        else:
            h = checkpoint(self.blocks, h, use_reentrant=self.repeat == "reentrant")
        return self.last(h.mean((2, 3)))


def net(repeat, quantizer="dorefa"):
    return mq.quantize(Net(repeat), quantizer, sample=X)


REPEATS = ["plain", "reentrant", "sequential"]


# ---------------------------------------------------------------- repeated in backward


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize(
    ("method", "quantizer", "options"),
    [("qat", "dorefa", {"bits": "W2A2"}), ("mebqat", "lsq", {}), ("adabits", "sat", {"bits": "W2A2,W4A4,FP"})],
)
def test_training_with_gradient_checkpointing_is_training_without(repeat, method, quantizer, options):
    data = Data("made", Split(X, Y), Split(X, Y), Split(X, Y), ("a", "b", "c"))
    plain, again = net("no", quantizer), net(repeat, quantizer)
    runs = [mq.fit(m, data, method, steps=3, batch_size=12, lr=0.02, progress=False, **options) for m in (plain, again)]
    assert runs[0].losses == runs[1].losses
    for (name, mine), other in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name  # norm statistics too: a repeated pass does not update them again


def gradients(model, backward_inside):
    with mq.at(model, "W2A2"):
        loss = F.cross_entropy(model(X), Y)
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("repeat", REPEATS)
def test_backward_of_an_own_loop_repeats_at_the_same_bits_or_not_at_all(repeat):
    expected = gradients(net("no"), backward_inside=False)  # without checkpointing nothing is repeated
    found = gradients(net(repeat), backward_inside=True)
    assert all(torch.equal(mine, other) for mine, other in zip(expected, found, strict=True))
    with pytest.raises(
        RuntimeError,
        match=r"would repeat at FP \(running\) what ran at W2A2 \(running\): call backward .* inside `with at",
    ):
        gradients(net(repeat), backward_inside=False)


@pytest.mark.parametrize("repeat", ["plain", "sequential"])
def test_losses_of_several_pairs_cannot_be_repeated_together(repeat):
    model = net(repeat)
    losses = []
    for bits in ("W2A2", "W4A4"):
        with mq.at(model, bits):
            losses.append(F.cross_entropy(model(X), Y))
    with (
        pytest.raises(RuntimeError, match=r"at W4A4 \(running\) what ran at W2A2 \(running\) and W4A4 \(running\)"),
        mq.at(model, "W4A4"),
    ):
        sum(losses).backward()
    for bits in ("W2A2", "W4A4", {"*": "W4A4", "blocks.0.0": "W2A2"}):  # one after the other is fine
        with mq.at(model, bits):
            F.cross_entropy(model(X), Y).backward()
    with mq.at(model, "W4A4"):
        loss = F.cross_entropy(model(X), Y)
        with mq.at(model, "FP"), torch.no_grad():
            model(X)  # a teacher's pass
        loss.backward()


# ---------------------------------------------------------------- beside threads and tasks


def together(*works):
    """Run each work in a thread of its own; return the errors."""
    errors = []

    def caught(work):
        try:
            work()
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=caught, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_threads_never_get_outputs_at_the_bits_of_each_other():
    model = net("no").eval()
    expected = {}
    for bits in ("W1A1", "FP"):
        with mq.at(model, bits), torch.no_grad():
            expected[bits] = model(X)
    wrong, right = [], []

    def use(bits):
        for _ in range(30):
            try:
                with mq.at(model, bits), torch.no_grad():
                    (right if torch.equal(model(X), expected[bits]) else wrong).append(bits)
            except RuntimeError as error:
                assert "another thread or asyncio task has switched this model" in str(error)

    together(lambda: use("W1A1"), lambda: use("FP"))
    assert not wrong and right
    assert str(mq.switching.state.setting_of(model).bits) == "FP"


@pytest.mark.parametrize(
    "use",
    [lambda model: model(X), lambda model: mq.set_bits(model, "FP"), lambda model: mq.at(model, "FP").__enter__()],
)
def test_what_another_thread_has_switched_is_refused_and_a_copy_is_not(use):
    model = net("no").eval()
    with mq.at(model, "W2A2"):
        errors = together(lambda: use(model))
        assert len(errors) == 1 and "give each a copy of its own, by copy.deepcopy" in errors[0]
        own = copy.deepcopy(model)
        assert together(lambda: use(own)) == []
        copies = []
        together(lambda: copies.append(copy.deepcopy(model)))  # the cure, where the refusal was met
    assert str(mq.switching.state.setting_of(copies[0]).bits) == "FP"
    assert str(mq.switching.state.setting_of(own).bits) in ("W2A2", "FP")  # copied inside, unless ``use`` switched it
    assert together(lambda: use(model)) == []  # nobody is inside `at` any more


def test_threads_share_a_model_that_nobody_switches():
    model = net("no").eval()
    mq.set_bits(model, "W2A2")
    with torch.no_grad():
        expected, found = model(X), []
    together(*[lambda: found.append(torch.equal(model(X), expected)) for _ in range(4)])
    assert found == [True] * 4


def test_two_tasks_of_one_thread_are_told_apart():
    model = net("no").eval()

    async def use(bits, outputs):
        with mq.at(model, bits), torch.no_grad():
            await asyncio.sleep(0.01)
            outputs.append(model(X))

    async def both(outputs):
        return await asyncio.gather(use("W1A1", outputs), use("W8A8", outputs), return_exceptions=True)

    outputs = []
    [error] = [result for result in asyncio.run(both(outputs)) if result is not None]
    assert isinstance(error, RuntimeError) and "asyncio task" in str(error)
    with mq.at(model, "W1A1"), torch.no_grad():
        assert len(outputs) == 1 and torch.equal(outputs[0], model(X))


def test_a_data_parallel_replica_runs_at_the_bits_of_its_model():
    model = net("no").eval()
    layer = model.blocks[0][0]
    replica = layer._replicate_for_data_parallel()  # as nn.parallel.replicate does, without its GPUs
    replica.weight, replica.bias = layer.weight, layer.bias
    x, found = torch.rand(2, 4, 5, 5), []
    with mq.at(model, "W2A2"), torch.no_grad():
        assert together(lambda: found.append(replica(x))) == []
        assert torch.equal(found[0], layer(x))


# ---------------------------------------------------------------- what else decides how a pass runs


def test_a_pass_is_repeated_under_its_norm_policy_or_not_at_all():
    model = net("plain").eval()
    with mq.at(model, "W4A4", "batch"):
        loss = F.cross_entropy(model(X), Y)
    with pytest.raises(RuntimeError, match=r"at W4A4 \(running\) what ran at W4A4 \(batch\)"), mq.at(model, "W4A4"):
        loss.backward()


def test_the_older_form_is_refused_where_passes_ran_in_several_ways():
    model = net("reentrant")
    losses = []
    for bits in ("W2A2", "FP"):
        mq.set_bits(model, bits)
        losses.append(F.cross_entropy(model(X), Y))
    with pytest.raises(RuntimeError, match="take use_reentrant=False"):
        sum(losses).backward()
