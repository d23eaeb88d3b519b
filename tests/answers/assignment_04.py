"""Assignment 04: right answers, each written another way, and wrong ones with the message that names them."""

import random

import numpy as np
import torch
import torch.nn.functional as F

from answers import assignment_04_train

# --- draw_step


def by_torch(pool, sure, m, seed, step):
    chance = torch.Generator().manual_seed(seed * (10**6 + 1) + step)
    return list(sure) + [pool[i] for i in torch.randint(len(pool), (m - len(sure),), generator=chance).tolist()]


def by_numpy(pool, sure, m, seed, step):
    picks = np.random.default_rng([seed, step]).integers(len(pool), size=m - len(sure))
    return (*sure, *(pool[i] for i in picks))


def all_steps_before(pool, sure, m, seed, step):
    chance = random.Random(seed)
    for _ in range(step + 1):
        row = [pool[int(chance.random() * len(pool))] for _ in range(m - len(sure))]
    return sure + row


def one_table(pool, sure, m, seed, step):
    torch.manual_seed(seed)
    return sure + [pool[i] for i in torch.randint(0, len(pool), (step + 1, m - len(sure)))[step]]


def free(choose):
    """An answer whose free pairs are ``choose(pool, count, chance)``."""
    return lambda pool, sure, m, seed, step: [
        *sure, *choose(pool, m - len(sure), random.Random(f"{step}-{seed}"))]  # fmt: skip


def seeded(number, shift=lambda seed, step: 0):
    """An answer whose generator has the seed ``number(seed, step)`` and skips some draws."""

    def answer(pool, sure, m, seed, step):
        chance, skipped = random.Random(number(seed, step)), shift(seed, step)
        return [*sure, *[chance.choice(pool) for _ in range(skipped + m - len(sure))][skipped:]]

    return answer


def no_neighbours(pool, count, chance):
    found = [chance.choice(pool) for _ in range(min(count, 1))]
    while len(found) < count:
        found.append(chance.choice([pair for pair in pool if pair != found[-1]]))
    return found


def apart(pool, count, chance):
    picked = [(chance.choice(pool)[:2], chance.choice(pool)[2:]) for _ in range(count)]
    return ["".join(pair) for pair in picked]


def counted(calls=[0]):  # noqa: B006
    def answer(pool, sure, m, seed, step):
        calls[0] += 1
        return [*sure, *random.Random(calls[0]).choices(pool, k=m - len(sure))]

    return answer


def shuffled(pool, sure, m, seed, step):
    pairs = by_numpy(pool, sure, m, seed, step)
    return random.Random(seed + step).sample(pairs, m)


# --- task_losses


def by_loops(logits, labels, teachers):
    found = []
    for i, t in enumerate(teachers):
        loss = F.cross_entropy(logits[i], labels)
        if t is not None:
            with torch.no_grad():
                soft = F.softmax(logits[t], dim=-1)
            loss = loss + F.cross_entropy(logits[i], soft)
        found.append(loss)
    return torch.stack(found)


def at_once(logits, labels, teachers):
    log_p, (_, batch, classes) = logits.double().log_softmax(-1), logits.shape
    target = F.one_hot(labels, classes).double().expand(len(teachers), batch, classes).clone()
    for i, t in enumerate(teachers):
        if t is not None:
            target[i] += log_p[t].detach().exp()
    return -(target * log_p).sum((1, 2)) / batch


def with_kl(logits, labels, teachers):
    losses = torch.zeros(len(teachers))
    for i, t in enumerate(teachers):
        losses[i] = F.nll_loss(logits[i].log_softmax(1), labels)
        if t is not None:
            q = logits[t].detach().softmax(1)
            losses[i] += F.kl_div(logits[i].log_softmax(1), q, reduction="batchmean") - (q * q.log()).sum(1).mean()
    return losses


def losses(term=F.cross_entropy, by=lambda teachers: teachers, hard=1.0, cut=torch.Tensor.detach, dim=1):
    """An answer whose term of the teacher is ``term(logits, probabilities)``, and whose teachers are ``by``."""

    def answer(logits, labels, teachers):
        found = []
        for z, t in zip(logits, by(teachers), strict=True):
            loss = F.cross_entropy(z, labels)
            found.append(loss if t is None else hard * loss + term(z, cut(logits[t]).softmax(dim)))
        return torch.stack(found)

    return answer


def pupils_cut(logits, labels, teachers):
    return torch.stack([
        by_loops(logits if t is None else logits.detach(), labels, teachers)[i] for i, t in enumerate(teachers)
    ])  # fmt: skip


def teacher_term_cut(logits, labels, teachers):
    total, hard = by_loops(logits, labels, teachers), by_loops(logits, labels, [None] * len(teachers))
    return hard + (total - hard).detach()


def label_term_cut(logits, labels, teachers):
    hard = by_loops(logits, labels, [None] * len(teachers))
    alone = torch.tensor([t is None for t in teachers])
    return by_loops(logits, labels, teachers) - torch.where(alone, 0, hard - hard.detach())


def kl(z, q):
    return F.kl_div(z.log_softmax(1), q, reduction="batchmean")


# --- mean_gradients


def by_counting(gradients, pairs, limit):
    sums, uses = {}, {}
    for pair in pairs:
        for name, g in gradients[pair].items():
            sums.setdefault(name, None)
            if g is not None:
                sums[name] = g.clone() if sums[name] is None else sums[name] + g
                uses[name] = uses.get(name, 0) + 1
    return {name: None if g is None else (g / uses[name]).clip(-limit, limit) for name, g in sums.items()}


def by_weights(gradients, pairs, limit):
    times, out = {pair: pairs.count(pair) for pair in pairs}, {}
    for name in sorted(next(iter(gradients.values()))):
        used = [(n, gradients[p][name].double()) for p, n in times.items() if gradients[p][name] is not None]
        out[name] = None
        if used:
            mean = sum(n * g for n, g in used) / sum(n for n, _ in used)
            out[name] = torch.minimum(torch.maximum(mean, torch.tensor(-limit)), torch.tensor(limit))
    return out


def means(of, clip=lambda g, limit: g.clamp(-limit, limit), each=lambda g, limit: g, none=None):
    """An answer that clips ``of(gradients of the draws, of the pairs, number of draws)``."""

    def answer(gradients, pairs, limit):
        out = {}
        for name in gradients[pairs[0]]:
            draws = [each(gradients[p][name], limit) for p in pairs if gradients[p][name] is not None]
            once = [each(gradients[p][name], limit) for p in dict.fromkeys(pairs) if gradients[p][name] is not None]
            out[name] = clip(of(draws, once, len(pairs)), limit) if draws else none
        return out

    return answer


def plain(draws, once, count):
    return sum(draws) / len(draws)


def adds_in_place(gradients, pairs, limit):
    out = dict(gradients[pairs[0]])
    for pair in pairs[1:]:
        for name, g in gradients[pair].items():
            out[name] = g if out[name] is None else out[name] if g is None else out[name].add_(g)
    uses = {name: sum(gradients[pair][name] is not None for pair in pairs) for name in out}
    return {name: None if g is None else (g / uses[name]).clamp(-limit, limit) for name, g in out.items()}


def without_unused(gradients, pairs, limit):
    return {name: g for name, g in by_counting(gradients, pairs, limit).items() if g is not None}


def without_zeros(draws, once, count):
    kept = [g for g in draws if g.abs().sum() > 0]
    return sum(kept) / len(kept)


RIGHT = {
    "draw_step": [
        by_torch,
        by_numpy,
        all_steps_before,
        one_table,
        seeded(lambda seed, step: 10_000 * seed + step),
        seeded(lambda seed, step: f"{seed}{step:04}"),
        seeded(lambda seed, step: hash((seed, step))),
        seeded(lambda seed, step: random.Random(seed).getrandbits(60) + step),
    ],
    "task_losses": [by_loops, at_once, with_kl],
    "mean_gradients": [by_counting, by_weights],
    "mebqat_train": assignment_04_train.RIGHT,
}
WRONG = {
    "draw_step": [
        ("all seeds give the same", seeded(lambda seed, step: step)),
        ("drawn anew for each step", seeded(lambda seed, step: seed)),
        ("all seeds give the same", lambda pool, sure, m, seed, step: [*sure, *(pool * 9)[: m - len(sure)]]),
        ("step 1 and seed .* draw the same pairs", seeded(lambda seed, step: seed + step)),
        ("draw the same pairs", seeded(lambda seed, step: seed * step)),
        ("step 1000 .* draw the same pairs", seeded(lambda seed, step: 1000 * seed + step)),
        ("draw the same pairs", seeded(lambda seed, step: 1009 * seed + step)),
        ("draw the same pairs", seeded(lambda seed, step: 5003 * seed + step)),
        ("draw the same pairs", seeded(lambda seed, step: 9_999 * seed + step)),
        ("draw the same pairs", seeded(lambda seed, step: seed + 7919 * step)),
        ("draw the same pairs", seeded(lambda seed, step: 31 * seed + 17 * step)),
        ("draw the same pairs", seeded(lambda seed, step: seed + step / 1000)),
        ("draw the same pairs", seeded(lambda seed, step: seed ^ step)),
        ("draw the same pairs", seeded(lambda seed, step: (seed + 1) * (step + 1))),
        ("draw the same pairs", seeded(lambda seed, step: seed**2 + step**2)),
        ("draw the same pairs", seeded(lambda seed, step: (10_007 * seed + step) % 2**10)),
        ("hash.. of text", seeded(lambda seed, step: hash(f"{seed}/{step}"))),
        ("hash.. of text", seeded(lambda seed, step: hash(str(seed)) + step)),
        ("draw the same pairs", seeded(lambda seed, step: f"{seed}{step}")),
        ("draw the same pairs", seeded(lambda seed, step: f"{step}{seed}")),
        ("moved by", seeded(lambda seed, step: seed, lambda seed, step: step)),
        ("asked for again", counted()),
        ("guaranteed and missing", lambda pool, sure, m, seed, step: by_torch(pool, [], m, seed, step)),
        ("count among the m", lambda pool, sure, m, seed, step: by_torch(pool, sure, m + len(sure), seed, step)),
        ("come first", shuffled),
        ("come first", lambda *a: by_torch(*a)[::-1]),
        ("never FP|never comes", lambda pool, sure, *a: [*sure, *by_torch(
            [b for b in pool if b not in ("FP", "W1A1")], [], a[0] - len(sure), *a[1:])]),
        ("follows itself", free(no_neighbours)),
        ("with replacement", free(lambda pool, count, chance: chance.sample(pool, count))),
        ("the first of candidates, never", free(lambda pool, count, chance: chance.choices(pool[1:], k=count))),
        ("the last of candidates, never", free(lambda pool, count, chance: chance.choices(pool[:-1], k=count))),
        ("equally likely", free(lambda pool, count, chance: chance.choices([*pool, pool[0]], k=count))),
        ("repeated in all", free(lambda pool, count, chance: [chance.choice(pool)] * count)),
        ("positions", free(lambda pool, count, chance: chance.choices(range(len(pool)), k=count))),
        ("whole pairs", free(apart)),
        ("return a list", lambda pool, sure, *a: ",".join(by_torch(pool, sure, *a))),
        ("not m", lambda *a: by_torch(*a)[:-1]),
    ],
    "task_losses": [
        ("is not None", losses(by=lambda ts: [t or None for t in ts])),
        ("teachers' term is missing", losses(by=lambda ts: [None] * len(ts))),
        ("row 0 teaches all", losses(by=lambda ts: [None if t is None else 0 for t in ts])),
        ("the row above", losses(by=lambda ts: [None if t is None else i - 1 for i, t in enumerate(ts)])),
        ("learns from itself", losses(by=lambda ts: [i if t is None else t for i, t in enumerate(ts)])),
        ("a row without a teacher gets one", losses(by=lambda ts: [-1 if t is None else t for t in ts])),
        ("teaches itself", losses(by=lambda ts: [None if t is None else i for i, t in enumerate(ts)])),
        ("no teacher teaches all", losses(by=lambda ts: [None if t is None else ts.index(None) for t in ts])),
        ("labels' term is missing", losses(hard=0.0)),
        ("labels' term counts half", losses(hard=0.5)),
        ("teacher's term counts half", losses(lambda z, q: F.cross_entropy(z, q) / 2)),
        ("half of its gradient", losses(lambda z, q: F.cross_entropy((z + z.detach()) / 2, q))),
        ("logarithm is missing", losses(lambda z, q: -(q * z.softmax(1)).sum(1).mean())),
        ("logits for log-prob", losses(lambda z, q: -(q * z).sum(1).mean())),
        ("squared error", losses(lambda z, q: F.mse_loss(z.softmax(1), q))),
        ("averaged", losses(lambda z, q: F.cross_entropy(z, q) / 2, hard=0.5)),
        ("sum over the batch", lambda z, y, ts: len(y) * by_loops(z, y, ts)),
        ("teacher's term is a sum", losses(lambda z, q: F.cross_entropy(z, q, reduction="sum"))),
        ("mean over the classes", losses(lambda z, q: -(q * z.log_softmax(1)).mean())),
        ("argmax", losses(lambda z, q: F.cross_entropy(z, q.argmax(1)))),
        ("KL divergence", losses(kl)),
        ("turned round", losses(lambda z, q: -(z.softmax(1) * q.log()).sum(1).mean())),
        ("over the batch: it is over the classes", losses(dim=0)),
        ("shape", lambda *a: by_loops(*a).mean()),
        ("the loss of each", lambda *a: by_loops(*a).mean().expand(len(a[2]))),
        ("teacher has a gradient", losses(cut=lambda z: z)),
        ("no gradient reaches", lambda *a: torch.tensor([float(loss.detach()) for loss in by_loops(*a)])),
        ("rows that have no teacher get a gradient", pupils_cut),
        ("only the labels' term has a gradient", teacher_term_cut),
        ("only the teachers' term has a gradient", label_term_cut),
    ],
    "mean_gradients": [
        ("number of draws: divide", means(lambda draws, once, count: sum(draws) / count)),
        ("one less than", means(lambda draws, once, count: sum(draws) / max(1, len(draws) - 1))),
        ("drawn twice counts once", means(lambda draws, once, count: sum(once) / len(once))),
        ("added once, but counted", means(lambda draws, once, count: sum(once) / len(draws))),
        ("added once, but counted", means(lambda draws, once, count: sum(once) / count)),
        ("added twice, but counted once", means(lambda draws, once, count: sum(draws) / len(once))),
        ("zeros is left out", means(without_zeros)),
        ("sum over the draws", means(lambda draws, once, count: sum(draws))),
        ("last draw alone", means(lambda draws, once, count: draws[-1])),
        ("sizes of the gradients", means(lambda draws, once, count: torch.stack(draws).abs().mean(0))),
        ("gradient that it was given", adds_in_place),
        ("largest element", means(plain, clip=lambda g, limit: g * min(1.0, limit / float(g.abs().max())))),
        ("return None", means(plain, none=torch.zeros(2, 3))),
        ("is missing in what it returns", without_unused),
        ("return a dictionary", lambda *a: list(by_counting(*a).values())),
        ("no name of a parameter", lambda *a: by_counting(*a) | {"all": torch.zeros(2)}),
        ("not clipped", means(plain, clip=lambda g, limit: g)),
        ("average first, then clip once", means(plain, each=lambda g, limit: g.clamp(-limit, limit))),
        ("clips the sum", lambda gradients, pairs, limit: {
            name: g if g is None else g / len(pairs)
            for name, g in means(lambda draws, once, count: sum(draws))(gradients, pairs, limit).items()}),
        ("by the norm", means(plain, clip=lambda g, limit: g * min(1.0, limit / float(g.norm())))),
        ("the lower limit is -limit: large", means(plain, clip=lambda g, limit: g.clamp(max=limit))),
        ("not 0", means(plain, clip=lambda g, limit: g.clamp(0, limit))),
        ("the upper limit", means(plain, clip=lambda g, limit: g.clamp(min=-limit))),
        ("become 0", means(plain, clip=lambda g, limit: torch.where(g.abs() > limit, 0, g))),
    ],
    "mebqat_train": assignment_04_train.WRONG,
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
