"""Prototypical networks against SciPy and whole passes, in float64."""

import copy

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from few_shot import CLOSE, assert_grads, episode, frozen_running, grads, images, net

from mebqat_lite import Recipe, recalibrate
from mebqat_lite.bits import FP, parse_all
from mebqat_lite.datasets import Episode, Split
from mebqat_lite.learners import ProtoNet, prototype_logits
from mebqat_lite.loop import Loop
from mebqat_lite.optim import GradientMean
from mebqat_lite.switching.state import at


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


@pytest.mark.parametrize("offset", [0, 20])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_narrow_embeddings_do_not_cancel(dtype, autocast, offset):
    """-|q - c|^2 in float64 of the same embeddings; in bfloat16 the difference of the squares was wrong by 12.3."""
    g = torch.Generator().manual_seed(0)
    q, c = ((offset + torch.randn(count, 64, generator=g)).to(dtype) for count in (40, 5))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = prototype_logits(q, c)
    wanted = -(q.double()[:, None] - c.double()).square().sum(2)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 16 * torch.finfo(torch.float32).eps * float(q.double().square().sum(1).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prototypes_of_narrow_embeddings_are_not_rounded(dtype):
    g = torch.Generator().manual_seed(0)
    out, task = (20 + torch.randn(3 * 7, 64, generator=g)).to(dtype), episode(3, 3, 4)
    wanted = scipy_logits(out[:9].double().unflatten(0, (3, 3)), out[9:].double())
    torch.testing.assert_close(ProtoNet().score(out, task), wanted.float(), rtol=0, atol=0.1)


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
