"""Exercises of lesson 04: the sampler, the loss and the step of MEBQAT, and `train`, which puts them together."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor, nn

import mebqat_lite as mq
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.course.exercises import Exercise, Mistake, expect
from mebqat_lite.course.exercises.lesson_00 import left_alone, state_of
from mebqat_lite.datasets.base import Split

Student = Callable[..., Any]
DRAWS = 600  # of a sampler
TEMPERATURES = (2, 3, 4, 5, 10)


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


# --- 4.1 -------------------------------------------------------------------------------------------------------


def _sample_pairs(pool: list[mq.Bits], m: int, guaranteed: list[mq.Bits], rng: torch.Generator) -> list[mq.Bits]:
    """First the guaranteed pairs, then m - len(guaranteed) that are uniform over ``pool``, each on its own."""
    free = m - len(guaranteed)
    picks = torch.randint(len(pool), (free,), generator=rng)
    return [*guaranteed, *(pool[i] for i in picks.tolist())]


def _grade_sample_pairs(student: Student, rng: Generator) -> None:
    every = candidates()
    for count in (2, 0, 1):  # guaranteed pairs
        m = count + _whole(2, 3, rng)
        order = torch.randperm(len(every) - 2, generator=rng)[: _whole(6, 10, rng)].tolist()
        pool = [Bits(1, 1), *(every[1 + i] for i in sorted(order)), FP]
        ends = [FP, Bits(1, 1)][:count]
        seed = _whole(0, 2**31 - 1, rng)
        lists = _draw(student, pool, m, ends, seed, DRAWS)
        where = _called(pool, m, ends)
        if _draw(student, pool, m, ends, seed, 3) != lists[:3]:
            raise Mistake(
                f"{where} two generators in the same state give different pairs: draw from rng and from nothing else"
            )
        free = [row[count:] for row in lists]
        _judge_calls(free, where)
        _judge_counts([pair for row in free for pair in row], pool, ends, where)
        _judge_counts([row[0] for row in free], pool, [], f"{where} in the first free place,")


class _Chance(torch.Generator):
    """A generator that a failed check can print."""

    def __repr__(self) -> str:
        return "torch.Generator"


def _called(pool: list[Bits], m: int, ends: list[Bits]) -> str:
    return f"for {len(pool)} candidates, m = {m} and guaranteed = [{', '.join(map(str, ends))}]:"


def _draw(student: Student, pool: list[Bits], m: int, ends: list[Bits], seed: int, calls: int) -> list[list[Bits]]:
    """What the learner's function returns in ``calls`` calls, each checked for its form."""
    rng = _Chance().manual_seed(seed)
    rows = [_read(student(pool, m, ends, rng), pool, m, ends) for _ in range(calls)]
    _judge_front(rows, _called(pool, m, ends), ends)
    return rows


def _judge_front(rows: list[list[Bits]], called: str, ends: list[Bits]) -> None:
    """Whether each call begins with the guaranteed pairs.

    A pair that is missing in any call is named first: in some calls it may be there by chance.
    """
    lost = [(row, f"without {pair}, which is guaranteed") for pair in ends for row in rows if pair not in row]
    late = [(row, "with the guaranteed ones not at the front") for row in rows if row[: len(ends)] != ends]
    if found := [*lost, *late]:
        row, what = found[0]
        raise Mistake(f"{called} it returns {', '.join(map(str, row))}: {what}")


def _read(found: Any, pool: list[Bits], m: int, ends: list[Bits]) -> list[Bits]:
    """The pairs of one call as a list; a Mistake unless they are m candidates."""
    if isinstance(found, (Tensor, str, Bits, set, frozenset, dict)) or not isinstance(found, Iterable):
        raise Mistake(f"it returns a value of type {type(found).__name__}: return a list of pairs")
    found = list(found)
    called = _called(pool, m, ends)
    if any(isinstance(pair, (int, Tensor)) or hasattr(pair, "__index__") for pair in found):
        raise Mistake(f"{called} these are positions in the pool: return the pairs pool[i] themselves")
    if names := [pair for pair in found if isinstance(pair, str)]:
        raise Mistake(f"{called} {names[0]!r} is a text: return the pairs pool[i] themselves, not their names")
    unknown = [pair for pair in found if pair not in pool]
    if unknown:
        raise Mistake(
            f"{called} it returns {unknown[0]}, which is not in pool: "
            "draw whole pairs, not weights and activations apart"
        )
    if len(found) == m + len(ends) > m:
        raise Mistake(f"{called} it returns {len(found)} pairs: the guaranteed ones count among the m")
    if len(found) != m:
        raise Mistake(f"{called} it returns {len(found)} pairs: it should be m = {m}")
    return found


def _judge_calls(free: list[list[Bits]], where: str) -> None:
    """Whether the free places of a call are drawn anew, apart from one another, and with repetition."""
    if all(row == free[0] for row in free):
        raise Mistake(f"{where} every call gives the same pairs: each step must draw new ones")
    if all(len(set(row)) == 1 for row in free):
        raise Mistake(f"{where} one pair is drawn and repeated in all free places: draw each on its own")
    if all(len(set(row)) == len(row) for row in free):
        raise Mistake(
            f"{where} no pair ever comes twice in a call: draw each free place from the whole pool, with replacement"
        )


def _judge_counts(drawn: list[Bits], pool: list[Bits], ends: list[Bits], where: str) -> None:
    """Whether all pairs of the pool come about equally often; by chance this fails once in a billion checks."""
    counts, share = Counter(drawn), 1 / len(pool)
    if ends and not any(counts[pair] for pair in ends):
        raise Mistake(
            f"{where} a free place is never {ends[0]}: it is uniform over the whole pool, guaranteed pairs too"
        )
    wanted = len(drawn) * share
    for pair in pool:
        if not counts[pair]:
            edge = {0: ", the first of pool", len(pool) - 1: ", the last of pool"}.get(pool.index(pair), "")
            raise Mistake(f"{where} {pair}{edge}, never comes in {len(drawn)} free draws. Is your range too short?")
    worst = max(pool, key=lambda pair: abs(counts[pair] - wanted))
    if sum((counts[pair] - wanted) ** 2 / wanted for pair in pool) > 80:  # chi-square, at most 11 degrees of freedom
        raise Mistake(
            f"{where} in {len(drawn)} free draws {worst} comes {counts[worst]} times, but about {wanted:.0f} is "
            "right: every pair of the pool must be equally likely"
        )


sample_pairs = Exercise(
    "sample_pairs",
    "4.1: Which bitwidths does a step visit?",
    difficulty=1,
    minutes=10,
    question="""
    A step of MEBQAT visits M pairs. Write `sample_pairs(pool, m, guaranteed, rng)`, which returns the list of these `m`
    pairs: first those of the list `guaranteed`, in their order, then as many more as are needed to make `m`. Each of
    these is drawn on its own from the list `pool`, and every pair is equally likely. So a pair may come twice, and a
    guaranteed one may come once more. The pairs are `mq.Bits`; return the elements of the two lists as they are.

    `rng` is a `torch.Generator`. Take all chance from it, so that a run can be repeated. The check calls your function
    many hundred times and counts.
    """,
    hints=[
        "How many free places are there? m minus the number of guaranteed pairs.",
        "torch.randint(len(pool), (free,), generator=rng) draws positions in the pool, with repetition.",
        "The result is a list: [*guaranteed, *(pool[i] for i in picks.tolist())].",
    ],
    solution=_sample_pairs,
    grade=_grade_sample_pairs,
)

# --- 4.2 -------------------------------------------------------------------------------------------------------


def _mebqat_loss(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    """CE with the labels + CE with the teacher's softmax; logits, teacher: (batch, classes), labels: (batch,)."""
    loss = torch.nn.functional.cross_entropy(logits, labels)
    if teacher is None:
        return loss
    return loss + torch.nn.functional.cross_entropy(logits, teacher.detach().softmax(1))


def _grade_mebqat_loss(student: Student, rng: Generator) -> None:
    for taught in (True, False, True, True):
        batch, classes = _whole(5, 12, rng), _whole(3, 9, rng)
        logits, teacher = (2 * torch.randn(batch, classes, generator=rng) for _ in range(2))
        labels = torch.randint(classes, (batch,), generator=rng)
        leaves = logits.clone().requires_grad_(), teacher.clone().requires_grad_()
        got = student(leaves[0], labels, leaves[1] if taught else None)
        where = f"a batch of {batch} with {classes} classes, {'with' if taught else 'without'} a teacher"
        terms = _terms(_double(logits), _double(teacher), labels)
        want = terms["labels"] + terms["teacher"] * taught
        mistakes = _wrong_losses(terms, batch, classes) if taught else _wrong_hard_losses(terms, batch)
        expect(got, want, where, mistakes)
        _judge_gradients(got, *leaves, labels, taught, where)


def _ce(z: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy of logits with probabilities, both (batch, classes), as a mean over the batch."""
    return -(q * z.log_softmax(1)).sum(1).mean()


def _terms(logits: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The two cross-entropies and the teacher's entropy, as means over the batch, and what common mistakes make."""
    p, q = logits.exp() / logits.exp().sum(1, keepdim=True), teacher.exp() / teacher.exp().sum(1, keepdim=True)
    eye = torch.eye(p.shape[1], dtype=p.dtype)
    return {
        "labels": -(eye[labels] * p.log()).sum(1).mean(),
        "teacher": -(q * p.log()).sum(1).mean(),
        "hard": _ce(logits, eye[q.argmax(1)]),
        "entropy": -(q * q.log()).sum(1).mean(),
        "own_entropy": -(p * p.log()).sum(1).mean(),
        "turned": -(p * q.log()).sum(1).mean(),
        "raw": _ce(logits, teacher),
        "columns": _ce(logits, teacher.softmax(0)),
        "squares": (p - q).square().mean(),
        "products": -(p * q).sum(1).mean(),
        "unlogged": -(q * logits).sum(1).mean(),
        "squared_logits": (logits - teacher).square().mean(),
        "labels_twice": _ce(p, eye[labels]),
        "student_twice": _ce(p, q),
        "teacher_twice": _ce(logits, q.softmax(1)),
        **{f"warm_{t}": _ce(logits, (teacher / t).softmax(1)) for t in TEMPERATURES},
        **{f"both_warm_{t}": _ce(logits / t, (teacher / t).softmax(1)) for t in TEMPERATURES},
    }


def _wrong_hard_losses(t: dict[str, Tensor], batch: int) -> list[tuple[str, Tensor]]:
    return [
        ("this is half of the labels' term: without a teacher it stands alone", t["labels"] / 2),
        ("the labels' term counts twice: without a teacher it stands alone", 2 * t["labels"]),
        ("this is the sum over the batch: take the mean", batch * t["labels"]),
        ("softmax is taken twice: cross_entropy takes logits", t["labels_twice"]),
        ("the loss is 0: without a teacher the labels' term stays", torch.zeros(())),
        ("the sign is turned: a loss falls as the answer gets better", -t["labels"]),
    ]


def _wrong_shares(t: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Of the two terms, one that counts half, or a teacher's term that is another one."""
    hard, soft = t["labels"], t["teacher"]
    return [
        ("the teacher's term counts half: add both as they are", hard + soft / 2),
        ("the labels' term counts half: add both as they are", hard / 2 + soft),
        ("the network is its own teacher: take the probabilities of `teacher`", hard + t["own_entropy"]),
        ("the logarithm is missing in the teacher's term: log softmax of the network's logits", hard + t["products"]),
        (
            "the teacher's term takes the network's logits for log-probabilities: log softmax first",
            hard + t["unlogged"],
        ),
    ]


def _wrong_losses(t: dict[str, Tensor], batch: int, classes: int) -> list[tuple[str, Tensor]]:
    hard, soft = t["labels"], t["teacher"]
    kl = "this is the KL divergence to the teacher: it lacks the teacher's entropy. Same gradient, another number"
    mean_kl = "the teacher's term is a KL divergence, and a mean over the classes too"
    turned = "is turned round: it is - sum of teacher probability x log of the student's"
    distance = "squared distance to the teacher instead of the cross-entropy with its probabilities"
    twice = "softmax is taken twice: cross_entropy takes the logits of the network themselves"
    warm = "the logits are divided by a temperature of {}: here they are taken as they are"
    return [
        ("the term of the labels is missing", soft),
        ("the term of the teacher is missing", hard),
        ("the two terms are averaged: add them", (hard + soft) / 2),
        *_wrong_shares(t),
        ("this is the sum over the batch: take the mean", batch * (hard + soft)),
        ("the teacher's term is a sum over the batch: take the mean", hard + batch * soft),
        ("the labels' term is a sum over the batch: take the mean", batch * hard + soft),
        ("the teacher's term is a mean over the classes too: sum over them", hard + soft / classes),
        ("the teacher's answer is taken as a hard label (argmax): use its probabilities", hard + t["hard"]),
        (kl, hard + soft - t["entropy"]),
        (kl, soft - t["entropy"]),
        (f"{mean_kl}: sum over them, and add the teacher's entropy", hard + (soft - t["entropy"]) / classes),
        (f"the KL divergence {turned}", hard + t["turned"] - t["own_entropy"]),
        (f"the cross-entropy {turned}", hard + t["turned"]),
        ("the teacher's logits are used as probabilities: softmax first", hard + t["raw"]),
        ("the softmax of the teacher runs over the batch: use dim 1", hard + t["columns"]),
        (twice, t["labels_twice"] + soft),
        (twice, hard + t["student_twice"]),
        (twice, t["labels_twice"] + t["student_twice"]),
        ("softmax is taken twice of the teacher's logits: once makes them probabilities", hard + t["teacher_twice"]),
        *((warm.format(c), hard + t[f"warm_{c}"]) for c in TEMPERATURES),
        *((warm.format(c), hard + t[f"both_warm_{c}"] * factor) for c in TEMPERATURES for factor in (1, c * c)),
        (distance, hard + t["squares"]),
        (distance, hard + t["squared_logits"]),
        ("the terms have the wrong sign: a loss falls as the answer gets better", -(hard + soft)),
        ("the teacher's term has the wrong sign", hard - soft),
        ("the terms are multiplied: add them", hard * soft),
    ]


def _judge_gradients(loss: Any, logits: Tensor, teacher: Tensor, labels: Tensor, taught: bool, where: str) -> None:
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Mistake(
            f"for {where}: the loss has no gradient. Compute it with torch from logits, and return the tensor, without "
            "detach, item or torch.no_grad"
        )
    loss.backward()
    if teacher.grad is not None and teacher.grad.abs().max() > 0:
        raise Mistake(
            f"for {where}: the value is right, but the teacher has a gradient: it must not move towards its pupil, so "
            "detach it"
        )
    if logits.grad is None:
        raise Mistake(f"for {where}: the value is right, but no gradient reaches logits: detach the teacher instead")
    p, one_hot = logits.detach().softmax(1), torch.eye(logits.shape[1])[labels]
    hard, soft = (p - one_hot) / len(labels), (p - teacher.detach().softmax(1)) / len(labels)
    expect(logits.grad, hard + taught * soft, f"{where}, the gradient of logits", [
        ("only the labels' term has a gradient: detach the teacher, not the network's logits", hard),
        ("only the teacher's term has a gradient: do not detach logits", soft),
    ])  # fmt: skip


mebqat_loss = Exercise(
    "mebqat_loss",
    "4.2: Labels and teacher",
    difficulty=2,
    minutes=10,
    question=r"""
    A quantized pair learns from the labels and from a teacher, which is the same network at full precision. Its loss
    has two terms, both means over the batch:

    $$\mathrm{CE}(f_{wa}(x), y) + \mathrm{CE}\big(f_{wa}(x), \mathrm{softmax}(f_{FP}(x))\big),\qquad
    \mathrm{CE}(z, q) = -\sum_c q_c \log \mathrm{softmax}(z)_c$$

    Write `mebqat_loss(logits, labels, teacher)`. `logits` are those of the network at the pair, (batch, classes);
    `labels` are whole numbers, (batch,); `teacher` holds the logits at full precision, (batch, classes), or is `None`:
    then there is only the first term. Return a tensor with one number, through which a gradient flows to `logits` and
    **none** to `teacher`: both are made of the same weights.
    """,
    hints=[
        "torch.nn.functional.cross_entropy(logits, labels) is the first term. It takes probabilities as labels, too.",
        "teacher.softmax(1) are the teacher's probabilities; each row sums to 1.",
        "teacher.detach() has the same numbers and lets no gradient through.",
    ],
    solution=_mebqat_loss,
    grade=_grade_mebqat_loss,
)

# --- 4.3 -------------------------------------------------------------------------------------------------------


def _mebqat_step(
    model: torch.nn.Module, batch: tuple, pairs: list[mq.Bits], mebqat_loss, optimizer: torch.optim.Optimizer
) -> float:
    """Visit ``pairs`` on one ``batch``, then update once by their mean gradient; returns the mean loss."""
    (images, labels), teacher, total = batch, None, 0.0
    optimizer.zero_grad()
    for bits in pairs:  # FP comes first, if at all
        with mq.at(model, bits):
            logits = model(images)
        loss = mebqat_loss(logits, labels, teacher) / len(pairs)
        loss.backward()  # gradients add up in parameter.grad
        total += loss.item()
        teacher = logits.detach() if bits == mq.FP else teacher
    torch.nn.utils.clip_grad_value_(model.parameters(), 10.0)
    optimizer.step()
    return total


def _grade_mebqat_step(student: Student, rng: Generator) -> None:
    every = [bits for bits in candidates() if bits not in (FP, Bits(1, 1))]
    drawn = [every[_whole(0, len(every) - 1, rng)] for _ in range(4)]
    for pairs, largest in (([FP, Bits(1, 1), *drawn[:2]], 3.0), ([drawn[2]], 3.0), ([FP, drawn[3], drawn[3]], 40.0)):
        scene = _Scene.draw(rng, pairs, largest)
        while largest > 10 and not scene.tells_clips():
            scene = _Scene.draw(rng, pairs, largest)
        model = copy.deepcopy(scene.model)
        optimizer, old = torch.optim.SGD(model.parameters(), lr=scene.lr), 0.5
        for weight in model.parameters():  # as the step before would leave them
            weight.grad = torch.full_like(weight, old)
        before, where = (
            state_of(model),
            f"pairs = [{', '.join(map(str, pairs))}]{' and large gradients' * (largest > 10)}",
        )
        loss = student(model, scene.batch, list(pairs), scene.loss, optimizer)
        lost = before["weights"] - state_of(model)["weights"]
        scene.judge_bits(where)
        added = "the gradients of the step before are added: call optimizer.zero_grad() before the first pair"
        mean = scene.mean()
        wrong = chain([(added, scene.step(mean + old))], scene.wrong_steps())
        expect(lost, scene.step(mean), f"{where}, what the weights lose", wrong)
        scene.judge_teachers(where)
        expect(loss, scene.mean_loss(), f"{where}, the mean loss", scene.wrong_means())
        after = {**state_of(model), "weights": before["weights"], "statistics": before["statistics"]}
        left_alone(before, after, f"for {where}: the weights are right, but")


@dataclass
class _Scene:
    """A small network in float64, a batch, the pairs of a step, and the loss function that the learner is given.

    That function multiplies `_mebqat_loss` by ``size`` and writes down with which logits and teachers it was called.
    """

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    pairs: list[Bits]
    size: float
    lr: float
    calls: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    @classmethod
    def draw(cls, rng: Generator, pairs: list[Bits], largest: float) -> _Scene:
        """A scene in which the largest element of the mean gradient is ``largest``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_whole(0, 2**31 - 1, rng))
            layers = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False)
            head = nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
            batch = torch.rand(_whole(8, 12, rng), 1, 6, 6, dtype=torch.float64)
            model = mq.quantize(nn.Sequential(*layers, *head).double(), "dorefa", sample=batch).train()
            labels = torch.randint(3, (len(batch),))
        scene = cls(model, (batch, labels), pairs, 1.0, lr=0.05 + 0.15 * float(torch.rand((), generator=rng)))
        scene.size = largest / float(scene.mean().abs().max())
        return scene

    def loss(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        self.calls.append((logits.detach().clone(), teacher))
        return self.size * _mebqat_loss(logits, labels, teacher)

    def logits(self, bits: Bits, model: nn.Module | None = None) -> Tensor:
        model = self.model if model is None else model
        with mq.at(model, bits):
            return model(self.batch[0])

    def teacher(self) -> Tensor | None:
        return self.logits(FP).detach() if FP in self.pairs else None

    def losses(
        self, model: nn.Module | None = None, teacher: Tensor | None = None, pairs: Sequence[Bits] = ()
    ) -> list[Tensor]:
        """The loss of each of ``pairs``, by default of all; at FP without a teacher."""
        teacher = self.teacher() if teacher is None else teacher
        found = [(self.logits(bits, model), None if bits == FP else teacher) for bits in pairs or self.pairs]
        return [self.size * _mebqat_loss(logits, self.batch[1], by) for logits, by in found]

    def gradients(self, losses: list[Tensor], model: nn.Module | None = None) -> Tensor:
        """(pairs, weights): the gradient of each loss."""
        parameters = list((self.model if model is None else model).parameters())
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    def mean(self) -> Tensor:
        return self.gradients(self.losses()).mean(0)

    def mean_loss(self) -> float:
        return sum(loss.item() for loss in self.losses()) / len(self.pairs)

    def wrong_means(self) -> list[tuple[str, float]]:
        losses = [loss.item() for loss in self.losses()]
        mean = sum(losses) / len(losses)
        return [
            ("this is the sum of the losses: divide it by the number of pairs", sum(losses)),
            ("it is divided by the number of pairs twice", mean / len(losses)),
            ("this is the loss of the last pair alone", losses[-1]),
            ("this is the loss of the last pair alone, divided by the number of pairs", losses[-1] / len(losses)),
            ("this is the loss of the first pair alone", losses[0]),
        ]

    def step(self, gradient: Tensor, limit: float = 10.0) -> Tensor:
        """What plain gradient descent takes off the weights."""
        return self.lr * gradient.clamp(-limit, limit)

    def tells_clips(self) -> bool:
        """Whether it makes a difference if each pair's gradient is clipped, or their mean."""
        early = self.gradients(self.losses()).clamp(-10, 10).mean(0)
        return float((early - self.mean().clamp(-10, 10)).abs().max()) > 0.1

    def moved(self, by: Tensor) -> nn.Module:
        """A copy of the network with other weights."""
        model = copy.deepcopy(self.model)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()) - by, model.parameters())
        return model

    def judge_bits(self, where: str) -> None:
        """A Mistake if the model answered the same at all pairs."""
        answers = [logits for logits, _ in self.calls]
        if len(set(self.pairs)) > 1 < len(answers) and all(torch.equal(z, answers[0]) for z in answers):
            raise Mistake(
                f"for {where}: the logits are the same at all pairs. Switch the model: with mq.at(model, bits)"
            )

    def judge_teachers(self, where: str) -> None:
        """What the loss was called with, pair by pair."""
        called = f"for {where}: mebqat_loss was called"
        if len(self.calls) != len(self.pairs):
            raise Mistake(f"{called} {len(self.calls)} times: once for each of the {len(self.pairs)} pairs")
        for bits, (_, given) in zip(self.pairs, self.calls, strict=True):
            if given is not None and bits == FP:
                raise Mistake(f"{called} with a teacher at FP: full precision learns from the labels alone")
            if given is None and bits != FP and FP in self.pairs:
                raise Mistake(f"{called} without a teacher at {bits}: the logits at FP teach all other pairs")
            if given is not None and FP not in self.pairs:
                raise Mistake(f"{called} with a teacher at {bits}, but FP is not among the pairs: teacher=None")

    def wrong_steps(self) -> Iterator[tuple[str, Tensor]]:
        """What the weights lose by common mistakes; the later ones are worked out only if no earlier one fits."""
        right = self.step(self.mean())
        for mistakes in (self._wrong_sums, self._wrong_teachers, self._wrong_orders):
            yield from ((message, by) for message, by in mistakes() if not torch.allclose(by, right, rtol=1e-4))

    def _wrong_sums(self) -> list[tuple[str, Tensor]]:
        """What the weights lose if the right gradients are put together in another way."""
        every, count = self.gradients(self.losses()), len(self.pairs)
        mean, step = every.mean(0), self.step
        early = "each pair's gradient is clipped, and then the mean is taken: take the mean first, clip once"
        once = "the gradients are added: take their mean over the pairs"
        last = "only the last pair's gradient is used: call zero_grad() once, before the first pair"
        norm = float(mean.norm())
        return [
            ("no weight has moved: call optimizer.step() after the last pair", 0 * mean),
            ("it goes uphill: the loss has the wrong sign", -step(mean)),
            (once, step(every.sum(0))),
            ("the mean is taken twice: divide by the number of pairs once", step(mean / count)),
            ("it is not clipped: limit each element of the mean gradient to [-10, 10]", self.lr * mean),
            (early, self.lr * every.clamp(-10, 10).mean(0)),
            (once + ", then clip", self.lr * every.clamp(-10, 10).sum(0)),
            ("the sum is clipped, and then divided: take the mean first", step(every.sum(0)) / count),
            ("it is clipped by its norm, which shrinks all elements: clip each on its own (clip_grad_value_)",
             self.lr * mean * min(1.0, 10 / norm)),
            ("it is clipped to [-1, 1]: the limit is 10", step(mean, 1.0)),
            ("it is clipped to [-5, 5]: the limit is 10", step(mean, 5.0)),
            (last, step(every[-1])),
            (last, step(every[-1] / count)),
            ("only the first pair's gradient is used", step(every[0])),
            ("only the first pair's gradient is used, and divided by the number of pairs", step(every[0] / count)),
        ]  # fmt: skip

    def _wrong_teachers(self) -> list[tuple[str, Tensor]]:
        """What the weights lose if somebody else teaches, or nobody."""
        labels, every = self.batch[1], [self.logits(bits) for bits in self.pairs]

        def step(taught: list[Tensor | None]) -> Tensor:
            losses = [self.size * _mebqat_loss(z, labels, t) for z, t in zip(every, taught, strict=True)]
            return self.step(self.gradients(losses).mean(0))

        fp = self.logits(FP).detach()
        alone = [None if bits == FP else fp for bits in self.pairs]
        chain = [None if i == 0 else every[i - 1].detach() for i in range(len(every))]
        return [
            ("no pair has a teacher: the logits at FP, detached, teach the quantized pairs", step([None] * len(every))),
            ("the pair before teaches: keep the logits of FP for all pairs", step(chain)),
            ("FP is not among the pairs, and teaches: then there is no teacher", step(alone)),
        ]  # fmt: skip

    def _wrong_orders(self) -> list[tuple[str, Tensor]]:
        """What the weights lose if they move between the pairs, or if each pair adapts first."""
        walked = "the weights move between the pairs: take all gradients at the same weights, and step once"
        inner = (
            "each pair first adapts the weights: that is an inner loop (FOMAML). Take all gradients at the same ones"
        )
        count, own, teacher = len(self.pairs), self.gradients(self.losses()), self.teacher()
        adapted = [(bits, self.moved(self.lr * gradient)) for bits, gradient in zip(self.pairs, own, strict=True)]
        after = torch.cat([self.gradients(self.losses(model, teacher, [bits]), model) for bits, model in adapted])
        walks = [self._walk(share, fresh) for share in (1.0, 1 / count) for fresh in (True, False)]
        reptile = self.lr * (own + after).mean(0)
        return [
            *((walked, walk) for walk in walks),
            (inner, self.step(after.mean(0))),
            (inner, self.step(after.sum(0))),
            ("each pair makes several steps of its own, and the weights move to the mean (Reptile): take all gradients "
             "at the same weights", reptile),
            ("the step is taken twice", self.step(own.mean(0)) + self.step(self._at(self.step(own.mean(0))))),
        ]  # fmt: skip

    def _at(self, by: Tensor) -> Tensor:
        """The mean gradient at moved weights."""
        model = self.moved(by)
        with mq.at(model, FP):
            teacher = model(self.batch[0]).detach() if FP in self.pairs else None
        return self.gradients(self.losses(model, teacher), model).mean(0)

    def _walk(self, share: float, fresh: bool) -> Tensor:
        """What the weights lose in a step for each pair in turn; ``fresh``: the gradient is zeroed before each."""
        total, teacher, gradient = torch.zeros(()), self.teacher(), torch.zeros(())
        for i, bits in enumerate(self.pairs):
            model = self.moved(total) if i else self.model
            own = share * self.gradients(self.losses(model, teacher, [bits]), model)[0]
            gradient = own if fresh else gradient + own
            total = total + self.step(gradient)
        return total


mebqat_step = Exercise(
    "mebqat_step",
    "4.3: One step for many pairs",
    difficulty=3,
    minutes=20,
    question="""
    Write one step of MEBQAT, `mebqat_step(model, batch, pairs, mebqat_loss, optimizer)`. `batch` is `(images, labels)`,
    `pairs` are those that `sample_pairs` drew, with FP in front if it is among them, and `mebqat_loss` is the function
    of exercise 4.2.

    - Run the model on the images at each of the pairs. The logits at FP, detached, teach all other pairs of the step;
      FP itself has no teacher, and without FP among the pairs nobody has one.
    - Take the mean of the gradients of all pairs, all at the same weights.
    - Clip each element of this mean to [-10, 10], then call `optimizer.step()` once.
    - The lesson calls your function 160 times in a row: empty the gradients with `optimizer.zero_grad()` before the
      first pair, and leave them in `grad` at the end.

    Return the mean of the losses, as a number. `optimizer` holds all parameters of `model`, which is in training mode.
    The check knows what comes out if the weights move between the pairs, or if each pair adapts first, as in MAML.
    """,
    hints=[
        "Run logits = model(images) inside mq.at(model, bits). What several loss.backward() find adds up in grad.",
        "The gradient of (sum of the losses) / len(pairs) is the mean gradient, so divide each loss by len(pairs).",
        "Call optimizer.zero_grad() before the first pair; after the last one "
        "torch.nn.utils.clip_grad_value_(model.parameters(), 10), then optimizer.step().",
    ],
    solution=_mebqat_step,
    grade=_grade_mebqat_step,
)

# --- all of it -------------------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    split: Split,
    steps: int,
    sample_pairs: Callable[..., list[Bits]] = _sample_pairs,
    mebqat_loss: Callable[..., Tensor] = _mebqat_loss,
    mebqat_step: Callable[..., float] = _mebqat_step,
    pool: Sequence[Bits] = tuple(candidates()),
    m: int = 4,
    guaranteed: Sequence[Bits] = (FP, Bits(1, 1)),
    in_turn: bool = False,
    seed: int = 0,
) -> Iterator[tuple[list[Bits], float]]:
    """Train a quantized network for all bitwidths with these three functions: MEBQAT in thirty lines.

    With ``in_turn`` each of the m pairs has a batch and an update of its own, so that m times as many steps make the
    same back-propagations. Optimizer, batch size and learning rates are those of `mq.fit`.

    Args:
        model: a quantized network, which changes and stays in training mode: measure its norms before it is used.
        split: the training images and their labels.
        steps: how many updates.

    Yields:
        After each update, the pairs that it visited and the mean of their losses.
    """
    rng, visits = torch.Generator().manual_seed(seed), list[list[Bits]]()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        if not visits:  # FP goes first; in turn, those that are guaranteed and those that are drawn alternate
            drawn = list(sample_pairs(list(pool), m, list(guaranteed), rng))
            visits = [[bits] for bits in drawn[::2] + drawn[1::2]] if in_turn else [sorted(drawn, reverse=True)]
        pairs, chosen = visits.pop(0), torch.randint(len(split.labels), (128,), generator=rng)
        loss = mebqat_step(model, split.select(chosen), pairs, mebqat_loss, optimizer)
        schedule.step()
        yield pairs, loss


EXERCISES = (sample_pairs, mebqat_loss, mebqat_step)
