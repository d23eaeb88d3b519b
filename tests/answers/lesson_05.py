"""Lesson 05: right answers, each written another way, and wrong ones with the message that names them."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

import mebqat_lite as mq
from mebqat_lite.course.exercises import lesson_05
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes

# --- 5.1


def episode_by_package(labels, ways, shots, queries, seed):
    blank = Split(torch.zeros(len(labels), 1, 1, 1), labels)
    index = Episodes(blank, ways, shots, queries, seed).index(3)
    return index[:, :shots], index[:, shots:]


def episode_by_numpy(labels, ways, shots, queries, seed):
    rng = np.random.default_rng(seed)
    y = labels.numpy()
    support, query = [], []
    for c in rng.choice(np.unique(y), ways, replace=False):
        images = rng.choice(np.flatnonzero(y == c), shots + queries, replace=False)
        support.append(images[queries:])
        query.append(images[:queries])
    return [torch.from_numpy(np.stack(support)).int(), torch.from_numpy(np.stack(query))]


def episode_by_keys(labels, ways, shots, queries, seed):
    """A random order of all images; the first of each class in it."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=rng)
    classes = labels.unique()
    classes = classes[torch.rand(len(classes), generator=rng).argsort()][:ways]
    rows = torch.stack([order[labels[order] == c][: shots + queries] for c in classes])
    return rows.split([shots, queries], 1)


def draw(labels, ways, shots, queries, seed, pick="random", again=False, images="random", overlap=0):
    """The ways to go wrong, by name."""
    rng = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    if again:
        order = torch.randint(len(classes), (ways,), generator=rng)
    else:
        order = torch.randperm(len(classes), generator=rng)[:ways]
    if pick == "first":
        order = torch.arange(ways)
    if pick == "sorted":
        order = order.sort().values
    if pick == "size":
        first = labels[torch.randperm(len(labels), generator=rng)].tolist()
        classes, order = torch.tensor(list(dict.fromkeys(first))), torch.arange(ways)
    rows = []
    for c in classes[order]:
        members = (labels == c).nonzero()[:, 0]
        if images == "random":
            members = members[torch.randperm(len(members), generator=rng)]
        if images == "again":
            members = members[torch.randint(len(members), (shots + queries,), generator=rng)]
        rows.append(members[: shots + queries])
    rows = torch.stack(rows)
    return rows[:, :shots], rows[:, shots - overlap : shots - overlap + queries]


def other_rows(labels, ways, shots, queries, seed):
    support, query = draw(labels, ways, shots, queries, seed)
    return support, query.roll(1, 0)


def mixed(labels, ways, shots, queries, seed):
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[: ways * (shots + queries)].view(ways, -1)
    return chosen[:, :shots], chosen[:, shots:]


def unseeded(labels, ways, shots, queries, seed):
    return draw(labels, ways, shots, queries, next(COUNT))


COUNT = itertools.count()


def fixed_support(labels, ways, shots, queries, seed):
    """The first images of a class are always its support."""
    rng = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    support, query = [], []
    for c in classes[torch.randperm(len(classes), generator=rng)[:ways]]:
        members = (labels == c).nonzero()[:, 0]
        rest = members[shots:]
        support.append(members[:shots])
        query.append(rest[torch.randperm(len(rest), generator=rng)[:queries]])
    return torch.stack(support), torch.stack(query)


# --- 5.2


def logits_by_cdist(support, query):
    return -(torch.cdist(query, support.mean(dim=1), compute_mode="donot_use_mm_for_euclid_dist") ** 2)


def logits_in_loops(support, query):
    centres = [sum(rows) / len(rows) for rows in support]
    return torch.stack([torch.stack([-((q - c) @ (q - c)) for c in centres]) for q in query])


def distances(support, query, power=2):
    return (query[:, None] - support.mean(1)).abs().pow(power).sum(2)


# --- 5.3


def loss(theta, part):
    return (part[0] @ theta - part[1]).square().mean()


def adapt(theta, part, lr, steps, order=1):
    for _ in range(steps):
        grad = torch.autograd.grad(loss(theta, part), theta, create_graph=order == 2)[0]
        theta = theta - lr * grad
        theta = theta if order == 2 else theta.detach().requires_grad_()
    return theta


def start(theta):
    return theta.clone().requires_grad_()


def gradient_by_autograd(theta, support, query, lr, steps):
    fast = adapt(start(theta), support, lr, steps)
    return torch.autograd.grad(loss(fast, query), fast)[0]


def gradient_as_the_package(theta, support, query, lr, steps):
    """theta minus constants: the gradient at the adapted weights is theta's."""
    leaf = start(theta)
    fast = leaf
    for _ in range(steps):
        fast = fast - lr * torch.autograd.grad(loss(fast, support), fast)[0]
    loss(fast, query).backward()
    return leaf.grad


def gradient_closed_form(theta, support, query, lr, steps):
    """theta_k = (I - lr H)^k (theta - theta*) + theta*, for the support's H and minimum theta*."""
    x, y = support
    hessian = 2 * x.T @ x / len(y)
    best = torch.linalg.lstsq(x, y).solution
    power = torch.linalg.matrix_power(torch.eye(len(theta), dtype=theta.dtype) - lr * hessian, steps)
    fast = power @ (theta - best) + best
    return (query[0] * (query[0] @ fast - query[1])[:, None]).mean(0) * 2


def by_hand(weights, part, factor=2.0):
    x, y = part
    return factor * x.T @ (x @ weights - y) / len(y)


def steps_of(theta, part, lr, steps):
    for _ in range(steps):
        theta = theta - lr * by_hand(theta, part)
    return theta


# --- 5.4


def influence_by_columns(predict, queries):
    out = torch.zeros(len(queries), len(queries), dtype=torch.float64)
    for i in range(len(queries)):
        for j in range(len(queries)):
            batch = torch.stack([torch.zeros_like(q) if k == j else q for k, q in enumerate(queries)])
            out[i, j] = max(abs(a - b) for a, b in zip(predict(batch)[i], predict(queries)[i], strict=True))
    return out


def influence_by_masks(predict, queries):
    masks = 1 - torch.eye(len(queries))
    after = torch.stack([predict(queries * mask[:, None]) for mask in masks])  # (j, i, N)
    return (after - predict(queries)).abs().max(-1).values.T


def changes(predict, queries, fill=0.0, reduce=lambda d: d.abs().amax(1)):
    before, columns = predict(queries), []
    for j in range(len(queries)):
        changed = queries.clone()
        changed[j] = fill
        columns.append(reduce(predict(changed) - before))
    return torch.stack(columns, 1)


def never_back(predict, queries):
    before, changed, columns = predict(queries), queries.clone(), []
    for j in range(len(queries)):
        changed[j] = 0
        columns.append((predict(changed) - before).abs().amax(1))
    return torch.stack(columns, 1)


def left_out(predict, queries):
    """The query is removed, not made zero."""
    before, rows = predict(queries), []
    for j in range(len(queries)):
        keep = [k for k in range(len(queries)) if k != j]
        moved = torch.zeros(len(queries), dtype=queries.dtype)
        moved[keep] = (predict(queries[keep]) - before[keep]).abs().amax(1)
        rows.append(moved)
    return torch.stack(rows, 1)


def of_probabilities(predict, queries):
    return changes(torch.nn.Sequential(predict, torch.nn.Softmax(1)), queries)


RIGHT = {
    "sample_episode": [episode_by_package, episode_by_numpy, episode_by_keys],
    "prototype_logits": [
        lambda s, q: -distances(s, q).float(),
        logits_by_cdist,
        logits_in_loops,
        lambda support, query: mq.learners.prototype_logits(query, support.mean(1)),
    ],
    "fomaml_gradient": [gradient_by_autograd, gradient_as_the_package, gradient_closed_form],
    "influence": [lambda p, q: changes(p, q).tolist(), influence_by_columns, influence_by_masks, changes],
}

WRONG = {
    "sample_episode": [
        ("a class comes twice", lambda *a: draw(*a, again=True)),
        ("in the support and in the query", lambda *a: draw(*a, overlap=1)),
        ("comes twice in one part|in the support and in the query", lambda *a: draw(*a, images="again")),
        ("some classes never come|the same episode", lambda *a: draw(*a, pick="first")),
        ("every seed gives the same episode", lambda *a: draw(*a, pick="first", images="first")),
        ("every seed gives the same episode", lambda *a: draw(*a[:4], 0)),
        ("order of their labels", lambda *a: draw(*a, pick="sorted")),
        ("far more often", lambda *a: draw(*a, pick="size")),
        ("never in the support", fixed_support),
        ("never in the support", lambda *a: draw(*a, images="first")),
        ("of another class than that row", other_rows),
        ("several classes", mixed),
        ("the same seed gives another", unseeded),
        ("support has shape", lambda y, n, k, q, s: draw(y, n, k - 1, q + 1, s)),
        ("support has shape|query has shape", lambda y, n, k, q, s: draw(y, n, k, q - 1, s)),
        ("has shape", lambda *a: [part.flatten() for part in draw(*a)]),
        ("turned|of several classes", lambda *a: [part.T for part in draw(*a)]),
        ("return two tensors", lambda *a: torch.cat(draw(*a), 1)),
        ("tensors of whole numbers", lambda *a: [part.tolist() for part in draw(*a)]),
        ("tensors of whole numbers", lambda *a: [part.float() for part in draw(*a)]),
        ("outside 0", lambda *a: [part + 1000 for part in draw(*a)]),
    ],
    "prototype_logits": [
        ("sign is lost: the nearest", lambda s, q: distances(s, q)),
        ("distance is not squared .for", lambda s, q: -distances(s, q).sqrt()),
        ("not squared, and the sign", lambda s, q: torch.cdist(q, s.mean(1))),
        ("squared once too often", lambda s, q: -(distances(s, q) ** 2)),
        ("mean over the features", lambda s, q: -(q[:, None] - s.mean(1)).square().mean(2)),
        ("absolute differences", lambda s, q: -distances(s, q, 1)),
        ("cosine", lambda s, q: F.cosine_similarity(q[:, None], s.mean(1), dim=2)),
        ("scalar product", lambda s, q: q @ s.mean(1).T),
        (r"\|q\|\^2 is missing", lambda s, q: 2 * q @ s.mean(1).T - s.mean(1).square().sum(1)),
        (r"\|c\|\^2 is missing", lambda s, q: 2 * q @ s.mean(1).T - q.square().sum(1, keepdim=True)),
        ("probabilities: return the logits", lambda s, q: (-distances(s, q)).softmax(1)),
        ("log-probabilities", lambda s, q: (-distances(s, q)).log_softmax(1)),
        ("sum of a class's support", lambda s, q: -(q[:, None] - s.sum(1)).square().sum(2)),
        ("only the first support image", lambda s, q: -(q[:, None] - s[:, 0]).square().sum(2)),
        ("mean of the distances", lambda s, q: -(q[:, None, None] - s).square().sum(3).mean(2)),
        ("nearest support image", lambda s, q: -(q[:, None, None] - s).square().sum(3).amin(2)),
        ("the median", lambda s, q: -(q[:, None] - s.median(1).values).square().sum(2)),
        ("mean is over the classes|has shape", lambda s, q: -(q[:, None] - s.mean(0)).square().sum(2)),
        ("has shape", lambda s, q: -distances(s, q).T),
        ("changes its input query", lambda s, q: -(q.mul_(2)[:, None] - s.mean(1)).square().sum(2)),
    ],
    "fomaml_gradient": [
        ("at the start weights", lambda t, s, q, lr, n: by_hand(t, q)),
        ("one inner step too few|start weights", lambda t, s, q, lr, n: by_hand(steps_of(t, s, lr, n - 1), q)),
        ("one inner step too many", lambda t, s, q, lr, n: by_hand(steps_of(t, s, lr, n + 1), q)),
        ("of the support's loss", lambda t, s, q, lr, n: by_hand(steps_of(t, s, lr, n), s)),
        ("adapts on the query", lambda t, s, q, lr, n: by_hand(steps_of(t, q, lr, n), q)),
        ("start minus adapted", lambda t, s, q, lr, n: t - steps_of(t, s, lr, n)),
        ("adapted minus start", lambda t, s, q, lr, n: steps_of(t, s, lr, n) - t),
        ("divided by lr", lambda t, s, q, lr, n: (t - steps_of(t, s, lr, n)) / lr),
        ("these are the adapted weights", lambda t, s, q, lr, n: steps_of(t, s, lr, n)),
        ("second-order", lambda t, s, q, lr, n: torch.autograd.grad(
            loss(adapt(t := start(t), s, lr, n, order=2), q), t)[0]),
        ("uphill", lambda t, s, q, lr, n: by_hand(steps_of(t, s, -lr, n), q)),
        ("take it where the weights are now", lambda t, s, q, lr, n: by_hand(t - n * lr * by_hand(t, s), q)
         if n > 1 else gradient_by_autograd(t, s, q, lr, n)),
        ("lr is not used", lambda t, s, q, lr, n: by_hand(steps_of(t, s, 1.0, n), q)),
        ("are mixed", lambda t, s, q, lr, n: by_hand(
            steps_of(t, s, lr, n), (torch.cat([s[0], q[0]]), torch.cat([s[1], q[1]])))),
        ("factor 2", lambda t, s, q, lr, n: by_hand(steps_of(t, s, lr, n), q, 1.0)),
        ("is a sum", lambda t, s, q, lr, n: len(q[1]) * by_hand(steps_of(t, s, lr, n), q)),
        ("sign is turned", lambda t, s, q, lr, n: -by_hand(steps_of(t, s, lr, n), q)),
        ("multiplied by lr", lambda t, s, q, lr, n: lr * by_hand(steps_of(t, s, lr, n), q)),
        ("an updated theta", lambda t, s, q, lr, n: t - lr * by_hand(steps_of(t, s, lr, n), q)),
        ("has shape", lambda t, s, q, lr, n: by_hand(steps_of(t, s, lr, n), q)[None]),
        ("values are wrong", lambda t, s, q, lr, n: torch.zeros_like(t)),
    ],
    "influence": [
        ("it is turned", lambda p, q: changes(p, q).T),
        ("not put back", never_back),
        ("keep their signs", lambda p, q: changes(p, q, reduce=lambda d: d.amax(1))),
        ("sum over the logits", lambda p, q: changes(p, q, reduce=lambda d: d.abs().sum(1))),
        ("mean over the logits", lambda p, q: changes(p, q, reduce=lambda d: d.abs().mean(1))),
        ("square of the change", lambda p, q: changes(p, q) ** 2),
        ("Euclidean length", lambda p, q: changes(p, q, reduce=lambda d: d.norm(dim=1))),
        ("diagonal is left out", lambda p, q: changes(p, q).fill_diagonal_(0)),
        ("only the diagonal", lambda p, q: changes(p, q).diag().diag()),
        ("becomes ones", lambda p, q: changes(p, q, fill=1.0)),
        ("changes of probabilities", of_probabilities),
        ("zeros and ones", lambda p, q: (changes(p, q) > 0).double()),
        ("dtype torch.bool", lambda p, q: changes(p, q) > 0),
        ("values are wrong", left_out),
        ("values are wrong|only the diagonal", lambda p, q: torch.zeros(len(q), len(q), dtype=q.dtype)),
        ("has shape", lambda p, q: changes(p, q, reduce=lambda d: d.abs().amax())),
        ("changes its input queries", lambda p, q: p(q.mul_(0))),
    ],
}  # fmt: skip

assert set(RIGHT) == set(WRONG) == {exercise.name for exercise in lesson_05.EXERCISES}
