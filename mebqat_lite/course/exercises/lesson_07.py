"""Exercises of lesson 07: a paired interval, a choice that keeps the test clean, the break-even K, and regret."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, expect

Student = Callable[..., Any]
QUANTILES = {3: 4.302653, 5: 2.776445, 6: 2.570582, 7: 2.446912, 8: 2.364624, 10: 2.262157}  # t at 97.5 %, by seeds

# --- 7.1 -------------------------------------------------------------------------------------------------------


def _paired_interval(ours: torch.Tensor, other: torch.Tensor, t: float) -> torch.Tensor:
    """Mean and half-width of the 95 % interval of ``ours`` - ``other``, (seeds,) each: (2,)."""
    differences = ours - other
    half = t * differences.std() / len(differences) ** 0.5
    return torch.stack([differences.mean(), half])


def _grade_paired_interval(student: Student, rng: Generator) -> None:
    sizes = list(QUANTILES)
    for i in torch.randperm(len(sizes), generator=rng)[:4].tolist():
        n = sizes[i]
        ours, other = _two_methods(n, rng)
        got = student(ours, other, QUANTILES[n])
        d, root = ours - other, math.sqrt(n)
        mean = sum(d.tolist()) / n
        spread = math.sqrt(sum((v - mean) ** 2 for v in d.tolist()) / (n - 1))
        want = torch.tensor([mean, QUANTILES[n] * spread / root])
        expect(got, want, f"{n} seeds and t = {QUANTILES[n]:.4g}", _wrong_intervals(ours, other, want, QUANTILES[n]))


def _two_methods(n: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Accuracies in percent that rise and fall together; the second method is better at most seeds."""
    common = 85 + 4 * torch.randn(n, generator=rng)
    gap = 1.5 + torch.rand((), generator=rng)
    noise = 0.9 * torch.randn(2, n, generator=rng)
    noise[0, 0] = noise[1, 0] + gap + 0.7  # at one seed the first is better
    return common + noise[0], common + gap + noise[1]


def _wrong_intervals(ours: Tensor, other: Tensor, want: Tensor, t: float) -> list[tuple[str, Any]]:
    d, n, (mean, half) = ours - other, len(ours), want.tolist()
    root, size = math.sqrt(n), (ours - other).abs()
    apart = t * math.hypot(float(ours.std()), float(other.std())) / root
    plus = t * float(ours.std() + other.std()) / root
    halves = [
        ("this is the interval of two unpaired sets: take the differences first, then their deviation", apart),
        ("the two half-widths are added: take the differences first, then one half-width", plus),
        ("this is the interval of ours alone: take that of the differences", t * float(ours.std()) / root),
        ("this is the interval of other alone: take that of the differences", t * float(other.std()) / root),
        ("1.96 is for a known deviation: with few seeds multiply by the t that is given", 1.96 * half / t),
        ("it multiplies by 2, not by the t that is given", 2 * half / t),
        ("the deviation divides by n: with n - 1 it is not too small (tensor.std() does that)", half * _biased(n)),
        ("divide by sqrt(n), not by sqrt(n - 1): the n - 1 belongs into the deviation", half / _biased(n)),
        ("the deviation is not divided by sqrt(n): that is the spread of one seed, not of the mean", half * root),
        ("it divides by n where it should divide by sqrt(n)", half / root),
        ("this takes the variance: the standard deviation is its square root", half * float(d.std())),
        ("this is the whole width: the half-width is half of it", 2 * half),
        ("t is forgotten: this is the standard error", half / t),
        ("the half-width comes from the sizes of the differences: keep their signs", t * float(size.std()) / root),
    ]
    signs = "the sign is wrong: it is ours - other, negative where ours is worse"
    pairs = [(message, torch.tensor([mean, value])) for message, value in halves]
    return [
        *pairs,
        (signs, torch.tensor([-mean, half])),
        ("the differences have lost their signs: no abs", torch.tensor([float(size.mean()), t * _se(size)])),
        ("the differences have lost their signs: no abs", torch.tensor([float(size.mean()), half])),
        ("these are the two ends: return the mean and the half-width", torch.tensor([mean - half, mean + half])),
        ("the order is turned round: the mean comes first", torch.tensor([half, mean])),
        ("this is the median: take the mean", torch.tensor([float(d.median()), half])),
        ("this is the sum of the differences: take their mean", torch.tensor([mean * n, half])),
    ]


def _biased(n: int) -> float:
    return math.sqrt((n - 1) / n)


def _se(x: Tensor) -> float:
    return float(x.std()) / math.sqrt(len(x))


paired_interval = Exercise(
    "paired_interval",
    "7.1: A paired interval",
    difficulty=2,
    minutes=10,
    question=r"""
    Two methods were trained on the same $n$ seeds. With the differences $d_i = \mathrm{ours}_i - \mathrm{other}_i$,
    their mean $\bar d$ and their standard deviation $s_d$ (which divides by $n - 1$), the 95 % interval of the true
    difference is

    $$\bar d \ \pm\ t\, \frac{s_d}{\sqrt n}$$

    Write `paired_interval(ours, other, t)`. `ours` and `other` are tensors of accuracies, `(seeds,)`; `t` is the
    quantile $t_{0.975,\,n-1}$, given. Return a tensor of two numbers: the mean and the half-width.
    """,
    hints=[
        "First one tensor of differences; ours and other are not needed after that.",
        "tensor.std() divides by n - 1 by itself; divide the result by the square root of n.",
        "torch.stack([mean, half]) makes one tensor of two.",
    ],
    solution=_paired_interval,
    grade=_grade_paired_interval,
)

# --- 7.2 -------------------------------------------------------------------------------------------------------


def _fair_choice(val: torch.Tensor, test: torch.Tensor) -> float:
    """Test accuracy, mean over the seeds, of the candidate of best mean validation accuracy; (candidates, seeds)."""
    best = val.mean(1).argmax()
    return test[best].mean().item()


def _grade_fair_choice(student: Student, rng: Generator) -> None:
    for _ in range(4):
        val, test = _candidates(rng)
        rows = [sum(row) / len(row) for row in val.tolist()]
        chosen = rows.index(max(rows))
        want = sum(test[chosen].tolist()) / test.shape[1]
        where = "{} candidates and {} seeds".format(*val.shape)
        expect(student(val, test), want, where, _wrong_choices(val, test))


def _candidates(rng: Generator) -> tuple[Tensor, Tensor]:
    """Accuracies on both parts where each way to choose takes another candidate, and tells another number."""
    while True:
        count = int(torch.randint(20, 24, (), generator=rng))
        seeds = (5, 7)[int(torch.randint(2, (), generator=rng))]  # odd, so that there is one median
        good = 90 + torch.randn(300, count, 1, generator=rng)
        vals, tests = (good + 2 * torch.randn(300, count, seeds, generator=rng) for _ in "vt")
        _to_front(vals, tests, int(torch.randint(2, (), generator=rng)))
        ways = [vals.mean(2), tests.mean(2), (vals + tests).mean(2), vals.amax(2), vals.amin(2), -vals.mean(2)]
        ways += [vals.median(2).values, vals[:, :, 0]]
        flat = vals.flatten(1).argmax(1)  # a student may take it for a candidate
        seed = vals.mean(1).argmax(1)  # and this, too
        rows = torch.stack([*(way.argmax(1) for way in ways), flat, seed], 1).sort().values  # (300, ways)
        for i in ((rows.diff() > 0).all(1) & (flat < count)).nonzero()[:, 0].tolist():
            val, test = vals[i], tests[i]
            found = [float(value) for _, value in _wrong_choices(val, test)]
            told = torch.tensor([*found, float(test[val.mean(1).argmax()].mean())]).sort().values.diff().min()
            if told > 0.004 and val.mean(1).topk(2).values.diff().abs() > 0.02:
                return val, test


def _to_front(vals: Tensor, tests: Tensor, place: int) -> None:
    """Let the candidate with the largest single entry of ``vals`` and the one at ``place`` change places.

    Both are (contests, candidates, seeds). At the front, the place of that entry may be taken for a candidate.
    """
    every, top = torch.arange(len(vals)), vals.amax(2).argmax(1)
    for part in (vals, tests):
        first = part[:, place].clone()
        part[:, place] = part[every, top]
        part[every, top] = first


def _wrong_choices(val: Tensor, test: Tensor) -> list[tuple[str, Any]]:
    """What other ways to choose report."""
    row, each, middle = int(val.mean(1).argmax()), val.argmax(0), int(val.median(1).values.argmax())
    seed = int(val.mean(0).argmax())
    across = "val.mean(0) is the mean over the candidates, one for each seed: choose by val.mean(1)"
    entry = (
        "val.argmax() is the place of one single entry, one seed of one candidate: take the mean over the seeds first"
    )
    return [
        ("this is the best test accuracy: the test part has chosen, so it no longer tests", test.mean(1).max()),
        ("this is the largest single test accuracy: choose by val, report test", test.max()),
        ("this is the validation accuracy of the chosen one: it is too high, for it was chosen there. Report test",
         val[row].mean()),
        ("this is the best single validation accuracy: report test", val.max()),
        ("it takes another candidate for each seed: choose one, by its mean over the seeds",
         test.gather(0, each[None]).mean()),
        ("it chooses by the best single seed: choose by the mean over the seeds", test[val.amax(1).argmax()].mean()),
        ("it chooses by the worst seed: choose by the mean over the seeds", test[val.amin(1).argmax()].mean()),
        ("it chooses the lowest validation accuracy: take the highest", test[val.mean(1).argmin()].mean()),
        ("it chooses by the median over the seeds: choose by the mean", test[middle].mean()),
        ("this is the median over the seeds of the chosen candidate: report the mean", test[row].median()),
        ("it chooses by the median and reports the median: take the mean over the seeds for both",
         test[middle].median()),
        (entry, test.flatten()[val.argmax()]),
        (entry, test[min(int(val.argmax()), len(test) - 1)].mean()),
        (across, test[seed].mean()),
        (across, test[:, seed].mean()),
        ("this is the place of the chosen candidate: return its test accuracy", float(row)),
        ("this is the sum over the seeds: take the mean", test[row].sum()),
        ("this is the smallest test accuracy of the chosen candidate: report its mean over the seeds", test[row].min()),
        ("this is the first seed of the chosen candidate: report its mean over the seeds", test[row, 0]),
        ("it looks at the first seed only", test[val[:, 0].argmax(), 0]),
        ("it chooses by the first seed only: choose by the mean over the seeds", test[val[:, 0].argmax()].mean()),
        ("this is the largest test accuracy of the chosen candidate: report its mean over the seeds", test[row].max()),
        ("this is the mean of all candidates: choose one", test.mean()),
        ("it chooses by test and reports val: turn them round", val[test.mean(1).argmax()].mean()),
        ("it chooses by both parts together: test has a say in it", test[(val + test).mean(1).argmax()].mean()),
    ]  # fmt: skip


fair_choice = Exercise(
    "fair_choice",
    "7.2: Choose on validation",
    difficulty=1,
    minutes=5,
    question="""
    Several candidates (learning rates, epochs, variants of a method) were each trained on several seeds, and measured
    on validation and on test data. One of them is to be chosen, and its accuracy reported.

    Write `fair_choice(val, test)`. Both are accuracies in percent, `(candidates, seeds)`. Choose the candidate whose
    mean validation accuracy over the seeds is highest; return its mean *test* accuracy over the seeds, one number.
    """,
    hints=[
        "Which of the two tensors may have a say in the choice?",
        "val.mean(1) is one number per candidate; argmax says which is largest.",
        "Then index test with it, and take the mean.",
    ],
    solution=_fair_choice,
    grade=_grade_fair_choice,
)

# --- 7.3 -------------------------------------------------------------------------------------------------------


def _first_saving(joint: float, dedicated: list[float]) -> int:
    """The least K for which the first K of ``dedicated`` cost more than ``joint``; 0 if none."""
    total = 0.0
    for k, cost in enumerate(dedicated, 1):
        total += cost
        if total > joint:
            return k
    return 0


def _grade_first_saving(student: Student, rng: Generator) -> None:
    for joint, dedicated in _offers(rng):
        totals = [sum(dedicated[:k]) for k in range(1, len(dedicated) + 1)]
        want = sum(total <= joint for total in totals) + 1
        want = want if want <= len(dedicated) else 0
        shown = ", ".join(f"{cost:g}" for cost in dedicated[:6]) + ", ..." * (len(dedicated) > 6)
        where = f"joint = {joint:g} and dedicated = [{shown}]"
        got = student(joint, list(dedicated))
        wrong = _wrong_savings(float(joint), dedicated, totals)
        expect(got, float(want), where, [(message, float(value)) for message, value in wrong if value != want])


def _offers(rng: Generator) -> list[tuple[float, list[float]]]:
    """Costs that are equal, that rise, that fall; a tie; and dedicated networks that never cost more."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=rng))

    each = 100 * draw(2, 9)
    rising = [float(draw(1, 3)), 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 16.0, 16.0]
    falling = [float(40 - 3 * k - draw(0, 3)) for k in range(11)]
    return [
        (each * (draw(4, 9) + 0.5), [float(each)] * 12),  # lies between two numbers of pairs
        (float(each * draw(3, 8)), [float(each)] * 12),  # a tie at K: it saves nothing there
        (32.0, rising),  # bits a weight
        (float(sum(falling[:5]) + 0.5 * falling[5]), falling),
        (float(sum(rising)), rising),  # a tie at the very end
        (float(draw(500, 900)), falling),  # never
        (each / 2, [float(each)] * 3),  # at once
    ]


def _wrong_savings(joint: float, dedicated: list[float], totals: list[float]) -> list[tuple[str, float]]:
    n = len(dedicated)

    def first(values: list[bool]) -> int:
        return values.index(True) + 1 if True in values else 0

    ordered = {up: sorted(dedicated, reverse=not up) for up in (True, False)}
    sums = {up: [sum(row[:k]) for k in range(1, n + 1)] for up, row in ordered.items()}
    right, average = first([total > joint for total in totals]), sum(dedicated) / n
    never = [
        ("it never saves here: return 0, not the number of all pairs", n),
        ("it never saves here: return 0, not one more than there are pairs", n + 1),
        ("below zero: return 0 if the dedicated networks never cost more", -1),
    ]
    return [
        *([] if right else never),
        ("at equal cost nothing is saved: the dedicated networks must cost more", first([t >= joint for t in totals])),
        ("this is one too few: up to this K the dedicated networks cost no more", right - 1),
        ("this counts from 0: with the first network K is 1", right - 1),
        ("it compares single costs with joint: add up the first K", first([cost > joint for cost in dedicated])),
        ("the costs differ: their average does not say when the first K cost more", int(joint / average) + 1),
        ("the first cost is not that of all: add them up one by one", int(joint / dedicated[0]) + 1),
        ("it sorts the costs: they come in the order of delivery", first([t > joint for t in sums[True]])),
        ("it sorts the costs: they come in the order of delivery", first([t > joint for t in sums[False]])),
        ("this is a part of K: return a whole number of pairs", joint / average),
        ("this is a part of K: return a whole number of pairs", joint / dedicated[0]),
        ("this is a cost: return the number of pairs", next((t for t in totals if t > joint), joint)),
        ("one too many: this K saves, but a smaller one saves already", right + 1),
    ]


first_saving = Exercise(
    "first_saving",
    "7.3: No saving without K",
    difficulty=2,
    minutes=10,
    question="""
    One network for all pairs costs `joint`, once, however many pairs are delivered. Dedicated networks cost
    `dedicated[0]` for the first pair that is delivered, `dedicated[1]` for the second, and so on. A cost may be
    back-propagations, or bits to store; the costs may differ from pair to pair.

    Write `first_saving(joint, dedicated)`: the least K for which the first K dedicated networks together cost *more*
    than the one network. `dedicated` is a list of numbers. Return a whole number, and 0 if they never cost more.
    """,
    hints=[
        "Keep a running total, and compare it with joint after each network.",
        "At equal cost nothing is saved yet.",
        "for k, cost in enumerate(dedicated, 1): adds up and counts from 1; return 0 after the loop.",
    ],
    solution=_first_saving,
    grade=_grade_first_saving,
)

# --- 7.4 -------------------------------------------------------------------------------------------------------


def _regret(ours: dict[str, float], dedicated: dict[str, float]) -> torch.Tensor:
    """Mean and worst of ``dedicated`` - ``ours`` over the pairs that both have: (2,)."""
    loss = [dedicated[pair] - ours[pair] for pair in ours if pair in dedicated]
    return torch.tensor([sum(loss) / len(loss), max(loss)])


def _grade_regret(student: Student, rng: Generator) -> None:
    for case in range(4):
        ours, dedicated = _measured(rng, gains=case % 2 == 0)
        gaps = sorted(dedicated[pair] - ours[pair] for pair in {*ours} & {*dedicated})
        want = torch.tensor([sum(gaps) / len(gaps), gaps[-1]])
        where = f"{len(ours)} pairs of ours and {len(dedicated)} dedicated ones, {len(gaps)} in common"
        got = student(dict(ours), dict(dedicated))
        expect(got, want, where, _wrong_regrets(ours, dedicated, torch.tensor(gaps)))


def _measured(rng: Generator, gains: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies by pair, each with pairs that the other lacks; at some pairs ours is better, if ``gains``."""
    names = [f"W{b}A{b}" for b in range(1, 9)] + ["W2A4", "W4A8", "W8A2", "FP"]
    order = [names[i] for i in torch.randperm(len(names), generator=rng)]
    loss = 0.4 + 4 * torch.rand(len(order), generator=rng)
    if gains:
        loss[:3] = -5.5 - torch.rand(3, generator=rng)
    best = 70 + 25 * torch.rand(len(order), generator=rng)
    dedicated = dict(zip(order[:9], best.tolist(), strict=False))
    ours = dict(zip(order, (best - loss).tolist(), strict=True))
    del ours[order[8]]
    return {pair: ours[pair] for pair in names if pair in ours}, dedicated


def _wrong_regrets(ours: dict[str, float], dedicated: dict[str, float], gaps: Tensor) -> list[tuple[str, Any]]:
    def two(mean: Any, worst: Any) -> Tensor:
        return torch.tensor([float(mean), float(worst)])

    mean, worst, common = gaps.mean(), gaps.max(), [pair for pair in ours if pair in dedicated]
    a, b = (torch.tensor([row[pair] for pair in common]) for row in (ours, dedicated))
    everywhere = torch.tensor([dedicated.get(p, 0.0) - ours.get(p, 0.0) for p in {*ours, *dedicated}])
    only_ours = torch.tensor([dedicated.get(p, 0.0) - ours[p] for p in ours])
    means = torch.tensor(list(dedicated.values())).mean() - torch.tensor(list(ours.values())).mean()
    sign = "the sign is wrong: regret is what is lost, dedicated - ours"
    no_abs = "it takes the size: where ours is better the regret is negative. No abs"
    gain = "gains count too: a pair where ours is better lowers the mean. Do not cut at zero"
    zero = "a missing accuracy counts as 0 %: leave these pairs out"
    relative = "it divides by an accuracy: regret is a plain difference, in points"
    zipped = torch.tensor([y - x for x, y in zip(ours.values(), dedicated.values(), strict=False)])
    parts = [part * gap for part in (1, 100) for gap in ((b - a) / b, (b - a) / a)]
    return [
        (sign, two(-mean, -worst)),
        (sign, two(-mean, (-gaps).max())),
        ("the worst is the largest loss: take max, not min", two(mean, gaps.min())),
        (no_abs, two(gaps.abs().mean(), gaps.abs().max())),
        (no_abs, two(mean, gaps.abs().max())),
        (gain, two(gaps.clamp(min=0).mean(), worst)),
        (gain, two(gaps[gaps > 0].mean(), worst)),
        ("the mean divides by all pairs: divide by the number of common ones", two(gaps.sum() / len(ours), worst)),
        ("the mean divides by all pairs: divide by the number of common ones", two(gaps.sum() / len(dedicated), worst)),
        (zero, two(everywhere.mean(), everywhere.max())),
        (zero, two(only_ours.mean(), only_ours.max())),
        (
            "the two hold other pairs, in another order: look both up by the pair, do not zip",
            two(zipped.mean(), zipped.max()),
        ),
        ("each mean is taken over other pairs: only those that both have", two(means, worst)),
        ("subtract pair by pair first, then take the largest: not the largest of each", two(mean, b.max() - a.max())),
        ("subtract pair by pair first, then take the largest: not the lowest of each", two(mean, b.min() - a.min())),
        *((relative, two(part.mean(), part.max())) for part in parts),
        ("the order is turned round: the mean comes first", two(worst, mean)),
        ("this is the median: take the mean", two(gaps.median(), worst)),
        ("this is the sum: divide it by the number of common pairs", two(gaps.sum(), worst)),
    ]


regret = Exercise(
    "regret",
    "7.4: Mean and worst regret",
    difficulty=2,
    minutes=10,
    question="""
    A mean over many easy pairs hides one bad pair. *Regret* at a pair is what one network for all loses there against a
    network dedicated to that pair: the dedicated accuracy minus ours. It is negative where ours is better.

    Write `regret(ours, dedicated)`. Both are dictionaries from a pair to an accuracy in percent, such as
    `{"W2A2": 93.5, "FP": 97.0}`; neither has all pairs of the other. Return a tensor of two numbers: the mean and the
    worst (largest) regret over the pairs that both have.
    """,
    hints=[
        "Which pairs are in both? Only there is a regret.",
        "[dedicated[pair] - ours[pair] for pair in ours if pair in dedicated]: no abs, no cut at zero.",
        "The mean is their sum over their number, the worst is max. torch.tensor([mean, worst]).",
    ],
    solution=_regret,
    grade=_grade_regret,
)

EXERCISES = (paired_interval, fair_choice, first_saving, regret)
