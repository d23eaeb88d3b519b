"""MAML against derivatives by hand and by automatic differentiation, in float64; what its loops move."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from few_shot import DATA, FAST, assert_grads, episode, frozen_running, grads, net, plain_net, small
from torch import nn
from torch.func import functional_call

from mebqat_lite import Recipe, fit, quantize
from mebqat_lite.bits import FP, Bits, parse_all
from mebqat_lite.datasets import Episode
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML, adaptable
from mebqat_lite.switching.state import at, quantized_layers, setting_of

NORM = (".1.weight", ".1.bias")  # gains and shifts of a conv4, which no inner loop moves


# --- MAML: a linear model by hand -------------------------------------------------------------------------------


def linear(features=5, ways=3):
    """Softmax regression, whose derivatives are known in closed form."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, ways)).double()
    with pytest.warns(UserWarning, match="no layer to quantize"):
        return quantize(model, sample=torch.rand(4, 1, 1, features).double())


def linear_episode():
    g = torch.Generator().manual_seed(3)
    return Episode(*(torch.randn(3, k, 1, 1, 5, dtype=torch.float64, generator=g) for k in (2, 4)))


def rows_of(part):
    """Images with a one for the bias, (N k, features + 1), and one-hot labels."""
    flat = part.flatten(0, 1).flatten(1).numpy()
    labels = np.repeat(np.eye(len(part)), part.shape[1], axis=0)
    return np.hstack([flat, np.ones((len(flat), 1))]), labels


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def hand_gradient(w, x, y):
    """d mean cross-entropy / dW = (P - Y)^T X / n, with P = softmax(X W^T)."""
    return (softmax(x @ w.T) - y).T @ x / len(x)


def hand_curvature(w, x, direction):
    """The Hessian of the mean cross-entropy times a direction: (dP)^T X / n, dP = P (dZ - sum P dZ)."""
    p, dz = softmax(x @ w.T), x @ direction.T
    return (p * (dz - (p * dz).sum(1, keepdims=True))).T @ x / len(x)


def joined(layer, grad=False):
    weight, bias = (layer.weight.grad, layer.bias.grad) if grad else (layer.weight, layer.bias)
    return torch.cat([weight, bias[:, None]], 1).detach().numpy()


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_gradient_of_a_linear_model_is_the_one_derived_by_hand(steps, second_order):
    """First order: g_query(W_k). Second: (I - lr H(W_0)) ... (I - lr H(W_k-1)) g_query(W_k)."""
    model, task, lr = linear(), linear_episode(), 0.7
    ((bits, loss),) = FOMAML(steps, lr, second_order).losses(model, task, [FP])
    loss.backward()
    (x, y), (query, wanted) = rows_of(task.support), rows_of(task.query)
    path = [joined(model[1])]
    for _ in range(steps):
        path.append(path[-1] - lr * hand_gradient(path[-1], x, y))
    grad = hand_gradient(path[-1], query, wanted)
    for w in reversed(path[:-1]) if second_order else ():
        grad = grad - lr * hand_curvature(w, x, grad)
    assert bits == FP
    assert loss.item() == pytest.approx(-np.log((softmax(query @ path[-1].T) * wanted).sum(1)).mean(), rel=1e-10)
    np.testing.assert_allclose(joined(model[1], grad=True), grad, rtol=1e-10, atol=1e-13)
    predicted = FOMAML(steps, lr, second_order).adapt(model, task.support, FP)(task.query.flatten(0, 1))
    np.testing.assert_allclose(predicted.numpy(), query @ path[-1].T, rtol=1e-10, atol=1e-13)


def test_test_steps_are_those_of_adapt_only():
    model, task, lr = linear(), linear_episode(), 0.3
    (x, y), (query, _) = rows_of(task.support), rows_of(task.query)
    w = joined(model[1])
    for _ in range(4):
        w = w - lr * hand_gradient(w, x, y)
    learner, short = FOMAML(1, lr, test_steps=4), FOMAML(1, lr)
    np.testing.assert_allclose(learner.adapt(model, task.support, FP)(task.query.flatten(0, 1)), query @ w.T)
    losses = [next(one.losses(model, task, [FP]))[1].item() for one in (learner, short)]
    assert losses[0] == losses[1]
    assert short.test_steps == 1


# --- MAML: networks ---------------------------------------------------------------------------------------------


def functional_loss(model, names, values, part, steps, lr):
    """The query loss of an own network after ``steps`` on the support, differentiable through them."""
    fixed = {n: p for n, p in zip(names, values, strict=True) if n.endswith(NORM)}
    fast = {n: p for n, p in zip(names, values, strict=True) if n not in fixed}
    labels = [torch.arange(3).repeat_interleave(k) for k in (2, 4)]
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, fast | fixed, (part.support.flatten(0, 1),)), labels[0])
        found = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {n: p - lr * g for (n, p), g in zip(fast.items(), found, strict=True)}
    return F.cross_entropy(functional_call(model, fast | fixed, (part.query.flatten(0, 1),)), labels[1])


@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_is_the_gradient_through_the_inner_steps(steps):
    """Of a plain, never quantized network, by `torch.autograd.functional`; first order is another gradient."""
    model, task = net(3), episode()
    plain = plain_net(3).train()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if ".quant." not in n})
    names = [name for name, _ in plain.named_parameters()]
    assert sum(name.endswith(NORM) for name in names) == 8
    wanted = torch.autograd.functional.jacobian(
        lambda *values: functional_loss(plain, names, values, task, steps, 0.2), tuple(plain.parameters())
    )
    ((_, loss),) = FOMAML(steps, 0.2, second_order=True).losses(model, task, [FP])
    loss.backward()
    mine = grads(model)
    for name, grad in zip(names, wanted, strict=True):
        torch.testing.assert_close(mine[name], grad, rtol=1e-9, atol=1e-12)
    first = net(3)
    ((_, loss),) = FOMAML(steps, 0.2).losses(first, task, [FP])
    loss.backward()
    assert max(float((first.get_parameter(n).grad - mine[n]).abs().max()) for n in names) > 1e-3


def hand_adapted(model, task, bits, steps, lr):
    """A copy of the network whose parameters were moved in place, and which of them moved."""
    copied = frozen_running(copy.deepcopy(model))
    moved = {n: p for n, p in copied.named_parameters() if not n.endswith(NORM)}
    labels = torch.arange(len(task.support)).repeat_interleave(task.support.shape[1])
    for _ in range(steps):
        copied.zero_grad()
        with at(copied, bits):
            F.cross_entropy(copied(task.support.flatten(0, 1)), labels).backward()
        with torch.no_grad():
            for name, p in moved.items():
                if p.grad is not None:
                    p -= lr * p.grad
                    if ".quant." in name:
                        p.clamp_(min=torch.finfo(torch.float32).tiny)
    copied.zero_grad()
    return copied


@pytest.mark.parametrize("teacher", ["labels", "fp"])
@pytest.mark.parametrize("bits", ["W2A2", "W4A8", "FP"])
def test_the_first_order_gradient_is_that_at_the_adapted_weights(bits, teacher):
    model, task, bits = net(3), episode(), Bits.parse(bits)
    copied, query = hand_adapted(model, task, bits, 3, 0.05), task.query.flatten(0, 1)
    with at(copied, bits):
        log = copied(query).log_softmax(1)
    wanted = F.nll_loss(log, task.labels)
    if teacher == "fp" and bits != FP:
        high = hand_adapted(model, task, FP, 3, 0.05)
        with at(high, FP):
            wanted = wanted - (high(query).softmax(1).detach() * log).sum(1).mean()
    wanted.backward()
    ((_, loss),) = FOMAML(3, 0.05, teacher=teacher).losses(model, task, [bits])
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    assert_grads(grads(model), grads(copied))


def test_each_pair_adapts_from_the_same_weights_and_highest_bits_come_first():
    model, task = net(3), episode()
    pairs = parse_all("W2A2,FP,W4A8")
    together = [(bits, loss.item()) for bits, loss in FOMAML(2, 0.1).losses(model, task, pairs)]
    assert [str(bits) for bits, _ in together] == ["FP", "W4A8", "W2A2"]
    for bits, value in together:
        ((_, loss),) = FOMAML(2, 0.1).losses(model, task, [bits])
        assert loss.item() == value


def test_the_query_s_statistics_are_its_own_and_running_ones_stay():
    model, task = net(3), episode()
    before = {n: b.clone() for n, b in model.named_buffers()}
    for _, loss in FOMAML(2, 0.1).losses(model, task, parse_all("FP,W2A2")):
        loss.backward()
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    assert setting_of(model).track_running and setting_of(model).bits == FP


def test_an_episode_given_up_leaves_the_model_tracking():
    model = net(3)
    losses = FOMAML(1, 0.1).losses(model, episode(), parse_all("FP,W2A2"))
    next(losses)
    assert not setting_of(model).track_running
    losses.close()
    assert setting_of(model).track_running


@pytest.mark.parametrize("pairs", ["W2A2", "FP,W8A8"])
def test_second_order_at_a_quantized_pair_is_refused_with_its_reason(pairs):
    model = net(3)
    with pytest.raises(ValueError, match=r"W\dA\d has no second order: rounding has no second derivative"):
        for _, loss in FOMAML(1, 0.1, second_order=True).losses(model, episode(), parse_all(pairs)):
            loss.backward()
    assert setting_of(model).track_running


@pytest.mark.parametrize("teacher", ["next", "start", "boss"])
def test_a_teacher_that_maml_does_not_have_is_refused(teacher):
    with pytest.raises(ValueError, match=rf"FOMAML has no teacher '{teacher}'; choose labels or fp"):
        FOMAML(teacher=teacher)


@pytest.mark.parametrize("name", ["inner_steps", "shots", "queries", "tasks"])
def test_a_recipe_refuses_none_of_what_it_counts(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        Recipe(**{name: 0})


# --- what moves, in both loops ----------------------------------------------------------------------------------


def test_the_inner_loop_moves_weights_and_the_steps_of_the_bits_in_use_and_no_gain_or_shift():
    model = net(3)
    with at(frozen_running(model), "W2A4"):
        fast = FOMAML(3, 0.1).inner_loop(model, episode().support, 3)
    layers = ["body.0.0", "body.1.0", "body.2.0"]
    weights = {f"{name}.weight" for name in ["stem.0", *layers, "body.4"]} | {"body.4.bias"}
    steps = {f"{name}.quant.{step}" for name in layers for step in ("w2", "a4")}
    assert set(fast) == weights | steps
    start = dict(model.named_parameters())
    assert [name for name in fast if torch.equal(fast[name], start[name])] == []
    assert set(adaptable(model)) == {name for name in start if not name.endswith(NORM)}


def test_steps_stay_positive_in_the_inner_loop():
    model = net(3)
    with at(frozen_running(model), "W2A2"):
        fast = FOMAML(1, 1e6).inner_loop(model, episode().support, 1)
    steps = {name: step for name, step in fast.items() if ".quant." in name}
    assert len(steps) == 6 and all(step > 0 for step in steps.values())
    assert any(fast[name] < 0.01 * model.get_parameter(name) for name in steps)  # some would have been negative


def test_what_does_not_learn_is_not_adapted():
    model = net(3)
    model.stem.requires_grad_(False)
    with at(frozen_running(model), "FP"):
        assert not any(name.startswith("stem") for name in FOMAML().inner_loop(model, episode().support, 1))


@pytest.mark.parametrize("bits", ["W2A2", "W4A8"])
@pytest.mark.parametrize(("learner", "classes"), [(ProtoNet("labels"), None), (FOMAML(2, 0.1), 3)])
def test_steps_of_other_bits_get_no_gradient(learner, classes, bits):
    model, bits = net(classes), Bits.parse(bits)
    for _, loss in learner.losses(model, episode(), [bits]):
        loss.backward()
    for layer in quantized_layers(model).values():
        for name, step in layer.quant.items():
            used = name in (f"w{bits.w}", f"a{bits.a}")
            assert (step.grad is not None) == used and (not used or step.grad != 0), name


@pytest.mark.parametrize(("method", "classes"), [("pn_qat", None), ("fomaml_qat", 3)])
def test_the_outer_update_moves_weights_and_the_steps_of_the_bits_in_use_only(method, classes):
    model = small(classes)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, DATA, method, FAST.with_options(bits="W2A4", weight_decay=0.1), progress=False, device="cpu")
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    own = {n for n in before if ".quant." not in n or n.endswith(("w2", "a4"))}
    if classes:
        own -= {n for n in before if n.endswith(NORM[0])}  # MAML's norms have no gain
    assert moved == own
