"""Lesson 03: right answers, each written another way, and wrong ones with the message that names them."""

import math
from itertools import count

import numpy as np
import torch

# ---------------------------------------------------------------- 3.1


def pays_at(cost, one):
    return next(k for k in count(1) if cost(k) > one)


# ---------------------------------------------------------------- 3.2


def pooled_by_cat(batches):
    x = torch.cat(batches)
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def pooled_by_total_variance(batches):
    n = torch.tensor([len(b) for b in batches], dtype=torch.float64)
    w = (n / n.sum())[:, None]
    means = torch.stack([b.double().mean((0, 2, 3)) for b in batches])
    inside = torch.stack([b.double().var((0, 2, 3), unbiased=False) for b in batches])
    mean = (w * means).sum(0)
    return torch.stack([mean, (w * inside).sum(0) + (w * (means - mean) ** 2).sum(0)])


def pooled_by_welford(batches):
    """A value at a time in numpy."""
    channels = batches[0].shape[1]
    mean, square, n = np.zeros(channels), np.zeros(channels), 0
    for b in batches:
        for row in b.permute(0, 2, 3, 1).reshape(-1, channels).numpy():
            n += 1
            gap = row - mean
            mean = mean + gap / n
            square = square + gap * (row - mean)
    return torch.tensor(mean), torch.tensor(square / n)


def pooled_by_a_norm(batches):
    """PyTorch's batch norm on all of it, with momentum 1; its running variance is unbiased."""
    x = torch.cat(batches)
    norm = torch.nn.BatchNorm2d(x.shape[1], momentum=1.0)
    norm(x)
    n = x.numel() / x.shape[1]
    return norm.running_mean, norm.running_var * (n - 1) / n


def each(batches, **options):
    return torch.stack([b.mean((0, 2, 3)) for b in batches]), torch.stack(
        [b.var((0, 2, 3), **options) for b in batches]
    )


def weighted(batches, values):
    return sum(len(b) * v for b, v in zip(batches, values, strict=True)) / sum(map(len, batches))


def right_mean(batches):
    return torch.cat(batches).mean((0, 2, 3))


def moving(batches):
    norm = torch.nn.BatchNorm2d(batches[0].shape[1])
    for b in batches:
        norm(b)
    return norm.running_mean, norm.running_var


def in_place(batches):
    answer = pooled_by_cat(batches)
    batches[0].zero_()
    return answer


def emptied(batches):
    answer = pooled_by_cat(batches)
    batches.pop()
    return answer


# ---------------------------------------------------------------- 3.3


def fold_by_two_points(mean, var, gain, shift, eps):
    def norm(x):
        return gain * (x - mean) / (var + eps) ** 0.5 + shift

    return norm(1.0) - norm(0.0), norm(0.0)


def fold_in_float64(mean, var, gain, shift, eps):
    scale = gain.double() * torch.rsqrt(var.double() + eps)
    return [scale, shift.double() - mean.double() * scale]


def fold_by_batch_norm(mean, var, gain, shift, eps):
    x = torch.tensor([0.0, 1.0])[:, None].expand(2, len(mean))
    zero, one = torch.nn.functional.batch_norm(x, mean, var, gain, shift, eps=eps)
    return one - zero, zero


RIGHT = {
    "break_even": [
        lambda warm, steps, one: max(math.floor((one - warm) / steps) + 1, 1),
        lambda warm, steps, one: pays_at(lambda k: warm + k * steps, one),
        lambda warm, steps, one: float(max(1, 1 + (one - warm) // steps)),
    ],
    "pooled_stats": [pooled_by_cat, pooled_by_total_variance, pooled_by_welford, pooled_by_a_norm],
    "fold_norm": [fold_by_two_points, fold_in_float64, fold_by_batch_norm],
}

WRONG = {
    "break_even": [
        ("both cost the same", lambda w, s, one: max(math.ceil((one - w) / s), 1)),
        ("both cost the same", lambda w, s, one: next(k for k in count(1) if w + k * s >= one)),
        ("need the FP start too", lambda w, s, one: pays_at(lambda k: k * s, one)),
        ("need the FP start too", lambda w, s, one: pays_at(lambda k: w + k * s, one + w)),
        ("need the FP start too", lambda w, s, one: one / s),
        ("paid once, not by each", lambda w, s, one: pays_at(lambda k: k * (w + s), one)),
        ("belongs to the dedicated runs", lambda w, s, one: pays_at(lambda k: k * s, one + w)),
        ("still cost no more", lambda w, s, one: max((one - w) // s, 1)),
        ("where the two costs meet", lambda w, s, one: (one - w) / s),
        ("that is the smallest", lambda w, s, one: max((one - w) // s + 2, 1)),
        ("K counts delivered pairs, at least 1", lambda w, s, one: (one - w) // s + 1),
        ("K counts delivered pairs, at least 1", lambda w, s, one: 0),
        ("this is a cost", lambda w, s, one: w + s * ((one - w) // s + 1)),
        ("difference of costs", lambda w, s, one: one - w),
        ("it returns 5, right is", lambda w, s, one: 5 if one != 1500 else 6),
        ("type str: return a number", lambda w, s, one: "5"),
        ("type tuple", lambda w, s, one: (5, one)),
    ],
    "pooled_stats": [
        ("mean of the batches' means", lambda b: (each(b)[0].mean(0), pooled_by_cat(b)[1])),
        ("mean of the batches' variances", lambda b: (right_mean(b), weighted(b, each(b, correction=0)[1]))),
        ("mean of the batches' variances", lambda b: (right_mean(b), each(b, correction=0)[1].mean(0))),
        ("mean of the batches' variances.*unbiased", lambda b: (right_mean(b), each(b)[1].mean(0))),
        ("mean of the batches' variances.*unbiased", lambda b: (right_mean(b), weighted(b, each(b)[1]))),
        ("divides by count - 1", lambda b: (right_mean(b), torch.cat(b).var((0, 2, 3)))),
        ("standard deviation: return its square", lambda b: (right_mean(b), torch.cat(b).std((0, 2, 3), correction=0))),
        ("standard deviation, and unbiased", lambda b: (right_mean(b), torch.cat(b).std((0, 2, 3)))),
        ("only the spread between", lambda b: (
            right_mean(b), weighted(b, [(m - right_mean(b)) ** 2 for m in each(b)[0]]))),
        ("each batch counts the same", lambda b: (
            right_mean(b), each(b, correction=0)[1].mean(0) + each(b)[0].var(0, correction=0))),
        ("subtract the squared mean", lambda b: (right_mean(b), torch.cat(b).square().mean((0, 2, 3)))),
        ("last batch only", lambda b: pooled_by_cat(b[-1:])),
        ("first batch only", lambda b: pooled_by_cat(b[:1])),
        ("last batch only", lambda b: (right_mean(b), pooled_by_cat(b[-1:])[1])),
        ("exponential average", moving),
        ("exponential average", lambda b: (right_mean(b), moving(b)[1])),
        ("sum of the batches' means", lambda b: (each(b)[0].sum(0), pooled_by_cat(b)[1])),
        ("number of images only", lambda b: (sum(x.sum((0, 2, 3)) for x in b) / sum(map(len, b)), pooled_by_cat(b)[1])),
        ("variance comes back first", lambda b: pooled_by_cat(b)[::-1]),
        ("Average over height and width too", lambda b: (torch.cat(b).mean(0), torch.cat(b).var(0))),
        ("one number for all channels", lambda b: (torch.cat(b).mean(), torch.cat(b).var())),
        ("a number per channel, which is axis 1", lambda b: (
            torch.cat(b).mean((1, 2, 3)), torch.cat(b).var((1, 2, 3)))),
        ("leave out the axes of size 1", lambda b: (
            torch.cat(b).mean((0, 2, 3), keepdim=True), torch.cat(b).var((0, 2, 3), keepdim=True))),
        ("RuntimeError", lambda b: (torch.stack(b).mean((0, 1, 3, 4)), torch.stack(b).var((0, 1, 3, 4)))),
        ("it returns a Tensor: return two tensors", right_mean),
        ("it returns 3 values", lambda b: (*pooled_by_cat(b), 1)),
        ("changes the batches", in_place),
        ("changes the batches", emptied),
    ],
    "fold_norm": [
        ("divides by the variance", lambda m, v, g, s, e: (g / (v + e), s - g / (v + e) * m)),
        ("divides by the variance", lambda m, v, g, s, e: (g / v, s - g / v * m)),
        ("eps is forgotten", lambda m, v, g, s, e: (g / v.sqrt(), s - g / v.sqrt() * m)),
        ("outside the root", lambda m, v, g, s, e: (g / (v.sqrt() + e), s)),
        ("takes 1e-5", lambda m, v, g, s, e: (g / (v + 1e-5).sqrt(), s)),
        ("the gain is forgotten", lambda m, v, g, s, e: ((v + e).rsqrt(), s - (v + e).rsqrt() * m)),
        ("multiplies by the standard deviation", lambda m, v, g, s, e: (g * (v + e).sqrt(), s)),
        ("this is the gain alone", lambda m, v, g, s, e: (g, s - m)),
        ("the mean is not scaled", lambda m, v, g, s, e: (g / (v + e).sqrt(), s - m)),
        ("by the gain only", lambda m, v, g, s, e: (g / (v + e).sqrt(), s - g * m)),
        ("not multiplied by the gain", lambda m, v, g, s, e: (g / (v + e).sqrt(), s - m / (v + e).sqrt())),
        ("sign of the mean", lambda m, v, g, s, e: (g / (v + e).sqrt(), s + g / (v + e).sqrt() * m)),
        ("the shift is forgotten", lambda m, v, g, s, e: (g / (v + e).sqrt(), -g / (v + e).sqrt() * m)),
        ("the mean is forgotten", lambda m, v, g, s, e: (g / (v + e).sqrt(), s)),
        ("the shift is scaled too", lambda m, v, g, s, e: (g / (v + e).sqrt(), g / (v + e).sqrt() * (s - m))),
        ("turn it round", lambda m, v, g, s, e: (g / (v + e).sqrt(), g / (v + e).sqrt() * m - s)),
        ("swapped: return scale, offset", lambda m, v, g, s, e: fold_by_two_points(m, v, g, s, e)[::-1]),
        ("one number for all channels", lambda m, v, g, s, e: (g.mean() / (v.mean() + e).sqrt(), s.mean())),
        ("return two tensors", lambda m, v, g, s, e: g / (v + e).sqrt()),
        ("changes its input gain", lambda m, v, g, s, e: (g.div_((v + e).sqrt()), s - g * m)),
        ("NaN or infinity", lambda m, v, g, s, e: (g / (v - v), s)),
    ],
}  # fmt: skip
