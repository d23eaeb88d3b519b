"""Assignment 04: a sampler without memory, losses with any teachers, their mean gradient, and a whole run."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mebqat_lite.bits import candidates as all_pairs
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.classroom.sandbox import Limits
from mebqat_lite.course.exercises import Mistake, checked, expect
from torch import Generator, Tensor

Wrong = list[tuple[str, Tensor]]
Gradients = dict[str, dict[str, "Tensor | None"]]
Rule = Callable[[Tensor, Tensor, Tensor, Sequence[str]], Tensor]  # w, x, labels, pairs -> gradient
ENDS = ["FP", "W1A1"]


def whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def pool(count: int, rng: Generator) -> list[str]:
    """So many candidates in random order, FP and W1A1 among them, neither first or last."""
    names = [str(pair) for pair in all_pairs() if str(pair) not in ENDS]
    found = [names[i] for i in torch.randperm(len(names), generator=rng)[: count - 2].tolist()]
    return [found[0], *ENDS, *found[1:]]


# --- draw_step -------------------------------------------------------------------------------------------------


def draw(student: Any, every: list[str], sure: list[str], m: int, seed: int, step: int) -> list[str]:
    """The pairs of one step; a Mistake unless they are m candidates, the guaranteed ones first."""
    found, called = read(student, every, sure, m, seed, step), f"for m = {m} and guaranteed = {sure}"
    judge_front([(found, called, sure)])
    return found


def read(student: Any, every: list[str], sure: list[str], m: int, seed: int, step: int) -> list[str]:
    """The pairs of one step; a Mistake unless they are m candidates."""
    found = student(list(every), list(sure), m, seed, step)
    if not isinstance(found, (list, tuple)):
        raise Mistake(f"it returns a value of type {type(found).__name__}: return a list of pairs")
    if any(isinstance(pair, (int, float, Tensor)) for pair in found):
        raise Mistake("these are positions in the list: return the pairs candidates[i] themselves")
    if unknown := [pair for pair in found if pair not in every]:
        raise Mistake(f"it returns {unknown[0]!r}, which is not in candidates: draw whole pairs, as they stand there")
    called = f"for m = {m} and guaranteed = {sure} it returns {len(found)} pairs"
    if len(found) == m + len(sure) > m:
        raise Mistake(f"{called}: the guaranteed ones count among the m")
    if len(found) != m:
        raise Mistake(f"{called}, not m")
    return list(found)


def judge_front(calls: list[tuple[list[str], str, list[str]]]) -> None:
    """Whether the guaranteed pairs come first in what each call returned; ``calls`` has (pairs, call, guaranteed).

    A pair that is missing in any call is named first: in some calls it may be there by chance.
    """
    for found, called, sure in calls:
        for pair in sure:
            if pair not in found:
                raise Mistake(f"{called} it returns {', '.join(found)}: {pair} is guaranteed and missing")
    for found, called, sure in calls:
        if found[: len(sure)] != sure:
            raise Mistake(f"{called} it returns {', '.join(found)}: the guaranteed ones come first, in their order")


def grade_form(student: Any, rng: Generator) -> None:
    """m pairs, the guaranteed ones first, for none to m of them."""
    every = pool(whole(8, 12, rng), rng)
    calls = []
    for sure, free in itertools.product((ENDS, [], ENDS[::-1], ["FP"], [every[0], *ENDS]), (2, 0, 5)):
        m = len(sure) + free
        for _ in range(3 if m else 0):
            found = read(student, every, sure, m, whole(0, MOST, rng), whole(0, 2000, rng))
            calls.append((found, f"for m = {m} and guaranteed = {sure}", sure))
    judge_front(calls)


MOST = 9_999  # the largest seed and the largest step; a right answer may make all steps before, in 4 seconds
STRIDE = 400  # see `grid_of_calls`


def grid_of_calls() -> list[tuple[int, int]]:
    """(seed, step) among which every rule ``a x seed + step`` has two calls of the same number, for a up to `MOST`, and
    so has every ``seed + b x step``, and every ``a x seed + b x step`` where both are below 100.

    Each a is a multiple of `STRIDE` less a smaller number j: this multiple, as a step of seed 0, is step j of seed 1.
    """
    far, small = [*range(0, MOST, STRIDE), MOST], range(100)
    rows = [*((0, step) for step in (*far, *small)), *((1, step) for step in range(STRIDE))]
    return list(dict.fromkeys([*rows, *(call[::-1] for call in rows)]))


def grade_memory(student: Any, rng: Generator) -> None:
    """The same arguments give the same pairs, others have nothing in common: no ten free pairs in a row."""
    every, first = pool(whole(20, 24, rng), rng), whole(12, MOST - 3, rng)
    seeds, steps = (0, 1, 11, *range(first, first + 3)), (*range(64), 100, 1000)  # 1 and 11: digits in a row
    calls = list(dict.fromkeys([*itertools.product(seeds, steps), *grid_of_calls()]))
    found = {call: draw(student, every, ["FP"], 17, *call)[1:] for call in calls}
    again = [calls[i] for i in torch.randperm(len(calls), generator=rng)[:12].tolist()]
    for call in again:
        if draw(student, every, ["FP"], 17, *call)[1:] != found[call]:
            raise Mistake(
                f"seed = {call[0]} and step = {call[1]} give other pairs when they are asked for again: take all "
                "chance from a generator that is made of seed and step, anew in each call"
            )
    judge_alike(found, seeds, steps)
    others = student.in_another_process(*((list(every), ["FP"], 17, *call) for call in again))
    for call, other in zip(again, others, strict=True):
        if list(other[1:]) != found[call]:
            raise Mistake(
                f"seed = {call[0]} and step = {call[1]} give other pairs when Python is started anew: hash() of text, "
                "the order of a set and id() change with each start. Make the generator of the two numbers, or of a "
                "text that holds them"
            )


def judge_alike(found: dict[tuple[int, int], list[str]], seeds: Sequence[int], steps: Sequence[int]) -> None:
    """Whether any two steps have draws in common."""
    if all(found[seed, step] == found[seeds[0], step] for seed in seeds for step in steps):
        raise Mistake("all seeds give the same pairs: two runs could not be told apart")
    if all(found[seed, step] == found[seed, 0] for seed in seeds for step in steps):
        raise Mistake("every step of a run draws the same pairs: the bitwidths must be drawn anew for each step")
    seen: dict[tuple[str, ...], tuple[tuple[int, int], int]] = {}
    for call, row in found.items():
        if len(set(row)) == 1:
            raise Mistake("one pair is drawn and repeated in all free places: draw each on its own")
        for place in range(len(row) - 9):
            other, where = seen.setdefault(tuple(row[place : place + 10]), (call, place))
            if other != call:
                same = "the same pairs" if where == place else f"the same pairs, moved by {abs(where - place)}"
                raise Mistake(
                    f"seed {other[0]}, step {other[1]} and seed {call[0]}, step {call[1]} draw {same}: "
                    "any two steps of any two runs must be drawn apart"
                )


def grade_chance(student: Any, rng: Generator) -> None:
    """Every candidate equally likely in each free place, with replacement, the guaranteed ones too."""
    for sure in (ENDS, []):
        every, first, start = pool(whole(8, 10, rng), rng), whole(1, MOST - 249, rng), whole(0, 1000, rng)
        calls = [(first, start + i) for i in range(250)] + [(first + i, start) for i in range(1, 250)]
        rows = [draw(student, every, sure, len(sure) + 3, *call)[len(sure) :] for call in calls]
        if all(len(set(row)) == 1 for row in rows):
            raise Mistake("one pair is drawn and repeated in all free places: draw each on its own")
        if all(len(set(row)) == 3 for row in rows):
            raise Mistake("no pair ever comes twice in a step: draw each from all candidates, with replacement")
        if all(one != other for row in rows for one, other in itertools.pairwise(row)):
            raise Mistake("no pair ever follows itself: draw each on its own, whatever was drawn before it")
        for drawn in (*zip(*rows, strict=True), [pair for row in rows for pair in row]):
            judge_counts(drawn, every, sure)


def judge_counts(drawn: Sequence[str], every: list[str], sure: list[str]) -> None:
    """Whether all come about equally often in some free places: a right answer fails once in 500 million times."""
    counts, wanted = Counter(drawn), len(drawn) / len(every)
    if sure and not any(counts[pair] for pair in sure):
        raise Mistake(f"a free place is never {sure[0]}: it is drawn from all candidates, the guaranteed ones too")
    if missing := [pair for pair in every if not counts[pair]]:
        end = {every[0]: "the first of candidates, ", every[-1]: "the last of candidates, "}.get(missing[0], "")
        raise Mistake(f"{missing[0]}, {end}never comes in {len(drawn)} free draws: is your range too short?")
    worst = max(every, key=lambda pair: abs(counts[pair] - wanted))
    distance = sum((counts[pair] - wanted) ** 2 for pair in every) / wanted  # chi-square, 7 to 9 degrees of freedom
    if distance > 60:
        raise Mistake(
            f"in {len(drawn)} free draws {worst} comes {counts[worst]} times, about {wanted:.0f} would be "
            "right: every candidate must be equally likely"
        )


# --- task_losses -----------------------------------------------------------------------------------------------

TEACHERS = ([2, 0, None, 2], [None, 0, 0, 0], [None, 0, 1, 2, 3], [1, None, None], [3, 0, 1, None])


def rows(teachers: Sequence[int | None], rng: Generator) -> tuple[Tensor, Tensor]:
    """Logits (pairs, batch, classes) and labels (batch,)."""
    batch, classes = whole(5, 9, rng), whole(3, 4, rng)
    return 2 * torch.randn(len(teachers), batch, classes, generator=rng), torch.randint(
        classes, (batch,), generator=rng
    )


def ce(z: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy of logits with probabilities, both (batch, classes)."""
    return (z.logsumexp(1) * q.sum(1) - (q * z).sum(1)).mean()


def true_losses(
    logits: Tensor, labels: Tensor, teachers: Sequence[int | None],
    term: Callable[[Tensor, Tensor], Tensor] = ce, hard: float = 1.0, detach: bool = True,
) -> Tensor:  # fmt: skip
    """The losses in float64; ``term`` of (student's logits, teacher's logits softmaxed) is the teacher's."""
    logits, answers = logits.double(), torch.eye(logits.shape[2]).double()[labels]
    losses = []
    for z, t in zip(logits, teachers, strict=True):
        loss = ce(z, answers) * (hard if t is not None else 1)
        if t is not None:
            q = logits[t].exp() / logits[t].exp().sum(1, keepdim=True)
            loss = loss + term(z, q.detach() if detach else q)
        losses.append(loss)
    return torch.stack(losses)


def wrong_losses(logits: Tensor, labels: Tensor, teachers: Sequence[int | None]) -> Wrong:
    """What common mistakes give."""
    count, (batch, classes) = len(teachers), logits.shape[1:]

    def taught(by: Sequence[int | None]) -> Tensor:
        return true_losses(logits, labels, by)

    def termed(term: Callable[[Tensor, Tensor], Tensor], hard: float = 1.0) -> Tensor:
        return true_losses(logits, labels, teachers, term, hard)

    def entropy(z: Tensor, q: Tensor) -> Tensor:
        return -(q * q.log()).sum(1).mean()

    right, top = taught(teachers), teachers.index(None)
    columns = [logits[t].double().softmax(0) if t is not None else None for t in teachers]
    over_batch = [
        true_losses(logits, labels, [None] * count)[i] + (0 if q is None else ce(logits[i].double(), q))
        for i, q in enumerate(columns)
    ]
    return [
        ("teacher 0 is taken for none: `if teacher` is false for row 0, ask `is not None`",
         taught([t or None for t in teachers])),
        ("the teachers' term is missing", taught([None] * count)),
        ("the teacher's term counts half: add both as they are", termed(lambda z, q: ce(z, q) / 2)),
        ("the labels' term counts half where there is a teacher: add both as they are", termed(ce, 0.5)),
        ("the logarithm is missing in the teacher's term: log softmax of the row's own logits",
         termed(lambda z, q: -(q * z.softmax(1)).sum(1).mean())),
        ("the teacher's term takes logits for log-probabilities: log softmax of the row's own logits",
         termed(lambda z, q: -(q * z).sum(1).mean())),
        ("the teacher's term is a squared error of probabilities: it is a cross-entropy",
         termed(lambda z, q: (z.softmax(1) - q).square().mean())),
        ("row 0 teaches all here: the teacher of row i is row teachers[i]",
         taught([None if t is None else 0 for t in teachers])),
        ("the row above teaches here: the teacher of row i is row teachers[i]",
         taught([None if t is None else (i - 1) % count for i, t in enumerate(teachers)])),
        ("a row without a teacher learns from itself: it has the labels' term only",
         taught([i if t is None else t for i, t in enumerate(teachers)])),
        ("a row without a teacher gets one: it has the labels' term only",
         taught([count - 1 if t is None else t for t in teachers])),
        ("each row teaches itself: the teacher of row i is row teachers[i]",
         taught([None if t is None else i for i, t in enumerate(teachers)])),
        ("the row that has no teacher teaches all others: the teacher of row i is row teachers[i]",
         taught([None if t is None else top for t in teachers])),
        ("the labels' term is missing where there is a teacher: add both", termed(ce, 0.0)),
        ("the two terms are averaged: add them", termed(lambda z, q: ce(z, q) / 2, 0.5)),
        ("this is the sum over the batch: take the mean", batch * right),
        ("it divides by the number of pairs too: each loss is a mean over the batch", right / count),
        ("the teacher's term is a mean over the classes too: sum over them", termed(lambda z, q: ce(z, q) / classes)),
        ("the teacher's term is a sum over the batch: take the mean", termed(lambda z, q: batch * ce(z, q))),
        ("the teacher's answer is taken as a hard label (argmax): use its probabilities",
         termed(lambda z, q: ce(z, torch.eye(classes).double()[q.argmax(1)]))),
        ("the teacher's term is the KL divergence, without the teacher's entropy. Same gradient, another number",
         termed(lambda z, q: ce(z, q) - entropy(z, q))),
        ("the cross-entropy with the teacher is turned round: -sum of teacher's probability x log of the row's own",
         termed(lambda z, q: -(z.softmax(1) * q.log()).sum(1).mean())),
        ("the teacher's softmax runs over the batch: it is over the classes", torch.stack(over_batch)),
        ("the signs are turned: a loss falls as the answer gets better", -right),
        ("the teacher's term has the wrong sign", termed(lambda z, q: -ce(z, q))),
        ("this is the mean over the pairs: return the loss of each", right.mean().expand(count)),
    ]  # fmt: skip


def grade_values(student: Any, rng: Generator) -> None:
    """The loss of each pair."""
    for teachers in TEACHERS:
        logits, labels = rows(teachers, rng)
        got, want = student(logits, labels, list(teachers)), true_losses(logits, labels, teachers)
        expect(got, want.float(), f"teachers = {teachers}", wrong_losses(logits, labels, teachers))


def grade_flow(student: Any, rng: Generator) -> None:
    """The gradient: through each row's own loss, with nothing for the teacher."""
    for teachers in TEACHERS:
        logits, labels = rows(teachers, rng)
        upstream = 0.5 + torch.rand(len(teachers), generator=rng)
        value, (got, *_) = student.gradients(logits, labels, list(teachers), upstream=upstream)
        checked(value, upstream)
        if got is None:
            raise Mistake("no gradient reaches logits: keep them as tensors, without detach(), item() or torch.tensor")
        z, hot = logits.double(), torch.eye(logits.shape[2]).double()[labels]
        p, scale = z.softmax(2), upstream.double()[:, None, None] / len(labels)
        q = torch.stack([p[i] if t is None else p[t] for i, t in enumerate(teachers)])
        want = scale * (2 * p - hot - q)
        alone = torch.tensor([t is None for t in teachers])[:, None, None]
        expect(got, want.float(), f"teachers = {teachers}, the gradient", [
            ("the teacher has a gradient: the rows that it teaches must not pull it towards them (detach)",
             slope(logits, labels, teachers, upstream, detach=False)),
            ("only the teachers' term has a gradient", torch.where(alone, want, scale * (p - q))),
            ("only the labels' term has a gradient: detach the teacher, not the row that learns", scale * (p - hot)),
            ("only rows that have no teacher get a gradient: detach the teacher, not the row that learns",
             torch.where(alone, want, 0.0)),
            ("the teacher's term has half of its gradient: add both terms as they are", want - torch.where(
                alone, 0.0, scale * (p - q) / 2)),
            ("rows that teach get no gradient at all: take the teacher's probabilities from logits[i].detach(), and "
             "leave logits as they are",
             torch.where(torch.tensor([i in teachers for i in range(len(teachers))])[:, None, None], 0.0, want)),
        ])  # fmt: skip


def slope(logits: Tensor, labels: Tensor, teachers: Sequence[int | None], upstream: Tensor, detach: bool) -> Tensor:
    """The gradient of the losses by autograd, in float64."""
    leaf = logits.double().requires_grad_()
    losses = true_losses(leaf, labels, teachers, detach=detach)
    return torch.autograd.grad(losses, leaf, upstream.double())[0]


# --- mean_gradients --------------------------------------------------------------------------------------------


def some_gradients(pairs: Sequence[str], users: dict[str, list[str]], size: float, rng: Generator) -> Gradients:
    """Gradients of each pair, bell-shaped of this size; None where a pair is no user of the parameter."""
    shapes = {name: (whole(2, 4, rng), whole(3, 5, rng)) for name in users}
    return {
        pair: {
            name: size * torch.randn(shapes[name], generator=rng) if pair in who else None
            for name, who in users.items()
        }
        for pair in dict.fromkeys(pairs)
    }


def judge_means(
    student: Any, gradients: Gradients, pairs: list[str], limit: float,
    wrong: Callable[[list[Tensor], list[Tensor]], Wrong],
) -> None:  # fmt: skip
    """Each parameter's mean over the draws that used it; ``wrong`` of those, one per draw and one per pair."""
    given = {pair: {k: None if g is None else g.clone() for k, g in of.items()} for pair, of in gradients.items()}
    found, names = student(given, list(pairs), limit), list(gradients[pairs[0]])
    if not isinstance(found, dict):
        raise Mistake(f"it returns a value of type {type(found).__name__}: return a dictionary, name -> gradient")
    if missing := [name for name in names if name not in found]:
        raise Mistake(
            f"{missing[0]} is missing in what it returns: all names belong there, with None if no draw used it"
        )
    if unknown := [name for name in found if name not in names]:
        raise Mistake(f"it returns a gradient of {unknown[0]!r}, which is no name of a parameter")
    for name in names:
        draws = [g.double() for pair in pairs if (g := gradients[pair][name]) is not None]
        once = [g.double() for pair in dict.fromkeys(pairs) if (g := gradients[pair][name]) is not None]
        where = f"pairs = {pairs} and limit = {limit:g}, {name}, which {len(draws)} of {len(pairs)} draws used"
        if not draws:
            if found[name] is not None:
                raise Mistake(f"for {where}: return None, or the optimizer would decay what nobody used")
        elif found[name] is None:
            raise Mistake(f"for {where}: it returns None. Only a parameter that no draw used has none")
        else:
            want = (torch.stack(draws).sum(0) / len(draws)).clamp(-limit, limit)
            expect(found[name], want.float(), where, wrong(draws, once))


def grade_mean(student: Any, rng: Generator) -> None:
    """The mean: over the draws that used a parameter; nothing is large enough to be clipped."""
    a, b, c, d = pool(8, rng)[3:7]
    judge_means(student, some_gradients([a, "FP", b], {"weight": [a, "FP", b]}, 1.0, rng), [a, "FP", b], 100.0,
                functools.partial(wrong_means, count=3))  # fmt: skip
    for pairs in ([a, "FP", a, b], ["FP", c, c, d, c], [d]):
        first, *others = dict.fromkeys(pairs)
        twice = max(pairs, key=pairs.count)
        other = next((pair for pair in pairs if pair != twice), twice)
        users = {"weight": [first, *others], "step.own": [twice], "step.two": [twice, other], "step.one": [other],
                 "step.none": [], "bias": [first, *others]}  # fmt: skip
        gradients = some_gradients(pairs, users, 1.0, rng)
        if other != twice:
            gradients[other]["bias"] = torch.zeros_like(gradients[twice]["bias"])
        judge_means(student, gradients, pairs, 100.0, functools.partial(wrong_means, count=len(pairs)))


def wrong_means(draws: list[Tensor], once: list[Tensor], count: int) -> Wrong:
    """What common mistakes give, of the gradients of the draws and of the pairs that used a parameter."""
    total, single = torch.stack(draws).sum(0), torch.stack(once).sum(0)
    nonzero = [g for g in draws if g.any()]
    by_all = "it divides by the number of draws: divide by the number of those that used the parameter"
    return [
        ("a gradient of zeros is left out: it counts, only None does not", torch.stack(nonzero).mean(0)),
        (by_all, total / count),
        ("a pair that is drawn twice counts once: it counts twice", single / len(once)),
        ("a pair that is drawn twice is added once, but counted twice", single / len(draws)),
        ("a pair that is drawn twice is added twice, but counted once", total / len(once)),
        ("this is the sum over the draws: take the mean", total),
        ("this is the gradient of the first draw alone", draws[0]),
        ("this is the gradient of the last draw alone", draws[-1]),
        ("it divides by one less than the number of draws that used the parameter", total / max(1, len(draws) - 1)),
        ("this is the median over the draws: take the mean", torch.stack(draws).median(0).values),
        ("these are the sizes of the gradients: their signs belong to the mean", torch.stack(draws).abs().mean(0)),
        (
            "it adds to a gradient that it was given, so that a pair that comes again has another: add to a new tensor",
            in_place(draws),
        ),
    ]


def in_place(draws: list[Tensor]) -> Tensor:
    """The mean if the sum is written into the first gradient, which a pair that is drawn again then adds."""
    total = draws[0]
    for g in draws[1:]:
        total = total + (total if torch.equal(g, draws[0]) else g)
    return total / len(draws)


def grade_clip(student: Any, rng: Generator) -> None:
    """The clip: element by element, after the mean. Here all pairs are drawn once and use all parameters."""
    for count in (3, 1, 4):
        pairs, limit = pool(8, rng)[:count], round(2 + 5 * float(torch.rand((), generator=rng)), 1)
        gradients, means = large_gradients(pairs, limit, rng)
        every = torch.cat([mean.flatten() for mean in means]).norm()
        judge_means(student, gradients, pairs, limit, functools.partial(wrong_clips, limit=limit, norm=every))


def large_gradients(pairs: list[str], limit: float, rng: Generator) -> tuple[Gradients, list[Tensor]]:
    """Gradients of two parameters, and their means over the pairs, of which each is beyond the limit on both sides."""
    names = ("weight", "bias")
    while True:
        gradients = some_gradients(pairs, dict.fromkeys(names, pairs), 3 * limit, rng)
        means = [torch.stack([of[name].double() for of in gradients.values()]).mean(0) for name in names]
        if all(mean.max() > limit and mean.min() < -limit for mean in means):
            return gradients, means


def wrong_clips(draws: list[Tensor], _: list[Tensor], limit: float, norm: Tensor) -> Wrong:
    """What common mistakes give; ``norm`` is that of all parameters' means together."""
    mean, clipped = torch.stack(draws).mean(0), torch.stack(draws).clamp(-limit, limit)
    by_norm = "it clips by the norm, which shrinks all elements: clip each element on its own"
    return [
        ("it is not clipped: limit each element to [-limit, limit]", mean),
        ("it clips each gradient and then averages: average first, then clip once", clipped.mean(0)),
        ("it clips the sum and then divides: average first, then clip",
         (mean * len(draws)).clamp(-limit, limit) / len(draws)),
        ("this is the sum over the draws: take the mean", (mean * len(draws)).clamp(-limit, limit)),
        (by_norm, mean * min(1.0, limit / float(mean.norm()))),
        (by_norm, mean * min(1.0, limit / float(norm))),
        ("the lower limit is -limit: large negative elements are not clipped", mean.clamp(max=limit)),
        ("the lower limit is -limit, not 0", mean.clamp(0, limit)),
        ("the upper limit is limit: large positive elements are not clipped", mean.clamp(min=-limit)),
        ("it divides by the largest element, which shrinks all: clip each element on its own",
         mean * min(1.0, limit / float(mean.abs().max()))),
        ("elements beyond the limit become 0: they become the limit", torch.where(mean.abs() > limit, 0.0, mean)),
    ]  # fmt: skip


# --- mebqat_train ----------------------------------------------------------------------------------------------


WIDTHS = {str(bits): (bits.w, bits.a) for bits in all_pairs()}


def weights_at(w: Tensor, pair: str) -> Tensor:
    """The assignment's quantizer of weights; its step has a gradient, its rounding none."""
    bits, size = WIDTHS[pair][0], w.abs().mean()
    if bits == 32:
        return w
    top = 2 ** (bits - 1) - 1
    step = size if bits == 1 else 2 * size / top**0.5
    return torch.sign(w) * step if bits == 1 else (w / step).round().clamp(-top, top) * step


def input_at(x: Tensor, pair: str) -> Tensor:
    """The nearest of 2^bits levels from 0 to 1."""
    levels = 2 ** WIDTHS[pair][1] - 1
    return x if levels > 2**31 else (x * levels).round() / levels


def full_precision(w: Tensor, x: Tensor, pair: str, pairs: Sequence[str]) -> Tensor:
    """The teacher's logits, a constant to the gradient."""
    return x @ w.detach().T


def first_pair(w: Tensor, x: Tensor, pair: str, pairs: Sequence[str]) -> Tensor:
    """The logits of the step's first pair, a constant to the gradient."""
    return input_at(x, pairs[0]) @ weights_at(w.detach(), pairs[0]).T


def last_pair(w: Tensor, x: Tensor, pair: str, pairs: Sequence[str]) -> Tensor:
    """The logits of the step's last pair, a constant to the gradient."""
    return first_pair(w, x, pair, pairs[::-1])


def halved(w: Tensor, x: Tensor, labels: Tensor, pairs: Sequence[str]) -> Tensor:
    """The gradient if the teachers' term counts half."""
    return (gradient(w, x, labels, pairs) + gradient(w, x, labels, pairs, taught=lambda pair: False)) / 2


def learned_step(leaf: Tensor, pair: str) -> Tensor:
    """Rounded weights in which the step of the quantizer has a gradient too."""
    bits, size = WIDTHS[pair][0], leaf.abs().mean()
    top = 2 ** (bits - 1) - 1
    step = size if bits == 1 else 2 * size / max(top, 1) ** 0.5
    u = leaf if bits == 1 else leaf / step
    return step * (u + (torch.sign(u) if bits == 1 else u.round().clamp(-top, top)) - u.detach())


def gradient(
    w: Tensor, x: Tensor, labels: Tensor, pairs: Sequence[str], *, through: str = "all", seen: Callable = input_at,
    teacher: Callable = full_precision, taught: Callable[[str], bool] = lambda pair: pair != "FP", hard: float = 1.0,
) -> Tensor:  # fmt: skip
    """The gradient of the mean loss over ``pairs``, by autograd; the options are mistakes."""
    leaf = w.detach().clone().requires_grad_()
    total = 0 * leaf.sum()
    for pair in pairs:
        rounded = weights_at(leaf, pair)
        used = {"all": leaf + (rounded - leaf).detach(), "none": rounded, "cut": rounded.detach(), "float": leaf}
        used["step"] = learned_step(leaf, pair) if through == "step" and WIDTHS[pair][0] < 32 else used["all"]
        logits = seen(x, pair) @ (leaf if pair == "FP" else used[through]).T
        loss = F.cross_entropy(logits, labels)
        if taught(pair):
            loss = hard * loss + F.cross_entropy(logits, teacher(leaf, x, pair, pairs).softmax(1))
        total = total + loss / len(pairs)
    return torch.autograd.grad(total, leaf)[0]


def walk(w: Tensor, x: Tensor, labels: Tensor, steps: Sequence[Sequence[str]], lr: float, rule: Rule) -> Tensor:
    """The weights after all steps; ``rule`` gives the gradient of each."""
    for pairs in steps:
        w = w - lr * rule(w, x, labels, pairs)
    return w


def with_(**options: Any) -> Rule:
    """`gradient` with options."""
    return lambda w, x, labels, pairs: gradient(w, x, labels, pairs, **options)


def scaled(size: Callable[[Sequence[str]], float]) -> Rule:
    """The gradient times a number."""
    return lambda w, x, labels, pairs: size(pairs) * gradient(w, x, labels, pairs)


def adapted(lr: float, own: bool = False) -> Rule:
    """Each pair first takes an inner step; the teacher stays behind, or has adapted too."""

    def rule(w: Tensor, x: Tensor, labels: Tensor, pairs: Sequence[str]) -> Tensor:
        late = with_() if own else with_(teacher=lambda *_: x @ w.T)
        moved = [late(w - lr * gradient(w, x, labels, [b]), x, labels, [b]) for b in pairs]
        return torch.stack(moved).mean(0)

    return rule


def backward_float(w: Tensor, x: Tensor, labels: Tensor, pairs: Sequence[str]) -> Tensor:
    """By hand, with the float input in the backward product."""
    hot, soft = torch.eye(len(w)).to(w)[labels], (x @ w.T).softmax(1)
    pulls = [2 * (input_at(x, b) @ weights_at(w, b).T).softmax(1) - hot - soft for b in pairs]
    return sum(pull.T @ x for pull in pulls) / len(x) / len(pairs)


def rules(lr: float, batch: int) -> list[tuple[str, Rule]]:
    """What goes wrong in the gradient of a step."""
    zero = (
        "the gradient is lost in rounding: it passes straight through, Q(w) changes as w does. w + (Q(w) - w).detach()"
    )
    inner = "each pair first adapts w: that is an inner loop (FOMAML). Take each gradient at w itself"
    return [
        (zero, with_(through="none")),
        (zero, with_(through="cut")),
        ("the teacher has a gradient: it must not be pulled towards its pupils (detach)",
         with_(teacher=lambda w, x, *_: x @ w.T)),
        ("the teachers' term is missing, which steps without FP have too, or each pair teaches itself: FP teaches them",
         with_(taught=lambda pair: False)),
        ("the teacher's answer is taken as a hard label (argmax): use its probabilities",
         with_(teacher=lambda w, x, *_: 1e4 * torch.eye(len(w)).to(w)[(x @ w.detach().T).argmax(1)])),
        ("the teachers' term counts half: add both as they are", halved),
        ("the weights are not quantized", with_(through="float")),
        ("the last pair of the step teaches: the teacher is full precision, whether or not it is visited",
         with_(teacher=last_pair)),
        ("the step of the quantizer has a gradient here: detach all that Q(w) differs by from w",
         with_(through="step")),
        ("the labels' term is missing for the quantized pairs", with_(hard=0.0)),
        ("the first pair of the step teaches: the teacher is full precision, whether or not it is visited",
         with_(teacher=first_pair)),
        ("the teacher sees the quantized input: at full precision it is x itself",
         with_(teacher=lambda w, x, pair, _: input_at(x, pair) @ w.detach().T)),
        ("a pair with float activations has a teacher too: only FP has none",
         with_(taught=lambda pair: WIDTHS[pair][1] != 32)),
        ("the input is not quantized", with_(seen=lambda x, pair: x)),
        ("the gradient is taken with the float input: it is that of the quantized one, quantize_input(x, pair)",
         backward_float),
        ("these are the sums of the gradients: take their mean over the pairs of the step", scaled(len)),
        ("it divides by the number of pairs twice", scaled(lambda pairs: 1 / len(pairs))),
        ("a pair that is drawn twice counts once", lambda *a: gradient(*a[:3], list(dict.fromkeys(a[3])))),
        ("it divides by the number of different pairs: a pair that is drawn twice counts twice", scaled(
            lambda pairs: len(pairs) / len(set(pairs)))),
        ("FP is not counted among the pairs of the mean", scaled(
            lambda pairs: len(pairs) / max(1, len(pairs) - pairs.count("FP")))),
        ("the batch is summed: the loss is a mean over it", scaled(lambda pairs: batch)),
        ("only the first pair of a step is used", lambda *a: gradient(*a[:3], a[3][:1])),
        ("only the last pair of a step is used", lambda *a: gradient(*a[:3], a[3][-1:])),
        ("it goes uphill: subtract the gradient", scaled(lambda pairs: -1)),
        ("lr is forgotten: multiply the mean gradient by it", scaled(lambda pairs: 1 / lr)),
        (inner, adapted(lr)),
        (inner, adapted(lr, own=True)),
    ]  # fmt: skip


def wrong_runs(
    w: Tensor, x: Tensor, labels: Tensor, steps: Sequence[Sequence[str]], lr: float
) -> Iterator[tuple[str, Tensor]]:
    """The weights that common mistakes end at; each is trained only if no earlier one fits."""
    apart = [[pair] for pairs in steps for pair in pairs]
    walked = "the weights move between the pairs of a step: take all gradients at the same w, then move once"
    yield from ((message, walk(w, x, labels, steps, lr, rule)) for message, rule in rules(lr, len(x)))
    yield walked, walk(w, x, labels, apart, lr, gradient)
    yield walked, slowly(w, x, labels, steps, lr)
    yield "w comes back as it was", w
    kept = "rounded weights take the place of w: the step is taken from the float w, which stays"
    yield kept, overwritten(w, x, labels, steps, lr)
    end = walk(w, x, labels, steps, lr, gradient)
    yield "it returns rounded weights: return the float ones", weights_at(end, steps[-1][-1])
    yield "this is the gradient: return the new weights", gradient(w, x, labels, steps[-1])


def slowly(w: Tensor, x: Tensor, labels: Tensor, steps: Sequence[Sequence[str]], lr: float) -> Tensor:
    """A small step for each pair, each at the weights that the one before left."""
    for pairs in steps:
        w = walk(w, x, labels, [[pair] for pair in pairs], lr / len(pairs), gradient)
    return w


def overwritten(w: Tensor, x: Tensor, labels: Tensor, steps: Sequence[Sequence[str]], lr: float) -> Tensor:
    """Each pair rounds what the one before has left of the weights."""
    for pairs in steps:
        old, total = w, torch.zeros_like(w)
        for pair in pairs:
            w = weights_at(w, pair)
            leaf = w.clone().requires_grad_()
            logits, soft = input_at(x, pair) @ leaf.T, (x @ old.T).softmax(1)
            loss = F.cross_entropy(logits, labels) + (pair != "FP") * F.cross_entropy(logits, soft)
            total += torch.autograd.grad(loss, leaf)[0]
        w = w - lr * total / len(pairs)
    return w


def network(rng: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """w, x, labels and lr; no value of x is near the middle between two levels."""
    batch, classes, features = whole(8, 14, rng), whole(3, 5, rng), whole(4, 7, rng)
    x = torch.rand(4000, generator=rng)
    for bits in (1, 2, 3, 4, 8):
        x = x[((x * (2**bits - 1)) % 1 - 0.5).abs() > 0.02]
    x = x[: batch * features].reshape(batch, features)
    w, labels = torch.randn(classes, features, generator=rng), torch.randint(classes, (batch,), generator=rng)
    return w, x, labels, 0.5 + float(torch.rand((), generator=rng))


def steady(w: Tensor, pairs: Sequence[str]) -> bool:
    """No weight is so near a middle between two levels that float32 could round it elsewhere."""
    near = float(w.abs().min()) < 1e-3
    for bits in {WIDTHS[pair][0] for pair in pairs} - {1, 32}:
        top = 2 ** (bits - 1) - 1
        codes = w / (2 * w.abs().mean() / top**0.5)
        near = near or bool((((codes % 1) - 0.5).abs()[codes.abs() < top] < 2e-3).any())
    return not near


def drawn(steps: Sequence[Sequence[str]], rng: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """A network that is steady along the whole right run."""
    while True:
        w, x, labels, lr = network(rng)
        path = [walk(w.double(), x.double(), labels, steps[:n], lr, gradient) for n in range(len(steps) + 1)]
        if all(steady(at, [pair for pairs in steps for pair in pairs]) for at in path):
            return w, x, labels, lr


def judge_run(student: Any, steps: list[list[str]], extra: Callable[..., Wrong], rng: Generator) -> None:
    """Compare the weights that a run ends at."""
    w, x, labels, lr = drawn(steps, rng)
    got = student(w, x, labels, [list(pairs) for pairs in steps], lr)
    double = w.double(), x.double(), labels, steps, lr
    want = walk(*double, gradient)
    wrong = itertools.chain.from_iterable(mistakes(*double) for mistakes in (wrong_runs, extra))
    expect(got, want.float(), f"steps = {steps}, the weights", wrong)


def grade_one_step(student: Any, rng: Generator) -> None:
    """The weights after one step."""
    a, b = whole(3, 4, rng), whole(2, 4, rng)  # weights of one bit lie in the middle between two levels of two bits
    for pairs in (["FP", "W1A1", f"W{a}A{b}", "W8A8"], [f"W2A{b}", f"W2A{b}", "W1A32", "W4A2"],
                  [f"W{a}A32", f"W3A{b}", "W1A1"]):  # fmt: skip
        judge_run(student, [pairs], lambda *_: [], rng)


def grade_run(student: Any, rng: Generator) -> None:
    """The weights after several steps of different lengths."""
    a, b = whole(3, 4, rng), whole(2, 4, rng)
    for steps in ([["FP", "W1A1", f"W{a}A2", "W8A8"], ["FP", f"W3A{b}"], ["W2A2", "W1A32", "W2A2"]],
                  [["W1A1", f"W4A{a}"], ["FP", "W2A8", f"W2A{b}"]]):  # fmt: skip
        judge_run(student, steps, wrong_walks, rng)


def wrong_walks(w: Tensor, x: Tensor, labels: Tensor, steps: list[list[str]], lr: float) -> Wrong:
    """Mistakes that one step does not show."""
    first, every = gradient(w, x, labels, steps[0]), [pair for pairs in steps for pair in pairs]
    rounding = w
    for pairs in steps:
        rounding = weights_at(rounding - lr * gradient(rounding, x, labels, pairs), pairs[-1])
    frozen = [gradient(w, x, labels, pairs) for pairs in steps]
    return [
        ("the teacher stays that of the start: it is full precision at the weights of the moment",
         walk(w, x, labels, steps, lr, with_(teacher=lambda *_: x @ w.T))),
        ("only the first step is made: does return stand inside the loop?", w - lr * first),
        ("only the last step is made, from the first weights", w - lr * frozen[-1]),
        ("all gradients are taken at the first weights: each step starts from the weights that the last one left",
         w - lr * torch.stack(frozen).sum(0)),
        ("one step is made of all steps' pairs: each step moves the weights once",
         w - lr * gradient(w, x, labels, every)),
        ("the rounded weights are kept from step to step: keep the float ones", rounding),
        ("it divides by the number of steps: divide by the number of pairs of the step",
         walk(w, x, labels, steps, lr, scaled(lambda pairs: len(pairs) / len(steps)))),
        ("it divides by the number of pairs of the first step: steps differ in length",
         walk(w, x, labels, steps, lr, scaled(lambda pairs: len(pairs) / len(steps[0])))),
    ]  # fmt: skip


ASSIGNMENT = Assignment(
    "04_bitwidths_as_tasks",
    (
        Part("draw_step", ("candidates", "guaranteed", "m", "seed", "step"), "A sampler without memory", 25, (
            Check("the guaranteed pairs", 2, grade_form), Check("seed and step", 2, grade_memory),
            Check("chance", 2, grade_chance)), Limits(seconds=60.0)),  # thousands of calls, which a busy machine delays
        Part("task_losses", ("logits", "labels", "teachers"), "Losses and teachers", 25, (
            Check("the losses", 3, grade_values), Check("the gradient", 2, grade_flow))),
        Part("mean_gradients", ("gradients", "pairs", "limit"), "The mean gradient", 15, (
            Check("the mean", 2, grade_mean), Check("the clip", 2, grade_clip))),
        Part("mebqat_train", ("w", "x", "labels", "steps", "lr"), "A whole run", 30, (
            Check("one step", 3, grade_one_step), Check("several steps", 2, grade_run))),
    ),
    written={"analysis": 4},
)  # fmt: skip
