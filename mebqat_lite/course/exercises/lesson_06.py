"""Exercises of lesson 06: a step for each bitwidth, the losses of an episode at several pairs, cross-bit enrolment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import mebqat_lite as mq
from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect
from mebqat_lite.switching.state import setting_of

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``."""
    return int(torch.randint(low, high + 1, (), generator=rng))


# --- 6.1 -------------------------------------------------------------------------------------------------------


def _own_steps(w: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """The step 2 mean|w| / sqrt(p) of each bitwidth, (len(widths),), where p = 2^(bits-1) - 1 is its highest code."""
    highest = torch.tensor([2 ** (bits - 1) - 1 for bits in widths])
    return 2 * w.abs().mean() / highest.sqrt()


def _grade_own_steps(student: Student, rng: Generator) -> None:
    for widths in ([2, 3, 4, 8], [5, 2], [16, 6, 4, 3, 7]):
        shape = [_whole(3, 6, rng), _whole(3, 6, rng), 3, 3]
        w = (0.05 + 0.2 * torch.rand((), generator=rng)) * (torch.randn(shape, generator=rng) + 0.5)
        bits = torch.tensor(widths)
        want = _steps(w.abs().mean(), 2 ** (bits - 1) - 1)
        expect(student(w, list(widths)), want, f"widths = {widths}", _wrong_steps(w, bits))


def _steps(size: Tensor, p: Tensor) -> Tensor:
    return 2 * size.double() / p.double().sqrt()


def _wrong_steps(w: Tensor, bits: Tensor) -> list[tuple[str, Tensor]]:
    p, size = 2 ** (bits - 1) - 1, w.abs().mean()
    right = _steps(size, p)
    highest = "p is the highest code of signed weights, 2^(bits-1) - 1"
    return [
        ("the mean is of |w|: without the bars, positive and negative weights cancel", _steps(w.mean(), p)),
        ("the mean is of |w|: you take the absolute value of the mean", _steps(w.mean().abs(), p)),
        ("the formula has the mean of |w|: you take the median", _steps(w.abs().median(), p)),
        ("the formula has the mean of |w|: you take the standard deviation", _steps(w.std(), p)),
        ("the formula has the mean of |w|: you take the root of the mean square", _steps(w.square().mean().sqrt(), p)),
        ("the formula has the mean of |w|: you take the largest", _steps(w.abs().max(), p)),
        ("the formula has the mean of |w|: you take the sum", _steps(w.abs().sum(), p)),
        ("the factor 2 is missing", right / 2),
        ("the root is missing: divide by sqrt(p)", right / p.sqrt()),
        ("the root goes over all of it: only p is under it", right.sqrt()),
        ("it multiplies by sqrt(p): more bits need a smaller step", right * p),
        (f"you count all codes: {highest}", _steps(size, 2**bits)),
        (f"that is the highest code of unsigned activations: {highest}", _steps(size, 2**bits - 1)),
        (f"that is how many negative codes there are: {highest}", _steps(size, 2 ** (bits - 1))),
        (f"you take the number of bits: {highest}", _steps(size, bits)),
        ("all bitwidths get the step of the first one: each needs a step of its own", right[:1].expand(len(right))),
        ("all bitwidths get the step of the fewest bits: each needs a step of its own",
         right.max().expand(len(right))),
        ("this spreads the codes from 0 to the largest weight: take the formula", w.abs().max() / p),
        ("the steps are in another order than the bitwidths", right.flip(0)),
        ("the steps are in another order than the bitwidths", right.sort()[0]),
    ]  # fmt: skip


own_steps = Exercise(
    "own_steps",
    "6.1: A step for each bitwidth",
    difficulty=1,
    minutes=10,
    question="""
    Write `own_steps(w, widths)`. `w` is a float tensor of any shape, the weights of one layer, and `widths` is a list
    of bitwidths, 2 or more each. Return a tensor of shape `(len(widths),)` with a step for each bitwidth, in their
    order: 2 mean|w| / sqrt(p), where p = 2^(bits-1) - 1 is the highest code.
    """,
    hints=[
        "The mean of |w| is the same for all bitwidths; only p differs.",
        "For 2, 3, 4 and 8 bits p is 1, 3, 7 and 127.",
        "highest = torch.tensor([2 ** (bits - 1) - 1 for bits in widths]); then 2 * w.abs().mean() / highest.sqrt().",
    ],
    solution=_own_steps,
    grade=_grade_own_steps,
)

# --- 6.2 -------------------------------------------------------------------------------------------------------


def _pair_losses(
    model: torch.nn.Module, support: torch.Tensor, query: torch.Tensor, pairs: list[mq.Bits]
) -> torch.Tensor:
    """The loss of one episode at each pair, (len(pairs),); FP comes first, and teaches the others."""
    (ways, shots), asked = support.shape[:2], query.shape[1]
    images = torch.cat([support.flatten(0, 1), query.flatten(0, 1)])  # (N K + N Q, C, H, W)
    labels = torch.arange(ways).repeat_interleave(asked)  # (N Q,)
    cross_entropy, losses, teacher = torch.nn.functional.cross_entropy, [], None
    for bits in pairs:
        with mq.at(model, bits):
            out = model(images)  # (N K + N Q, features)
        prototypes = out[: ways * shots].unflatten(0, (ways, shots)).mean(1)  # (N, features)
        logits = -(out[ways * shots :, None] - prototypes).square().sum(2)  # (N Q, N)
        loss = cross_entropy(logits, labels)
        if teacher is None:
            teacher = logits.detach().softmax(1)
        else:
            loss = loss + cross_entropy(logits, teacher)
        losses.append(loss)
    return torch.stack(losses)


def _grade_pair_losses(student: Student, rng: Generator) -> None:
    low = [mq.Bits(w, a) for w in (2, 3, 4) for a in (2, 3, 4)]
    for count, ways, shots in ((3, 5, 3), (2, 4, 1), (4, 4, 2)):
        order = torch.randperm(len(low), generator=rng)[: count - 1].tolist()
        pairs = [mq.FP, *(low[i] for i in order)]
        model, support, query = _scene(ways, shots, rng)
        before = _state(model)
        got = student(model, support, query, list(pairs))
        _left_as_it_was(model, before)
        where = f"pairs = [{', '.join(map(str, pairs))}], {ways} ways, {shots} shots"
        if not isinstance(got, Tensor):
            raise Mistake(f"it returns a value of type {type(got).__name__}: return a tensor, torch.stack(losses)")
        view = _View(model, support, query, pairs)
        expect(got, view.losses(view.logits()), where, view.mistakes())
        _judge_gradient(got, view, where)


def _scene(ways: int, shots: int, rng: Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """A small embedding in training mode, and an episode, all in float64, where no rounding falls another way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_whole(0, 2**30, rng))
        model = mq.models.conv4(channels=6, image_size=16, classes=None)
        images = torch.rand(ways, shots + 3, 1, 16, 16, dtype=torch.float64).pow(3)
        mq.quantize(model.double(), "lsq", sample=images.flatten(0, 1))
    return model.train(), images[:, :shots], images[:, shots:]


def _state(model: nn.Module) -> tuple[Any, ...]:
    setting = setting_of(model)
    numbers = {name: value.detach().clone() for name, value in model.named_parameters()}
    return (str(setting.bits), dict(setting.per_layer)), setting.norm_stats, model.training, numbers


def _left_as_it_was(model: nn.Module, before: tuple[Any, ...]) -> None:
    """A Mistake names what of the model has changed. (Training moves the running statistics; these may change.)"""
    (bits, layers), policy, training, numbers = before
    setting, parameters = setting_of(model), dict(model.named_parameters())
    if (str(setting.bits), dict(setting.per_layer)) != (bits, layers):
        raise Mistake(f"the model is left at {setting.bits}, it was at {bits}: use `with mq.at(model, bits):`")
    if setting.norm_stats != policy:
        raise Mistake(
            f'the model is left with norm statistics "{setting.norm_stats}", it had "{policy}": leave the policy alone'
        )
    if model.training != training:
        raise Mistake("the model is left in evaluation mode: it was in training mode")
    if any(not torch.equal(parameters[name], value) for name, value in numbers.items()):
        raise Mistake("parameters of the model have changed: the optimizer does this later, from the losses")
    if any(value.grad is not None for value in parameters.values()):
        raise Mistake("it goes backward already: return the losses, and the training loop calls backward")


class _View:
    """An episode, and what a network makes of it at each pair."""

    def __init__(self, model: nn.Module, support: Tensor, query: Tensor, pairs: list[mq.Bits]) -> None:
        self.model, self.support, self.query, self.pairs = model, support, query, pairs
        self.labels = torch.arange(len(query))[:, None].expand(query.shape[:2]).flatten()  # (N Q,)

    def out(self, bits: mq.Bits, *parts: Tensor) -> list[Tensor]:
        """Embeddings of parts that share a batch, (N, K or Q, features) each."""
        with mq.at(self.model, bits):
            out = self.model(torch.cat([part.flatten(0, 1) for part in parts]))
        sizes = [part.shape[0] * part.shape[1] for part in parts]
        return [some.unflatten(0, part.shape[:2]) for some, part in zip(out.split(sizes), parts, strict=True)]

    def logits(self, pairs: list[mq.Bits] | None = None, score: Any = None, middle: Any = None) -> Tensor:
        """(pairs, N Q, N), by default minus the squared distance to the mean."""
        score = score or (lambda query, centres: -(query[:, None] - centres).square().sum(2))
        middle = middle or (lambda known: known.mean(1))
        both = [self.out(bits, self.support, self.query) for bits in pairs or self.pairs]
        return torch.stack([score(asked.flatten(0, 1), middle(known)) for known, asked in both])

    def apart(self) -> Tensor:
        """The logits if support and query are two batches."""
        found = [(self.out(bits, self.support)[0], self.out(bits, self.query)[0]) for bits in self.pairs]
        rows = [-(asked.flatten(0, 1)[:, None] - known.mean(1)).square().sum(2) for known, asked in found]
        return torch.stack(rows)

    def of_queries(self) -> Tensor:
        """The logits if the prototypes are made of the queries."""
        found = [self.out(bits, self.support, self.query)[1] for bits in self.pairs]
        return torch.stack([-(q.flatten(0, 1)[:, None] - q.mean(1)).square().sum(2) for q in found])

    def hard(self, logits: Tensor) -> Tensor:
        """The cross-entropy with the labels at each pair, (pairs,)."""
        return torch.stack([F.cross_entropy(z, self.labels) for z in logits])

    def soft(self, logits: Tensor, teacher: Tensor | None = None, detach: bool = True) -> Tensor:
        """The cross-entropy with the teacher at each pair, (pairs,); by default the first pair teaches."""
        target = logits[0].softmax(1) if teacher is None else teacher
        target = target.detach() if detach else target
        return -(target * logits.log_softmax(2)).sum(2).mean(1)

    def losses(self, logits: Tensor, **how: Any) -> Tensor:
        taught = torch.tensor([0.0] + [1.0] * (len(logits) - 1), dtype=torch.float64)
        return self.hard(logits) + taught * self.soft(logits, **how)

    @torch.no_grad()
    def mistakes(self) -> Iterator[tuple[str, Tensor]]:
        """What common mistakes return; the networks of the later ones run only if no earlier one fits."""
        yield from self._wrong_losses(self.logits())
        yield from self._wrong_logits()

    def _wrong_losses(self, z: Tensor) -> list[tuple[str, Tensor]]:
        right, hard, soft = self.losses(z), self.hard(z), self.soft(z)
        first = torch.tensor([1.0] + [0.0] * (len(z) - 1), dtype=torch.float64)
        entropy = -(z[0].softmax(1) * z[0].log_softmax(1)).sum(1).mean()
        queries, ways, turned = len(self.labels), len(self.query), torch.roll(z, 1, 0).softmax(2)
        previous = torch.stack([self.soft(z, teacher=turned[i])[i] for i in range(len(z))])
        cycled = torch.arange(ways).repeat(queries // ways)
        other = torch.stack([F.cross_entropy(row, cycled) for row in z])
        return [
            ("the teacher is missing: below FP add the cross-entropy with the probabilities at FP", hard),
            ("below FP only the teacher teaches: add the cross-entropy with the labels",
             hard * first + soft * (1 - first)),
            ("FP teaches itself: at FP only the labels teach", hard + soft),
            ("the two parts are averaged: add them", hard * first + (hard + soft) / 2 * (1 - first)),
            ("this is the divergence from the teacher: take the cross-entropy with its probabilities",
             right - entropy * (1 - first)),
            ("the teacher gives its answer only: take its probabilities, softmax of the logits",
             self.losses(z, teacher=F.one_hot(z[0].argmax(1), ways).double())),
            ("the teacher gives logits: make probabilities of them by softmax", self.losses(z, teacher=z[0])),
            ("the teacher is the pair before: take the logits at FP for all", hard + previous * (1 - first)),
            ("these are sums over the queries: take the mean, as cross_entropy does", right * queries),
            ("these are divided by the number of pairs: return the loss of each pair", right / len(z)),
            ("they add up over the pairs: return the loss of each pair", right.cumsum(0)),
            ("the labels are in another order: the query's first index is its class", other + soft * (1 - first)),
            ("the logits have the wrong sign: the nearest class needs the largest", self.losses(-z)),
            ("this is the distance: square it", self.losses(-(-z).sqrt())),
            ("the squared differences are averaged over the features: take the sum", self.losses(z / 6)),
        ]  # fmt: skip

    def _wrong_logits(self) -> list[tuple[str, Tensor]]:
        product, unit = (lambda q, c: q @ c.T), (lambda x: F.normalize(x, dim=-1))
        ways, shots = self.support.shape[:2]
        mean = "a prototype is the mean of its K examples: you take the "
        found = [
            ("all pairs run at FP: wrap the pass in mq.at(model, bits)", self.logits([mq.FP] * len(self.pairs))),
            ("support and query run in two batches, whose statistics differ: run them in one", self.apart()),
            (mean + "sum", self.logits(middle=lambda known: known.sum(1))),
            (mean + "first", self.logits(middle=lambda known: known[:, 0])),
            (mean + "median", self.logits(middle=lambda known: known.median(1)[0])),
            ("the mean is over the classes, not over the examples of a class: the shape is (N, K, ...)",
             self.logits(middle=lambda known: known.flatten(0, 1).unflatten(0, (shots, ways)).mean(0))),
            ("prototypes are made of the support, and you make them of the queries", self.of_queries()),
            ("this is the inner product: the logit is minus the squared distance", self.logits(score=product)),
            ("this compares by angle: the logit is minus the squared distance",
             self.logits(score=lambda q, c: product(unit(q), unit(c)))),
            ("this sums |difference|: the logit is minus the squared distance",
             self.logits(score=lambda q, c: -(q[:, None] - c).abs().sum(2))),
        ]  # fmt: skip
        return [(message, self.losses(logits)) for message, logits in found]


def _judge_gradient(got: Tensor, view: _View, where: str) -> None:
    """The values are right: so must be their gradient, which shows whether it flows into the teacher."""
    if not got.requires_grad:
        raise Mistake(
            "the losses have no gradient: keep them as tensors, without .item(), .detach() or torch.no_grad()"
        )
    parameters = [value for name, value in view.model.named_parameters() if "quant" not in name]

    def gradient(losses: Tensor) -> Tensor:
        rows = torch.autograd.grad(losses.double().sum(), parameters, allow_unused=True)
        return torch.cat([torch.zeros(1) if row is None else row.flatten() for row in rows])

    want, logits = gradient(view.losses(view.logits())), view.logits()
    taught = gradient(view.losses(logits, detach=False))
    expect(checked(gradient(got), want), want, f"{where}, the gradient of the losses",
           [("the gradient flows into the teacher: detach its logits", taught)])  # fmt: skip


pair_losses = Exercise(
    "pair_losses",
    "6.2: One episode, several pairs",
    difficulty=3,
    minutes=20,
    question="""
    Write `pair_losses(model, support, query, pairs)`: the loss of one episode at each pair.

    `model` is a quantized embedding in training mode. `support` is `(N, K, C, H, W)` and `query` is `(N, Q, C, H, W)`;
    the first index is the class. `pairs` is a list of pairs that begins with `mq.FP`. Return a tensor of
    `len(pairs)` losses that `backward` can start from.

    For each pair run support **and** query as one batch inside `with mq.at(model, bits):`. A prototype is the mean
    embedding of the K examples of a class, and a logit is minus the squared distance to a prototype. The loss is the
    mean cross-entropy with the labels and, at all pairs but FP, plus the mean cross-entropy with the probabilities at
    FP of the same queries. No gradient flows into these probabilities.
    """,
    hints=[
        "images = torch.cat([support.flatten(0, 1), query.flatten(0, 1)]); the first N K rows of model(images) are the "
        "support.",
        "torch.nn.functional.cross_entropy takes labels, torch.arange(N).repeat_interleave(Q), and it takes "
        "probabilities, (N Q, N), too.",
        "At FP keep teacher = logits.detach().softmax(1); at the other pairs add cross_entropy(logits, teacher).",
    ],
    solution=_pair_losses,
    grade=_grade_pair_losses,
)

# --- 6.3 -------------------------------------------------------------------------------------------------------


def _cross_enrolment(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(P, N, K, D) and (P, N, Q, D) embeddings -> accuracy in percent, (P, P): support's pair by query's pair."""
    ways, queries = query.shape[1:3]
    prototypes = support.mean(2)  # (P, N, D)
    labels = torch.arange(ways).repeat_interleave(queries)  # (N Q,)
    rows = []
    for enrolled in prototypes:
        far = torch.cdist(query.flatten(1, 2), enrolled)  # (P, N Q, N)
        rows.append(100 * (far.argmin(2) == labels).float().mean(1))
    return torch.stack(rows)


def _grade_cross_enrolment(student: Student, rng: Generator) -> None:
    for shots in (1, 3, 2):
        support, query = _embeddings(shots, rng)
        while _margin(support.mean(2), query) < 1e-4:  # where float rounding would decide
            support, query = _embeddings(shots, rng)
        want = _accuracies(support.mean(2), query)
        got = student(support, query)
        where = f"embeddings at {len(support)} pairs, {support.shape[1]} ways, {shots} shots"
        expect(got, want, where, _wrong_accuracies(support, query, want))


def _embeddings(shots: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Support (P, N, K, D) and query (P, N, Q, D) whose pairs differ in scale, place and noise."""
    pairs, ways, queries, features = _whole(3, 4, rng), _whole(6, 8, rng), 11, 5
    centres = 1.5 * torch.randn(ways, 1, features, generator=rng)
    found = []
    for count in (shots, queries):
        noise = torch.randn(pairs, ways, count, features, generator=rng)
        noise[:, :, :1] *= 1.0 + 2.0 * (count == shots > 1)  # the first example is an unlucky one
        scale = torch.linspace(0.5, 1.4, pairs).reshape(-1, 1, 1, 1)
        found.append(scale * (centres + noise + 1.0) + scale.square())
    return found[0], found[1]


def _margin(prototypes: Tensor, query: Tensor) -> float:
    """The least difference of a query's two least distances, of prototypes (P, N, D) and queries (P, N, Q, D)."""
    least = torch.cdist(query.flatten(1, 2)[None], prototypes[:, None]).topk(2, largest=False)[0]  # (P, P, N Q, 2)
    return float((least[..., 1] - least[..., 0]).min())


def _accuracies(prototypes: Tensor, query: Tensor, power: int = 2) -> Tensor:
    """Accuracy in percent, (P, P), of prototypes (P, N, D) and queries (P, N, Q, D)."""
    far = (query[None, :, :, :, None] - prototypes[:, None, None, None]).abs().pow(power).sum(-1)  # (P, P, N, Q, N)
    labels = torch.arange(far.shape[-1])[:, None]  # (N, 1)
    return 100 * (far.argmin(-1) == labels).float().mean((2, 3))


def _wrong_accuracies(support: Tensor, query: Tensor, right: Tensor) -> list[tuple[str, Tensor]]:
    own = right.diagonal()
    mean, labels = support.mean(2), torch.arange(query.shape[1])[:, None]
    product = torch.einsum("pnd,qmad->pqman", mean, query)  # (P, P, N, Q, N)
    unit = nn.functional.normalize
    cosine = torch.einsum("pnd,qmad->pqman", unit(mean, dim=-1), unit(query, dim=-1))
    by = {"product": product, "cosine": cosine}
    scores = {name: 100 * (value.argmax(-1) == labels).float().mean((2, 3)) for name, value in by.items()}
    far = torch.cdist(query.flatten(1, 2)[None], mean[:, None])  # (P, P, N Q, N)
    cycled = torch.arange(far.shape[-1]).repeat(query.shape[2])
    nearest = torch.cdist(query.flatten(1, 2)[None], support.flatten(1, 2)[:, None]).argmin(-1) // support.shape[2]
    truth = labels.expand(-1, query.shape[2]).flatten()
    return [
        ("rows and columns are exchanged: rows are the support's pair, columns the query's", right.T),
        ("these are shares: return percent", right / 100),
        ("this is the error: return the accuracy", 100 - right),
        ("every row is the same-pair accuracy: take the prototypes of one pair and the queries of another",
         own.expand_as(right)),
        ("every column is the same-pair accuracy: take the prototypes of one pair and the queries of another",
         own[:, None].expand_as(right)),
        ("only the diagonal is filled: prototypes of one pair also meet queries of another", own.diag()),
        ("the class of the greatest distance is taken: take the nearest", _accuracies_of(-far, truth)),
        ("the labels are in another order: the query's first index is its class", _accuracies_of(far, cycled)),
        ("a prototype is the mean of its K examples: you take the sum", _accuracies(support.sum(2), query)),
        ("a prototype is the mean of its K examples: you take only the first", _accuracies(support[:, :, 0], query)),
        ("a prototype is the mean of its K examples: you take the median", _accuracies(support.median(2)[0], query)),
        ("a prototype is the mean of its K examples: you take the nearest example",
         100 * (nearest == truth).float().mean(-1)),
        ("prototypes are made of the support, and you make them of the queries", _accuracies(query.mean(2), query)),
        ("this compares by inner product: take the squared distance, or any distance of the same order",
         scores["product"]),
        ("this compares by angle: take the squared distance, or any distance of the same order", scores["cosine"]),
        ("this sums |difference|: take the squared distance", _accuracies(mean, query, 1)),
    ]  # fmt: skip


def _accuracies_of(far: Tensor, labels: Tensor) -> Tensor:
    return 100 * (far.argmin(-1) == labels).float().mean(-1)


cross_enrolment = Exercise(
    "cross_enrolment",
    "6.3: A server enrols, a device asks",
    difficulty=2,
    minutes=15,
    question="""
    The prototypes may be made at one pair and the queries asked at another. You get embeddings of one episode at P
    pairs: `support` is `(P, N, K, D)` and `query` is `(P, N, Q, D)`, where the second index is the class.

    Write `cross_enrolment(support, query)`. It returns a `(P, P)` float tensor of accuracies in percent: in row i and
    column j the prototypes come from pair i and the queries from pair j. A prototype is the mean of its K examples,
    and the answer is the class of the nearest prototype (squared Euclidean distance).
    """,
    hints=[
        "Prototypes of all pairs at once: support.mean(2) is (P, N, D).",
        "torch.cdist(query.flatten(1, 2), prototypes[i]) is (P, N Q, N): every pair's queries, prototypes of pair i.",
        "The right answers are torch.arange(N).repeat_interleave(Q); argmin(2) == labels, then the mean over dim 1.",
    ],
    solution=_cross_enrolment,
    grade=_grade_cross_enrolment,
)

EXERCISES = (own_steps, pair_losses, cross_enrolment)
