"""The training loop: whose gradients are averaged, what is clipped, counted, updated, and refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mebqat_lite import datasets, fit, models, quantize
from mebqat_lite.bits import FP, parse_all
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Loop
from mebqat_lite.methods import METHODS
from mebqat_lite.quantizers import TINY
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Listed
from mebqat_lite.switching.state import at, plan_of, quantized_layers, set_norm_stats, setting_of
from mebqat_lite.train import learning_rate

FAST = {"batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def data():
    train = datasets.digits().train
    return Data("tiny", Split(train.images[:64], train.labels[:64]), None, None, tuple("0123456789"))


def float_net(seed=0):
    torch.manual_seed(seed)
    return models.digit_net(widths=(4, 4, 4, 4))


def net(data, quantizer="dorefa", seed=0, **options):
    return quantize(float_net(seed), quantizer, sample=data.train.images, **options)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def captured(loop):
    """Run one step of a loop; returns the gradients that the optimizer saw, by name."""
    seen, update = {}, loop.optimizer.step

    def step():
        seen.update({n: None if p.grad is None else p.grad.clone() for n, p in loop.parameters.items()})
        update()

    loop.optimizer.step = step
    loop.step()
    return seen


def loop_at(model, data, pairs, quantizer="lsq", **options):
    split = Split(data.train.images.double(), data.train.labels)
    recipe = Recipe(batch_size=16, quantizer=quantizer, teacher="fp").with_options(**{"clip": 1e9, **options})
    loop = Loop(model, split, "mebqat", recipe)
    loop.sampler = Listed(pairs)
    return loop


# --- gradients ----------------------------------------------------------------------------------------------


def test_gradients_are_averaged_over_the_tasks_that_used_a_parameter(data):
    model = net(data, "lsq").double()
    loop = loop_at(model, data, "FP,W2A2,W4A4,W4A8")
    apart, task = copy.deepcopy(model), loop.source.task(0)
    named, grads = dict(apart.named_parameters()), {name: [] for name in loop.parameters}
    with torch.no_grad(), at(apart, FP):
        soft = apart(task.images).softmax(1)
    for bits in parse_all("FP,W2A2,W4A4,W4A8"):  # each pair alone, through the whole network
        with at(apart, bits):
            log = apart(task.images).log_softmax(1)
        loss = F.nll_loss(log, task.labels) - (0 if bits == FP else (soft * log).sum(1).mean())
        for name, grad in zip(named, torch.autograd.grad(loss, named.values(), allow_unused=True), strict=True):
            grads[name] += [] if grad is None else [grad]
    uses = {name: len(found) for name, found in grads.items()}
    assert uses["body.1.0.weight"] == uses["stem.0.weight"] == 4
    assert (uses["body.1.0.quant.w2"], uses["body.1.0.quant.w4"], uses["body.1.0.quant.a8"]) == (1, 2, 1)
    assert uses["body.1.0.quant.w3"] == 0
    for name, grad in captured(loop).items():
        if not uses[name]:
            assert grad is None, name
        else:
            torch.testing.assert_close(grad, sum(grads[name]) / uses[name], rtol=1e-9, atol=1e-13, msg=name)


def test_what_no_task_used_gets_no_decay_and_no_moment(data):
    model = net(data, "lsq").double()
    loop = loop_at(model, data, "FP,W2A2", lr=0.1, weight_decay=0.5)
    loop.step()
    loop.step()
    before = weights(model)
    slots = copy.deepcopy({n: loop.optimizer.state.get(p, {}) for n, p in loop.parameters.items()})
    loop.sampler = Listed("FP,W4A4")
    loop.step()
    for name, parameter in loop.parameters.items():
        used = not name.rpartition(".quant.")[1] or name.endswith(("w4", "a4"))
        assert torch.equal(before[name], parameter.detach()) != used, name
        if not used:
            now = loop.optimizer.state.get(parameter, {})
            assert now.keys() == slots[name].keys() and all(torch.equal(now[k], slots[name][k]) for k in now)
    assert slots["body.1.0.quant.w2"]["step"] == 2 and not slots["body.1.0.quant.w3"]


def test_one_update_is_adamw_s(data):
    model = net(data).double()
    loop, before = loop_at(model, data, "FP,W2A2", "dorefa", lr=0.02, weight_decay=0.3), weights(model)
    for name, grad in captured(loop).items():
        wanted = before[name] * (1 - 0.02 * 0.3) - 0.02 * grad / (grad.abs() + 1e-8)  # both moments are the gradient's
        torch.testing.assert_close(loop.parameters[name].detach(), wanted, rtol=1e-10, atol=1e-14)


def test_each_gradient_element_is_clipped(data):
    free = captured(loop_at(net(data).double(), data, "FP,W2A2", "dorefa"))
    clipped = captured(loop_at(net(data).double(), data, "FP,W2A2", "dorefa", clip=1e-3))
    assert any((grad.abs() > 1e-3).any() and (grad.abs() < 1e-3).any() for grad in free.values())
    for name, grad in free.items():
        torch.testing.assert_close(clipped[name], grad.clamp(-1e-3, 1e-3), rtol=1e-12, atol=0)


# --- schedules and batches ----------------------------------------------------------------------------------


def test_learning_rates():
    recipe = Recipe(steps=400, lr=0.2, schedule="milestones", gamma=0.1)
    rates = [learning_rate(recipe, step) for step in (0, 149, 150, 249, 250, 349, 350, 399)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002, 2e-4, 2e-4], rel=1e-12)
    recipe = Recipe(steps=400, lr=0.2, schedule="cosine")
    rates = [learning_rate(recipe, step) for step in (0, 100, 200, 300, 400)]
    assert rates == pytest.approx([0.2, 0.2 * (2 + 2**0.5) / 4, 0.1, 0.2 * (2 - 2**0.5) / 4, 0], abs=1e-15)
    recipe = Recipe(steps=400, lr=0.2, schedule="constant")
    assert {learning_rate(recipe, step) for step in range(400)} == {0.2}


def test_the_loop_uses_the_rate_of_its_step(data):
    loop = Loop(net(data), data.train, "fp", Recipe(steps=4, lr=0.2, teacher="fp"))
    rates = [(loop.step(), loop.optimizer.param_groups[0]["lr"])[1] for _ in range(4)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 4)) for k in range(4)], rel=1e-12)


def test_batches_are_a_function_of_seed_and_step(data):
    def loop(seed=0, batch_size=16):
        numbered = Split(data.train.images[:50], torch.arange(50))
        return Loop(float_net_quantized, numbered, "fp", Recipe(seed=seed, batch_size=batch_size, teacher="fp"))

    float_net_quantized = net(data)
    one, epochs = loop(), []
    for epoch in range(3):
        drawn = [one.source.task(3 * epoch + k) for k in range(3)]  # 50 images: 3 whole batches, 2 images left out
        epochs.append(torch.cat([batch.labels for batch in drawn]))
        assert len(epochs[-1].unique()) == 48
        for batch in drawn:
            assert torch.equal(batch.images, data.train.images[batch.labels])
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert set(range(50)) == set(torch.cat(epochs).tolist())  # the images left out change
    for step in (7, 0, 4):
        assert torch.equal(loop().source.task(step).labels, epochs[step // 3][16 * (step % 3) : 16 * (step % 3) + 16])
    assert not torch.equal(loop(seed=1).source.task(0).labels, one.source.task(0).labels)
    assert sorted(loop(batch_size=128).source.task(5).labels.tolist()) == list(range(50))


# --- learned steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["lsq", "sat"])
def test_learned_steps_stay_positive(data, quantizer):
    model = net(data, quantizer)
    fit(model, data, steps=6, lr=20.0, schedule="constant", sandwich=False, **FAST)
    learned = torch.stack([p.detach() for layer in quantized_layers(model).values() for p in layer.quant.values()])
    assert (learned >= TINY).all() and (learned == learned.new_tensor(TINY)).any()


def test_visited_steps_learn_and_others_stay(data):
    model = net(data, "lsq")
    before = weights(model)
    fit(model, data, "qat", bits="W3A5", steps=4, **FAST)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {n for n in moved if ".quant." in n} == {f"body.{i}.0.quant.{s}" for i in range(3) for s in ("w3", "a5")}
    assert {n for n in before if ".quant." not in n} <= moved


# --- what fit does beside training --------------------------------------------------------------------------


def test_nothing_of_a_run_stays_on_the_model(data):
    model = net(data)
    fit(model, data, "qat", bits="W2A2", steps=2, **FAST)
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_trains_the_same_weights(data):
    first, again, other = net(data), net(data), net(data)
    losses = [
        fit(model, data, steps=6, seed=seed, **FAST).losses for model, seed in ((first, 3), (again, 3), (other, 4))
    ]
    assert losses[0] == losses[1] != losses[2]
    assert same(first.state_dict(), again.state_dict()) and not same(weights(first), weights(other))


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_a_float_model_is_quantized(data, quantizer):
    model, before = float_net(), net(data, quantizer)
    fit(model, data, steps=2, quantizer=quantizer, **FAST)
    fit(before, data, steps=2, quantizer="sat", **FAST)  # a quantized one keeps its own
    assert plan_of(model).quantizer == plan_of(before).quantizer == quantizer
    assert same(model.state_dict(), before.state_dict())


def test_frozen_weights_stay(data):
    model = net(data)
    model.body[1].requires_grad_(False)
    before = weights(model)
    fit(model, data, steps=3, **FAST)
    assert {n for n, p in model.named_parameters() if torch.equal(p, before[n])} == {
        n for n in before if n.startswith("body.1.")
    }


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if not known.learns_new_classes])
def test_each_method_leaves_its_norm_policy(data, method):
    model = net(data)
    set_norm_stats(model, "running")
    fit(model, data, method, bits="W2A2" if method == "qat" else (), steps=1, **FAST)
    wanted = {"fp": "running", "ptq_naive": "recalibrated", "ptq_mse": "recalibrated", "qat": "running"}
    wanted |= dict.fromkeys(("adabits", *(n for n in METHODS if n.startswith("any_"))), "running")
    assert setting_of(model).norm_stats == wanted.get(method, "batch")


def test_ptq_mse_is_full_precision_training_and_then_steps(data):
    model, plain = net(data), net(data)
    fit(model, data, "ptq_mse", steps=4, **FAST)
    fit(plain, data, "fp", steps=4, **FAST)
    assert plan_of(model).quantizer == "least_squares" and plan_of(plain).quantizer == "dorefa"
    left = {n: t for n, t in model.state_dict().items() if ".quant." not in n}
    assert same(left, plain.state_dict())
    steps = [p for layer in quantized_layers(model).values() for p in layer.quant.values()]
    assert steps and not any(p.requires_grad for p in steps)
    with at(plain, FP), at(model, FP, "running"):
        assert torch.equal(model(data.train.images), plain(data.train.images))


def test_only_the_training_part_is_looked_at(data):
    fit(net(data), Data("x", data.train, object(), object(), ()), steps=1, **FAST)


class Convnet(nn.Sequential):
    """A model of a user's own, without stem and body."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def test_a_model_of_one_s_own_learns(data):
    torch.manual_seed(0)
    run = fit(Convnet(), data, steps=20, batch_size=64, progress=False)
    assert run.losses[-1] < run.losses[0] - 0.3


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("mebcat", {}, ValueError, "no method 'mebcat'; known: fp, ptq_naive, ptq_mse, qat, mebqat"),
        ("mebqat", {"stepz": 3}, TypeError, r"no option \['stepz'\]; known: steps, "),
        ("mebqat", {"teacher": "boss"}, ValueError, "no teacher 'boss'; choose one of labels, fp"),
        ("mebqat", {"schedule": "linear"}, ValueError, "no schedule 'linear'; choose cosine, milestones or constant"),
        ("mebqat", {"steps": 0}, ValueError, "steps must be at least 1, not 0"),
        ("mebqat", {"m": 0}, ValueError, "m must be at least 1, not 0"),
        ("mebqat", {"batch_size": -1}, ValueError, "batch_size must be at least 1, not -1"),
        ("qat", {}, ValueError, 'qat trains exactly one pair: give bits="W2A2", not none'),
        ("qat", {"bits": "W2A2,W4A4"}, ValueError, r"exactly one pair: give .* not \('W2A2', 'W4A4'\)"),
        ("qat", {"bits": "W2"}, ValueError, "'W2' is no bitwidth pair; write W2A4"),
        ("mebqat", {"quantizer": "round"}, ValueError, "no quantizer 'round'; known: dorefa, dorefa_fp_tanh, sat"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason(data, method, options, error, message):
    model = float_net()
    before = weights(model)
    with pytest.raises(error, match=message):
        fit(model, data, method, **{**FAST, "steps": 2, **options})
    assert {n: t for n, t in weights(model).items() if ".quant." not in n}.keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters())
