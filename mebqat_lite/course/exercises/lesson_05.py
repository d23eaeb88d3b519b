"""Exercises of lesson 05: prototypes and distances, one inner step, and who moves whose answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mebqat_lite.course.exercises import Exercise, Mistake, expect, numbers

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _normal(size: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randn(size, generator=rng, dtype=torch.float64)


# --- 5.1 -------------------------------------------------------------------------------------------------------


def _prototype_logits(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(N, K, features) and (M, features) -> (M, N): minus the squared distance to the mean of each class."""
    prototypes = support.mean(1)  # (N, features)
    return -(query[:, None] - prototypes).square().sum(2)  # (M, 1, features) - (N, features)


def _grade_prototype_logits(student: Student, rng: Generator) -> None:
    ways = _whole(3, 6, rng)
    for shots in (1, ways, _whole(7, 9, rng)):  # as many shots as ways: there a wrong axis raises no error
        features, count = _whole(10, 14, rng), _whole(15, 20, rng)
        support, query = _normal((ways, shots, features), rng) + 1, _normal((count, features), rng) + 1
        want = query.new_empty(count, ways)
        for n in range(ways):
            want[:, n] = -((query - support[n].sum(0) / shots) ** 2).sum(1)
        where = f"{ways} ways and {shots} shot{'s' * (shots > 1)}"
        leaves = support.requires_grad_(), query.requires_grad_()
        got = student(*leaves)
        expect(got, want, where, _wrong_logits(support.detach(), query.detach(), want))
        _judge_gradients(got, *leaves, where)


def _judge_gradients(got: Any, support: Tensor, query: Tensor, where: str) -> None:
    """Whether training reaches the embeddings of both parts: of the sum of the logits, whose gradient is known."""
    if not isinstance(got, Tensor) or not got.requires_grad:
        raise Mistake(
            f"for {where}: the values are right, but no gradient flows through them. The lesson trains with your "
            "function: compute with torch, and return the tensor without detach"
        )
    grads = torch.autograd.grad(got.double().sum(), [support, query], allow_unused=True)
    shots = support.shape[1]
    away = query.detach()[:, None] - support.detach().mean(1)  # (M, N, features)
    wants = (2 * away.sum(0)[:, None] / shots).expand_as(support), -2 * away.sum(1)
    for name, grad, want in zip(("support", "query"), grads, wants, strict=True):
        if grad is None:
            raise Mistake(f"for {where}: the values are right, but no gradient reaches the {name}: do not detach it")
        expect(grad, want, f"{where}, the gradient of the {name}")


def _wrong_logits(support: Tensor, query: Tensor, want: Tensor) -> list[tuple[str, Tensor]]:
    centres = support.mean(1)  # (N, features)
    unit = torch.nn.functional.normalize
    named = [
        ("the sign is lost: the nearest prototype needs the highest logit", -want),
        ("the distance is not squared", -((-want).sqrt())),
        ("the distance is not squared, and the sign is lost", (-want).sqrt()),
        ("the distance is squared once too often: sum the squares over the features", -(want**2)),
        ("this is a mean over the features: sum them", want / query.shape[1]),
        ("this is half of the squared distance", want / 2),
        (
            "support and query are brought to length 1: take the embeddings as they are",
            _logits(unit(query), unit(support, dim=2).mean(1)),
        ),
        (
            "prototypes and queries are brought to length 1: take the embeddings as they are",
            _logits(unit(query), unit(centres)),
        ),
        ("this is one over the distance: take minus its square", 1 / -want),
        ("these are absolute differences: square them", -(query[:, None] - centres).abs().sum(2)),
        ("this is cosine similarity: ProtoNet takes the squared Euclidean distance", unit(query) @ unit(centres).T),
        ("this is a scalar product: ProtoNet takes the squared Euclidean distance", query @ centres.T),
        ("|q|^2 is missing: it is the same for all classes, but then this is no distance", _without(want, query)),
        ("|c|^2 is missing: it differs from class to class", _without(want, centres, 1)),
        ("these are probabilities: return the logits, without softmax", want.softmax(1)),
        ("these are log-probabilities: return the logits, without softmax", want.log_softmax(1)),
        ("the prototype is the sum of a class's support: take the mean", _logits(query, support.sum(1))),
        ("only the first support image of a class is used: take the mean", _logits(query, support[:, 0])),
        ("the median is taken: a prototype is the mean", _logits(query, support.median(1).values)),
    ]
    nearest = (query[:, None, None] - support).square().sum(3)  # (M, N, K)
    named += [
        ("this is the mean of the distances: first the mean of the support, then one distance", -nearest.mean(2)),
        ("this is the nearest support image: first the mean of the support", -nearest.amin(2)),
    ]
    if support.shape[0] == support.shape[1]:
        named.append(("the mean is over the classes: support is (N, K, features)", _logits(query, support.mean(0))))
    return named


def _logits(query: Tensor, centres: Tensor) -> Tensor:
    return -torch.cdist(query, centres).square()


def _without(want: Tensor, part: Tensor, dim: int = 0) -> Tensor:
    """The logits without the squares of queries (``dim`` 0) or of prototypes (1)."""
    return want + part.square().sum(1).unsqueeze(1 - dim)


prototype_logits = Exercise(
    "prototype_logits",
    "5.1: Prototypes and distances",
    difficulty=1,
    minutes=10,
    question=r"""
    A prototypical network says of each class how near the query is to the mean of the class's support:

    $$\mathrm{logit}_n(q) = -\,\lVert q - c_n \rVert^2, \qquad c_n = \frac{1}{K} \sum_k s_{nk}$$

    Write `prototype_logits(support, query)` on embeddings: `support` is `(N, K, features)`, `query` is
    `(M, features)`. The result is `(M, N)`. A network is trained through it, so compute with torch.
    """,
    hints=[
        "The mean over K is support.mean(1): one row for each class.",
        "query[:, None] - prototypes is (M, N, features): every query minus every prototype.",
        "Square, sum over the features, and put a minus in front: near means high.",
    ],
    solution=_prototype_logits,
    grade=_grade_prototype_logits,
)

# --- 5.2 -------------------------------------------------------------------------------------------------------


def _inner_step(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor, lr: float
) -> dict[str, torch.Tensor]:
    """One step of SGD on the cross-entropy: new weights by name; ``weights`` and ``model`` stay as they are."""
    logits = torch.func.functional_call(model, weights, images)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    grads = torch.autograd.grad(loss, list(weights.values()))
    return {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}


Named = dict[str, Tensor]


def _grade_inner_step(student: Student, rng: Generator) -> None:
    for count in (4, 5):
        ways, features, lr = _whole(3, 5, rng), _whole(4, 6, rng), 0.05 * _whole(3, 8, rng)
        with torch.random.fork_rng(devices=[]):  # the random state of whoever checks is left alone
            model = nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, ways)).double()
        own = dict(model.named_parameters())
        for parameter in own.values():
            parameter.data = _normal(tuple(parameter.shape), rng)
        named = dict(list(own.items())[: count - 1])  # the first time the last shift is not to move
        weights = {name: _normal(tuple(w.shape), rng).requires_grad_() for name, w in named.items()}
        images, labels = _normal((3 * ways, features), rng), torch.arange(ways).repeat(3)
        before = {name: w.detach().clone() for name, w in (weights | {f"own {n}": p for n, p in own.items()}).items()}
        got = student(model, weights, images, labels, lr)
        _left_as_they_were(before, weights | {f"own {n}": p for n, p in own.items()})
        found = _vector_of(got, weights)
        right = _stepped(model, weights, images, labels, lr)
        where = f"{len(images)} images of {ways} classes, lr = {lr:.2f}"
        expect(found, _flat(right), where, _wrong_steps(model, weights, images, labels, lr))


def _left_as_they_were(before: Named, now: Named) -> None:
    for name, old in before.items():
        if not torch.equal(old, now[name].detach()):
            whose = f"the model's own {name[4:]}" if name.startswith("own ") else f"weights[{name!r}]"
            raise Mistake(f"it changes {whose} in place: return new tensors, and leave the model and its weights alone")


def _vector_of(got: Any, weights: Named) -> Tensor:
    """The values of what was returned, in the order of ``weights``."""
    if not isinstance(got, dict):
        raise Mistake(f"it returns a value of type {type(got).__name__}: return a dict of new weights by name")
    if missing := [name for name in weights if name not in got]:
        raise Mistake(f"{missing[0]!r} is missing in what it returns: each of the weights gets a new value")
    if more := [name for name in got if name not in weights]:
        raise Mistake(f"it returns {more[0]!r}, which is not among the weights: only those that are given are moved")
    if other := [name for name in weights if not isinstance(got[name], Tensor)]:
        raise Mistake(f"{other[0]!r} is of type {type(got[other[0]]).__name__}: the new weights are tensors")
    parts = [numbers(got[name]) for name in weights]
    for (name, old), part in zip(weights.items(), parts, strict=True):
        if part.shape != old.shape:
            raise Mistake(f"{name!r} has shape {tuple(part.shape)}; it should stay {tuple(old.shape)}")
    return torch.cat([part.flatten() for part in parts])


def _flat(named: Named) -> Tensor:
    return torch.cat([w.detach().flatten() for w in named.values()])


def _loss(model: nn.Module, weights: Named, images: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, written out."""
    logits = torch.func.functional_call(model, weights, (images,))
    return (logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]).mean()


def _grads(model: nn.Module, weights: Named, images: Tensor, labels: Tensor, loss: Any = _loss) -> Named:
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(loss(model, leaves, images, labels), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def _stepped(model: nn.Module, weights: Named, images: Tensor, labels: Tensor, lr: float) -> Named:
    grads = _grads(model, weights, images, labels)
    return {name: w.detach() - lr * grads[name] for name, w in weights.items()}


def _squares(model: nn.Module, weights: Named, images: Tensor, labels: Tensor) -> Tensor:
    logits = torch.func.functional_call(model, weights, (images,))
    return (logits - torch.eye(logits.shape[1], dtype=logits.dtype)[labels]).square().mean()


def _twice(model: nn.Module, weights: Named, images: Tensor, labels: Tensor) -> Tensor:
    p = torch.func.functional_call(model, weights, (images,)).softmax(1)
    return (p.logsumexp(1) - p[torch.arange(len(labels)), labels]).mean()


def _wrong_steps(
    model: nn.Module, weights: Named, images: Tensor, labels: Tensor, lr: float
) -> list[tuple[str, Tensor]]:
    task = images, labels
    own: Named = {name: model.get_parameter(name) for name in weights}
    w, g, theta = _flat(weights), _flat(_grads(model, weights, *task)), _flat(own)
    at_own = _flat(_grads(model, own, *task))
    squares, twice = (_flat(_grads(model, weights, *task, loss)) for loss in (_squares, _twice))
    two = _flat(_stepped(model, _stepped(model, weights, *task, lr), *task, lr))
    return [
        ("these are the weights as they were given: subtract lr times their gradient", w),
        ("the step goes uphill: subtract lr times the gradient", w + lr * g),
        ("lr is not used: subtract lr times the gradient", w - g),
        ("it divides by lr: multiply the gradient by it", w - g / lr),
        ("these are the gradients: return the new weights, w - lr * gradient", g),
        ("this is the step alone: return the new weights, w - lr * gradient", lr * g),
        ("this is the step alone: return the new weights, w - lr * gradient", -lr * g),
        ("it moves the model's own parameters: start from `weights`", theta - lr * at_own),
        (
            "the gradient is that of the model's own parameters: run it with `weights`, by functional_call",
            w - lr * at_own,
        ),
        ("it starts from the model's own parameters: subtract the step from `weights`", theta - lr * g),
        ("the loss is a sum over the images: take the mean", w - lr * len(labels) * g),
        ("these are two steps: take one", two),
        ("the loss is a squared error: take the cross-entropy of the logits", w - lr * squares),
        ("softmax is taken twice: cross_entropy takes logits", w - lr * twice),
        ("only the sign of the gradient is used: take the gradient itself", w - lr * g.sign()),
        ("the gradient is brought to length 1: take it as it is", w - lr * g / g.norm()),
        ("the step is half of what it should be", w - lr * g / 2),
        ("the step is twice what it should be", w - 2 * lr * g),
    ] + [("some of the weights did not move: each gets a step", w - lr * g * kept) for kept in _some(weights)]


def _some(weights: Named) -> list[Tensor]:
    """Ones where weights move and zeros where they stay: all but one of them, only one, only matrices."""
    sizes, count = [w.numel() for w in weights.values()], len(weights)
    matrices = [float(w.dim() > 1) for w in weights.values()]
    rows = [[float(i == k) for i in range(count)] for k in range(count)]
    rows += [[1 - on for on in row] for row in rows] + [matrices]
    return [torch.cat([torch.full((n,), on) for n, on in zip(sizes, row, strict=True)]).double() for row in rows]


inner_step = Exercise(
    "inner_step",
    "5.2: One inner step",
    difficulty=2,
    minutes=15,
    question=r"""
    Write `inner_step(model, weights, images, labels, lr)`: one step of SGD on the cross-entropy of a few labelled
    images,

    $$w' = w - \alpha\,\frac{\partial\,\mathrm{CE}\big(f_w(\text{images}), \text{labels}\big)}{\partial w}$$

    `weights` is a dict of tensors by name, from which gradients can be taken. They stand in the place of the model's
    own parameters of these names, and need not be equal to them. Return a new dict with the same names. `model`,
    `weights` and the model's own parameters stay as they are, because the next task starts from them, too.
    """,
    hints=[
        "torch.func.functional_call(model, weights, images) are the logits of the model with these weights.",
        "torch.autograd.grad(loss, list(weights.values())) are the gradients, in the order of the weights.",
        "{name: w - lr * g for (name, w), g in zip(weights.items(), grads)} is the new dict.",
    ],
    solution=_inner_step,
    grade=_grade_inner_step,
)

# --- 5.3 -------------------------------------------------------------------------------------------------------


def _influence(predict: torch.nn.Module, queries: torch.Tensor) -> torch.Tensor:
    """(M, M): how far the logits of query i move, at most, when query j becomes all zeros."""
    with torch.no_grad():
        before = predict(queries)  # (M, N)
        columns = []
        for j in range(len(queries)):
            changed = queries.clone()
            changed[j] = 0
            columns.append((predict(changed) - before).abs().amax(1))  # (M,)
    return torch.stack(columns, 1)


class _Alone(nn.Module):
    """Every query by itself, as under stored statistics. ``moves`` says what the others do: nothing."""

    def __init__(self, features: int, ways: int, rng: Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_normal((features, ways), rng))

    def shared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the spread by which all queries are normalized."""
        return x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(M, features) -> (M, N)."""
        mean, spread = self.shared(x)
        return torch.tanh((x - mean) / spread) @ self.weight


class _Together(_Alone):
    """Normalized by the statistics of the batch."""

    def shared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(0), x.var(0, unbiased=False).add(0.1).sqrt()


class _Neighbour(_Alone):
    """A query moves by the next one only: the influence is not symmetric."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.5 * x.roll(-1, 0)).tanh() @ self.weight


def _grade_influence(student: Student, rng: Generator) -> None:
    for kind in (_Together, _Alone, _Neighbour):
        predict, queries, moved = _moving(kind, rng)
        where = {_Together: "a predictor on batch statistics", _Alone: "a predictor that asks each query alone"}
        words = where.get(kind, "a predictor in which a query moves by its next neighbour")
        expect(student(predict, queries), moved.abs().amax(2), words, _wrong_influences(predict, queries, moved))


def _moving(kind: Callable[[int, int, Generator], nn.Module], rng: Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """A predictor, queries (M, features), and by how much they move one another, (M, M, N).

    Some query lowers all logits of a query, and some raises one and lowers another: so the signs make a difference.
    """
    while True:
        count, features, ways = _whole(4, 6, rng), _whole(7, 9, rng), _whole(2, 3, rng)
        predict, queries = kind(features, ways, rng), _normal((count, features), rng) + 0.5
        moved = _moved(predict, queries)
        if moved.amax(2).min() < -0.01 and (moved.abs().sum(2) - moved.sum(2).abs()).max() > 0.01:
            return predict, queries, moved


def _moved(predict: nn.Module, queries: Tensor, fill: float = 0.0) -> Tensor:
    """(M, M, N): the change of the logits of the first index, when the query of the second is filled."""
    keep = 1 - torch.eye(len(queries), dtype=queries.dtype)[..., None]  # (M, M, 1)
    return _moved_by(predict, queries, queries * keep + fill * (1 - keep))


def _moved_by(predict: nn.Module, queries: Tensor, batches: Tensor) -> Tensor:
    """(M, M, N): the change of the logits of the first index in the batch of the second, (M, M, features)."""
    with torch.no_grad():
        return torch.stack([predict(batch) for batch in batches], 1) - predict(queries)[:, None]


def _one_after_the_other(predict: nn.Module, queries: Tensor) -> Tensor:
    """As `_moved`, but the queries are never put back."""
    with torch.no_grad():
        changed, before, found = queries.clone(), predict(queries), []
        for j in range(len(queries)):
            changed[j] = 0
            found.append(predict(changed) - before)
    return torch.stack(found, 1)


def _wrong_influences(predict: nn.Module, queries: Tensor, moved: Tensor) -> list[tuple[str, Tensor]]:
    size = moved.abs()
    right = size.amax(2)
    diagonal = right.diag().diag()
    put_back = _one_after_the_other(predict, queries).abs().amax(2)
    ones = _moved(predict, queries, 1.0).abs().amax(2)
    return [
        ("it is turned: row i is the query that moves, column j the one that was changed", right.T),
        ("the queries are not put back: change one at a time, each time from a fresh copy", put_back),
        ("the changes keep their signs: take the absolute value before the maximum", moved.amax(2)),
        ("this is the sum over the logits: take the largest change", size.sum(2)),
        ("this is the mean over the logits: take the largest change", size.mean(2)),
        ("this is the square of the change", right**2),
        ("this is the Euclidean length of the change: take the largest change of one logit", moved.norm(dim=2)),
        ("the diagonal is left out: a query moves its own logits too", right - diagonal),
        ("only the diagonal is there: look at the logits of the other queries too", diagonal),
        ("the changed query becomes ones: make it zeros", ones),
        *_other_batches(predict, queries),
        *_other_outputs(predict(queries).detach(), moved),
        ("the absolute value comes after the maximum: take it before", moved.amax(2).abs()),
        ("these are zeros and ones: return how far the logits move", (right > 0).double()),
        ("the changed query is left out of the batch: keep it, as zeros", _left_out(predict, queries)),
        ("this is the smallest change of a logit: take the largest", size.amin(2)),
    ]


def _left_out(predict: nn.Module, queries: Tensor) -> Tensor:
    """What removing a query does to the others; its own logits are gone, and count as not moved."""
    found = torch.zeros(len(queries), len(queries), dtype=queries.dtype)
    with torch.no_grad():
        for j in range(len(queries)):
            rest = torch.arange(len(queries)) != j
            found[rest, j] = (predict(queries[rest]) - predict(queries)[rest]).abs().amax(1)
    return found


def _other_batches(predict: nn.Module, queries: Tensor) -> list[tuple[str, Tensor]]:
    """What changes if something else than one query becomes zeros."""
    count, features = queries.shape
    one = torch.eye(count, dtype=queries.dtype)[..., None]  # (M, M, 1)
    batches = {
        "all queries but one become zeros: change one, and keep the others": queries * one,
        "queries[:, j] is feature j of all queries: queries[j] is query j": (
            queries * (1 - torch.eye(features, dtype=queries.dtype)[:count, None])
        ),
        "the changed query becomes the mean of all: make it zeros": queries * (1 - one) + queries.mean(0) * one,
    }
    return [(words, _moved_by(predict, queries, batch).abs().amax(2)) for words, batch in batches.items()]


def _other_outputs(before: Tensor, moved: Tensor) -> list[tuple[str, Tensor]]:
    """What changes if something else than the logits is compared; they are (M, N) ``before``, and then ``moved``."""
    after, before = moved + before[:, None], before[:, None]  # (M, M, N) and (M, 1, N)
    earlier = torch.cat([before, after[:, :-1]], 1)
    flipped = (after.argmax(2) != before.argmax(2)).double()
    named = [
        ("these are changes of probabilities: compare the logits", (after.softmax(2) - before.softmax(2))),
        ("these are changes of log-probabilities: compare the logits", after.log_softmax(2) - before.log_softmax(2)),
        ("these are changes of absolute values: subtract the logits first", after.abs() - before.abs()),
        ("each change is measured from the one before: compare with the untouched queries", after - earlier),
        ("this is the change of the first logit only: take the largest", moved[..., :1]),
        ("the changes are added up with their signs: take the largest absolute one", moved.sum(2, keepdim=True)),
        (
            "it compares the largest logits: take the largest change of one and the same logit",
            after.amax(2, keepdim=True) - before.amax(2, keepdim=True),
        ),
    ]
    found = [(words, change.abs().amax(2)) for words, change in named]
    return found + [("it says whose answer changes: return how far the logits move", flipped)] * bool(flipped.any())


influence = Exercise(
    "influence",
    "5.3: Who moves whom?",
    difficulty=2,
    minutes=15,
    question="""
    Is each query classified alone? Measure it, for a predictor of any kind. Write `influence(predict, queries)`.
    `predict` turns a batch of queries into logits, `(M, ...)` to `(M, N)`; `queries` is a batch of M. Return `(M, M)`:
    entry [i, j] is the largest absolute change of the logits of query i when query j, and only that one, becomes all
    zeros.

    If each query is classified alone, all entries but those on the diagonal are 0.
    """,
    hints=[
        "before = predict(queries); then, for each j, the logits of a copy in which query j is zero.",
        "changed = queries.clone(); changed[j] = 0: a fresh copy for each j.",
        "(predict(changed) - before).abs().amax(1) is column j, one number for each query i.",
    ],
    solution=_influence,
    grade=_grade_influence,
)

EXERCISES = (prototype_logits, inner_step, influence)
