"""Lesson 04: right answers, each written another way, and wrong ones with the message that names them."""

import random

import numpy as np
import torch
import torch.nn.functional as F

import mebqat_lite as mq
from answers import lesson_04_step

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


def by_rounding_down(pool, m, guaranteed, rng):
    places = (torch.rand(m - len(guaranteed), generator=rng, dtype=torch.float64) * len(pool)).floor().long()
    return [*guaranteed, *[pool[place] for place in places]]


def by_numpy(pool, m, guaranteed, rng):
    chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
    table = np.empty(len(pool), dtype=object)
    table[:] = pool
    return np.concatenate([np.array([*guaranteed, None], dtype=object)[:-1], chance.choice(table, m - len(guaranteed))])


def by_shuffling_each_time(pool, m, guaranteed, rng):
    return guaranteed + [pool[torch.randperm(len(pool), generator=rng)[0]] for _ in range(m - len(guaranteed))]


def by_growing_a_copy(pool, m, guaranteed, rng):
    pairs = guaranteed.copy()
    for _ in range(len(guaranteed), m):
        pairs += [pool[torch.randint(0, len(pool), (1,), generator=rng).item()]]
    return pairs


def by_names(pool, m, guaranteed, rng):
    names = [str(pair) for pair in guaranteed]
    names += [str(pool[i]) for i in torch.randint(len(pool), (m - len(guaranteed),), generator=rng)]
    return [mq.Bits.parse(name) for name in names]


def by_cumulated_weights(pool, m, guaranteed, rng):
    edges = torch.linspace(0, 1, len(pool) + 1, dtype=torch.float64)[1:]
    found = torch.bucketize(torch.rand(m - len(guaranteed), generator=rng, dtype=torch.float64), edges, right=True)
    return tuple(guaranteed) + tuple(pool[i] for i in found.tolist())


def by_extending(pool, m, guaranteed, rng):
    pairs = []
    pairs.extend(guaranteed)
    pairs.extend(map(pool.__getitem__, torch.randint(high=len(pool), size=(m - len(pairs),), generator=rng)))
    return pairs


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


# --- mebqat_loss


def hard_or(soft):
    """A loss that is the labels' term alone without a teacher, and ``soft(logits, labels, teacher)`` with one."""
    return lambda z, y, t: F.cross_entropy(z, y) if t is None else soft(z, y, t)


@hard_or
def of_the_package(logits, labels, teacher):
    return mq.learners.cross_entropies(logits, labels, teacher.detach().softmax(1))


@hard_or
def with_no_grad(logits, labels, teacher):
    with torch.no_grad():
        soft = F.softmax(teacher, dim=-1)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits, soft)


@hard_or
def one_term(logits, labels, teacher):
    target = F.one_hot(labels, logits.shape[1]) + teacher.detach().softmax(1)
    return -(target * F.log_softmax(logits, 1)).sum() / len(labels)


@hard_or
def kl_and_entropy(logits, labels, teacher):
    soft = teacher.detach().softmax(1)
    kl = F.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
    return F.cross_entropy(logits, labels) + kl - (soft * soft.log()).sum(1).mean()


def image_by_image(logits, labels, teacher):
    total = 0
    for i, label in enumerate(labels.tolist()):
        log_p = logits[i] - logits[i].exp().sum().log()
        total = total - log_p[label]
        if teacher is not None:
            total = total - log_p @ teacher[i].detach().softmax(0)
    return total / len(labels)


def in_float64(logits, labels, teacher):
    log_p = logits.double().log_softmax(1)
    loss = F.nll_loss(log_p, labels)
    if teacher is not None:
        loss = loss - torch.einsum("bc,bc->", teacher.detach().double().softmax(1), log_p) / len(labels)
    return loss


def teacher_from_numpy(logits, labels, teacher):
    loss = F.nll_loss(logits.log_softmax(-1), labels)
    if teacher is not None:
        powers = np.exp(teacher.detach().numpy())
        soft = torch.from_numpy(powers / powers.sum(axis=1, keepdims=True))
        loss += F.cross_entropy(logits, soft)
    return loss


def with_zero_weight(logits, labels, teacher):
    weight = 0.0 if teacher is None else 1.0
    teacher = logits.detach() if teacher is None else teacher
    return F.cross_entropy(logits, labels) + weight * F.cross_entropy(logits, F.softmax(teacher.detach(), 1))


def by_copying_the_teacher(logits, labels, teacher):
    terms = [F.cross_entropy(logits, labels)]
    if teacher is not None:
        terms.append(F.cross_entropy(logits, torch.tensor(teacher.tolist()).softmax(1)))
    return sum(terms)


def by_logsumexp(logits, labels, teacher):
    rows = torch.arange(len(labels))
    loss = (logits.logsumexp(1) - logits[rows, labels]).mean()
    if teacher is None:
        return loss
    soft = teacher.data.softmax(1)
    return loss + (logits.logsumexp(1) - (soft * logits).sum(1)).mean()


def by_reduction(logits, labels, teacher):
    each = F.cross_entropy(logits, labels, reduction="none")
    if teacher is not None:
        each = each + F.cross_entropy(logits, teacher.detach().softmax(1), reduction="none")
    return each.sum() / each.numel()


def ce(logits, target, **options):
    return F.cross_entropy(logits, target.detach(), **options)


@hard_or
def turned_kl(z, y, t):
    return F.cross_entropy(z, y) + F.kl_div(t.detach().log_softmax(1), z.softmax(1), reduction="batchmean")


def warm(t, both=False, factor=1):
    return hard_or(
        lambda z, y, teacher: F.cross_entropy(z, y) + factor * ce(z / t if both else z, (teacher / t).softmax(1))
    )


def half(z, y, t):
    return with_no_grad(z, y, t) / 2


RIGHT = {
    "sample_pairs": [
        by_multinomial,
        one_at_a_time,
        by_python,
        by_the_package,
        by_rounding_down,
        by_numpy,
        by_shuffling_each_time,
        by_growing_a_copy,
        by_names,
        by_cumulated_weights,
        by_extending,
    ],
    "mebqat_loss": [
        of_the_package,
        with_no_grad,
        one_term,
        kl_and_entropy,
        image_by_image,
        in_float64,
        teacher_from_numpy,
        with_zero_weight,
        by_copying_the_teacher,
        by_logsumexp,
        by_reduction,
    ],
    "mebqat_step": lesson_04_step.RIGHT,
}
WRONG = {
    "sample_pairs": [
        ("without FP, which is guaranteed", lambda p, m, g, r: picks(p, m, r)),
        ("without FP, which is guaranteed", lambda p, m, g, r: picks([b for b in p if b != mq.FP], m, r)),
        ("guaranteed ones not at the front", lambda p, m, g, r: [*picks(p[1:-1], m - len(g), r), *g]),
        ("in the first free place", lambda p, m, g, r: [*g, *sorted(picks(p, m - len(g), r), key=p.index)]),
        ("guaranteed ones not at the front", lambda p, m, g, r: [*g[::-1], *picks(p, m - len(g), r)]),
        ("count among the m", lambda p, m, g, r: [*g, *picks(p, m, r)]),
        ("returns 2 pairs", lambda p, m, g, r: list(g)),
        ("no pair ever comes twice", shuffled),
        ("no pair ever comes twice", lambda p, m, g, r: list(eats_the_pool(list(p), m, g, r))),
        ("changes its input pool in place", eats_the_pool),
        ("changes its input guaranteed in place", grows_guaranteed),
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
        ("'W.A.*' is a text|'FP' is a text", lambda p, m, g, r: [str(b) for b in by_extending(p, m, g, r)]),
        ("'.*' is a text", lambda p, m, g, r: [*g, *map(str, picks(p, m - len(g), r))]),
        ("positions in the pool", lambda p, m, g, r: torch.randint(len(p), (m,), generator=r).tolist()),
        ("type Tensor", lambda p, m, g, r: torch.randint(len(p), (m,), generator=r)),
        ("type set", lambda p, m, g, r: {*g, *picks(p, m - len(g), r)}),
    ],
    "mebqat_loss": [
        ("teacher has a gradient", hard_or(lambda z, y, t: F.cross_entropy(z, y) + F.cross_entropy(z, t.softmax(1)))),
        ("KL divergence is turned round", turned_kl),
        ("teacher's term counts half", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) + ce(z, t.detach().softmax(1)) / 2)),
        ("labels' term counts half", hard_or(lambda z, y, t: F.cross_entropy(z, y) / 2 + ce(z, t.detach().softmax(1)))),
        ("its own teacher", hard_or(lambda z, y, t: F.cross_entropy(z, y) + ce(z, z.detach().softmax(1)))),
        ("logarithm is missing", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) - (t.detach().softmax(1) * z.softmax(1)).sum(1).mean())),
        ("logits for log-prob", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) - (t.detach().softmax(1) * z).sum(1).mean())),
        ("cross-entropy is turned round", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) + ce(t.detach(), z.softmax(1)))),
        ("lacks the teacher's entropy", hard_or(lambda z, y, t: F.cross_entropy(z, y) + F.kl_div(
            z.log_softmax(1), t.detach().softmax(1), reduction="batchmean"))),
        ("lacks the teacher's entropy", hard_or(lambda z, y, t: F.kl_div(
            z.log_softmax(1), t.detach().softmax(1), reduction="batchmean"))),
        ("hard label", hard_or(lambda z, y, t: F.cross_entropy(z, y) + F.cross_entropy(z, t.argmax(1)))),
        ("the term of the labels is missing .*with a teacher", hard_or(lambda z, y, t: ce(z, t.softmax(1)))),
        ("the term of the teacher is missing .*with a teacher", lambda z, y, t: F.cross_entropy(z, y)),
        ("averaged: add", hard_or(half)),
        ("this is half of the labels' term", lambda z, y, t: with_no_grad(z, y, t) / (1 + (t is None))),
        ("the labels' term counts twice", lambda z, y, t: with_no_grad(z, y, t) * (1 + (t is None))),
        ("the loss is 0", lambda z, y, t: with_no_grad(z, y, t) * (t is not None)),
        ("this is the sum over .*without a teacher", lambda z, y, t: (
            with_no_grad(z, y, t) * (len(y) if t is None else 1))),
        ("AttributeError: 'NoneType'", lambda z, y, t: F.cross_entropy(z, y) + ce(z, t.softmax(1))),
        ("sum over the batch: take the mean", lambda z, y, t: with_no_grad(z, y, t) * len(y)),
        ("teacher's term is a sum", hard_or(lambda z, y, t: F.cross_entropy(z, y) + ce(
            z, t.softmax(1), reduction="sum"))),
        ("labels' term is a sum", hard_or(
            lambda z, y, t: F.cross_entropy(z, y, reduction="sum") + ce(z, t.softmax(1)))),
        ("mean over the classes", hard_or(lambda z, y, t: F.cross_entropy(z, y) - (
            t.detach().softmax(1) * z.log_softmax(1)).mean())),
        ("softmax first", hard_or(lambda z, y, t: F.cross_entropy(z, y) + ce(z, t))),
        ("use dim 1", hard_or(lambda z, y, t: F.cross_entropy(z, y) + ce(z, t.softmax(0)))),
        ("softmax is taken twice: ", lambda z, y, t: with_no_grad(z.softmax(1), y, t)),
        ("softmax is taken twice: ", hard_or(lambda z, y, t: F.cross_entropy(z, y) + ce(z.softmax(1), t.softmax(1)))),
        ("softmax is taken twice of the teacher", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) + ce(z, t.softmax(1).softmax(1)))),
        ("a temperature of 2", warm(2)),
        ("a temperature of 4", warm(4, both=True)),
        ("a temperature of 3", warm(3, both=True, factor=9)),
        ("squared distance", hard_or(lambda z, y, t: F.cross_entropy(z, y) + F.mse_loss(z, t.detach()))),
        ("squared distance", hard_or(
            lambda z, y, t: F.cross_entropy(z, y) + F.mse_loss(z.softmax(1), t.detach().softmax(1)))),
        ("loss has no gradient. Compute it", lambda z, y, t: with_no_grad(z.detach(), y, t)),
        ("loss has no gradient.* return the tensor", lambda z, y, t: with_no_grad(z, y, t).item()),
        ("no gradient reaches logits|teacher has a gradient", lambda z, y, t: with_no_grad(z, y, t)
         if t is None else F.cross_entropy(z.detach(), y) + F.cross_entropy(z.detach(), t.softmax(1))),
        ("only the labels' term has a gradient", hard_or(lambda z, y, t: F.cross_entropy(z, y)
         + F.cross_entropy(z.detach(), t.detach().softmax(1)))),
        ("only the teacher's term has a gradient", hard_or(lambda z, y, t: F.cross_entropy(z.detach(), y)
         + F.cross_entropy(z, t.detach().softmax(1)))),
        ("wrong sign: a loss", lambda z, y, t: -with_no_grad(z, y, t)),
        ("teacher's term has the wrong sign", hard_or(lambda z, y, t: F.cross_entropy(z, y) - ce(z, t.softmax(1)))),
        ("terms are multiplied", hard_or(lambda z, y, t: F.cross_entropy(z, y) * ce(z, t.softmax(1)))),
        ("tensor of .* values: return one number", lambda z, y, t: F.cross_entropy(z, y, reduction="none")),
    ],
    "mebqat_step": lesson_04_step.WRONG,
}  # fmt: skip
