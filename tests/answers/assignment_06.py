"""Assignment 06: right answers, each written another way, and wrong ones with the message that names them."""

import random

import numpy as np
import torch
import torch.nn.functional as F


def quantize(w, bits):
    if bits == 32:
        return w
    step = w.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return w + (step * torch.round(w / step) - w).detach()


# --- device_episode --------------------------------------------------------------------------------------------


def episode_of_python(labels, ways, shots, count, seed):
    """Python's own generator, lists instead of tensors."""
    rng = random.Random(seed)
    images = {}
    for i, c in enumerate(labels.tolist()):
        images.setdefault(c, []).append(i)
    enrolled = rng.sample([c for c, found in images.items() if len(found) > shots], ways)
    support = [rng.sample(images[c], shots) for c in enrolled]
    left = [(i, n) for n, c in enumerate(enrolled) for i in images[c] if i not in support[n]]
    asked = rng.sample(left, count)
    return [support, [i for i, _ in asked], [n for _, n in asked]]


def episode_of_numpy(labels, ways, shots, count, seed):
    """NumPy, a mask, and a query in the order of the indices."""
    rng, y = np.random.default_rng(seed), labels.numpy()
    names, sizes = np.unique(y, return_counts=True)
    enrolled = rng.choice(names[sizes >= shots + 1], ways, replace=False)
    support = np.stack([rng.choice(np.flatnonzero(y == c), shots, replace=False) for c in enrolled])
    free = np.isin(y, enrolled)
    free[support.ravel()] = False
    query = np.sort(rng.permutation(np.flatnonzero(free))[:count])
    answers = torch.tensor([enrolled.tolist().index(c) for c in y[query]], dtype=torch.int32)
    return torch.from_numpy(support), torch.from_numpy(query), answers


def wrong_episode(*, least=1, order=True, overlap=False, twice=False, balanced=False, weighted=False, uniform=False,
                  first=False, fixed=False, name="row", drawn_again=False, foreign=False, appearing=False):  # fmt: skip
    def answer(labels, ways, shots, count, seed):
        rng = torch.Generator().manual_seed(0 if fixed else seed)
        classes, sizes = labels.unique(return_counts=True)
        keep = sizes >= shots + least
        classes, sizes = classes[keep], sizes[keep]
        weight = sizes.float() if weighted else torch.ones(len(classes))
        enrolled = classes[torch.multinomial(weight, ways, replacement=twice, generator=rng)]
        enrolled = enrolled if order else enrolled.sort().values
        if appearing:
            enrolled = labels[torch.tensor([int((labels == c).int().argmax()) for c in enrolled]).sort().values]
        support, rest = [], []
        for c in enrolled:
            members = (labels == c).nonzero()[:, 0]
            members = members if first else members[torch.randperm(len(members), generator=rng)]
            support.append(members[:shots])
            rest.append(members if overlap else members[shots:])
        support, pool = torch.stack(support), torch.cat(rest)
        if foreign:
            pool = torch.tensor([i for i in range(len(labels)) if i not in support.flatten().tolist()])
        query = pool[torch.randperm(len(pool), generator=rng)[:count]]
        if drawn_again:
            query = pool[torch.randint(len(pool), (count,), generator=rng)]
        if balanced:
            shuffled = [members[torch.randperm(len(members), generator=rng)].tolist() for members in rest]
            turns = [row[turn] for turn in range(count) for row in shuffled if turn < len(row)]
            query = torch.tensor(turns[:count]).sort().values
        if uniform:
            shuffled = [members[torch.randperm(len(members), generator=rng)].tolist() for members in rest]
            query = []
            while len(query) < count:
                some = shuffled[int(torch.randint(ways, (), generator=rng))]
                query += [some.pop()] if some else []
            query = torch.tensor(query)
        row = (labels[query][:, None] == enrolled).int().argmax(1)
        rank = (labels[query][:, None] == enrolled.sort().values).int().argmax(1)
        names = {"row": row, "label": labels[query], "rank": rank, "one": row + 1, "sorted": row.sort().values}
        return support, query, names[name]

    return answer


def unseeded(labels, ways, shots, count, seed):
    return wrong_episode()(labels, ways, shots, count, int(torch.randint(10**6, ())))


def for_each_class(labels, ways, shots, count, seed):
    """`count` queries of each class, as in the lesson."""
    rows = [(labels == c).nonzero()[:, 0].repeat(9)[: shots + count] for c in labels.unique()[:ways]]
    both = torch.stack(rows)
    return both[:, :shots], both[:, shots:].flatten(), torch.arange(ways).repeat_interleave(count)


# --- normalized ------------------------------------------------------------------------------------------------


def by_batch_norm(support, query, policy, stored, bits):
    known = support.flatten(0, 1)
    both = torch.cat([known, query])
    if policy == "batch":
        out = F.batch_norm(both, None, None, training=True)
    else:
        own = known.mean((0, 2, 3)), known.var((0, 2, 3), unbiased=False)
        mean, variance = {"support": own, "stored": stored[bits]}[policy]
        out = F.batch_norm(both, mean, variance)
    return [out[: len(known)].reshape(support.shape), out[len(known) :]]


def by_numpy(support, query, policy, stored, bits):
    known, asked = support.double().numpy(), query.double().numpy()
    seen = np.concatenate([known.reshape(-1, *known.shape[2:]), *([asked] if policy == "batch" else [])])
    mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    if policy == "stored":
        mean, var = (t.numpy() for t in stored[bits])
    shape = (-1, 1, 1)
    scale = np.sqrt(var.reshape(shape) + 1e-5)
    return tuple(torch.from_numpy((x - mean.reshape(shape)) / scale) for x in (known, asked))


def norm_with(choose, apply=None):
    """``choose`` gives mean and variance for the support and for the query; ``apply`` normalizes."""

    def plain(x, mean, var):
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()

    def answer(support, query, policy, stored, bits):
        known, asked = choose(support, query, policy, stored, bits)
        return (apply or plain)(support, *known), (apply or plain)(query, *asked)

    return answer


def stats(x, correction=0):
    x = x.flatten(0, -4)
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=correction)


def right_stats(support, query, policy, stored, bits, correction=0):
    both = torch.cat([support.flatten(0, 1), query])
    found = {"support": support, "batch": both}
    return stored[bits] if policy == "stored" else stats(found[policy], correction)


def twice(choose):
    return lambda *args: (choose(*args),) * 2


def shape(v):
    return v[:, None, None]


def own_query(support, query, policy, stored, bits):
    return stats(support), stats(query)


# --- proto_logits ----------------------------------------------------------------------------------------------


def proto_of_means(w, support, labels, query, bits):
    """A linear embedding of the mean is the mean of the embeddings."""
    truth = F.one_hot(labels).float()
    means = (truth / truth.sum(0)).T @ support
    few = quantize(w, bits)
    return -torch.cdist(F.linear(query, few), F.linear(means, few)).square()


def proto_expanded(w, support, labels, query, bits):
    """The square written out, sums by index_add, in float64."""
    few = quantize(w.double(), bits)
    known, asked = support.double() @ few.T, query.double() @ few.T
    ways = len(labels.unique())
    sums = known.new_zeros(ways, len(w)).index_add(0, labels, known)
    means = sums / labels.bincount()[:, None]
    return 2 * asked @ means.T - asked.square().sum(1, keepdim=True) - means.square().sum(1)


def proto(known=lambda w, b: quantize(w, b), asked=lambda w, b: quantize(w, b), mean=lambda x: x.mean(0), after=None):
    def answer(w, support, labels, query, bits):
        z, q = support @ known(w, bits).T, query @ asked(w, bits).T
        centres = torch.stack([mean(z[labels == n]) for n in range(int(labels.max()) + 1)])
        return after(q, centres) if after else -(q[:, None] - centres).square().sum(2)

    return answer


def detached(w, bits):
    return quantize(w, bits).detach()


def no_through(w, bits):
    step = w.abs().amax(1, keepdim=True).detach() / (2 ** (bits - 1) - 1)
    return w if bits == 32 else step * torch.round(w / step)


def at_full(w, bits):
    return w


def shared(w, bits):
    step = w.detach().abs().max() / (2 ** (bits - 1) - 1)
    return w if bits == 32 else w + (step * torch.round(w / step) - w).detach()


def as_sorted(w, support, labels, query, bits):
    return proto()(w, support, labels.sort().values, query, bits)


def equal_shots(w, support, labels, query, bits):
    z, q = support @ quantize(w, bits).T, query @ quantize(w, bits).T
    ways = int(labels.max()) + 1
    sums = z.new_zeros(ways, len(w)).index_add(0, labels, z)
    return -(q[:, None] - sums / (len(labels) / ways)).square().sum(2)


def nearest_image(w, support, labels, query, bits):
    z, q = support @ quantize(w, bits).T, query @ quantize(w, bits).T
    far = (q[:, None] - z).square().sum(2)
    return -torch.stack([far[:, labels == n].amin(1) for n in range(int(labels.max()) + 1)], 1)


def mean_distance(w, support, labels, query, bits):
    z, q = support @ quantize(w, bits).T, query @ quantize(w, bits).T
    far = (q[:, None] - z).square().sum(2)
    return -torch.stack([far[:, labels == n].mean(1) for n in range(int(labels.max()) + 1)], 1)


# --- fomaml_at_bits --------------------------------------------------------------------------------------------


def pull(w, x, y, at, total=False):
    """By hand: (probability - truth) times the image, passed straight through."""
    off = F.softmax(x @ at(w).T, 1) - F.one_hot(y, len(w))
    return off.T @ x / (1 if total else len(y))


def fomaml_by_hand(w, support, labels, query, answers, bits, lr, steps):
    fast = w.clone()
    for _ in range(steps):
        fast -= lr * pull(fast, support, labels, lambda v: quantize(v, bits))
    return pull(fast, query, answers, lambda v: quantize(v, bits))


def fomaml_by_sgd(w, support, labels, query, answers, bits, lr, steps):
    """An optimizer, backward(), and float64."""
    fast = torch.nn.Parameter(w.double().clone())
    optimizer = torch.optim.SGD([fast], lr=lr)
    for x, y in [(support, labels)] * steps + [(query, answers)]:
        optimizer.zero_grad()
        F.nll_loss((x.double() @ quantize(fast, bits).T).log_softmax(1), y).backward()
        if x is support:
            optimizer.step()
    return fast.grad


def fomaml_by_constants(w, support, labels, query, answers, bits, lr, steps):
    """The gradient of the start, from which constants were subtracted: the first-order trick of the lesson."""
    w.requires_grad_()
    fast = w
    for _ in range(steps):
        [grad] = torch.autograd.grad(F.cross_entropy(support @ quantize(fast, bits).T, labels), fast)
        fast = fast - lr * grad
    [grad] = torch.autograd.grad(F.cross_entropy(query @ quantize(fast, bits).T, answers), w)
    return grad


def wrong_fomaml(inner=quantize, outer=quantize, more=0, last=None, start=None, keep=None, total=(False, False)):
    def answer(w, support, labels, query, answers, bits, lr, steps):
        fast = start(w, bits) if start else w
        for _ in range(steps + more):
            fast = fast - lr * pull(fast, support, labels, lambda v: inner(v, bits), total[0])
            fast = keep(fast, bits) if keep else fast
        grad = pull(fast, query, answers, lambda v: outer(v, bits), total[1])
        return last(w, fast, grad, lr) if last else grad

    return answer


def at_start(w, support, labels, query, answers, bits, lr, steps):
    return pull(w, query, answers, lambda v: quantize(v, bits))


def peeks(w, support, labels, query, answers, bits, lr, steps):
    return fomaml_by_hand(w, query, answers, query, answers, bits, lr, steps)


def of_support(w, support, labels, query, answers, bits, lr, steps):
    return fomaml_by_hand(w, support, labels, support, labels, bits, lr, steps)


def of_both(w, support, labels, query, answers, bits, lr, steps):
    both = torch.cat([support, query]), torch.cat([labels, answers])
    return fomaml_by_hand(w, support, labels, *both, bits, lr, steps)


def uphill(w, support, labels, query, answers, bits, lr, steps):
    fast = w
    for _ in range(steps):
        fast = fast + lr * pull(fast, support, labels, lambda v: quantize(v, bits))
    return pull(fast, query, answers, lambda v: quantize(v, bits))


def in_place(w, support, labels, query, answers, bits, lr, steps):
    for _ in range(steps):
        w -= lr * pull(w, support, labels, lambda v: quantize(v, bits))
    return pull(w, query, answers, lambda v: quantize(v, bits))


def over_steps(w, support, labels, query, answers, bits, lr, steps):
    return wrong_fomaml()(w, support, labels, query, answers, bits, lr, steps) / max(1, steps)


def no_rate(w, support, labels, query, answers, bits, lr, steps):
    return fomaml_by_hand(w, support, labels, query, answers, bits, 1.0, steps)


def one_gradient(w, support, labels, query, answers, bits, lr, steps):
    return fomaml_by_hand(w, support, labels, query, answers, bits, lr * steps, min(steps, 1))


def maml(w, support, labels, query, answers, bits, lr, steps):
    start = w.requires_grad_()
    fast = start
    for _ in range(steps):
        loss = F.cross_entropy(support @ quantize(fast, bits).T, labels)
        fast = fast - lr * torch.autograd.grad(loss, fast, create_graph=True)[0]
    return torch.autograd.grad(F.cross_entropy(query @ quantize(fast, bits).T, answers), start)[0]


def without_through(w, support, labels, query, answers, bits, lr, steps):
    fast = w.requires_grad_()
    for x, y in [(support, labels)] * steps + [(query, answers)]:
        [grad] = torch.autograd.grad(F.cross_entropy(x @ no_through(fast, bits).T, y), fast)
        fast = fast - lr * grad
    return grad


RIGHT = {
    "device_episode": [episode_of_python, episode_of_numpy, wrong_episode()],
    "normalized": [by_batch_norm, by_numpy, norm_with(twice(right_stats))],
    "proto_logits": [proto_of_means, proto_expanded, proto()],
    "fomaml_at_bits": [fomaml_by_hand, fomaml_by_sgd, fomaml_by_constants, wrong_fomaml()],
}
WRONG = {
    "device_episode": [
        ("nothing is left to ask", wrong_episode(least=0)),
        ("in the order of their labels: the rows", wrong_episode(order=False)),
        ("in which they lie in the data", wrong_episode(appearing=True)),
        ("some classes never come", wrong_episode(least=2)),
        ("in the support and in the query", wrong_episode(overlap=True)),
        ("class comes twice", wrong_episode(twice=True)),
        ("image comes twice", wrong_episode(drawn_again=True)),
        ("asked about too seldom", wrong_episode(uniform=True)),
        ("asked about too seldom|equally often", wrong_episode(balanced=True)),
        ("more images comes more often", wrong_episode(weighted=True)),
        ("never in the support", wrong_episode(first=True)),
        ("every seed gives the same", wrong_episode(fixed=True)),
        ("same seed gives another", unseeded),
        ("not the label in the data", wrong_episode(name="label")),
        ("count the rows of the support", wrong_episode(name="rank")),
        ("from 0, not from 1", wrong_episode(name="one")),
        ("different orders", wrong_episode(name="sorted")),
        ("not in the support: no answer", wrong_episode(foreign=True)),
        ("number of all queries", for_each_class),
        ("return 3 tensors", lambda *args: wrong_episode()(*args)[:2]),
        ("different seeds", lambda *args: wrong_episode()(*args[:-1], args[-1] // 2)),
        ("one number over and over", lambda labels, *args: (
            labels[(found := wrong_episode()(labels, *args))[0]], *found[1:])),
        ("shape of the answers", lambda *args: (*(found := wrong_episode()(*args))[:2], F.one_hot(found[2], args[1]))),
        ("support.* it is turned", lambda *args: (
            (found := wrong_episode()(*args))[0].T, *found[1:]) if args[1] != args[2] else wrong_episode()(*args)),
    ],
    "normalized": [
        ("its own statistics|a leak", norm_with(own_query)),
        ("a leak: .* a query moves", norm_with(lambda s, q, p, t, b: (right_stats(s, q, "batch", t, b),) * 2)),
        ("a leak: .* the support moves", norm_with(lambda s, q, p, t, b: (
            right_stats(s, q, "batch", t, b), stats(s)))),
        ("under \"batch\" these are the statistics of the support", norm_with(lambda s, q, p, t, b: (
            right_stats(s, q, p if p == "stored" else "support", t, b),) * 2)),
        ("under \"stored\" these are the statistics of the support", norm_with(lambda s, q, p, t, b: (
            right_stats(s, q, "batch" if p == "batch" else "support", t, b),) * 2)),
        ("under \"support\" these are the stored", norm_with(lambda s, q, p, t, b: (t[b],) * 2)),
        ("statistics of FP", norm_with(lambda s, q, p, t, b: (right_stats(s, q, p, t, "FP"),) * 2)),
        ("statistics of the first pair", norm_with(lambda s, q, p, t, b: (
            right_stats(s, q, p, t, next(iter(t))),) * 2)),
        ("statistics of another pair|of the first pair", norm_with(lambda s, q, p, t, b: (
            right_stats(s, q, p, t, next(k for k in [*t][::-1] if k != b)),) * 2)),
        ("count less one", norm_with(lambda *args: (right_stats(*args, correction=1),) * 2)),
        ("take its square root", norm_with(twice(right_stats), lambda x, m, v: (x - shape(m)) / (shape(v) + 1e-5))),
        ("1e-5 is missing", norm_with(twice(right_stats), lambda x, m, v: (x - shape(m)) / shape(v).sqrt())),
        ("belongs below the root", norm_with(twice(right_stats), lambda x, m, v: (
            (x - shape(m)) / (shape(v).sqrt() + 1e-5)))),
        ("mean is not taken off", norm_with(twice(right_stats), lambda x, m, v: x / (shape(v) + 1e-5).sqrt())),
        ("only takes the mean off", norm_with(twice(right_stats), lambda x, m, v: x - shape(m))),
        ("nothing is normalized", lambda support, query, *_: (support.clone(), query.clone())),
        ("means of two statistics", norm_with(lambda s, q, p, t, b: (
            tuple((u + v) / 2 for u, v in zip(stats(s), stats(q), strict=True))
            if p == "batch" else right_stats(s, q, p, t, b),) * 2)),
        ("normalized by itself", lambda support, query, *_: (
            F.instance_norm(support.flatten(0, 1)).reshape(support.shape), F.instance_norm(query))),
        ("return 2 tensors", lambda *args: by_batch_norm(*args)[1]),
        ("are exchanged", norm_with(lambda s, q, p, t, b: (
            t[b][::-1] if p == "stored" else right_stats(s, q, p, t, b),) * 2)),
        ("first class", norm_with(lambda s, q, p, t, b: (right_stats(s[:1], q, "support", t, b),) * 2)),
        ("over its channels", lambda s, q, *_: (F.layer_norm(s, s.shape[-3:]), F.layer_norm(q, q.shape[-3:]))),
    ],
    "proto_logits": [
        ("sign is lost", lambda *args: -proto()(*args)),
        ("not squared", lambda *args: -(-proto()(*args)).sqrt()),
        ("mean over the outputs", lambda w, *args: proto()(w, *args) / len(w)),
        ("scalar product", proto(after=lambda q, c: q @ c.T)),
        ("both run at full precision", proto(at_full, at_full)),
        ("support runs at full precision", proto(known=at_full)),
        ("query runs at full precision", proto(asked=at_full)),
        ("one step", proto(shared, shared)),
        ("is the sum", proto(mean=lambda x: x.sum(0))),
        ("only the first", proto(mean=lambda x: x[0])),
        ("median", proto(mean=lambda x: x.median(0).values)),
        ("mean number of images", equal_shots),
        ("nearest image", nearest_image),
        ("mean of the distances", mean_distance),
        ("sorted by class", as_sorted),
        ("log-probabilities", lambda *args: proto()(*args).log_softmax(1)),
        ("half of the squared", lambda *args: proto()(*args) / 2),
        ("square of the query", proto(after=lambda q, c: 2 * q @ c.T - c.square().sum(1))),
        ("root of the number", lambda w, *args: proto()(w, *args) / len(w) ** 0.5),
        ("length 1", lambda w, support, labels, query, bits: proto(at_full, at_full)(
            torch.eye(len(w)), *(F.normalize(part @ quantize(w, bits).T) if part.is_floating_point() else part
                                 for part in (support, labels, query)), bits)),
        ("images are quantized", lambda w, support, labels, query, bits: proto()(
            w, quantize(support, bits), labels, quantize(query, bits), bits)),
        ("by way of the query only", proto(known=detached)),
        ("by way of the prototypes only", proto(asked=detached)),
        ("no gradient comes back", proto(detached, detached)),
        ("zero everywhere", proto(no_through, no_through)),
    ],
    "fomaml_at_bits": [
        ("at the start weights", at_start),
        ("one inner step too few", wrong_fomaml(more=-1)),
        ("one inner step too many|although steps is 0", wrong_fomaml(more=1)),
        ("support's loss", of_support),
        ("adapts on the query", peeks),
        ("inner loop runs at full", wrong_fomaml(inner=at_full)),
        ("query's loss is at full", wrong_fomaml(outer=at_full)),
        ("all runs at full|it runs at full", wrong_fomaml(at_full, at_full)),
        ("levels after each step", wrong_fomaml(keep=quantize)),
        ("levels before the first step: keep", wrong_fomaml(start=quantize)),
        ("before the first step, and not again: ", wrong_fomaml(at_full, at_full, start=quantize)),
        ("second-order", maml),
        ("uphill", uphill),
        ("lr is not used", no_rate),
        ("gradient at the start: take it", one_gradient),
        ("changes its input w in place", in_place),
        ("mixed", of_both),
        ("inner loss is a sum", wrong_fomaml(total=(True, False))),
        ("both losses are sums|last gradient is a sum", wrong_fomaml(total=(True, True))),
        ("last gradient is a sum", wrong_fomaml(total=(False, True))),
        ("Reptile", wrong_fomaml(last=lambda w, fast, grad, lr: w - fast)),
        ("divided by lr: Reptile", wrong_fomaml(last=lambda w, fast, grad, lr: (w - fast) / lr)),
        ("these are the adapted weights", wrong_fomaml(last=lambda w, fast, grad, lr: fast)),
        ("updated weights", wrong_fomaml(last=lambda w, fast, grad, lr: w - lr * grad)),
        ("divided by the number of inner steps", over_steps),
        ("multiplied by lr", wrong_fomaml(last=lambda w, fast, grad, lr: lr * grad)),
        ("gradient is divided by lr", wrong_fomaml(last=lambda w, fast, grad, lr: grad / lr)),
        ("each step takes lr", lambda *args: fomaml_by_hand(*args[:-2], args[-2] / max(1, args[-1]), args[-1])),
        ("exchanged", lambda w, x, y, q, a, *rest: fomaml_by_hand(w, q, a, x, y, *rest)),
        ("sign is turned", wrong_fomaml(last=lambda w, fast, grad, lr: -grad)),
        ("gradient is zero", without_through),
    ],
}  # fmt: skip
EQUIVALENT = {
    "fomaml_at_bits: weights.detach() -> _same(weights)": (
        "the gradient is asked for at `weights` itself, so what they came from plays no part; only memory is kept"
    ),
}
