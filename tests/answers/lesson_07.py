"""Lesson 07: right answers, each written another way, and wrong ones with the message that names them."""

import itertools
import math
import statistics

import numpy as np
import torch


def interval_by_hand(ours, other, t):
    d = [a - b for a, b in zip(ours.tolist(), other.tolist(), strict=True)]
    return statistics.mean(d), t * statistics.stdev(d) / math.sqrt(len(d))


def interval_from_variances(ours, other, t):
    """var(a - b) = var a + var b - 2 cov(a, b)."""
    c = torch.cov(torch.stack([ours, other]).double())
    return torch.stack([(ours - other).double().mean(), t * ((c[0, 0] + c[1, 1] - 2 * c[0, 1]) / len(ours)).sqrt()])


def interval_in_numpy(ours, other, t):
    d = ours.numpy().astype(np.float64) - other.numpy()
    return np.array([d.mean(), t * d.std(ddof=1) / np.sqrt(d.size)])


def choice_in_loops(val, test):
    rows = [sum(row) / len(row) for row in val.tolist()]
    row = test.tolist()[rows.index(max(rows))]
    return sum(row) / len(row)


def choice_sorted(val, test):
    return test[val.sum(1).argsort(descending=True)[0]].numpy().mean()


def regret_in_loops(ours, dedicated):
    total, count, worst = 0.0, 0, -math.inf
    for pair in dedicated:
        if pair in ours:
            gap = dedicated[pair] - ours[pair]
            total, count, worst = total + gap, count + 1, max(worst, gap)
    return total / count, worst


def regret_in_numpy(ours, dedicated):
    pairs = sorted({*ours, *dedicated})
    a, b = (np.array([row.get(pair, np.nan) for pair in pairs]) for row in (ours, dedicated))
    return torch.tensor([np.nanmean(b - a), np.nanmax(b - a)])


def saving_accumulated(joint, dedicated):
    return next((k for k, total in enumerate(itertools.accumulate(dedicated), 1) if total > joint), 0)


def saving_searched(joint, dedicated):
    k = int(np.searchsorted(np.cumsum(dedicated), joint, side="right"))
    return 0 if k == len(dedicated) else k + 1


RIGHT = {
    "paired_interval": [interval_by_hand, interval_from_variances, interval_in_numpy],
    "fair_choice": [choice_in_loops, choice_sorted, lambda val, test: test[torch.argmax(val.mean(dim=1))].mean()],
    "regret": [regret_in_loops, regret_in_numpy, lambda a, b: np.array(regret_in_loops(a, b))],
    "first_saving": [saving_accumulated, saving_searched],
}


def half(d, t):
    return t * d.std() / len(d) ** 0.5


def two(a, b):
    return torch.stack([torch.as_tensor(a), torch.as_tensor(b)])


def zipped(ours, dedicated):
    return torch.tensor([b - a for a, b in zip(ours.values(), dedicated.values(), strict=False)])


def kept(ours, dedicated):
    return torch.tensor([dedicated[pair] - ours[pair] for pair in ours if pair in dedicated])


def relative(ours, dedicated):
    return kept(ours, dedicated) / torch.tensor([dedicated[pair] for pair in ours if pair in dedicated])


def filled(ours, dedicated):
    return torch.tensor([dedicated.get(pair, 0) - ours[pair] for pair in ours])


def mean_of(row):
    return sum(row.values()) / len(row)


def crossing(joint, costs, never=0, equal=False):
    total = 0
    for k, cost in enumerate(costs, 1):
        total += cost
        if total > joint or (equal and total == joint):
            return k
    return never


WRONG = {
    "paired_interval": [
        ("unpaired", lambda a, b, t: two((a - b).mean(), t * ((a.var() + b.var()) / len(a)).sqrt())),
        ("half-widths are added", lambda a, b, t: two((a - b).mean(), half(a, t) + half(b, t))),
        ("of ours alone", lambda a, b, t: two((a - b).mean(), half(a, t))),
        ("of other alone", lambda a, b, t: two((a - b).mean(), half(b, t))),
        ("1.96 is for a known", lambda a, b, t: two((a - b).mean(), half(a - b, 1.96))),
        ("multiplies by 2", lambda a, b, t: two((a - b).mean(), half(a - b, 2))),
        ("deviation divides by n", lambda a, b, t: two(
            (a - b).mean(), t * (a - b).std(unbiased=False) / len(a) ** 0.5)),
        ("not by sqrt.n - 1", lambda a, b, t: two((a - b).mean(), t * (a - b).std() / (len(a) - 1) ** 0.5)),
        ("not divided by sqrt.n", lambda a, b, t: two((a - b).mean(), t * (a - b).std())),
        ("divides by n where", lambda a, b, t: two((a - b).mean(), t * (a - b).std() / len(a))),
        ("takes the variance", lambda a, b, t: two((a - b).mean(), t * (a - b).var() / len(a) ** 0.5)),
        ("whole width", lambda a, b, t: two((a - b).mean(), 2 * half(a - b, t))),
        ("t is forgotten", lambda a, b, t: two((a - b).mean(), half(a - b, 1))),
        ("sign is wrong", lambda a, b, t: two((b - a).mean(), half(a - b, t))),
        ("lost their signs", lambda a, b, t: two((a - b).abs().mean(), half((a - b).abs(), t))),
        ("keep their signs", lambda a, b, t: two((a - b).mean(), half((a - b).abs(), t))),
        ("two ends", lambda a, b, t: two((a - b).mean() - half(a - b, t), (a - b).mean() + half(a - b, t))),
        ("mean comes first", lambda a, b, t: two(half(a - b, t), (a - b).mean())),
        ("sum of the differences", lambda a, b, t: two((a - b).sum(), half(a - b, t))),
        ("has shape", lambda a, b, t: a - b),
        ("type float: return a tensor", lambda a, b, t: float((a - b).mean())),
        ("values are wrong", lambda a, b, t: two((a / b).mean(), half(a / b, t))),
        ("changes its input ours", lambda a, b, t: two(a.sub_(b).mean(), half(a, t))),
    ],
    "fair_choice": [
        ("best test accuracy", lambda val, test: test.mean(1).max()),
        ("largest single test", lambda val, test: test.max().item()),
        ("validation accuracy of the chosen", lambda val, test: val.mean(1).max().item()),
        ("best single validation", lambda val, test: val.max().item()),
        ("another candidate for each seed", lambda val, test: test[val.argmax(0), range(val.shape[1])].mean()),
        ("best single seed", lambda val, test: test[val.amax(1).argmax()].mean()),
        ("worst seed", lambda val, test: test[val.amin(1).argmax()].mean()),
        ("lowest validation", lambda val, test: test[val.mean(1).argmin()].mean()),
        ("chooses by the median over", lambda val, test: test[val.median(1).values.argmax()].mean()),
        ("median over the seeds of the chosen", lambda val, test: test[val.mean(1).argmax()].median()),
        ("chooses by the median and reports", lambda val, test: np.median(test[np.median(val, 1).argmax()])),
        ("one single entry", lambda val, test: test.flatten()[val.argmax()]),
        ("one single entry", lambda val, test: test[val.argmax()].mean()),
        ("over the candidates", lambda val, test: test[val.mean(0).argmax()].mean()),
        ("over the candidates", lambda val, test: test.mean(0)[val.mean(0).argmax()]),
        ("tensor of", lambda val, test: test[val.mean(0).argmax()]),
        ("place of the chosen", lambda val, test: val.mean(1).argmax()),
        ("sum over the seeds", lambda val, test: test[val.sum(1).argmax()].sum()),
        ("smallest test accuracy of the chosen", lambda val, test: test[val.mean(1).argmax()].min()),
        ("first seed of the chosen", lambda val, test: test[val.mean(1).argmax()][0]),
        ("best single seed", lambda val, test: test[val.argmax() // val.shape[1]].mean()),
        ("first seed only", lambda val, test: test[val[:, 0].argmax(), 0]),
        ("first seed only", lambda val, test: test[val[:, 0].argmax()].mean()),
        ("largest test accuracy of the chosen", lambda val, test: test[val.mean(1).argmax()].max()),
        ("mean of all candidates", lambda val, test: test.mean()),
        ("chooses by test and reports val", lambda val, test: val[test.mean(1).argmax()].mean()),
        ("test has a say", lambda val, test: test[(val + test).mean(1).argmax()].mean()),
        ("tensor of", lambda val, test: test[val.mean(1).argmax()]),
        ("IndexError|is wrong|it returns|chooses", lambda val, test: test[:, val.mean(0).argmax()].mean() + 200),
    ],
    "regret": [
        ("sign is wrong", lambda a, b: two(-kept(a, b).mean(), (-kept(a, b)).max())),
        ("sign is wrong", lambda a, b: two(-kept(a, b).mean(), -kept(a, b).max())),
        ("take max, not min", lambda a, b: two(kept(a, b).mean(), kept(a, b).min())),
        ("No abs", lambda a, b: two(kept(a, b).abs().mean(), kept(a, b).abs().max())),
        ("No abs", lambda a, b: two(kept(a, b).mean(), kept(a, b).abs().max())),
        ("Do not cut at zero", lambda a, b: two(kept(a, b).clamp(min=0).mean(), kept(a, b).max())),
        ("Do not cut at zero", lambda a, b: two(kept(a, b)[kept(a, b) > 0].mean(), kept(a, b).max())),
        ("divides by all pairs", lambda a, b: two(kept(a, b).sum() / len(a), kept(a, b).max())),
        ("divides by all pairs", lambda a, b: two(kept(a, b).sum() / len(b), kept(a, b).max())),
        ("counts as 0 %", lambda a, b: two(filled(a, b).mean(), filled(a, b).max())),
        ("taken over other pairs", lambda a, b: two(mean_of(b) - mean_of(a), kept(a, b).max())),
        ("do not zip", lambda a, b: two(zipped(a, b).mean(), zipped(a, b).max())),
        ("KeyError", lambda a, b: [b[pair] - a[pair] for pair in a]),
        ("divides by an accuracy", lambda a, b: two(relative(a, b).mean(), relative(a, b).max())),
        ("divides by an accuracy", lambda a, b: two(100 * relative(a, b).mean(), 100 * relative(a, b).max())),
        ("divides by an accuracy", lambda a, b: two(-relative(b, a).mean(), -relative(b, a).min())),
        ("this is the sum.*9 dedicated ones, 8 in common", lambda a, b: two(kept(a, b).sum(), kept(a, b).max())),
        ("mean comes first", lambda a, b: two(kept(a, b).max(), kept(a, b).mean())),
        ("this is the sum", lambda a, b: two(kept(a, b).sum(), kept(a, b).max())),
        ("this is the median", lambda a, b: two(kept(a, b).median(), kept(a, b).max())),
        ("has shape", kept),
        ("type float", lambda a, b: float(kept(a, b).max())),
    ],
    "first_saving": [
        ("at equal cost nothing is saved", lambda joint, costs: crossing(joint, costs, equal=True)),
        ("one too few|counts from 0", lambda joint, costs: max(crossing(joint, costs) - 1, 0)),
        ("not the number of all pairs", lambda joint, costs: crossing(joint, costs, never=len(costs))),
        ("not one more than there are", lambda joint, costs: crossing(joint, costs, never=len(costs) + 1)),
        ("single costs|it returns 0", lambda joint, costs: next((k for k, c in enumerate(costs, 1) if c > joint), 0)),
        ("average does not say|it never saves|for joint",
         lambda joint, costs: int(joint * len(costs) / sum(costs)) + 1),
        ("first cost is not|it never saves|for joint|average", lambda joint, costs: int(joint / costs[0]) + 1),
        ("it sorts the costs|average|for joint|one too", lambda joint, costs: crossing(joint, sorted(costs))),
        ("it sorts the costs|average|for joint|one too", lambda joint, costs: crossing(joint, sorted(costs)[::-1])),
        ("whole number of pairs", lambda joint, costs: joint / costs[0]),
        ("this is a cost", lambda joint, costs: next((t for t in itertools.accumulate(costs) if t > joint), joint)),
        ("a smaller one saves already", lambda joint, costs: crossing(joint, costs) + 1),
        ("return 0 if", lambda joint, costs: crossing(joint, costs, never=-1)),
        ("every branch", lambda joint, costs: crossing(joint, costs) or None),
        ("type list", lambda joint, costs: [crossing(joint, costs)]),
    ],
}  # fmt: skip
