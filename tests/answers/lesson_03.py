"""Lesson 03: right answers, each written another way, and wrong ones with the message that names them."""

import copy
import math

import numpy as np
import torch

import mebqat_lite as mq

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


def pooled_by_chan(batches):
    """Two at a time, as Chan, Golub and LeVeque do."""
    n, mean, square = 0, 0.0, 0.0
    for b in batches:
        x = b.double().transpose(0, 1).flatten(1)
        m, gap = x.shape[1], x.mean(1) - mean
        square = square + x.var(1, correction=0) * m + gap**2 * n * m / (n + m)
        mean, n = mean + gap * m / (n + m), n + m
    return mean, square / n


def pooled_in_numpy(batches):
    x = np.concatenate([b.numpy() for b in batches]).astype(np.float64)
    return x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))


def pooled_in_lists(batches):
    means, variances = [], []
    for c in range(batches[0].shape[1]):
        values = [v for b in batches for v in b[:, c].flatten().tolist()]
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return means, variances


def pooled_in_two_passes(batches):
    count = sum(b[:, 0].numel() for b in batches)
    mean = sum(b.sum((0, 2, 3)) for b in batches) / count
    var = sum((b - mean[:, None, None]).pow(2).sum((0, 2, 3)) for b in batches) / count
    return mean, var


def pooled_by_rows(batches):
    rows = torch.vstack([b.permute(0, 2, 3, 1).reshape(-1, b.shape[1]) for b in batches])
    return rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)


def pooled_in_place_on_copies(batches):
    total, squares, count = torch.zeros(batches[0].shape[1]), torch.zeros(batches[0].shape[1]), 0
    for b in (b.clone() for b in batches):
        total += b.sum((0, 2, 3))
        squares += b.square_().sum((0, 2, 3))
        count += b.numel() // b.shape[1]
    total /= count
    return [total, squares.div_(count).sub_(total.square())]


def pooled_by_moments(batches):
    x = torch.cat([b.transpose(0, 1).flatten(1) for b in batches], 1)
    return x.mean(1), torch.cov(x, correction=0).diagonal()


# ---------------------------------------------------------------- recalibrate


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def collected(model, batches, bits, policy="batch", remove=True, outputs=False):
    """What each norm reads, by norm."""
    seen, hooks = {norm: [] for norm in norms_of(model)}, []
    for norm in seen:
        if outputs:
            hooks.append(norm.register_forward_hook(lambda norm, x, y: seen[norm].append(y)))
        else:
            hooks.append(norm.register_forward_pre_hook(lambda norm, x: seen[norm].append(x[0])))
    with mq.at(model, bits, policy), torch.no_grad():
        for images in batches:
            model(images)
    for hook in hooks if remove else ():
        hook.remove()
    return seen


def stored(model, statistics):
    for norm, (mean, var) in statistics.items():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return model


def recalibrated(change=lambda inputs, pooled: pooled(inputs), **options):
    def answer(model, batches, bits, pooled_stats):
        seen = collected(model, batches, bits, **options)
        return stored(model, {norm: change(inputs, pooled_stats) for norm, inputs in seen.items()})

    return answer


def stored_anew(model, statistics):
    for norm, (mean, var) in statistics.items():
        norm.running_mean, norm.running_var = mean, var
    return model


def hooked(hook):
    """A recalibration by other hooks: ``hook(seen)`` makes one."""

    def answer(model, batches, bits, pooled_stats):
        seen = {norm: [] for norm in norms_of(model)}
        hooks = [norm.register_forward_pre_hook(hook(seen)) for norm in seen]
        with mq.at(model, bits, "batch"), torch.no_grad():
            for images in batches:
                model(images)
        for one in hooks:
            one.remove()
        return stored_anew(model, {norm: pooled_stats(inputs) for norm, inputs in seen.items()})

    return answer


def recalibrated_by_package(model, batches, bits, pooled_stats):
    mq.recalibrate(model, lambda net: [net(x) for x in batches], bits)
    for norm in norms_of(model):
        norm.running_mean, norm.running_var = norm._buffers.pop(f"stats_{bits}")
    return model


def recalibrated_with_grad(model, batches, bits, pooled_stats):
    seen = {}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, x: seen.setdefault(norm, []).append(x[0].detach().clone()))
        for norm in norms_of(model)
    ]
    with mq.at(model, bits, "batch"):
        for images in batches:
            model(images)
    [hook.remove() for hook in hooks]
    return stored(model, {norm: pooled_stats(inputs) for norm, inputs in seen.items()})


def recalibrated_by_outputs(model, batches, bits, pooled_stats):
    """By hooks that also see the output, one norm after the other."""
    found = {}
    for norm in norms_of(model):
        inputs = []
        hook = norm.register_forward_hook(lambda norm, x, y, inputs=inputs: inputs.append(x[0]))
        with torch.inference_mode(), mq.at(model, mq.Bits.parse(bits), "batch"):
            for images in batches:
                model(images)
        hook.remove()
        found[norm] = [part.clone() for part in pooled_stats(inputs)]
    return stored(model, found)


def recalibrated_by_layers(model, batches, bits, pooled_stats):
    """By running the parts of the sequence one after the other."""
    found = {}
    with mq.at(model, bits, "batch"), torch.no_grad():
        values = list(batches)
        for module in model:
            if isinstance(module, torch.nn.BatchNorm2d):
                found[module] = pooled_stats(values)
            values = [module(x) for x in values]
    return stored(model, found)


def recalibrated_by_patching(model, batches, bits, pooled_stats):
    """By replacing forward for a while."""
    seen, norms = {}, norms_of(model)
    for norm in norms:

        def forward(x, norm=norm, call=norm.forward):
            seen.setdefault(norm, []).append(x)
            return call(x)

        norm.forward = forward
    with mq.at(model, bits, "batch"), torch.no_grad():
        for images in batches:
            model(images)
    for norm in norms:
        del norm.forward
    return stored(model, {norm: pooled_stats(inputs) for norm, inputs in seen.items()})


def recalibrated_in_numpy(model, batches, bits, pooled_stats):
    for norm, inputs in collected(model, batches, bits).items():
        x = np.concatenate([part.numpy() for part in inputs])
        norm.running_mean = torch.tensor(x.mean((0, 2, 3)))
        norm.running_var = torch.tensor(x.astype(np.float64).var((0, 2, 3)))
    return model


def by_train_mode(momentum):
    def answer(model, batches, bits, pooled_stats):
        before = [norm.momentum for norm in norms_of(model)]
        for norm in norms_of(model):
            norm.momentum = momentum
            if momentum is None:
                norm.reset_running_stats()
        model.train()
        with mq.at(model, bits), torch.no_grad():
            for images in batches:
                model(images)
        model.eval()
        for norm, old in zip(norms_of(model), before, strict=True):
            norm.momentum = old
        return model

    return answer


def leaving(change):
    """A right answer that also does something else to the model."""

    def answer(model, batches, bits, pooled_stats):
        recalibrated()(model, batches, bits, pooled_stats)
        change(model, bits)
        return model

    return answer


@torch.no_grad()
def rounded_weights(model, bits):
    model[3].weight.copy_(model[3].weight.sign())


def each_mean(inputs, pooled):
    means, variances = each(inputs)
    return means.mean(0), variances.mean(0)


def other_bits(model, batches, bits, pooled_stats):
    seen = collected(model, batches, str(mq.switching.state.setting_of(model).bits))
    return stored(model, {norm: pooled_stats(inputs) for norm, inputs in seen.items()})


def as_one(model, batches, bits, pooled_stats):
    return recalibrated()(model, [torch.cat(batches)], bits, pooled_stats)


WRONG_RECALIBRATIONS = [
    ("still has its old statistics", lambda model, *_: model),
    ("still has its old statistics", lambda model, batches, bits, pooled: collected(model, batches, bits) and model),
    ("bits at which the model stood", other_bits),
    ("still uses its old statistics.*norm 2 of 3", recalibrated(policy="running")),
    ("still uses its old statistics", recalibrated(policy=None)),
    ("only the last batch", recalibrated(lambda inputs, pooled: pooled(inputs[-1:]))),
    ("only the first batch", recalibrated(lambda inputs, pooled: pooled(inputs[:1]))),
    ("run as one", as_one),
    ("exponential average", by_train_mode(0.1)),
    ("mean of the batches' statistics", by_train_mode(None)),
    ("mean of the batches' statistics", recalibrated(each_mean)),
    ("swapped", recalibrated(lambda inputs, pooled: pooled(inputs)[::-1])),
    ("standard deviation", recalibrated(lambda inputs, pooled: (pooled(inputs)[0], pooled(inputs)[1].sqrt()))),
    ("what a norm returns", recalibrated(outputs=True)),
    ("the variance: .*right is", recalibrated(lambda inputs, pooled: (pooled(inputs)[0], 2 * pooled(inputs)[1]))),
    ("for bits = W2A2 the statistics are right, but a hook is left", recalibrated(remove=False)),
    ("left in training mode", leaving(lambda model, bits: model.train())),
    ("left at W2A2 and was at W1A1", leaving(mq.set_bits)),
    ("another norm policy", leaving(lambda model, bits: mq.set_norm_stats(model, "batch"))),
    ("weights have changed", leaving(rounded_weights)),
    ("pooled_stats gets a Tensor", recalibrated(lambda inputs, pooled: pooled(inputs[0]))),
    ("a list that holds a tensor of 3 axes", recalibrated(lambda inputs, pooled: pooled([x[0] for x in inputs]))),
    ("collect inputs.0.", hooked(lambda seen: lambda norm, inputs: seen[norm].append(inputs))),
    ("a hook gets other arguments", hooked(lambda seen: lambda norm, inputs, out: seen[norm].append(inputs[0]))),
    ("takes the place of the inputs", hooked(lambda seen: lambda norm, inputs: seen[norm])),
    (
        "pooled_stats gets an empty list",
        hooked(lambda seen: lambda norm, inputs: [*seen.values()][-1].append(inputs[0])),
    ),
    (
        "has shape ...., but there are 4 channels",
        lambda model, batches, bits, pooled: stored_anew(model, {norm: pooled(batches) for norm in norms_of(model)}),
    ),
    ("returns nothing: end with return model", lambda *args: recalibrated()(*args) and None),
    ("it returns another model", lambda model, *args: recalibrated()(copy.deepcopy(model), *args)),
]


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
    "pooled_stats": [
        pooled_by_cat,
        pooled_by_total_variance,
        pooled_by_welford,
        pooled_by_a_norm,
        pooled_by_chan,
        pooled_in_numpy,
        pooled_in_lists,
        pooled_in_two_passes,
        pooled_by_rows,
        pooled_in_place_on_copies,
        pooled_by_moments,
    ],
    "recalibrate": [
        recalibrated(),
        recalibrated_by_package,
        recalibrated_with_grad,
        recalibrated_by_outputs,
        recalibrated_by_layers,
        recalibrated_by_patching,
        recalibrated_in_numpy,
        recalibrated(lambda inputs, pooled: pooled_by_cat(inputs)),
        recalibrated(lambda inputs, pooled: pooled([x.clone() for x in inputs])),
        recalibrated(lambda inputs, pooled: pooled_by_chan(inputs)),
    ],
    "fold_norm": [
        fold_by_two_points,
        fold_in_float64,
        fold_by_batch_norm,
        lambda m, v, g, s, e: np.stack([k := (g / (v + e).sqrt()).numpy(), s.numpy() - k * m.numpy()]),
        lambda m, v, g, s, e: torch.stack([g / (v + e) ** 0.5, s - m * g / (v + e) ** 0.5]),
        lambda m, v, g, s, e: ((k := g * (v + e) ** -0.5), torch.addcmul(s, k, m, value=-1)),
        lambda m, v, g, s, e: tuple(zip(*[
            (c / math.sqrt(b + e), d - a * c / math.sqrt(b + e))
            for a, b, c, d in zip(m.tolist(), v.tolist(), g.tolist(), s.tolist(), strict=True)], strict=True)),
        lambda m, v, g, s, e: (g.div((v + e).sqrt()), s.sub(m.mul(g).div((v + e).sqrt()))),
        lambda m, v, g, s, e: (v.clone().add_(e).rsqrt_().mul_(g), s - m * g * (v + e).rsqrt()),
        lambda m, v, g, s, e: [(g.numpy() / np.sqrt(v.numpy() + e)).tolist(), s - m * g / torch.sqrt(v + e)],
    ],
}  # fmt: skip

WRONG = {
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
        ("sum over all values is not divided", lambda b: (sum(x.sum((0, 2, 3)) for x in b), pooled_by_cat(b)[1])),
        ("sum of squares is not divided", lambda b: (right_mean(b), sum(x.square().sum((0, 2, 3)) for x in b))),
        ("sum of squares is not divided", lambda b: (
            right_mean(b), sum(x.square().sum((0, 2, 3)) for x in b) - right_mean(b) ** 2)),
        ("variance of the first batch only", lambda b: (right_mean(b), pooled_by_cat(b[:1])[1])),
        ("the mean once more", lambda b: (right_mean(b), right_mean(b))),
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
        ("changes its input batches in place", in_place),
        ("changes its input batches in place", emptied),
        ("sign is turned", lambda b: (right_mean(b), -pooled_by_cat(b)[1])),
        ("mean is not squared", lambda b: (right_mean(b), torch.cat(b).square().mean((0, 2, 3)) - right_mean(b))),
        ("squared mean is added", lambda b: (
            right_mean(b), torch.cat(b).square().mean((0, 2, 3)) + right_mean(b) ** 2)),
        ("median", lambda b: (torch.cat(b).mean((2, 3)).median(0).values, pooled_by_cat(b)[1])),
    ],
    "recalibrate": WRONG_RECALIBRATIONS,
    "fold_norm": [
        ("variance is squared", lambda m, v, g, s, e: (g / (v + e) ** 2, s)),
        ("variance is squared", lambda m, v, g, s, e: (g / (v**2 + e) ** 0.5, s)),
        ("eps is subtracted", lambda m, v, g, s, e: (g / (v - e) ** 0.5, s)),
        ("root is taken twice", lambda m, v, g, s, e: (g / (v + e).sqrt().sqrt(), s)),
        ("divides by the variance", lambda m, v, g, s, e: (g / (v + e), s - g / (v + e) * m)),
        ("divides by the variance", lambda m, v, g, s, e: (g / v, s - g / v * m)),
        ("eps is forgotten", lambda m, v, g, s, e: (g / v.sqrt(), s - g / v.sqrt() * m)),
        ("outside the root", lambda m, v, g, s, e: (g / (v.sqrt() + e), s)),
        ("takes 1e-5", lambda m, v, g, s, e: (g / (v + 1e-5).sqrt(), s)),
        ("sign of the gain", lambda m, v, g, s, e: (
            torch.exp(g.abs().log() - (v + e).log() / 2), s - m * torch.exp(g.abs().log() - (v + e).log() / 2))),
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
        ("swapped: return scale, offset .for eps =", lambda m, v, g, s, e: fold_by_two_points(m, v, g, s, e)[::-1]),
        ("one number for all channels", lambda m, v, g, s, e: (g.mean() / (v.mean() + e).sqrt(), s.mean())),
        ("return two tensors", lambda m, v, g, s, e: g / (v + e).sqrt()),
        ("changes its input gain", lambda m, v, g, s, e: (g.div_((v + e).sqrt()), s - g * m)),
        ("NaN or infinity", lambda m, v, g, s, e: (g / (v - v), s)),
    ],
}  # fmt: skip
