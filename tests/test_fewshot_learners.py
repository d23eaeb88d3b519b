"""Prototypical networks and MAML against independent formulas, in float64; and the methods that they make."""

import copy

import numpy as np
import pytest
import scipy.spatial.distance
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mebqat_lite import METHODS, Recipe, fit, models, quantize, recalibrate
from mebqat_lite.bits import FP, Bits, candidates, parse_all
from mebqat_lite.datasets import Data, Episode, Split
from mebqat_lite.learners import ProtoNet, prototype_logits
from mebqat_lite.learners.maml import FOMAML, adaptable
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.loop import Loop
from mebqat_lite.optim import GradientMean
from mebqat_lite.switching.state import at, norm_layers, quantized_layers, setting_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
POLICIES = ("support", "batch", "recalibrated", "running")
W2A2 = Bits(2, 2)
NORM = (".1.weight", ".1.bias")  # gains and shifts of a conv4, which no inner loop moves


def images(*shape, seed=0):
    return torch.rand(*shape, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def episode(ways=3, shots=2, queries=4, seed=1):
    return Episode(images(ways, shots, seed=seed), images(ways, queries, seed=seed + 1))


def plain_net(classes=None):
    """A conv4 in float64. Its pools take means: maxima of few-bit sums have ties, which layouts break differently."""
    model = models.conv4(channels=4, image_size=16, classes=classes).double()
    for block in (model.stem, *model.body[:3]):
        block[2] = nn.AvgPool2d(2)
    return model


def net(classes=None, quantizer="lsq", seed=0):
    """Quantized, with gains, shifts and running statistics that matter, in training mode."""
    torch.manual_seed(seed)
    model = plain_net(classes)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.uniform_(norm.bias, 0, 0.6)
    with torch.no_grad():
        for seed_of_batch in range(20):
            model(images(16, seed=seed_of_batch))
    return quantize(model, quantizer, sample=images(32, seed=9)).train()


def grads(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_grads(mine, wanted):
    assert mine.keys() == wanted.keys()
    assert [n for n in mine if (mine[n] is None) != (wanted[n] is None)] == []
    for name, grad in mine.items():
        if grad is not None:
            torch.testing.assert_close(grad, wanted[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def frozen_running(model):
    setting_of(model).track_running = False
    return model


# --- prototypical networks --------------------------------------------------------------------------------------


def scipy_logits(support, query):
    """support (N, K, features), query (queries, features) -> (queries, N), by SciPy."""
    means = np.stack([rows.mean(0) for rows in support.detach().numpy()])
    return torch.from_numpy(-scipy.spatial.distance.cdist(query.detach().numpy(), means, "sqeuclidean"))


@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (5, 1, 3), (4, 5, 2), (3, 2, 7)])
def test_logits_are_squared_distances_to_the_class_means_of_scipy(ways, shots, queries):
    g = torch.Generator().manual_seed(ways)
    out = torch.randn(ways * (shots + queries), 6, dtype=torch.float64, generator=g)
    task = Episode(torch.empty(ways, shots, 1, 1, 1), torch.empty(ways, queries, 1, 1, 1))
    wanted = scipy_logits(out[: ways * shots].unflatten(0, (ways, shots)), out[ways * shots :])
    torch.testing.assert_close(ProtoNet().score(out, task), wanted, **CLOSE)
    assert ProtoNet().score(out, task).shape == (ways * queries, ways)


def test_an_embedding_on_its_prototype_is_at_distance_zero():
    prototypes = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(prototype_logits(prototypes, prototypes), 2 * torch.eye(4).double() - 2)


def test_support_and_query_are_read_in_order():
    task = episode()
    read, labels = ProtoNet().read(task)
    assert torch.equal(read, torch.cat([*task.support, *task.query])) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def serial_losses(model, task, pairs, teacher):
    """Loss and gradients of each pair by itself: the whole network, on all images, and SciPy-free distances by hand."""
    ways, shots = task.support.shape[:2]
    both = torch.cat([task.support.flatten(0, 1), task.query.flatten(0, 1)])

    def logits(network, bits):
        with at(frozen_running(network), bits):
            out = network(both)
        centres = out[: ways * shots].reshape(ways, shots, -1).mean(1)
        return -(out[ways * shots :, None] - centres).square().sum(2)

    with torch.no_grad():
        soft = logits(copy.deepcopy(model), FP).softmax(1)
    found = []
    for bits in pairs:
        copied = copy.deepcopy(model)
        log = logits(copied, bits).log_softmax(1)
        loss = -log[torch.arange(len(log)), task.labels].mean()
        if teacher == "fp" and bits != FP:
            loss = loss - (soft * log).sum(1).mean()
        loss.backward()
        found.append((loss.item(), grads(copied)))
    return found


@pytest.mark.parametrize("pairs", ["FP,W4A8,W2A2", "W2A2", "W8A4,W2A8,W2A2,W2A2"])
@pytest.mark.parametrize("teacher", ["labels", "fp"])
def test_losses_and_mean_gradients_are_those_of_whole_passes_pair_by_pair(teacher, pairs):
    model, task, pairs = net(), episode(), parse_all(pairs)
    wanted = serial_losses(model, task, pairs, teacher)
    mean, losses = GradientMean(model.parameters()), []
    for bits, loss in ProtoNet(teacher).losses(model, task, pairs):
        loss.backward()
        losses.append((bits, loss.item()))
    mean.average(), mean.close()
    assert [bits for bits, _ in losses] == pairs
    assert [loss for _, loss in losses] == pytest.approx([loss for loss, _ in wanted], rel=1e-10)
    each = {name: [g[name] for _, g in wanted if g[name] is not None] for name in wanted[0][1]}
    assert_grads(grads(model), {name: torch.stack(used).mean(0) if used else None for name, used in each.items()})
    steps = {name for name, grad in grads(model).items() if ".quant." in name and grad is not None and grad != 0}
    widths = {name.rpartition(".")[2] for name in steps}
    assert widths == {f"w{b.w}" for b in pairs if b != FP} | {f"a{b.a}" for b in pairs if b != FP}


def test_the_loop_gives_each_parameter_the_mean_over_the_pairs_that_used_it(monkeypatch):
    model = net()
    split = Split(images(40), torch.arange(40) % 5)
    loop = Loop(model, split, "mebqat_pn", Recipe(ways=3, shots=2, queries=3, m=3, teacher="labels", clip=1e9, steps=9))
    task, before = loop.source.task(0), copy.deepcopy(model)
    monkeypatch.setattr(loop.sampler, "draw", lambda: [parse_all("FP,W2A4,W2A2")])
    seen = {}
    monkeypatch.setattr(loop.optimizer, "step", lambda: seen.update(grads(model)))
    loop.step(), loop.close()
    wanted = serial_losses(before, task, parse_all("FP,W2A4,W2A2"), "labels")
    each = {name: [g[name] for _, g in wanted if g[name] is not None] for name in seen}
    assert_grads(seen, {name: torch.stack(used).mean(0) if used else None for name, used in each.items()})
    assert {name: len(used) for name, used in each.items()}["body.0.0.quant.w2"] == 2
    assert loop.run.losses == [pytest.approx(np.mean([loss for loss, _ in wanted]), rel=1e-10)]


@pytest.mark.parametrize("bits", ["FP", "W2A2"])
def test_adapting_under_batch_statistics_is_one_pass_of_support_and_query(bits):
    model, task = net(), episode()
    query = task.query.flatten(0, 1)
    with torch.no_grad(), at(copy.deepcopy(model).eval(), bits, "batch") as copied:
        out = copied(torch.cat([task.support.flatten(0, 1), query]))
    wanted = scipy_logits(out[:6].unflatten(0, (3, 2)), out[6:])
    torch.testing.assert_close(ProtoNet().adapt(model, task.support, bits, "batch")(query), wanted, **CLOSE)


@pytest.mark.parametrize("bits", ["FP", "W2A2", {"*": "W8A8", "body.0.0": "W2A2"}], ids=str)
@pytest.mark.parametrize("policy", ["support", "recalibrated", "running"])
def test_adapting_under_fixed_statistics_embeds_support_and_query_apart(policy, bits):
    """Those of the support are what `recalibrate` measures on it."""
    model, task = net(), episode()
    query = task.query.flatten(0, 1)
    recalibrate(model, images(30, seed=5), bits)
    copied = copy.deepcopy(model).eval()
    if policy == "support":
        recalibrate(copied, task.support.flatten(0, 1), bits)
    with torch.no_grad(), at(copied, bits, "recalibrated" if policy == "support" else policy):
        wanted = scipy_logits(copied(task.support.flatten(0, 1)).unflatten(0, (3, 2)), copied(query))
    torch.testing.assert_close(ProtoNet().adapt(model, task.support, bits, policy)(query), wanted, **CLOSE)


# --- support and query ------------------------------------------------------------------------------------------


LEARNERS = {"proto": ProtoNet(), "fomaml": FOMAML(2, 0.1), "maml": FOMAML(2, 0.1, second_order=True)}
HEADS = {"proto": None, "fomaml": 3, "maml": 3, "quantize adapted": 3}


def learner_of(name):
    return QuantizeAdapted(2, 0.1) if name == "quantize adapted" else LEARNERS[name]


def adapted(name, policy, bits, task=None, seed=0):
    """A network with statistics of its own for ``bits``, and its predictor for an episode."""
    model = net(HEADS[name], seed=seed)
    recalibrate(model, images(30, seed=5), ["FP", "W2A2"])
    return model, learner_of(name).adapt(model, (task or episode()).support, bits, policy)


@pytest.mark.parametrize("bits", ["FP", "W2A2"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", list(HEADS))
def test_one_query_changes_another_one_s_logits_under_batch_statistics_only(name, policy, bits):
    _, predict = adapted(name, policy, bits)
    query = episode().query.flatten(0, 1)
    before, other = predict(query), query.clone()
    other[5] = 1 - 2 * other[5]
    after, rest = predict(other), torch.arange(12) != 5
    assert not torch.equal(before[5], after[5])
    assert torch.equal(before[rest], after[rest]) == (policy != "batch")


@pytest.mark.parametrize("policy", ["support", "recalibrated", "running"])
@pytest.mark.parametrize("name", list(HEADS))
def test_a_single_query_is_answered_as_among_others(name, policy):
    _, predict = adapted(name, policy, "W2A2")
    query = episode().query.flatten(0, 1)
    together = predict(query)
    assert together.shape == (12, 3)
    for number in (0, 7):
        torch.testing.assert_close(predict(query[number : number + 1]), together[number : number + 1], **CLOSE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", list(HEADS))
def test_adapting_again_leaves_what_was_adapted_before(name, policy):
    model, predict = adapted(name, policy, "W2A2")
    query = episode().query.flatten(0, 1)
    before = predict(query)
    other = learner_of(name).adapt(model, episode(seed=40).support, "W2A2", policy)(query)
    assert not torch.equal(other, before) and torch.equal(predict(query), before)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["eval", "mixed"])
@pytest.mark.parametrize("name", list(HEADS))
def test_adapting_changes_nothing_of_the_model_and_no_mode_matters(name, mode, policy, bits="W2A2"):
    task = episode()
    model = net(HEADS[name]).train(mode == "mixed")
    recalibrate(model, images(30, seed=5), ["FP", "W2A2"])
    if mode == "mixed":
        model.body[1].eval()
    with at(model, "W4A8", "batch"):
        setting = copy.deepcopy(vars(setting_of(model)) | {"quantizer": None})
        state = {n: t.clone() for n, t in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        logits = learner_of(name).adapt(model, task.support, bits, policy)(task.query.flatten(0, 1))
        assert vars(setting_of(model)) | {"quantizer": None} == setting
        assert [module.training for module in model.modules()] == modes
    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[n], t) for n, t in state.items())
    assert all(p.grad is None and p.is_leaf and p.requires_grad for p in model.parameters())
    assert not any("moments" in norm.__dict__ for norm in norm_layers(model).values())
    assert not logits.requires_grad and torch.is_grad_enabled()
    _, predict = adapted(name, policy, bits)  # of a network in training mode at another setting
    assert torch.equal(logits, predict(task.query.flatten(0, 1)))


@pytest.mark.parametrize("name", ["fomaml", "quantize adapted"])
def test_adapting_works_where_gradients_are_off(name):
    task, model = episode(), net(3)
    wanted = learner_of(name).adapt(model, task.support, "W2A2")(task.query.flatten(0, 1))
    with torch.no_grad():
        logits = learner_of(name).adapt(model, task.support.clone(), "W2A2")(task.query.flatten(0, 1))
        assert not torch.is_grad_enabled()
    assert torch.equal(logits, wanted)


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


TRAIN = Split(images(60).float(), torch.arange(60) % 6)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("abcdef"))
FAST = Recipe(steps=2, ways=3, shots=2, queries=2, m=3, tasks=3, inner_steps=2, lr=0.01, schedule="constant")


def small(classes=None, quantizer="lsq"):
    torch.manual_seed(0)
    return quantize(models.conv4(channels=4, image_size=16, classes=classes), quantizer, sample=TRAIN.images)


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


# --- adapted at full precision, then quantized ------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["support", "batch"])
def test_quantizing_what_was_adapted_changes_nothing_at_full_precision(policy):
    model, task = net(3), episode()
    logits = [
        learner.adapt(model, task.support, FP, policy)(task.query.flatten(0, 1))
        for learner in (QuantizeAdapted(3, 0.1), FOMAML(3, 0.1))
    ]
    torch.testing.assert_close(*logits, **CLOSE)


def test_quantizing_what_was_adapted_puts_each_channel_on_a_two_bit_grid():
    model, task = net(3), episode()
    learner = QuantizeAdapted(3, 0.1)
    two, full = (learner.adapt(model, task.support, bits)(task.query.flatten(0, 1)) for bits in ("W2A2", FP))
    assert not torch.allclose(two, full)
    copied = learner.kept[3]
    with at(frozen_running(model), FP):
        fast = FOMAML(3, 0.1).inner_loop(model, task.support, 3)
    for name, layer in quantized_layers(copied).items():
        torch.testing.assert_close(layer.weight, fast[f"{name}.weight"].detach(), **CLOSE)
        assert not torch.equal(layer.weight, model.get_parameter(f"{name}.weight"))
        quantized, steps = layer.quantized_weight(2), layer.quant["w2"]
        assert steps.shape == (4, 1, 1, 1) and len(steps.unique()) == 4
        codes = quantized / steps
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
        assert codes.min() >= -2 and codes.max() <= 1 and not torch.equal(quantized, layer.weight)


def inputs_of(model, sample):
    """Mean |x| of what the quantized layers read where norms take the statistics of the batch."""
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].abs().mean().item()}))
        for name, layer in quantized_layers(model).items()
    ]
    with torch.no_grad(), at(model.eval(), FP, "batch"):
        model(sample)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("method", ["fomaml_ptq_lsq", "mebqat_maml"])
def test_steps_set_after_full_precision_training_fit_what_normalised_layers_read(method):
    """MAML leaves running statistics at 0 and 1, so steps measured under them are those of another network."""
    model = small(3)
    warm = {"warm_steps": 2, "steps": 1, "lr": 1e-9} if method == "mebqat_maml" else {}
    fit(model, DATA, method, FAST.with_options(**warm), progress=False, device="cpu")
    for name, mean in inputs_of(model, TRAIN.images).items():
        assert 0.5 < float(model.get_submodule(name).quant["a2"].detach()) / (2 * mean / 3**0.5) < 2, name


def test_steps_of_what_was_adapted_fit_what_normalised_layers_read():
    model, task, learner = small(3).eval(), episode(), QuantizeAdapted(2, 0.1)
    learner.adapt(model, task.support.float(), "W2A2")
    copied = learner.kept[3]
    for name, mean in inputs_of(copied, task.support.flatten(0, 1).float()).items():
        assert 0.25 < float(copied.get_submodule(name).quant["a2"].detach()) / mean < 4, name


def test_the_bitwidths_of_an_episode_share_what_was_adapted(monkeypatch):
    model, task, learner, calls = net(3), episode(), QuantizeAdapted(2, 0.1), []
    loop = learner.inner_loop
    monkeypatch.setattr(learner, "inner_loop", lambda *args: calls.append(args) or loop(*args))
    for bits in ("FP", "W2A2", "W4A4"):
        learner.adapt(model, task.support, bits)
    assert len(calls) == 1
    learner.adapt(model, episode(seed=50).support, "W2A2")
    assert len(calls) == 2


def test_another_network_on_the_same_support_is_adapted_for_itself():
    task, learner = episode(), QuantizeAdapted(2, 0.1)
    learner.adapt(net(3), task.support, "W2A2")
    after = learner.adapt(net(3, seed=5), task.support, "W2A2")(task.query.flatten(0, 1))
    alone = QuantizeAdapted(2, 0.1).adapt(net(3, seed=5), task.support, "W2A2")(task.query.flatten(0, 1))
    assert torch.equal(after, alone)


# --- methods ----------------------------------------------------------------------------------------------------


PN = [name for name, method in METHODS.items() if method.base == "pn"]
MAML = [name for name, method in METHODS.items() if method.base == "fomaml"]


def recipe_of(name, **options):
    return FAST.with_options(**({"bits": "W2A2"} if name.endswith("_qat") else {}), **options)


def network_of(name, quantizer="lsq"):
    return small(3 if name in MAML else None, quantizer)


def draws(name, quantizer="lsq", count=200, **options):
    sampler = METHODS[name].sampler(network_of(name, quantizer), recipe_of(name, **options))
    return [sampler.draw() for _ in range(count)]


def test_the_table_has_nine_methods_that_learn_new_classes():
    assert PN == ["pn", "pn_ptq_mse", "pn_qat", "mebqat_pn"]
    assert MAML == ["fomaml", "fomaml_ptq_mse", "fomaml_ptq_lsq", "fomaml_qat", "mebqat_maml"]
    assert [name for name, method in METHODS.items() if method.learns_new_classes] == PN + MAML


@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
@pytest.mark.parametrize("name", PN + MAML)
def test_every_few_shot_method_trains(name, quantizer):
    model = network_of(name, quantizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".quant." not in n}
    run = fit(model, DATA, name, recipe_of(name), progress=False, device="cpu")
    passes = {"mebqat_pn": 3}.get(name, 3 if name in MAML else 1)
    assert (run.costs.steps, run.costs.backprops, len(run.losses)) == (2, 2 * passes, 2)
    now = dict(model.named_parameters())
    assert not model.training and all(torch.isfinite(p).all() for p in now.values())
    assert not torch.equal(now["stem.0.weight"], before["stem.0.weight"])
    for norm in norm_layers(model).values():
        assert torch.equal(norm.weight, torch.ones(4)) == (name in MAML)
        assert not torch.equal(norm.bias, torch.zeros(4))
    learner = METHODS[name].learner(recipe_of(name), "labels")
    support = TRAIN.images[:6].unflatten(0, (3, 2))
    for bits in ("FP", "W2A2"):
        assert torch.isfinite(learner.adapt(model, support, bits)(TRAIN.images[6:9])).all()


@pytest.mark.parametrize("name", MAML)
def test_gains_of_maml_are_one_and_no_optimizer_holds_them(name):
    model = network_of(name)
    loop = Loop(model, TRAIN, name, recipe_of(name, weight_decay=0.5))
    held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    for norm in norm_layers(model).values():
        assert id(norm.weight) not in held and id(norm.bias) in held and not norm.weight.requires_grad
    loop.step(), loop.close()
    assert all(torch.equal(norm.weight, torch.ones(4)) for norm in norm_layers(model).values())


@pytest.mark.parametrize("name", ["pn", "pn_ptq_mse"])
def test_a_prototypical_network_draws_full_precision(name):
    assert draws(name, count=3) == [[[FP]]] * 3


@pytest.mark.parametrize("name", ["fomaml", "fomaml_ptq_mse", "fomaml_ptq_lsq"])
def test_fomaml_draws_full_precision_for_each_task(name):
    assert draws(name, count=3) == [[[FP]] * 3] * 3 and draws(name, count=1, tasks=5) == [[[FP]] * 5]


def test_qat_draws_its_pair():
    assert draws("pn_qat", count=3) == [[[W2A2]]] * 3
    assert draws("fomaml_qat", count=3, tasks=4) == [[[W2A2]] * 4] * 3


@pytest.mark.parametrize("name", ["pn_qat", "fomaml_qat"])
def test_qat_without_a_pair_is_refused(name):
    with pytest.raises(ValueError, match="exactly one pair"):
        fit(network_of(name), DATA, name, FAST, progress=False)


@pytest.mark.parametrize(("quantizer", "lowest", "size"), [("lsq", W2A2, 73), ("dorefa", Bits(1, 1), 75)])
def test_mebqat_pn_draws_m_pairs_with_both_ends_or_all_uniform(quantizer, lowest, size):
    steps = draws("mebqat_pn", quantizer, m=4)
    assert all(len(step) == 1 and len(step[0]) == 4 and step[0][:2] == [FP, lowest] for step in steps)
    free = [pair for step in steps for pair in step[0][2:]]
    uniform = [pair for step in draws("mebqat_pn", quantizer, 1500, m=4, sandwich=False) for pair in step[0]]
    assert len(set(free)) > 60 and set(uniform) == set(candidates(quantizer == "dorefa")) and len(set(uniform)) == size
    assert max(map(uniform.count, set(uniform))) < 2 * 6000 / size  # no pair is guaranteed: each is expected 80 times


@pytest.mark.parametrize(("quantizer", "lowest", "size"), [("lsq", W2A2, 73), ("dorefa", Bits(1, 1), 75)])
def test_mebqat_maml_deals_one_pair_to_each_task(quantizer, lowest, size):
    steps = draws("mebqat_maml", quantizer, tasks=4, m=9)  # m is not its own
    assert all([len(pairs) for pairs in step] == [1] * 4 and step[:2] == [[FP], [lowest]] for step in steps)
    uniform = draws("mebqat_maml", quantizer, 1500, tasks=4, sandwich=False)
    assert all([len(pairs) for pairs in step] == [1] * 4 for step in uniform)
    pairs = [pairs[0] for step in uniform for pairs in step]
    assert set(pairs) == set(candidates(quantizer == "dorefa")) and len(set(pairs)) == size
    assert max(map(pairs.count, set(pairs))) < 2 * 6000 / size


@pytest.mark.parametrize("name", ["mebqat_pn", "mebqat_maml"])
@pytest.mark.parametrize("sandwich", [True, False])
@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
def test_excluded_widths_are_never_drawn(name, sandwich, quantizer):
    options = {"exclude": (1, 2, 5), "sandwich": sandwich, "m": 4, "tasks": 4}
    pairs = [pair for step in draws(name, quantizer, **options) for task in step for pair in task]
    assert not {width for pair in pairs for width in (pair.w, pair.a)} & {1, 2, 5}
    assert (pairs.count(FP) >= 200) == sandwich


@pytest.mark.parametrize("name", ["mebqat_pn", "mebqat_maml"])
def test_more_ends_than_places_are_cut(name):
    assert draws(name, count=2, m=1, tasks=1) == [[[FP]]] * 2


@pytest.mark.parametrize(("name", "count"), [("mebqat_pn", 1), ("mebqat_maml", 3)])
def test_a_step_has_an_episode_for_each_task_and_never_the_same_again(name, count, monkeypatch):
    loop = Loop(network_of(name), TRAIN, name, recipe_of(name))
    asked, index = [], loop.source.index
    monkeypatch.setattr(loop.source, "index", lambda number: asked.append(number) or index(number))
    for _ in range(3):
        loop.step()
    loop.close()
    assert asked == list(range(3 * count))


def test_the_recipe_reaches_the_learner():
    recipe = FAST.with_options(inner_steps=7, inner_lr=0.25, second_order=True, test_steps=9)
    for name in MAML:
        learner = METHODS[name].learner(recipe, "fp")
        found = (learner.inner_steps, learner.inner_lr, learner.second_order, learner.teacher, learner.test_steps)
        assert found == (7, 0.25, True, "fp", 9)
        assert isinstance(learner, QuantizeAdapted) == (name == "fomaml_ptq_mse")
    assert METHODS["fomaml"].learner(FAST, "labels").test_steps == FAST.inner_steps
    assert METHODS["mebqat_pn"].learner(recipe, "fp").teacher == "fp"


# --- interrupted runs -------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(("name", "passes"), [("mebqat_pn", 4), ("mebqat_maml", 3)])
def test_an_interrupted_few_shot_run_ends_as_if_it_had_not_been(name, passes, tmp_path, monkeypatch):
    recipe = recipe_of(name, steps=9, sandwich=False, schedule="cosine")

    def train(path=None, seed=0):
        model = network_of(name)
        with torch.no_grad():
            for p in model.parameters():  # a continued run starts from other weights, which must not matter
                p *= 1 + seed / 10
        return fit(model, DATA, name, recipe, path=path, save_every=2, progress=False, device="cpu"), model

    whole, backward = train(), torch.Tensor.backward
    for seed, steps in enumerate((3, 0, 4), start=1):  # whole steps before; 2, 2 and 6 of them are saved
        left = [steps * passes + 2]

        def interrupted(self, *args, left=left, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise Interrupted
            return backward(self, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(torch.Tensor, "backward", interrupted)
            train(tmp_path / "run", seed=0 if seed == 1 else seed)
    run, model = train(tmp_path / "run", seed=8)
    assert run.losses == whole[0].losses and run.costs == whole[0].costs
    mine, other = model.state_dict(), whole[1].state_dict()
    assert list(mine) == list(other) and [n for n in mine if not torch.equal(mine[n], other[n])] == []
