"""Exercises of lesson 04: the sampler, the loss with a teacher, the mean gradient, and one whole step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

import mebqat_lite as mq
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.course.exercises import Exercise, Mistake, expect

Student = Callable[..., Any]
Gradients = list[list["Tensor | None"]]  # [task][parameter]
Losses = list[Callable[[Tensor], Tensor]]
DRAWS = 600  # of a sampler


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
        if _draw(student, pool, m, ends, seed, 3) != lists[:3]:
            raise Mistake("two generators in the same state give different pairs: draw from rng and from nothing else")
        free = [row[count:] for row in lists]
        _judge_calls(free)
        _judge_counts([pair for row in free for pair in row], pool, ends)


class _Chance(torch.Generator):
    """A generator that a failed check can print."""

    def __repr__(self) -> str:
        return "torch.Generator"


def _draw(student: Student, pool: list[Bits], m: int, ends: list[Bits], seed: int, calls: int) -> list[list[Bits]]:
    """What the learner's function returns in ``calls`` calls, each checked for its form."""
    rng = _Chance().manual_seed(seed)
    lists = []
    for _ in range(calls):
        given = (list(pool), list(ends))
        found = _read(student(given[0], m, given[1], rng), pool, m, ends)
        if given != (pool, ends):
            raise Mistake("it changes its lists pool or guaranteed: the next step would start from the changed ones")
        lists.append(found)
    return lists


def _read(found: Any, pool: list[Bits], m: int, ends: list[Bits]) -> list[Bits]:
    """The pairs of one call as a list; a Mistake unless they are m candidates, the guaranteed ones first."""
    if isinstance(found, (Tensor, str, Bits)) or not isinstance(found, Sequence):
        raise Mistake(f"it returns a value of type {type(found).__name__}: return a list of pairs")
    if any(isinstance(pair, (int, Tensor)) for pair in found):
        raise Mistake("these are positions in the pool: return the pairs pool[i] themselves")
    called = f"for {len(pool)} candidates, m = {m} and guaranteed = [{', '.join(map(str, ends))}]"
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
    if list(found[: len(ends)]) != ends:
        missing = [pair for pair in ends if pair not in found]
        what = f"without {missing[0]}, which is guaranteed" if missing else "with the guaranteed ones not at the front"
        raise Mistake(f"{called} it returns {', '.join(map(str, found))}: {what}")
    return list(found)


def _judge_calls(free: list[list[Bits]]) -> None:
    """Whether the free places of a call are drawn anew, apart from one another, and with repetition."""
    if all(row == free[0] for row in free):
        raise Mistake("every call gives the same pairs: each step must draw new ones")
    if all(len(set(row)) == 1 for row in free):
        raise Mistake("one pair is drawn and repeated in all free places: draw each on its own")
    if all(len(set(row)) == len(row) for row in free):
        raise Mistake(
            "no pair ever comes twice in a call: each free place is drawn from the whole pool, with replacement"
        )


def _judge_counts(drawn: list[Bits], pool: list[Bits], ends: list[Bits]) -> None:
    """Whether all pairs of the pool come about equally often; by chance this fails once in a billion checks."""
    counts, share = Counter(drawn), 1 / len(pool)
    if ends and not any(counts[pair] for pair in ends):
        raise Mistake(f"a free place is never {ends[0]}: it is uniform over the whole pool, guaranteed pairs too")
    wanted = len(drawn) * share
    for pair in pool:
        if not counts[pair]:
            edge = {0: ", the first of pool", len(pool) - 1: ", the last of pool"}.get(pool.index(pair), "")
            raise Mistake(f"{pair}{edge}, never comes in {len(drawn)} free draws: is your range too short?")
    worst = max(pool, key=lambda pair: abs(counts[pair] - wanted))
    if sum((counts[pair] - wanted) ** 2 / wanted for pair in pool) > 80:  # chi-square, at most 11 degrees of freedom
        raise Mistake(
            f"in {len(drawn)} free draws {worst} comes {counts[worst]} times, about {wanted:.0f} would be right: "
            "every pair of the pool must be equally likely"
        )


sample_pairs = Exercise(
    "sample_pairs",
    "4.1: Which bitwidths does a step visit?",
    difficulty=1,
    minutes=10,
    question="""
    Write `sample_pairs(pool, m, guaranteed, rng)`, which returns the list of the `m` pairs of one step: first the
    pairs of the list `guaranteed`, in their order, then as many more as are needed to make `m`. Each of these is
    drawn on its own from the list `pool`, every pair equally likely. So a pair may come twice, and a guaranteed one
    may come once more.

    `rng` is a `torch.Generator`: take all chance from it, so that a run can be repeated. The check calls your function
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


def _distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """CE with the labels + CE with the teacher's probabilities; (batch, classes), (batch, classes), (batch,)."""
    soft = teacher.detach().softmax(1)  # no gradient to the teacher
    log_p = logits.log_softmax(1)
    with_labels = -log_p[torch.arange(len(labels)), labels].mean()
    with_teacher = -(soft * log_p).sum(1).mean()
    return with_labels + with_teacher


def _grade_distillation_loss(student: Student, rng: Generator) -> None:
    for _ in range(3):
        batch, classes = _whole(5, 12, rng), _whole(3, 9, rng)
        logits, teacher = (2 * torch.randn(batch, classes, generator=rng) for _ in range(2))
        labels = torch.randint(classes, (batch,), generator=rng)
        leaves = logits.clone().requires_grad_(), teacher.clone().requires_grad_()
        got = student(*leaves, labels)
        where = f"a batch of {batch} with {classes} classes"
        terms = _terms(_double(logits), _double(teacher), labels)
        want = terms["labels"] + terms["teacher"]
        expect(got, want.float(), where, _wrong_losses(terms, _double(logits), _double(teacher), batch, classes))
        _judge_gradients(got, *leaves, labels)


def _terms(logits: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The two cross-entropies and the teacher's entropy, as means over the batch."""
    p, q = logits.exp() / logits.exp().sum(1, keepdim=True), teacher.exp() / teacher.exp().sum(1, keepdim=True)
    one_hot = torch.eye(p.shape[1], dtype=p.dtype)
    return {
        "labels": -(one_hot[labels] * p.log()).sum(1).mean(),
        "teacher": -(q * p.log()).sum(1).mean(),
        "hard": -(one_hot[q.argmax(1)] * p.log()).sum(1).mean(),
        "entropy": -(q * q.log()).sum(1).mean(),
        "own_entropy": -(p * p.log()).sum(1).mean(),
        "turned": -(p * q.log()).sum(1).mean(),
        "raw": -(teacher * p.log()).sum(1).mean(),
        "columns": -(teacher.softmax(0) * p.log()).sum(1).mean(),
        "squares": (p - q).square().mean(),
        "squared_logits": (logits - teacher).square().mean(),
    }


def _wrong_losses(
    t: dict[str, Tensor], logits: Tensor, teacher: Tensor, batch: int, classes: int
) -> list[tuple[str, Tensor]]:
    hard, soft = t["labels"], t["teacher"]
    kl = "this is the KL divergence to the teacher: it lacks the teacher's entropy. Same gradient, another number"
    mean_kl = "the teacher's term is a KL divergence, and a mean over the classes too"
    turned = "is turned round: it is - sum of teacher probability x log of the student's"
    distance = "squared distance to the teacher instead of the cross-entropy with its probabilities"
    return [
        ("the term of the labels is missing", soft),
        ("the term of the teacher is missing", hard),
        ("the two terms are averaged: add them", (hard + soft) / 2),
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
        (distance, hard + t["squares"]),
        (distance, hard + t["squared_logits"]),
        ("the terms have the wrong sign: a loss falls as the answer gets better", -(hard + soft)),
        ("the teacher's term has the wrong sign", hard - soft),
    ]


def _judge_gradients(loss: Tensor, logits: Tensor, teacher: Tensor, labels: Tensor) -> None:
    if not loss.requires_grad:
        raise Mistake("the loss has no gradient: compute it from logits without detach, item or torch.no_grad")
    loss.backward()
    if teacher.grad is not None and teacher.grad.abs().max() > 0:
        raise Mistake("the value is right, but the teacher has a gradient: it must not move towards its pupil (detach)")
    if logits.grad is None:
        raise Mistake("the value is right, but no gradient reaches logits: detach the teacher, not the student")
    one_hot = torch.eye(logits.shape[1])[labels]
    want = (2 * logits.detach().softmax(1) - one_hot - teacher.detach().softmax(1)) / len(labels)
    expect(logits.grad, want, "the gradient with respect to logits", [])


distillation_loss = Exercise(
    "distillation_loss",
    "4.2: Labels and teacher",
    difficulty=2,
    minutes=10,
    question=r"""
    The loss of a quantized task has two terms, both means over the batch:

    $$\mathrm{CE}(f_{wa}(x), y) + \mathrm{CE}\big(f_{wa}(x), \mathrm{softmax}(f_{FP}(x))\big),\qquad
    \mathrm{CE}(z, q) = -\sum_c q_c \log \mathrm{softmax}(z)_c$$

    Write `distillation_loss(logits, teacher, labels)`: `logits` of the quantized network, (batch, classes); `teacher`,
    the logits at full precision, (batch, classes); `labels`, (batch,) whole numbers. Return a tensor with one number,
    through which a gradient flows to `logits` and **none** to `teacher`: both are made of the same weights.
    """,
    hints=[
        "torch.nn.functional.cross_entropy(logits, labels) is the first term. It takes probabilities as labels, too.",
        "teacher.softmax(1) are the teacher's probabilities; each row sums to 1.",
        "teacher.detach() has the same numbers and lets no gradient through.",
    ],
    solution=_distillation_loss,
    grade=_grade_distillation_loss,
)

# --- 4.3 -------------------------------------------------------------------------------------------------------


def _average_gradients(gradients: list[list[torch.Tensor | None]], limit: float) -> list[torch.Tensor | None]:
    """The mean over the tasks that used a parameter, clipped; None where none did. gradients[task][parameter]"""
    means = []
    for column in zip(*gradients, strict=True):  # one parameter in all tasks
        used = [g for g in column if g is not None]
        mean = sum(used) / len(used) if used else None
        means.append(None if mean is None else mean.clamp(-limit, limit))
    return means


def _grade_average_gradients(student: Student, rng: Generator) -> None:
    for tasks in (3, 4, 5):
        limit = round(5 + 5 * float(torch.rand((), generator=rng)), 1)
        gradients = _some_gradients(tasks, limit, rng)
        given = [[None if g is None else g.clone() for g in row] for row in gradients]
        found = student(given, limit)
        if not all(_same(a, b) for rows in zip(given, gradients, strict=True) for a, b in zip(*rows, strict=False)):
            raise Mistake("it changes the gradients that it was given: make new tensors")
        _judge_averages(found, gradients, limit)


def _some_gradients(tasks: int, limit: float, rng: Generator) -> Gradients:
    """[task][parameter]: one used by all tasks, one by two, one by one, one by none, one by all; some beyond limit."""
    users = (tasks, 2, 1, 0, tasks)
    shapes = [(_whole(2, 4, rng), _whole(3, 5, rng)) for _ in users]
    who = [torch.randperm(tasks, generator=rng)[:count].tolist() for count in users]
    scale = 3 * limit
    return [
        [scale * torch.randn(shape, generator=rng) if task in who[i] else None for i, shape in enumerate(shapes)]
        for task in range(tasks)
    ]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _judge_averages(found: Any, gradients: Gradients, limit: float) -> None:
    columns = [[_double(g) for g in column if g is not None] for column in zip(*gradients, strict=True)]
    if isinstance(found, Tensor) or not isinstance(found, Sequence):
        raise Mistake(f"it returns a value of type {type(found).__name__}: return a list with a gradient per parameter")
    if len(found) != len(columns):
        raise Mistake(f"it returns {len(found)} values for {len(columns)} parameters: one per parameter, None included")
    tasks = len(gradients)
    for i, column in enumerate(columns):
        where = f"parameter {i}, which {len(column)} of {tasks} tasks used, and limit = {limit:g}"
        if not column:
            if found[i] is not None:
                raise Mistake(f"for {where}: return None, or the optimizer would decay what nobody used")
            continue
        if found[i] is None:
            raise Mistake(f"for {where}: it returns None. Only a parameter that no task used has none")
        total = torch.stack(column).sum(0)
        want = (total / len(column)).clamp(-limit, limit).float()
        expect(found[i], want, where, _wrong_averages(column, columns, total, tasks, limit))


def _wrong_averages(
    column: list[Tensor], columns: list[list[Tensor]], total: Tensor, tasks: int, limit: float
) -> list[tuple[str, Tensor]]:
    mean, clipped = total / len(column), [g.clamp(-limit, limit) for g in column]
    every = torch.cat([(torch.stack(c).mean(0)).flatten() for c in columns if c]).norm()
    early = "it clips each task's gradient and then averages: average first, clip once"
    by_norm = "it clips by the norm, which shrinks all elements: clip each element on its own"
    by_all = "it divides by the number of tasks: divide by the number of those that used the parameter"
    return [
        ("it is not clipped: limit each element to [-limit, limit]", mean),
        (by_all, (total / tasks).clamp(-limit, limit)),
        (by_all, total / tasks),
        ("this is the sum over the tasks: divide by the number that used it", total.clamp(-limit, limit)),
        ("the sum over the tasks, not clipped: divide, then clip", total),
        ("it clips the sum and then divides: average first, then clip", total.clamp(-limit, limit) / len(column)),
        ("it clips the sum and then divides: average first, then clip", total.clamp(-limit, limit) / tasks),
        (early, torch.stack(clipped).mean(0)),
        (early, torch.stack(clipped).sum(0) / tasks),
        (early, torch.stack(clipped).sum(0)),
        (by_norm, mean * min(1.0, limit / float(mean.norm()))),
        (by_norm, mean * min(1.0, limit / float(every))),
        ("large negative elements are not clipped: the lower limit is -limit", mean.clamp(max=limit)),
        ("large positive elements are not clipped: the upper limit is limit", mean.clamp(min=-limit)),
        ("the lower limit is -limit, not 0", mean.clamp(0, limit)),
        ("this is the first task's gradient alone", column[0].clamp(-limit, limit)),
        ("this is the last task's gradient alone", column[-1].clamp(-limit, limit)),
        ("this is the median over the tasks: take the mean", torch.stack(column).median(0).values.clamp(-limit, limit)),
    ]


average_gradients = Exercise(
    "average_gradients",
    "4.3: The mean over those who used it",
    difficulty=2,
    minutes=15,
    question="""
    With learned steps (LSQ) a parameter may belong to one bitwidth only: a task that did not use it has no gradient,
    `None`, which is not the same as a gradient of zero.

    Write `average_gradients(gradients, limit)`. `gradients[task][parameter]` is a tensor, or None where that
    task did not use that parameter. Return a list with one entry per parameter: the mean over the tasks that used
    it, then each element clipped to [-limit, limit]. A parameter that no task used stays None. Leave the input as
    it is.
    """,
    hints=[
        "zip(*gradients) goes through the parameters: each time it gives one parameter's gradients in all tasks.",
        "Keep those that are not None; if none is left the answer is None.",
        "sum(used) / len(used) is the mean; tensor.clamp(-limit, limit) clips each element.",
    ],
    solution=_average_gradients,
    grade=_grade_average_gradients,
)

# --- 4.4 -------------------------------------------------------------------------------------------------------


def _mebqat_step(w: torch.Tensor, losses: list, lr: float) -> torch.Tensor:
    """w - lr x the mean gradient of all losses, each taken at the same ``w``."""
    w = w.detach().clone().requires_grad_()
    mean = sum(loss(w) for loss in losses) / len(losses)
    (gradient,) = torch.autograd.grad(mean, w)
    return (w - lr * gradient).detach()


def _grade_mebqat_step(student: Student, rng: Generator) -> None:
    for tasks in (2, 4, 3):
        size, lr = _whole(3, 6, rng), 0.05 + 0.15 * float(torch.rand((), generator=rng))
        w = torch.randn(size, generator=rng)
        losses = [_Bowl(0.5 + torch.rand(size, generator=rng), torch.randn(size, generator=rng)) for _ in range(tasks)]
        got = student(w, losses, lr)
        where = f"{tasks} tasks and lr = {lr:.3g}"
        w64, gradients = _double(w), [loss.slope for loss in losses]
        want = w64 - lr * sum(g(w64) for g in gradients) / tasks
        expect(got, want.float(), where, _wrong_steps(w64, gradients, lr))
        if got.requires_grad:
            raise Mistake("the new weights still carry the graph of the step: return them with detach()")


@dataclass(frozen=True)
class _Bowl:
    """A loss over the weights of one bitwidth: steep in its own way around its own centre."""

    width: Tensor
    centre: Tensor

    def __call__(self, w: Tensor) -> Tensor:
        away = w - self.centre.to(w.dtype)
        return (self.width * away.square() + 0.1 * away**4).sum()

    def slope(self, w: Tensor) -> Tensor:
        """The gradient, by hand."""
        away = w - self.centre.double()
        return 2 * self.width.double() * away + 0.4 * away**3


def _wrong_steps(w: Tensor, gradients: Sequence[Callable[[Tensor], Tensor]], lr: float) -> list[tuple[str, Tensor]]:
    count = len(gradients)
    mean = torch.stack([g(w) for g in gradients]).mean(0)
    inner = torch.stack([g(w - lr * g(w)) for g in gradients]).mean(0)
    last = w - lr * gradients[-1](w)
    walked = "the weights move between the tasks, so each gradient is taken at other weights: take all at the same w"
    adapted = "each task first adapts w: that is an inner loop (FOMAML). Take each gradient at w itself"
    return [
        (walked, _walk(w, gradients, lr)),
        (walked, _walk(w, gradients, lr / count)),
        (walked, _walk(w, gradients[::-1], lr)),
        (adapted, w - lr * inner),
        (adapted, w - lr * count * inner),
        ("this is the sum of the gradients: take their mean", w - lr * count * mean),
        ("it divides by the number of tasks twice", w - lr * mean / count),
        ("it goes uphill: subtract the gradient", w + lr * mean),
        ("lr is forgotten: multiply the mean gradient by it", w - mean),
        ("lr is used twice", w - lr * lr * mean),
        ("w comes back as it was", w),
        ("this is the mean gradient: return the new weights, w - lr x gradient", mean),
        ("this is lr x gradient: subtract it from w", lr * mean),
        ("only the last task's gradient is used (a grad that is overwritten?)", last),
        ("only the last task's gradient is used, and divided by the number of tasks", w - (w - last) / count),
        ("only the first task's gradient is used", w - lr * gradients[0](w)),
    ]


def _walk(w: Tensor, gradients: Sequence[Callable[[Tensor], Tensor]], lr: float) -> Tensor:
    """The weights after a step for each task in turn."""
    for gradient in gradients:
        w = w - lr * gradient(w)
    return w


mebqat_step = Exercise(
    "mebqat_step",
    "4.4: One step, and no inner loop",
    difficulty=2,
    minutes=10,
    question="""
    Write one step of MEBQAT with plain gradient descent. `w` is a tensor of weights; `losses` is a list of functions,
    one per bitwidth of the step, and `losses[i](w)` is a tensor with one number. `mebqat_step(w, losses, lr)` returns
    the new weights: `w` minus `lr` times the **mean** of the gradients, all taken at the same `w`.

    The check also computes what you would get if the weights moved between the tasks, or if each task adapted
    first, as in MAML: it knows the difference.
    """,
    hints=[
        "Make a copy that wants a gradient: v = w.detach().clone().requires_grad_().",
        "The gradient of the mean loss is the mean of the gradients: torch.autograd.grad(mean_loss, v)[0].",
        "w changes once, after all gradients are there. Return (w - lr * gradient).detach().",
    ],
    solution=_mebqat_step,
    grade=_grade_mebqat_step,
)

EXERCISES = (sample_pairs, distillation_loss, average_gradients, mebqat_step)
