"""Lesson 04: right answers, each written another way, and wrong ones with the message that names them."""

import random

import torch
import torch.nn.functional as F

import mebqat_lite as mq
from mebqat_lite.optim import GradientMean

# --- sample_pairs


def by_multinomial(pool, m, guaranteed, rng):
    free = m - len(guaranteed)
    return list(guaranteed) + [pool[i] for i in torch.multinomial(torch.ones(len(pool)), free, True, generator=rng)]


def one_at_a_time(pool, m, guaranteed, rng):
    pairs = list(guaranteed)
    while len(pairs) < m:
        pairs.append(pool[int(torch.rand((), generator=rng).item() * len(pool))])
    return tuple(pairs)


def by_python(pool, m, guaranteed, rng):
    chance = random.Random(int(torch.randint(2**31, (), generator=rng)))
    return guaranteed + chance.choices(pool, k=m - len(guaranteed))


def by_the_package(pool, m, guaranteed, rng):
    return mq.Sampled(pool, m, guaranteed, seed=int(torch.randint(2**62, (), generator=rng))).draw()[0]


def picks(pool, count, rng):
    return [pool[i] for i in torch.randint(len(pool), (count,), generator=rng).tolist()]


def shuffled(pool, m, guaranteed, rng):
    order = torch.randperm(len(pool), generator=rng)[: m - len(guaranteed)]
    return [*guaranteed, *(pool[i] for i in order)]


def apart(pool, m, guaranteed, rng):
    w, a = [b.w for b in pool], [b.a for b in pool]
    pairs = [mq.Bits(*b) for b in zip(picks(w, m, rng), picks(a, m, rng), strict=True)]
    return [*guaranteed, *pairs[: m - len(guaranteed)]]


def other_pool(pool, m, guaranteed, rng):
    return [*guaranteed, *picks([b for b in pool if b not in (mq.FP, mq.Bits(1, 1))], m - len(guaranteed), rng)]


def reseeded(pool, m, guaranteed, rng):
    return [*guaranteed, *picks(pool, m - len(guaranteed), torch.Generator().manual_seed(3))]


def often_the_first(pool, m, guaranteed, rng):
    return [*guaranteed, *picks([pool[0], *pool], m - len(guaranteed), rng)]


def by_a_bell(pool, m, guaranteed, rng):
    places = torch.randn(m - len(guaranteed), generator=rng) * len(pool) / 4 + len(pool) / 2
    return [*guaranteed, *(pool[int(p)] for p in places.clamp(0, len(pool) - 1))]


def repeated(pool, m, guaranteed, rng):
    return [*guaranteed, *(picks(pool, 1, rng) * (m - len(guaranteed)))]


def eats_the_pool(pool, m, guaranteed, rng):
    pairs = list(guaranteed)
    while len(pairs) < m:
        pairs.append(pool.pop(int(torch.randint(len(pool), (), generator=rng))))
    return pairs


def grows_guaranteed(pool, m, guaranteed, rng):
    guaranteed += picks(pool, m - len(guaranteed), rng)
    return guaranteed


# --- distillation_loss


def of_the_package(logits, teacher, labels):
    return mq.learners.cross_entropies(logits, labels, teacher.detach().softmax(1))


def with_no_grad(logits, teacher, labels):
    with torch.no_grad():
        soft = F.softmax(teacher, dim=-1)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits, soft)


def one_term(logits, teacher, labels):
    target = F.one_hot(labels, logits.shape[1]) + teacher.detach().softmax(1)
    return -(target * F.log_softmax(logits, 1)).sum() / len(labels)


def kl_and_entropy(logits, teacher, labels):
    soft = teacher.detach().softmax(1)
    kl = F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
    return F.cross_entropy(logits, labels) + kl - (soft * soft.log()).sum(1).mean()


def ce(logits, target, **options):
    return F.cross_entropy(logits, target.detach(), **options)


def turned_kl(z, t, y):
    return F.cross_entropy(z, y) + F.kl_div(t.detach().log_softmax(1), z.softmax(1), reduction="batchmean")


# --- average_gradients


def by_the_hooks(gradients, limit):
    columns = list(zip(*gradients, strict=True))
    shapes = [next((g.shape for g in column if g is not None), (1,)) for column in columns]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    mean = GradientMean(parameters)
    for row in gradients:
        sum((p * g).sum() for p, g in zip(parameters, row, strict=True) if g is not None).backward()
    mean.average()
    mean.close()
    torch.nn.utils.clip_grad_value_(parameters, limit)
    return [p.grad for p in parameters]


def by_loops(gradients, limit):
    out = []
    for i in range(len(gradients[0])):
        total, count = None, 0
        for row in gradients:
            if row[i] is not None:
                total = row[i] if total is None else total + row[i]
                count += 1
        out.append(total if total is None else torch.clip(total / count, -limit, limit))
    return out


def by_stack(gradients, limit):
    kept = [[g for g in column if g is not None] for column in zip(*gradients, strict=True)]
    return tuple(torch.stack(c).double().mean(0).clamp(-limit, limit) if c else None for c in kept)


def mean_then(gradients, limit, clip, count=None, none=None):
    """Per parameter ``clip`` of the sum over ``count``, by default the number of users; ``none`` for no user."""
    out = []
    for column in zip(*gradients, strict=True):
        used = [g for g in column if g is not None]
        out.append(clip(sum(used) / (count or len(used))) if used else none)
    return out


def elementwise(limit):
    return lambda g: g.clamp(-limit, limit)


def clip_early(gradients, limit):
    rows = [[None if g is None else g.clamp(-limit, limit) for g in row] for row in gradients]
    return mean_then(rows, limit, lambda g: g)


def clip_global(gradients, limit):
    means = mean_then(gradients, limit, lambda g: g)
    norm = torch.cat([g.flatten() for g in means if g is not None]).norm()
    return [None if g is None else g * min(1.0, limit / norm) for g in means]


def zeros_for_none(gradients, limit):
    shapes = [next((g.shape for g in c if g is not None), (1,)) for c in zip(*gradients, strict=True)]
    rows = [[torch.zeros(s) if g is None else g for g, s in zip(row, shapes, strict=True)] for row in gradients]
    return [torch.stack(column).mean(0).clamp(-limit, limit) for column in zip(*rows, strict=True)]


def in_place(gradients, limit):
    for column in zip(*gradients, strict=True):
        used = [g for g in column if g is not None]
        for other in used[1:]:
            used[0].add_(other)
        if used:
            used[0].div_(len(used)).clamp_(-limit, limit)
    return [next((g for g in column if g is not None), None) for column in zip(*gradients, strict=True)]


# --- mebqat_step


def with_backward(w, losses, lr):
    v = w.clone().requires_grad_()
    for loss in losses:
        loss(v).backward()
    return w - lr * v.grad / len(losses)


def with_sgd(w, losses, lr):
    v = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([v], lr=lr)
    torch.stack([loss(v) for loss in losses]).mean().backward()
    optimizer.step()
    return v.detach()


def with_func(w, losses, lr):
    return w - lr * torch.stack([torch.func.grad(loss)(w) for loss in losses]).mean(0)


def mean_of_moved(w, losses, lr):
    """The mean of the weights after a step for each task from the same start: the same, if w does not move."""
    return torch.stack([w - lr * torch.func.grad(loss)(w) for loss in losses]).mean(0)


def slope(loss, w):
    return torch.func.grad(loss)(w)


def walk(w, losses, lr):
    for loss in losses:
        w = w - lr * slope(loss, w)
    return w


def adapted(w, losses, lr, inner=None):
    inner = lr if inner is None else inner
    return w - lr * sum(slope(loss, w - inner * slope(loss, w)) for loss in losses) / len(losses)


def overwritten(w, losses, lr):
    v = w.clone().requires_grad_()
    for loss in losses:
        v.grad = None
        loss(v).backward()
    return w - lr * v.grad


def total(w, losses):
    return sum(slope(loss, w) for loss in losses)


RIGHT = {
    "sample_pairs": [by_multinomial, one_at_a_time, by_python, by_the_package],
    "distillation_loss": [of_the_package, with_no_grad, one_term, kl_and_entropy],
    "average_gradients": [by_the_hooks, by_loops, by_stack],
    "mebqat_step": [with_backward, with_sgd, with_func, mean_of_moved],
}
WRONG = {
    "sample_pairs": [
        ("without FP, which is guaranteed", lambda p, m, g, r: picks(p, m, r)),
        ("without FP, which is guaranteed", lambda p, m, g, r: picks([b for b in p if b != mq.FP], m, r)),
        ("guaranteed ones not at the front", lambda p, m, g, r: [*picks(p[1:-1], m - len(g), r), *g]),
        ("guaranteed ones not at the front", lambda p, m, g, r: [*g[::-1], *picks(p, m - len(g), r)]),
        ("count among the m", lambda p, m, g, r: [*g, *picks(p, m, r)]),
        ("returns 2 pairs", lambda p, m, g, r: list(g)),
        ("no pair ever comes twice", shuffled),
        ("no pair ever comes twice", lambda p, m, g, r: list(eats_the_pool(list(p), m, g, r))),
        ("changes its lists", eats_the_pool),
        ("changes its lists", grows_guaranteed),
        ("not in pool: draw whole pairs", apart),
        ("not in pool", lambda p, m, g, r: [*g, *picks([b for b in mq.candidates() if b not in p], m - len(g), r)]),
        ("never FP: it is uniform over the whole pool", other_pool),
        ("every call gives the same pairs", reseeded),
        ("every call gives the same pairs", lambda p, m, g, r: [*g, *p[1 : 1 + m - len(g)]]),
        ("draw from rng and from nothing else", lambda p, m, g, r: [*g, *random.choices(p, k=m - len(g))]),
        ("draw from rng and from nothing else", lambda p, m, g, r: [
            *g, *(p[i] for i in torch.randint(len(p), (m - len(g),)))]),
        ("repeated in all free places", repeated),
        ("FP, the last of pool, never comes|never FP", lambda p, m, g, r: [*g, *picks(p[:-1], m - len(g), r)]),
        ("W1A1, the first of pool, never comes", lambda p, m, g, r: [*g, *picks(p[1:], m - len(g), r)]),
        ("equally likely", often_the_first),
        ("equally likely|never comes", by_a_bell),
        ("positions in the pool", lambda p, m, g, r: torch.randint(len(p), (m,), generator=r).tolist()),
        ("type Tensor", lambda p, m, g, r: torch.randint(len(p), (m,), generator=r)),
        ("type set", lambda p, m, g, r: {*g, *picks(p, m - len(g), r)}),
    ],
    "distillation_loss": [
        ("teacher has a gradient", lambda z, t, y: F.cross_entropy(z, y) + F.cross_entropy(z, t.softmax(1))),
        ("KL divergence is turned round", turned_kl),
        ("cross-entropy is turned round", lambda z, t, y: F.cross_entropy(z, y) + ce(t.detach(), z.softmax(1))),
        ("lacks the teacher's entropy", lambda z, t, y: F.cross_entropy(z, y) + F.kl_div(
            z.log_softmax(1), t.detach().softmax(1), reduction="batchmean")),
        ("lacks the teacher's entropy", lambda z, t, y: F.kl_div(
            z.log_softmax(1), t.detach().softmax(1), reduction="batchmean")),
        ("hard label", lambda z, t, y: F.cross_entropy(z, y) + F.cross_entropy(z, t.argmax(1))),
        ("term of the labels is missing", lambda z, t, y: ce(z, t.softmax(1))),
        ("term of the teacher is missing", lambda z, t, y: F.cross_entropy(z, y)),
        ("averaged: add", lambda z, t, y: with_no_grad(z, t, y) / 2),
        ("sum over the batch: take the mean", lambda z, t, y: with_no_grad(z, t, y) * len(y)),
        ("teacher's term is a sum", lambda z, t, y: F.cross_entropy(z, y) + ce(z, t.softmax(1), reduction="sum")),
        ("labels' term is a sum", lambda z, t, y: F.cross_entropy(z, y, reduction="sum") + ce(z, t.softmax(1))),
        ("mean over the classes", lambda z, t, y: F.cross_entropy(z, y) - (
            t.detach().softmax(1) * z.log_softmax(1)).mean()),
        ("softmax first", lambda z, t, y: F.cross_entropy(z, y) + ce(z, t)),
        ("use dim 1", lambda z, t, y: F.cross_entropy(z, y) + ce(z, t.softmax(0))),
        ("squared distance", lambda z, t, y: F.cross_entropy(z, y) + F.mse_loss(z, t.detach())),
        ("squared distance", lambda z, t, y: F.cross_entropy(z, y) + F.mse_loss(z.softmax(1), t.detach().softmax(1))),
        ("no gradient: compute it", lambda z, t, y: with_no_grad(z.detach(), t, y)),
        ("no gradient reaches logits|teacher has a gradient", lambda z, t, y: F.cross_entropy(z.detach(), y)
         + F.cross_entropy(z.detach(), t.softmax(1))),
        ("gradient with respect to logits", lambda z, t, y: F.cross_entropy(z, y)
         + F.cross_entropy(z.detach(), t.detach().softmax(1))),
        ("wrong sign: a loss", lambda z, t, y: -with_no_grad(z, t, y)),
        ("teacher's term has the wrong sign", lambda z, t, y: F.cross_entropy(z, y) - ce(z, t.softmax(1))),
        ("has shape", lambda z, t, y: F.cross_entropy(z, y, reduction="none") + ce(z, t.softmax(1), reduction="none")),
        ("type float: return a tensor", lambda z, t, y: with_no_grad(z, t, y).item()),
        ("returns .*right is", lambda z, t, y: F.cross_entropy(z.softmax(1), y) + ce(z, t.softmax(1))),
    ],
    "average_gradients": [
        ("divides by the number of tasks", lambda g, c: mean_then(g, c, elementwise(c), len(g))),
        ("not clipped: limit each element", lambda g, c: mean_then(g, c, lambda x: x, len(g))),
        ("divides by the number of tasks", zeros_for_none),
        ("this is the sum over the tasks", lambda g, c: mean_then(g, c, elementwise(c), 1)),
        ("sum over the tasks, not clipped", lambda g, c: mean_then(g, c, lambda x: x, 1)),
        ("not clipped: limit each element", lambda g, c: mean_then(g, c, lambda x: x)),
        ("average first, clip once", clip_early),
        ("clips the sum and then divides", lambda g, c: [
            None if s is None else s / sum(row[i] is not None for row in g)
            for i, s in enumerate(mean_then(g, c, elementwise(c), 1))]),
        ("clips by the norm", lambda g, c: mean_then(g, c, lambda x: x * min(1.0, c / x.norm()))),
        ("clips by the norm", clip_global),
        ("large negative elements are not clipped", lambda g, c: mean_then(g, c, lambda x: x.clamp(max=c))),
        ("large positive elements are not clipped", lambda g, c: mean_then(g, c, lambda x: x.clamp(min=-c))),
        ("not 0", lambda g, c: mean_then(g, c, lambda x: x.clamp(0, c))),
        ("return None, or the optimizer", lambda g, c: mean_then(g, c, elementwise(c), none=torch.zeros(1))),
        ("return None, or the optimizer", lambda g, c: mean_then(g, c, elementwise(c), none=0)),
        ("one per parameter, None included", lambda g, c: [m for m in by_loops(g, c) if m is not None]),
        ("Only a parameter that no task used", lambda g, c: [
            None if any(row[i] is None for row in g) else m for i, m in enumerate(by_loops(g, c))]),
        ("changes the gradients", in_place),
        ("first task's gradient alone", lambda g, c: mean_then(
            [[next((x for x in col if x is not None), None) for col in zip(*g, strict=True)]], c, elementwise(c))),
        ("type Tensor", lambda g, c: torch.cat([m.flatten() for m in by_loops(g, c) if m is not None])),
        ("it stops with TypeError", lambda g, c: [
            (sum(col) / len(col)).clamp(-c, c) for col in zip(*g, strict=True)]),
    ],
    "mebqat_step": [
        ("weights move between the tasks", walk),
        ("weights move between the tasks", lambda w, f, lr: walk(w, f, lr / len(f))),
        ("weights move between the tasks", lambda w, f, lr: walk(w, f[::-1], lr)),
        ("that is an inner loop", adapted),
        ("that is an inner loop", lambda w, f, lr: w + (adapted(w, f, lr) - w) * len(f)),
        ("sum of the gradients: take their mean", lambda w, f, lr: w - lr * total(w, f)),
        ("divides by the number of tasks twice", lambda w, f, lr: w - lr * total(w, f) / len(f) ** 2),
        ("uphill", lambda w, f, lr: w + lr * total(w, f) / len(f)),
        ("lr is forgotten", lambda w, f, lr: w - total(w, f) / len(f)),
        ("lr is used twice", lambda w, f, lr: w - lr * lr * total(w, f) / len(f)),
        ("w comes back", lambda w, f, lr: w.clone()),
        ("return the new weights", lambda w, f, lr: total(w, f) / len(f)),
        ("subtract it from w", lambda w, f, lr: lr * total(w, f) / len(f)),
        ("last task's gradient", overwritten),
        ("first task's gradient", lambda w, f, lr: w - lr * slope(f[0], w)),
        ("carry the graph", lambda w, f, lr: (v := w.requires_grad_()) - lr * total(v, f).detach() / len(f)),
        ("it stops with RuntimeError", lambda w, f, lr: f[0](w).backward()),
        ("type float", lambda w, f, lr: float(sum(loss(w) for loss in f))),
        ("right is", lambda w, f, lr: adapted(w, f, lr, 0.001)),
    ],
}  # fmt: skip
