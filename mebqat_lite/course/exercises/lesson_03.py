"""Exercises of lesson 03: statistics over several batches, a network recalibrated, and a norm as two numbers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

import mebqat_lite as mq
from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect, in_words, numbers
from mebqat_lite.course.exercises.lesson_00 import left_alone, state_of

Student = Callable[..., Any]
Two = tuple[Tensor, Tensor]


def _uniform(low: float, high: float, size: Sequence[int], rng: Generator) -> Tensor:
    return torch.empty(list(size)).uniform_(low, high, generator=rng)


def _two(value: Any, names: str, like: Tensor) -> Two:
    """Two tensors of the shape of ``like``, in float64; a Mistake that says what else ``value`` is."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim > like.dim() and len(value) == 2:
        value = tuple(value)  # stacked
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        what = f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise Mistake(f"it returns {what}: return two tensors, {names}")
    first, second = (numbers(part) for part in value)
    for part in (first, second):
        if part.shape != like.shape:
            raise Mistake(_wrong_shape(part, like))
        checked(part, like)
    return first, second


def _wrong_shape(part: Tensor, like: Tensor) -> str:
    channels, found = like.shape[0], tuple(part.shape)
    if part.numel() == 1:
        return "it returns one number for all channels: each channel has its own, so keep axis 1"
    if part.numel() == channels:
        return f"the result has shape {found}: it should be ({channels},): leave out the axes of size 1"
    if channels in found:
        return f"the result has shape {found}: it should be ({channels},). Average over height and width too"
    return f"the result has shape {found}: it should be ({channels},), a number per channel, which is axis 1"


# --- 3.1 -------------------------------------------------------------------------------------------------------


def _pooled_stats(batches: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, (channels,) each, of all values of a channel in all batches together."""
    channels = batches[0].shape[1]
    count, total, squares = 0, torch.zeros(channels), torch.zeros(channels)
    for x in batches:  # (batch, channels, height, width)
        count += x.numel() // channels
        total = total + x.sum((0, 2, 3))
        squares = squares + x.square().sum((0, 2, 3))
    mean = total / count
    return mean, squares / count - mean**2  # biased: divided by the count


def _grade_pooled_stats(student: Student, rng: Generator) -> None:
    for count in (3, 4, 1):
        batches = _batches(count, rng)
        mean, var = _two(student(batches), "mean and variance", batches[0][0, :, 0, 0])
        x = torch.cat([b.double().transpose(0, 1).flatten(1) for b in batches], 1)  # (channels, values)
        right = x.mean(1).float(), x.var(1, correction=0).float()
        where = f"{count} batches of {[len(b) for b in batches]} images"
        _swapped((mean, var), right, f"the variance comes back first: return mean, var (for {where})")
        expect(mean, right[0], f"the mean over {where}", _wrong_means(batches))
        expect(var, right[1], f"the variance over {where}", _wrong_variances(batches, x))


def _batches(count: int, rng: Generator) -> list[Tensor]:
    """Activations of ``count`` batches of different sizes, each about a mean and of a spread of its own."""
    channels, height = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((5, 9), (2, 4)))
    sizes = (torch.randperm(6, generator=rng)[:count] + 3).tolist()
    found = []
    for size in sizes:
        mean, spread = _uniform(-2, 2, (channels, 1, 1), rng), _uniform(0.5, 2, (channels, 1, 1), rng)
        found.append(mean + spread * torch.randn(size, channels, height, height + 1, generator=rng))
    return found


def _swapped(got: Two, right: Two, message: str) -> None:
    if all(torch.allclose(a, b.double(), rtol=1e-3) for a, b in zip(got, right[::-1], strict=True)):
        raise Mistake(message)


def _each(batches: list[Tensor], correction: int = 0) -> Two:
    """Means and variances of the batches, (batches, channels)."""
    found = [torch.var_mean(b.double(), (0, 2, 3), correction=correction) for b in batches]
    return torch.stack([m for _, m in found]), torch.stack([v for v, _ in found])


def _moving(batches: list[Tensor]) -> Two:
    """What a batch norm of PyTorch keeps while it trains, with its usual momentum."""
    norm = torch.nn.BatchNorm2d(batches[0].shape[1]).double()
    for b in batches:
        norm(b.double())
    return norm.running_mean, norm.running_var  # type: ignore[return-value]


def _wrong_means(batches: list[Tensor]) -> list[tuple[str, Tensor]]:
    means = _each(batches)[0]
    every = torch.cat([b.double().flatten(2).mean(2) for b in batches])  # (images, channels)
    return [
        ("this is the median of the images: take the mean of all values", every.median(0).values),
        ("this is the mean of the batches' means, but they differ in size: weigh each by its count", means.mean(0)),
        ("this is the mean of the last batch only: use all batches", means[-1]),
        ("this is the mean of the first batch only: use all batches", means[0]),
        ("this is the sum of the batches' means: divide", means.sum(0)),
        ("this is an exponential average, as training keeps it: give every value the same weight", _moving(batches)[0]),
        ("the sum over all values is divided by the number of images only: count height x width too",
         _sum(batches) / sum(map(len, batches))),
        ("the sum over all values is not divided: divide by their count", _sum(batches)),
    ]  # fmt: skip


def _sum(batches: list[Tensor]) -> Tensor:
    return torch.stack([b.double().sum((0, 2, 3)) for b in batches]).sum(0)


def _wrong_variances(batches: list[Tensor], x: Tensor) -> list[tuple[str, Tensor]]:
    means, variances = _each(batches)
    sizes = torch.tensor([float(len(b)) for b in batches], dtype=torch.float64)
    weights = (sizes / sizes.sum())[:, None]  # (batches, 1)
    inside, between = (weights * variances).sum(0), (weights * (means - x.mean(1)) ** 2).sum(0)
    forgot = "this is the mean of the batches' variances: the spread of their means between them is missing. Add it"
    biased = "it divides by count - 1 (unbiased, as torch.var does by default): batch norm divides by the count"
    plain = "each batch counts the same here, but they differ in size: weigh by the count"
    return [
        (biased, x.var(1)),
        ("the sign is turned: it is the mean of squares minus the squared mean", -x.var(1, correction=0)),
        ("the mean is not squared: it is the mean of squares minus the squared mean", x.square().mean(1) - x.mean(1)),
        (
            "the squared mean is added: it is the mean of squares minus the squared mean",
            x.square().mean(1) + x.mean(1) ** 2,
        ),
        ("this is the standard deviation: return its square", x.std(1, correction=0)),
        ("this is the standard deviation, and unbiased: return the variance, divided by the count", x.std(1)),
        (forgot, inside),
        (forgot, variances.mean(0)),
        (f"{forgot}; and each is unbiased", (weights * _each(batches, 1)[1]).sum(0)),
        (f"{forgot}; and each is unbiased", _each(batches, 1)[1].mean(0)),
        ("this is only the spread between the batches' means: add the spread inside the batches", between),
        (plain, variances.mean(0) + means.var(0, correction=0)),
        (plain, variances.mean(0) + ((means - x.mean(1)) ** 2).mean(0)),
        (
            "this is the mean of squares: subtract the squared mean",
            x.square().mean(1),
        ),
        ("this is the variance of the last batch only: use all batches", variances[-1]),
        ("this is the variance of the first batch only: use all batches", variances[0]),
        ("this is an exponential average, as training keeps it: give every value the same weight", _moving(batches)[1]),
        ("the sum of squares is not divided: divide by the count", x.var(1, correction=0) * x.shape[1]),
        ("the sum of squares is not divided: divide by the count", x.square().sum(1) - x.mean(1) ** 2),
        ("the sum of squares is not divided: divide by the count", x.square().sum(1)),
        ("this is the mean once more: return mean, var", x.mean(1)),
    ]


pooled_stats = Exercise(
    "pooled_stats",
    "3.1: Statistics over several batches",
    difficulty=2,
    minutes=15,
    question="""
    The calibration images may not fit into memory at once. So a batch norm sees them batch by batch, and it still needs
    the mean and the variance of **all** values of a channel, as if they had come in one batch.

    Write `pooled_stats(batches)`. `batches` is a list of activations, each `(batch, channels, height, width)`, and they
    may differ in size. Return `(mean, var)`, both of shape `(channels,)`. The variance is the one that batch norm
    divides by: squared deviations from the common mean, divided by the count (*biased*), not by the count - 1.
    """,
    hints=[
        "Per channel: the average runs over batch, height and width, axes 0, 2 and 3.",
        "The mean of the batches' variances is too small: it misses how far the batches' means lie apart.",
        "Either torch.cat(batches) first, or add up count, sum and sum of squares: var = squares / count - mean ** 2.",
    ],
    solution=_pooled_stats,
    grade=_grade_pooled_stats,
)

# --- 3.2 -------------------------------------------------------------------------------------------------------


def _recalibrate(model: torch.nn.Module, batches: list[torch.Tensor], bits: str, pooled_stats) -> torch.nn.Module:
    """Give each batch norm the statistics of its input at ``bits``, over all batches of images; returns the model."""
    seen: dict = {module: [] for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    hooks = [norm.register_forward_pre_hook(lambda norm, inputs: seen[norm].append(inputs[0])) for norm in seen]
    with mq.at(model, bits, "batch"), torch.no_grad():
        for images in batches:
            model(images)
    for hook in hooks:
        hook.remove()
    for norm, inputs in seen.items():
        norm.running_mean, norm.running_var = pooled_stats(inputs)
    return model


def _grade_recalibrate(student: Student, rng: Generator) -> None:
    for bits, start in (("W2A2", "W1A1"), ("FP", "W2A2")):
        model, batches = _small_network(rng)
        mq.set_bits(model, start)
        before, copied = state_of(model), copy.deepcopy(model)
        _run(student, model, batches, bits)
        right, mistakes = _measured(copied, batches, bits), _other_statistics(copied, batches, bits, start)
        norms = _norms(model)
        for i, norm in enumerate(norms):
            where = f"{len(batches)} batches at {bits}, the model standing at {start}, norm {i + 1} of {len(norms)}"
            for name, k in (("mean", 0), ("variance", 1)):
                named = [(message, found[i][k]) for message, found in mistakes]
                got = norm.running_var if k else norm.running_mean
                if isinstance(got, Tensor) and got.shape != right[i][k].shape:
                    shapes = f"shape {tuple(got.shape)}, but there are {len(right[i][k])} channels"
                    raise Mistake(f"for {where}: the {name} has {shapes}: pool what this norm reads, by its hook")
                expect(got, right[i][k].float(), f"{where}, the {name}", named)
        left_alone(before, state_of(model), f"for bits = {bits} the statistics are right, but", changes="statistics")


HOOKS = {  # what PyTorch says, and what it means here
    "positional argument": "a hook gets other arguments: register_forward_pre_hook calls it with (module, inputs), "
    "register_forward_hook with (module, inputs, output)",
    "has no attribute 'numel'": "what a hook returns takes the place of the inputs: let it collect and return nothing",
}


def _run(student: Student, model: nn.Module, batches: list[Tensor], bits: str) -> None:
    """Run the learner's function; a Mistake unless it returns the model that it was given."""
    before = torch.cat([value.flatten() for value in model.buffers()])
    try:
        got = student(model, batches, bits, _pooled)
    except NotImplementedError:
        if torch.equal(before, torch.cat([value.flatten() for value in model.buffers()])):
            raise
        raise Mistake("it stores new statistics, but returns nothing: end with return model") from None
    except Mistake as found:
        raise in_words(found, HOOKS) from None
    if got is not model:
        what = "another model" if isinstance(got, nn.Module) else f"a value of type {type(got).__name__}"
        raise Mistake(f"it returns {what}: store the statistics in the model that it is given, and return that")


def _pooled(batches: Any) -> Two:
    """`_pooled_stats`, with a Mistake for what a hook collects wrongly."""
    shape = "a list of tensors, (batch, channels, height, width) each, one for each batch of images"
    if not isinstance(batches, (list, tuple)):
        raise Mistake(f"pooled_stats gets a {type(batches).__name__}: it takes {shape}")
    if not batches:
        raise Mistake(
            "pooled_stats gets an empty list, so nothing was collected for this norm: let the images run while its "
            "hook is there, and let the hook use the norm that it is called with, not the variable of a loop"
        )
    for part in batches:
        if isinstance(part, tuple):
            raise Mistake("a hook is called with a tuple of inputs: collect inputs[0], which is the tensor")
        if not isinstance(part, Tensor) or part.dim() != 4:
            what = f"a tensor of {part.dim()} axes" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise Mistake(f"pooled_stats gets a list that holds {what}: it takes {shape}")
    return _pooled_stats(list(batches))


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _small_network(rng: Generator) -> tuple[nn.Module, list[Tensor]]:
    """Three convolutions with a norm each and a linear layer, in evaluation mode, and batches of different sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        layers = [(nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((1, 4), (4, 5), (5, 6))]
        model = nn.Sequential(*itertools.chain(*layers), nn.Flatten(), nn.Linear(24, 3))
        sizes = (torch.randperm(6, generator=rng)[:3] + 4).tolist()
        batches = [torch.rand(()) + torch.rand(size, 1, 8, 8) for size in sizes]
        mq.quantize(model, "dorefa", sample=batches[0])
    for norm in _norms(model):  # statistics that do not suit
        norm.running_mean, norm.running_var = norm.running_mean + 0.2, norm.running_var * 2
    return model.eval(), batches


def _measured(model: nn.Module, batches: list[Tensor], bits: str) -> list[Two]:
    """Mean and variance of each norm's input as the package measures them."""
    measured = mq.recalibrate(copy.deepcopy(model), lambda net: [net(x) for x in batches], bits)
    return [tuple(norm.get_buffer(f"stats_{bits}").double()) for norm in _norms(measured)]


def _inputs(model: nn.Module, batches: list[Tensor], bits: str, policy: str) -> list[list[Tensor]]:
    """What each norm reads, batch by batch."""
    seen: list[list[Tensor]] = []
    hooks = []
    for norm in _norms(model):
        seen.append([])
        hooks.append(norm.register_forward_pre_hook(lambda norm, x, mine=seen[-1]: mine.append(x[0])))
    with mq.at(model, bits, policy), torch.no_grad():
        for x in batches:
            model(x)
    for hook in hooks:
        hook.remove()
    return seen


def _other_statistics(model: nn.Module, batches: list[Tensor], bits: str, start: str) -> list[tuple[str, list[Two]]]:
    """What common mistakes would store in the norms: (message, mean and variance of each norm)."""
    here = _inputs(model, batches, bits, "batch")
    moved = copy.deepcopy(model).train()
    with mq.at(moved, bits):
        for x in batches:
            moved(x)
    means = "this is the mean of the batches' statistics: pool them with pooled_stats, over all batches of a norm"
    policy = "each norm still uses its old statistics while you measure, so that the next one reads something else: "
    return [
        ("the norm still has its old statistics: store what you measured in its running_mean and running_var",
         [(n.running_mean, n.running_var) for n in _norms(model)]),
        ("these are the statistics at the bits at which the model stood: run it inside mq.at(model, bits, 'batch')",
         _measured(model, batches, start)),
        (policy + "run the model under the norm policy 'batch'",
         [_pooled_stats(x) for x in _inputs(model, batches, bits, "running")]),
        ("only the last batch is used: collect what a norm reads from all", [_pooled_stats(x[-1:]) for x in here]),
        ("only the first batch is used: collect what a norm reads from all", [_pooled_stats(x[:1]) for x in here]),
        ("all batches are run as one, for which there may be no memory: run them one after the other",
         _measured(model, [torch.cat(batches)], bits)),
        ("this is the exponential average that training keeps: pool all batches with pooled_stats",
         [(n.running_mean, n.running_var) for n in _norms(moved)]),
        *((means, [(m.mean(0), v.mean(0)) for m, v in (_each(x, correction) for x in here)]) for correction in (0, 1)),
        ("mean and variance are swapped: pooled_stats returns the mean first", [_pooled_stats(x)[::-1] for x in here]),
        ("this is the standard deviation: running_var holds the variance",
         [(m, v.sqrt()) for m, v in map(_pooled_stats, here)]),
        ("these are the statistics of what a norm returns: take its input, by register_forward_pre_hook",
         [_pooled_stats([_normalized(norm, part) for part in x]) for norm, x in zip(_norms(model), here, strict=True)]),
    ]  # fmt: skip


def _normalized(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What a norm makes of a batch by the batch's own statistics."""
    return nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps).detach()


recalibrate = Exercise(
    "recalibrate",
    "3.2: Recalibrate a network",
    difficulty=3,
    minutes=20,
    question="""
    Write `recalibrate(model, batches, bits, pooled_stats)`, which gives each batch norm of a quantized `model` the
    statistics of its own input at `bits`, over all `batches` of images, and returns the model. `pooled_stats` is the
    function of exercise 3.1.

    Each batch runs through the network once, under the norm policy `"batch"`, so that every norm normalizes by the
    batch at hand while you measure. Hooks collect what each norm reads; its pooled mean and variance then take the
    place of `running_mean` and `running_var`. Nothing else may change: not the weights, not the mode (the model is in
    evaluation mode), not the bits at which the model stands.
    """,
    hints=[
        "The norms are those of model.modules() for which isinstance(module, torch.nn.BatchNorm2d) is true.",
        "hook = norm.register_forward_pre_hook(lambda norm, inputs: seen[norm].append(inputs[0])) collects what a norm "
        "reads; seen is a dictionary with a list for each norm. Call hook.remove() when you have measured.",
        'with mq.at(model, bits, "batch"), torch.no_grad(): run model(images) for each batch. Then, for each norm, '
        "norm.running_mean, norm.running_var = pooled_stats(seen[norm]).",
    ],
    solution=_recalibrate,
    grade=_grade_recalibrate,
)

# --- 3.3 -------------------------------------------------------------------------------------------------------


def _fold_norm(
    mean: torch.Tensor, var: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, offset), (channels,) each: scale * x + offset is the batch norm of x."""
    scale = gain / torch.sqrt(var + eps)
    return scale, shift - scale * mean


def _grade_fold_norm(student: Student, rng: Generator) -> None:
    for low in (0.05, 0.001):
        channels = int(torch.randint(5, 9, (), generator=rng))
        mean, shift = _uniform(-2, 2, (channels,), rng), _uniform(-2, 2, (channels,), rng)
        gain, var = _uniform(0.5, 2, (channels,), rng), _uniform(low, 4 * low, (channels,), rng)
        gain[::2] *= -1  # training leads some gains below zero
        eps = float(_uniform(0.001, 0.004, (), rng))
        got = _two(student(mean, var, gain, shift, eps), "scale and offset", mean)
        norm = torch.nn.BatchNorm2d(channels, eps=eps).double().eval()
        values = {"running_mean": mean, "running_var": var, "weight": gain, "bias": shift}
        norm.load_state_dict(values, strict=False)
        with torch.no_grad():  # what the norm makes of 0 and of 1, (channels,)
            zero, one = (norm(torch.full((1, channels, 1, 1), x).double()).flatten().float() for x in (0.0, 1.0))
        where = f"eps = {eps:.4f} and variances from {float(var.min()):.4f}"
        _swapped(got, (one - zero, zero), f"offset and scale are swapped: return scale, offset (for {where})")
        expect(got[0], one - zero, f"the scale with {where}", _wrong_scales(var, gain, eps))
        expect(got[1], zero, f"the offset with {where}", _wrong_offsets(mean, gain, shift, one - zero))


def _wrong_scales(var: Tensor, gain: Tensor, eps: float) -> list[tuple[str, Tensor]]:
    var, gain = var.double(), gain.double()
    return [
        ("it divides by the variance: divide by the standard deviation, sqrt(var + eps)", gain / (var + eps)),
        ("it divides by the variance: divide by the standard deviation, sqrt(var + eps)", gain / var),
        ("the variance is squared: divide by its root, sqrt(var + eps)", gain / (var + eps) ** 2),
        ("the variance is squared: divide by its root, sqrt(var + eps)", gain / (var**2 + eps).sqrt()),
        ("the variance is squared: divide by its root, sqrt(var + eps)", gain / (var**2 + eps)),
        ("eps is subtracted: sqrt(var + eps)", gain / (var - eps).sqrt()),
        ("the root is taken twice: sqrt(var + eps)", gain / (var + eps) ** 0.25),
        ("eps is forgotten: sqrt(var + eps)", gain / var.sqrt()),
        ("eps stands outside the root: sqrt(var + eps)", gain / (var.sqrt() + eps)),
        ("eps is an argument: this takes 1e-5, whatever it is", gain / (var + 1e-5).sqrt()),
        ("the gain is forgotten: scale = gain / sqrt(var + eps)", 1 / (var + eps).sqrt()),
        ("the sign of the gain is lost: it may be negative", gain.abs() / (var + eps).sqrt()),
        ("it multiplies by the standard deviation: divide", gain * (var + eps).sqrt()),
        ("this is the gain alone: divide it by sqrt(var + eps)", gain),
    ]


def _wrong_offsets(mean: Tensor, gain: Tensor, shift: Tensor, scale: Tensor) -> list[tuple[str, Tensor]]:
    return [
        (
            "the mean is not scaled: offset = shift - scale * mean",
            shift - mean,
        ),
        (
            "the mean is multiplied by the gain only: it is by the whole scale",
            shift - gain * mean,
        ),
        ("the mean is divided by the deviation, but not multiplied by the gain", shift - scale / gain * mean),
        ("the sign of the mean is wrong: it is subtracted", shift + scale * mean),
        ("the shift is forgotten: offset = shift - scale * mean", -scale * mean),
        ("the mean is forgotten: offset = shift - scale * mean", shift),
        ("the shift is scaled too: it is added after the multiplication", scale * (shift - mean)),
        ("this is mean - shift: turn it round", scale * mean - shift),
    ]


fold_norm = Exercise(
    "fold_norm",
    "3.3: A pair's norm in two numbers",
    difficulty=2,
    minutes=10,
    question=r"""
    With stored statistics, batch norm is a straight line in x:

    $$\gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta \;=\; \mathrm{scale}\cdot x + \mathrm{offset}$$

    A device keeps only these two, so a pair that the network is to serve costs two numbers for each channel. Write
    `fold_norm(mean, var, gain, shift, eps)`. The first four are tensors of shape `(channels,)`: mu, sigma squared,
    gamma and beta. `eps` is a number. Return `(scale, offset)`, both of shape `(channels,)`.
    """,
    hints=[
        "What is in front of x if you multiply out? That is the scale.",
        "The rest is the offset: what comes out for x = 0?",
        "scale = gain / sqrt(var + eps); offset = shift - scale * mean.",
    ],
    solution=_fold_norm,
    grade=_grade_fold_norm,
)

EXERCISES = (pooled_stats, recalibrate, fold_norm)
