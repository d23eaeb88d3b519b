"""Assignment 04: right answers, each written another way, and wrong ones with the message that names them."""

import random

import numpy as np
import torch
import torch.nn.functional as F

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


def without_unused(gradients, pairs, limit):
    return {name: g for name, g in by_counting(gradients, pairs, limit).items() if g is not None}


def without_zeros(draws, once, count):
    kept = [g for g in draws if g.abs().sum() > 0]
    return sum(kept) / len(kept)


# --- mebqat_train


def widths(pair):
    return (32, 32) if pair == "FP" else tuple(int(bits) for bits in pair[1:].split("A"))


def quantize_weights(w, pair):
    bits, _ = widths(pair)
    if bits == 32:
        return w
    if bits == 1:
        return w.sign() * w.abs().mean()
    top = 2 ** (bits - 1) - 1
    step = 2 * w.abs().mean() / top**0.5
    return step * torch.round(w / step).clamp(-top, top)


def quantize_input(x, pair):
    _, bits = widths(pair)
    return x if bits == 32 else torch.round(x * (2**bits - 1)) / (2**bits - 1)


def through(w, pair):
    return w + (quantize_weights(w, pair) - w).detach()


def loss_at(w, x, labels, pair, teacher, weights=through, inputs=quantize_input):
    logits = inputs(x, pair) @ weights(w, pair).T
    loss = F.cross_entropy(logits, labels)
    return loss if pair == "FP" else loss + F.cross_entropy(logits, teacher.softmax(1))


def by_autograd(w, x, labels, steps, lr):
    w = w.clone().requires_grad_()
    for pairs in steps:
        loss = sum(loss_at(w, x, labels, pair, (x @ w.T).detach()) for pair in pairs) / len(pairs)
        w = (w - lr * torch.autograd.grad(loss, w)[0]).detach().requires_grad_()
    return w


def by_sgd(w, x, labels, steps, lr):
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    for pairs in steps:
        optimizer.zero_grad()
        with torch.no_grad():
            teacher = layer(x)
        for pair in pairs:
            (loss_at(layer.weight, x, labels, pair, teacher) / len(pairs)).backward()
        optimizer.step()
    return layer.weight.detach()


def by_hand(w, x, labels, steps, lr):
    w, x, hot = w.double(), x.double(), F.one_hot(labels, len(w)).double()
    for pairs in steps:
        teacher = torch.softmax(x @ w.T, 1)
        seen = torch.stack([quantize_input(x, pair) for pair in pairs])  # (pairs, batch, features)
        said = (seen @ torch.stack([quantize_weights(w, pair) for pair in pairs]).mT).softmax(2)
        wanted = torch.stack([hot if pair == "FP" else hot + teacher for pair in pairs])
        pull = wanted.sum(2, keepdim=True) * said - wanted
        w = w - lr * torch.einsum("pbc,pbf->cf", pull, seen) / (len(pairs) * len(x))
    return w


def run(count=len, choose=lambda pairs: pairs, sign=1.0, first=False, **how):
    """An answer with another count, other pairs, another sign, a teacher that ``first`` sets, or another loss."""

    def answer(w, x, labels, steps, lr):
        start = w
        for pairs in steps:
            w = w.detach().requires_grad_()
            teacher = (x @ (start if first else w).T).detach()
            loss = sum(loss_at(w, x, labels, pair, teacher, **how) for pair in choose(pairs)) / count(choose(pairs))
            w = w - sign * lr * torch.autograd.grad(loss, w)[0]
        return w.detach()

    return answer


def lost(w, pair):
    return w if pair == "FP" else quantize_weights(w, pair).detach() + 0 * w


def teacher_moves(w, x, labels, steps, lr):
    for pairs in steps:
        w = w.detach().requires_grad_()
        loss = sum(loss_at(w, x, labels, pair, x @ w.T) for pair in pairs) / len(pairs)
        w = w - lr * torch.autograd.grad(loss, w)[0]
    return w


def one_by_one(w, x, labels, steps, lr):
    return by_autograd(w, x, labels, [[pair] for pairs in steps for pair in pairs], lr)


def with_inner_step(w, x, labels, steps, lr):
    for pairs in steps:
        moved = [by_autograd(w, x, labels, [[pair]], lr) for pair in pairs]
        again = [by_autograd(v, x, labels, [[pair]], lr) for v, pair in zip(moved, pairs, strict=True)]
        w = w - sum(a - b for a, b in zip(moved, again, strict=True)) / len(pairs)
    return w


def overwrites(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        soft, total = (x @ w.T).softmax(1), 0
        for pair in pairs:
            w, seen = quantize_weights(w, pair), quantize_input(x, pair)
            said = (seen @ w.T).softmax(1)
            total += ((said - hot) + (said - soft if pair != "FP" else 0)).T @ seen / len(x)
        w = w - lr * total / len(pairs)
    return w


def float_backward(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        soft = (x @ w.T).softmax(1)
        said = sum(2 * (quantize_input(x, pair) @ quantize_weights(w, pair).T).softmax(1) for pair in pairs)
        w = w - lr * (said / len(pairs) - hot - soft).T @ x / len(x)
    return w


def labels_only(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        seen = [(quantize_input(x, pair), quantize_weights(w, pair)) for pair in pairs]
        w = w - lr * sum(((s @ q.T).softmax(1) - hot).T @ s for s, q in seen) / len(x) / len(pairs)
    return w


def first_teaches(w, x, labels, steps, lr):
    for pairs in steps:
        w = w.detach().requires_grad_()
        teacher = (quantize_input(x, pairs[0]) @ quantize_weights(w, pairs[0]).T).detach()
        loss = sum(loss_at(w, x, labels, pair, teacher) for pair in pairs) / len(pairs)
        w = w - lr * torch.autograd.grad(loss, w)[0]
    return w


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
    "mebqat_train": [by_autograd, by_sgd, by_hand],
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
    "mebqat_train": [
        ("lost in rounding", run(weights=quantize_weights)),
        ("lost in rounding", run(weights=lost)),
        ("teacher has a gradient", teacher_moves),
        ("teachers' term is missing", labels_only),
        ("first pair of the step teaches", first_teaches),
        ("input is not quantized", run(inputs=lambda x, pair: x)),
        ("with the float input", float_backward),
        ("sums of the gradients", run(count=lambda pairs: 1)),
        ("drawn twice counts once", run(choose=lambda pairs: list(dict.fromkeys(pairs)))),
        ("FP is not counted", run(count=lambda pairs: len([b for b in pairs if b != "FP"]))),
        ("only the first pair", run(choose=lambda pairs: pairs[:1])),
        ("only the last pair", run(choose=lambda pairs: pairs[-1:])),
        ("uphill", run(sign=-1.0)),
        ("lr is forgotten", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps, 1.0)),
        ("weights move between", one_by_one),
        ("inner loop", with_inner_step),
        ("take the place of w", overwrites),
        ("as it was", lambda w, *a: w.clone()),
        ("returns rounded", lambda *a: quantize_weights(by_hand(*a), a[3][-1][-1])),
        ("that of the start", run(first=True)),
        ("only the first step", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps[:1], lr)),
        ("only the last step", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps[-1:], lr)),
        ("taken at the first weights", lambda w, x, labels, steps, lr: w + sum(
            by_autograd(w, x, labels, [pairs], lr) - w for pairs in steps).detach()),
        ("one step is made of all", lambda w, x, labels, steps, lr: by_hand(
            w, x, labels, [[pair for pairs in steps for pair in pairs]], lr)),
        ("in place", lambda w, *a: w.copy_(by_hand(w, *a))),
    ],
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
