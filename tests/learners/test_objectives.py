"""Losses, teachers and measures of classes and of values against plain formulas, in float64."""

import math

import pytest
import torch
from painted import painter, points, psnr

from mebqat_lite.bits import FP, Bits
from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.learners import Classes, Supervised, Values, objective
from mebqat_lite.switching.state import at

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def tensors(*shape, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("shape", [(6, 3), (1, 1), (5, 7)])
def test_squared_errors_are_the_mean_over_batch_and_outputs(shape):
    out, labels, teacher = tensors(*shape)
    to_labels = ((out - labels) ** 2).sum() / labels.numel()
    to_teacher = ((out - teacher) ** 2).sum() / labels.numel()
    torch.testing.assert_close(Values().loss(out, labels), to_labels, **CLOSE)
    torch.testing.assert_close(Values().loss(out, labels, teacher), to_labels + to_teacher, **CLOSE)
    torch.testing.assert_close(Values().loss(out, labels, teacher, alone=True), to_teacher, **CLOSE)


def test_cross_entropies_take_the_logits_of_a_teacher():
    (out, teacher), labels = tensors(6, 4, count=2), torch.tensor([0, 3, 1, 2, 2, 0])
    logs = out - out.exp().sum(1, keepdim=True).log()
    soft = teacher.exp() / teacher.exp().sum(1, keepdim=True)
    to_labels, to_teacher = -logs[torch.arange(6), labels].mean(), -(soft * logs).sum(1).mean()
    torch.testing.assert_close(Classes().loss(out, labels), to_labels, **CLOSE)
    torch.testing.assert_close(Classes().loss(out, labels, teacher), to_labels + to_teacher, **CLOSE)
    torch.testing.assert_close(Classes().loss(out, labels, teacher, alone=True), to_teacher, **CLOSE)


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20), (0.01, 40), (1, 0), (0, math.inf), (10, -20)])
def test_psnr_of_a_known_error(error, decibels):
    labels = torch.full((8, 3), 0.25, dtype=torch.float64)
    found = Values().measured(Values().score(labels + error, labels), 8)
    assert found == pytest.approx(decibels, abs=1e-9)


def test_scores_of_batches_add_up():
    out, labels, _ = tensors(10, 3)
    parts = sum(Values().score(a, b) for a, b in zip(out.split(4), labels.split(4), strict=True))
    assert Values().measured(parts, 10) == pytest.approx(psnr(out, labels), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_of_narrow_outputs_are_computed_in_float32(dtype):
    out, labels, _ = tensors(256, 3)
    out, labels = out.to(dtype), labels.float()
    wanted = ((out.float() - labels) ** 2).mean()
    assert Values().loss(out, labels).dtype == torch.float32
    torch.testing.assert_close(Values().loss(out, labels), wanted)


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_another_number_of_outputs_is_refused_and_not_stretched(outputs):
    out, labels = torch.zeros(5, outputs), torch.zeros(5, 3)
    with pytest.raises(DataError, match=f"labels have 3 values each, but this network has {outputs} outputs"):
        Values().loss(out, labels)
    with pytest.raises(DataError, match="3 values each"):
        Values().score(out, labels)


def test_the_type_of_the_labels_chooses():
    assert isinstance(objective(torch.zeros(3, dtype=torch.int64)), Classes)
    assert isinstance(objective(torch.zeros(3, dtype=torch.uint8)), Classes)
    assert isinstance(objective(torch.zeros(3, 2)), Values)


# ---------------------------------------------------------------- the teachers of a step


def plain(model, split, bits):
    with at(model, bits, "batch"):
        return model(split.images)


def wanted(model, split, pairs, teacher, alone):
    """The losses of a step by their formula: |f - y|^2 + |f - teacher|^2, the teacher without gradient."""
    outs = {bits: plain(model, split, bits) for bits in [FP, *pairs]}
    found = []
    for index, bits in enumerate(pairs):
        taught = {"fp": outs[FP], "start": outs[FP], "labels": None, "next": outs[pairs[index - 1]] if index else None}
        loss = ((outs[bits] - split.labels) ** 2).mean()
        if bits != FP and taught[teacher] is not None:
            imitation = ((outs[bits] - taught[teacher].detach()) ** 2).mean()
            loss = imitation if alone else loss + imitation
        found.append((bits, loss))
    return found


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("teacher", ["labels", "fp", "next", "start"])
@pytest.mark.parametrize("visits_fp", [True, False])
def test_losses_and_gradients_of_values_are_those_of_the_formula(teacher, alone, visits_fp):
    split = Split(*(tensor.double() for tensor in points(24)))
    model = painter().double().train()
    pairs = [FP] * visits_fp + [Bits(8, 4), Bits(2, 2), Bits(1, 1)]
    learner = Supervised(teacher, alone)
    learner.begin(model)
    model.zero_grad(set_to_none=True)
    losses = []
    for bits, loss in learner.losses(model, split, pairs):
        losses.append((bits, loss.detach()))
        loss.backward()
    grads = {name: p.grad.clone() for name, p in model.body.named_parameters()}
    model.zero_grad(set_to_none=True)
    plainly = wanted(model, split, pairs, teacher, alone)
    sum(loss for _, loss in plainly).backward()
    assert [bits for bits, _ in losses] == [bits for bits, _ in plainly]
    for (_, ours), (_, theirs) in zip(losses, plainly, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-12)
    for name, parameter in model.body.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-8, atol=1e-12)
