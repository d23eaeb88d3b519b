"""Exercises of lesson 05: an episode, prototypes, FOMAML's gradient, and who moves whose answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mebqat_lite.course.exercises import Exercise, Mistake, expect

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _normal(size: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randn(size, generator=rng, dtype=torch.float64)


# --- 5.1 -------------------------------------------------------------------------------------------------------


def _sample_episode(
    labels: torch.Tensor, ways: int, shots: int, queries: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the support, (ways, shots), and of the query, (ways, queries)."""
    rng = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    rows = []
    for c in classes[torch.randperm(len(classes), generator=rng)[:ways]]:
        members = (labels == c).nonzero()[:, 0]  # (images of the class,)
        rows.append(members[torch.randperm(len(members), generator=rng)[: shots + queries]])
    chosen = torch.stack(rows)  # (ways, shots + queries)
    return chosen[:, :shots], chosen[:, shots:]


Drawn = tuple[Tensor, Tensor]  # indices of support and query


def _grade_sample_episode(student: Student, rng: Generator) -> None:
    for _ in range(3):
        ways, shots, queries = (_whole(2, 4, rng) for _ in "123")
        seed = _whole(0, 10**6, rng)
        labels = _labels(ways + _whole(2, 4, rng), shots + queries, rng)
        first, again = (_drawn(student(labels, ways, shots, queries, seed)) for _ in "12")
        _has_shape(first, ways, shots, queries)
        _is_valid(first, labels)
        if not all(map(torch.equal, first, again)):
            raise Mistake("the same seed gives another episode: take every choice from a generator with that seed")
    many = [_drawn(student(labels, ways, shots, queries, seed + i)) for i in range(1, 301)]
    for drawn in many:
        _has_shape(drawn, ways, shots, queries)
        _is_valid(drawn, labels)
    _is_fair(many, labels)


def _labels(classes: int, least: int, rng: Generator) -> Tensor:
    """Shuffled labels with gaps; every class has at least ``least`` images, one of them four times as many."""
    names = torch.randperm(40, generator=rng)[:classes] + 3
    counts = torch.tensor([least + _whole(0, 2, rng) for _ in range(classes)])
    counts[_whole(0, classes - 1, rng)] *= 4
    labels = names.repeat_interleave(counts)
    return labels[torch.randperm(len(labels), generator=rng)]


def _drawn(value: Any) -> Drawn:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Mistake(f"it returns a value of type {type(value).__name__}: return two tensors, support and query")
    for part in value:
        if not isinstance(part, Tensor) or part.is_floating_point() or part.dtype == torch.bool:
            raise Mistake("support and query are tensors of whole numbers, the indices of the images")
    return value[0].long(), value[1].long()


def _has_shape(drawn: Drawn, ways: int, shots: int, queries: int) -> None:
    for part, count, name in zip(drawn, (shots, queries), ("support", "query"), strict=True):
        if part.shape == (count, ways) and count != ways:
            raise Mistake(f"the {name} is turned: a row for each class, ({ways}, {count})")
        if part.shape != (ways, count):
            want = f"with {ways} ways, {shots} shots and {queries} queries it is ({ways}, {count})"
            raise Mistake(f"the {name} has shape {tuple(part.shape)}; {want}")


def _is_valid(drawn: Drawn, labels: Tensor) -> None:
    """No class twice, one class a row, support and query disjoint, no image twice."""
    support, query = drawn
    both = torch.cat([support, query], 1)  # (ways, shots + queries)
    if both.min() < 0 or both.max() >= len(labels):
        raise Mistake(f"an index lies outside 0 .. {len(labels) - 1}")
    if (labels[both] != labels[both[:, :1]]).any():
        if (labels[support] == labels[support[:, :1]]).all() and (labels[query] == labels[query[:, :1]]).all():
            raise Mistake("a row of the query is of another class than that row of the support")
        raise Mistake("a row holds images of several classes: a row is one class")
    if len(labels[support[:, 0]].unique()) < len(support):
        raise Mistake("a class comes twice in one episode: draw the classes without replacement")
    if set(support.flatten().tolist()) & set(query.flatten().tolist()):
        raise Mistake("an image is in the support and in the query: what it learned from, it must not be asked")
    if len(both.unique()) < both.numel():
        raise Mistake("an image comes twice in one part: draw without replacement")


def _is_fair(many: list[Drawn], labels: Tensor) -> None:
    """Over many seeds: all classes and images, each about as often as the others, in any order."""
    support, query = (torch.stack(part) for part in zip(*many, strict=True))  # (episodes, ways, K or Q)
    classes, rows = labels.unique(), labels[support[..., 0]]  # rows: (episodes, ways)
    if (support == support[0]).all():
        raise Mistake("every seed gives the same episode: use the seed")
    counts = torch.stack([(rows == c).sum() for c in classes])
    if counts.min() == 0:
        raise Mistake("some classes never come, whatever the seed is: choose the classes at random")
    want = rows.numel() / len(classes)
    if (counts - want).abs().max() > 6 * want**0.5:
        raise Mistake("some classes come far more often than others: every class is equally likely, however large")
    if (rows[:, 1:] > rows[:, :-1]).all() or (rows[:, 1:] < rows[:, :-1]).all():
        raise Mistake("the classes always come in order of their labels: the row is the new label, draw it too")
    for part, name in ((support, "support"), (query, "query")):
        if len(part.unique()) < len(labels):
            raise Mistake(f"some images are never in the {name}: draw the images of a class at random too")


sample_episode = Exercise(
    "sample_episode",
    "5.1: Draw an episode",
    difficulty=2,
    minutes=15,
    question="""
    Write `sample_episode(labels, ways, shots, queries, seed)`. `labels` holds the class of each image, `(images,)`,
    whole numbers with gaps, in any order. Draw `ways` different classes, and of each class `shots` images to learn
    from and `queries` other ones to ask about.

    Return two tensors of image indices: the support, `(ways, shots)`, and the query, `(ways, queries)`; row n of
    both is the same class. Every class is equally likely, and every image of it; the order of the rows is random. The
    same seed gives the same episode.
    """,
    hints=[
        "rng = torch.Generator().manual_seed(seed); then torch.randperm(count, generator=rng) for every choice.",
        "labels.unique() are the classes: the first `ways` of a random order of them are those of the episode.",
        "(labels == c).nonzero()[:, 0] are the images of class c: take shots + queries at random, then cut in two.",
    ],
    solution=_sample_episode,
    grade=_grade_sample_episode,
)

# --- 5.2 -------------------------------------------------------------------------------------------------------


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
        where = f"{ways} ways and {shots} shots"
        expect(student(support, query), want, where, _wrong_logits(support, query, want))


def _wrong_logits(support: Tensor, query: Tensor, want: Tensor) -> list[tuple[str, Tensor]]:
    centres = support.mean(1)  # (N, features)
    unit = torch.nn.functional.normalize
    named = [
        ("the sign is lost: the nearest prototype needs the highest logit", -want),
        ("the distance is not squared", -((-want).sqrt())),
        ("the distance is not squared, and the sign is lost", (-want).sqrt()),
        ("the distance is squared once too often: sum the squares over the features", -(want**2)),
        ("this is a mean over the features: sum them", want / query.shape[1]),
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
    "5.2: Prototypes",
    difficulty=1,
    minutes=10,
    question=r"""
    A prototypical network says of each class how near the query is to the mean of the class's support:

    $$\mathrm{logit}_n(q) = -\,\lVert q - c_n \rVert^2, \qquad c_n = \frac{1}{K} \sum_k s_{nk}$$

    Write `prototype_logits(support, query)` on embeddings: `support` is `(N, K, features)`, `query` is
    `(M, features)`. The result is `(M, N)`.
    """,
    hints=[
        "The mean over K is support.mean(1): one row for each class.",
        "query[:, None] - prototypes is (M, N, features): every query minus every prototype.",
        "Square, sum over the features, and put a minus in front: near means high.",
    ],
    solution=_prototype_logits,
    grade=_grade_prototype_logits,
)

# --- 5.3 -------------------------------------------------------------------------------------------------------


def _fomaml_gradient(
    theta: torch.Tensor,
    support: tuple[torch.Tensor, torch.Tensor],
    query: tuple[torch.Tensor, torch.Tensor],
    lr: float,
    steps: int,
) -> torch.Tensor:
    """FOMAML's gradient for theta, (features,), of the model x theta and the mean squared error."""

    def gradient(weights: torch.Tensor, part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = part  # (images, features), (images,)
        return 2 * x.T @ (x @ weights - y) / len(y)

    fast = theta.clone()
    for _ in range(steps):
        fast = fast - lr * gradient(fast, support)
    return gradient(fast, query)


Part = tuple[Tensor, Tensor]


def _grade_fomaml_gradient(student: Student, rng: Generator) -> None:
    for steps in (1, 2, _whole(3, 5, rng)):
        features, lr = _whole(3, 6, rng), 0.02 * _whole(2, 5, rng)
        theta = _normal((features,), rng)
        truth = _normal((features,), rng)
        support, query = (_regression(_whole(6, 9, rng), truth, rng) for _ in "12")
        want = _gradient(_adapted(theta, support, lr, steps), query).detach()
        mistakes = _wrong_gradients(theta, support, query, lr, steps)
        got = student(theta, support, query, lr, steps)
        expect(got, want, f"steps = {steps}, lr = {lr:.2f}", mistakes)


def _regression(count: int, truth: Tensor, rng: Generator) -> Part:
    x = _normal((count, len(truth)), rng)
    return x, x @ truth + 0.3 * _normal((count,), rng)


def _gradient(weights: Tensor, part: Part, keep: bool = False, mean: bool = True) -> Tensor:
    """By automatic differentiation, where the solution has it by hand."""
    leaf = weights if keep else weights.detach().requires_grad_()
    squares = (part[0] @ leaf - part[1]).square()
    return torch.autograd.grad(squares.mean() if mean else squares.sum(), leaf, create_graph=keep)[0]


def _adapted(theta: Tensor, part: Part, lr: float, steps: int) -> Tensor:
    for _ in range(steps):
        theta = theta - lr * _gradient(theta, part)
    return theta.detach()


def _second_order(theta: Tensor, support: Part, query: Part, lr: float, steps: int) -> Tensor:
    """MAML's gradient: through the inner steps."""
    start = theta.detach().requires_grad_()
    fast = start
    for _ in range(steps):
        fast = fast - lr * _gradient(fast, support, keep=True)
    return torch.autograd.grad((query[0] @ fast - query[1]).square().mean(), start)[0]


def _wrong_gradients(theta: Tensor, support: Part, query: Part, lr: float, steps: int) -> list[tuple[str, Tensor]]:
    fast, peeked = (_adapted(theta, part, lr, steps) for part in (support, query))
    right, count = _gradient(fast, query), len(query[1])
    both = torch.cat([support[0], query[0]]), torch.cat([support[1], query[1]])
    fewer, more = (_adapted(theta, support, lr, steps + n) for n in (-1, 1))
    straight = theta - steps * lr * _gradient(theta, support)
    uphill, long = _adapted(theta, support, -lr, steps), _adapted(theta, support, 1.0, steps)
    reptile = "{}: Reptile's update, not FOMAML's gradient"
    return [
        ("this is the gradient at the start weights: adapt on the support first", _gradient(theta, query)),
        ("one inner step too few", _gradient(fewer, query)),
        ("one inner step too many", _gradient(more, query)),
        (
            "this is the gradient of the support's loss: take the query's, at the adapted weights",
            _gradient(fast, support),
        ),
        ("it adapts on the query: the query must stay unseen until the end", _gradient(peeked, query)),
        (reptile.format("this is start minus adapted weights"), theta - fast),
        (reptile.format("this is adapted minus start weights"), fast - theta),
        (reptile.format("this is start minus adapted weights, divided by lr"), (theta - fast) / lr),
        ("these are the adapted weights: return the query's gradient there", fast),
        ("this is an updated theta: return the gradient itself", theta - lr * right),
        (
            "this is the second-order gradient of MAML: FOMAML does not differentiate through the inner steps",
            _second_order(theta, support, query, lr, steps),
        ),
        ("the inner steps go uphill: subtract lr times the gradient", _gradient(uphill, query)),
        (
            "every inner step takes the gradient at the start: take it where the weights are now",
            _gradient(straight, query),
        ),
        ("lr is not used in the inner steps", _gradient(long, query)),
        ("support and query are mixed: the gradient is the query's alone", _gradient(fast, both)),
        ("the factor 2 of the square is missing", right / 2),
        ("the last gradient is a sum: the loss is the mean squared error", right * count),
        ("the sign is turned: return the gradient, not the step", -right),
        ("the last gradient is multiplied by lr: return the gradient itself", lr * right),
    ]


fomaml_gradient = Exercise(
    "fomaml_gradient",
    "5.3: FOMAML by hand",
    difficulty=3,
    minutes=20,
    question=r"""
    The smallest network is linear: it predicts `x @ theta`, and its loss on a part `(x, y)` is the mean squared error
    $L(\theta) = \frac{1}{n} \sum_i (x_i \theta - y_i)^2$.

    Write `fomaml_gradient(theta, support, query, lr, steps)`. `theta` is `(features,)`; `support` and `query` are
    tuples `(x, y)` of shapes `(images, features)` and `(images,)`. Adapt theta by `steps` steps of gradient descent
    with rate `lr` on the support; return the first-order gradient of the query's loss, `(features,)`.
    """,
    hints=[
        "By hand: the gradient of the loss on (x, y) is 2/n x^T (x theta - y).",
        "The inner loop repeats fast = fast - lr * gradient(fast, support). It starts from theta.",
        "First order: evaluate the gradient of the query's loss at the adapted weights. That is the result.",
    ],
    solution=_fomaml_gradient,
    grade=_grade_fomaml_gradient,
)

# --- 5.4 -------------------------------------------------------------------------------------------------------


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
        count, features, ways = _whole(4, 6, rng), _whole(7, 9, rng), _whole(2, 3, rng)
        predict, queries = kind(features, ways, rng), _normal((count, features), rng) + 0.5
        moved = _moved(predict, queries)  # (M, M, N)
        where = {_Together: "a predictor on batch statistics", _Alone: "a predictor that asks each query alone"}
        words = where.get(kind, "a predictor in which a query moves by its next neighbour")
        expect(student(predict, queries), moved.abs().amax(2), words, _wrong_influences(predict, queries, moved))


def _moved(predict: nn.Module, queries: Tensor, fill: float = 0.0) -> Tensor:
    """(M, M, N): the change of the logits of the first index, when the query of the second is filled."""
    count = len(queries)
    with torch.no_grad():
        keep = 1 - torch.eye(count, dtype=queries.dtype)[..., None]  # (M, M, 1)
        batches = queries * keep + fill * (1 - keep)  # (M, M, features), the j-th without query j
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
        ("these are changes of probabilities: compare the logits", _soft(predict, queries)),
        ("these are zeros and ones: return how far the logits move", (right > 0).double()),
    ]


def _soft(predict: nn.Module, queries: Tensor) -> Tensor:
    with torch.no_grad():
        before = predict(queries)
    after = _moved(predict, queries) + before[:, None]
    return (after.softmax(2) - before.softmax(1)[:, None]).abs().amax(2)


influence = Exercise(
    "influence",
    "5.4: Who moves whom?",
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

EXERCISES = (sample_episode, prototype_logits, fomaml_gradient, influence)
