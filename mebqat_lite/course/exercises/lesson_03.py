"""Exercises of lesson 03: when one network pays, statistics over several batches, and a norm as two numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect

Student = Callable[..., Any]
Two = tuple[Tensor, Tensor]


def _uniform(low: float, high: float, size: Sequence[int], rng: Generator) -> Tensor:
    return torch.empty(list(size)).uniform_(low, high, generator=rng)


def _two(value: Any, names: str, like: Tensor) -> Two:
    """Two tensors of the shape of ``like``; a Mistake that says what else ``value`` is."""
    if isinstance(value, Tensor) and value.dim() > like.dim() and len(value) == 2:
        value = tuple(value)  # stacked
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        what = f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise Mistake(f"it returns {what}: return two tensors, {names}")
    first, second = value
    for part in (first, second):
        if isinstance(part, Tensor) and part.shape != like.shape:
            raise Mistake(_wrong_shape(part, like))
        checked(part, like)
    return first, second


def _wrong_shape(part: Tensor, like: Tensor) -> str:
    channels, found = like.shape[0], tuple(part.shape)
    if part.numel() == 1:
        return "it returns one number for all channels: each channel has its own, so keep axis 1"
    if part.numel() == channels:
        return f"the result has shape {found}; it should be ({channels},): leave out the axes of size 1"
    if channels in found:
        return f"the result has shape {found}: it should be ({channels},). Average over height and width too"
    return f"the result has shape {found}: it should be ({channels},), a number per channel, which is axis 1"


# --- 3.1 -------------------------------------------------------------------------------------------------------


def _break_even(warm: int, steps: int, one: int) -> int:
    """The smallest K for which ``warm + K * steps`` back-propagations are more than ``one``."""
    k = 1
    while warm + k * steps <= one:
        k += 1
    return k


def _grade_break_even(student: Student, rng: Generator) -> None:
    for warm, steps, one in _budgets(rng):
        want = max((one - warm) // steps + 1, 1)
        got = float(checked(student(warm, steps, one), 0.0))
        where = f"warm = {warm}, steps = {steps} and one = {one}"
        if got < 1:
            raise Mistake(f"for {where}: it returns {got:g}; K counts delivered pairs, at least 1")
        if got != int(got) and want - 1 < got < want:
            raise Mistake("this is where the two costs meet: return the next whole number of pairs")
        expect(got, want, where, _wrong_break_evens(warm, steps, one, want))


def _budgets(rng: Generator) -> list[tuple[int, int, int]]:
    """The lesson's numbers; random ones between two pairs; equal costs; and one network that is cheap at once."""
    found = []
    for _ in range(4):
        steps, pairs = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((200, 400), (5, 40)))
        warm, rest = (int(steps * _uniform(low, high, (), rng)) for low, high in ((1.8, 3.4), (0.3, 0.7)))
        found.append((warm, steps, warm + pairs * steps + rest))
    warm, steps, _ = found[0]
    equal = (warm, steps, warm + int(torch.randint(3, 30, (), generator=rng)) * steps)
    return [*found, (300, 300, 1500), equal, (warm, steps, warm + steps // 2), (warm, steps, warm // 2)]


def _wrong_break_evens(warm: int, steps: int, one: int, want: int) -> list[tuple[str, float]]:
    def up(cost: int, each: int) -> int:
        """The smallest K >= 1 with K * each > cost."""
        return max(cost // each + 1, 1)

    low = f"{want - 1} dedicated runs still cost"
    both = "the dedicated runs need the FP start too, once; the total of the one network has its own already"
    once = "the FP start is paid once, not by each dedicated run"
    few = f"{low} no more than the one network: round up, and equal costs do not pay yet"
    return [
        (f"at K = {want - 1} both cost the same, which saves nothing: it must cost less", -(-(one - warm) // steps)),
        (both, up(one, steps)),
        (both, one / steps),
        (once, up(one, warm + steps)),
        (once, one / (warm + steps)),
        (f"the FP start is added to one, but it belongs to the dedicated runs. {few}", up(one + warm, steps)),
        (few, want - 1),
        (f"at K = {want} the one network already costs less: that is the smallest", want + 1),
        (both, one // steps),
        ("this is a cost: return the number of pairs", warm + want * steps),
        ("this is a difference of costs: divide by the cost of a dedicated run", one - warm),
    ]


break_even = Exercise(
    "break_even",
    "3.1: From how many pairs on does one network pay?",
    difficulty=1,
    minutes=10,
    question="""
    You want to deliver K bitwidth pairs. Dedicated networks all start from one full-precision network, which took
    `warm` back-propagations, paid once; then each of the K takes `steps` more. The one network that serves every pair
    takes `one` back-propagations in all, its own start included.

    Write `break_even(warm, steps, one)`: the smallest whole number K >= 1 for which the K dedicated networks take
    **more** back-propagations than the one. With equal costs nothing is saved yet. `break_even(300, 300, 1500)` is 5.
    """,
    hints=[
        "Write down the cost of K dedicated networks: what is paid once, what K times?",
        "Try K = 1, 2, 3, ... and stop at the first that costs more than one.",
        "while warm + k * steps <= one: k += 1",
    ],
    solution=_break_even,
    grade=_grade_break_even,
)

# --- 3.2 -------------------------------------------------------------------------------------------------------


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
        given = [x.clone() for x in batches]
        mean, var = _two(student(given), "mean and variance", batches[0][0, :, 0, 0])
        if len(given) != len(batches) or any(not torch.equal(a, b) for a, b in zip(given, batches, strict=True)):
            raise Mistake("it changes the batches: leave its input as it is")
        x = torch.cat([b.double().transpose(0, 1).flatten(1) for b in batches], 1)  # (channels, values)
        right = x.mean(1).float(), x.var(1, correction=0).float()
        where = f"{count} batches of {[len(b) for b in batches]} images"
        _swapped((mean, var), right, "the variance comes back first: return mean, var")
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
    a, b = (part.detach().double() for part in got)
    if torch.allclose(a, right[1].double(), rtol=1e-3) and torch.allclose(b, right[0].double(), rtol=1e-3):
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
    return [
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
    ]


pooled_stats = Exercise(
    "pooled_stats",
    "3.2: Recalibrate by hand",
    difficulty=2,
    minutes=15,
    question="""
    The calibration images do not fit into memory at once. So a batch norm sees them batch by batch, and needs the mean
    and the variance of **all** values of a channel, as if they had come in one batch.

    Write `pooled_stats(batches)`. `batches` is a list of activations, each `(batch, channels, height, width)`; the last
    one may be smaller. Return `(mean, var)`, both of shape `(channels,)`. The variance is the one that batch norm
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

# --- 3.3 -------------------------------------------------------------------------------------------------------


def _fold_norm(
    mean: torch.Tensor, var: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, offset), (channels,) each: scale * x + offset is the batch norm of x."""
    scale = gain / torch.sqrt(var + eps)
    return scale, shift - scale * mean


def _grade_fold_norm(student: Student, rng: Generator) -> None:
    for low in (0.001, 0.5):
        channels = int(torch.randint(5, 9, (), generator=rng))
        mean, shift = _uniform(-2, 2, (channels,), rng), _uniform(-2, 2, (channels,), rng)
        gain, var = _uniform(0.5, 2, (channels,), rng), _uniform(low, 4 * low, (channels,), rng)
        eps = float(_uniform(0.001, 0.004, (), rng))
        got = _two(student(mean, var, gain, shift, eps), "scale and offset", mean)
        norm = torch.nn.BatchNorm2d(channels, eps=eps).double().eval()
        values = {"running_mean": mean, "running_var": var, "weight": gain, "bias": shift}
        norm.load_state_dict(values, strict=False)
        with torch.no_grad():  # what the norm makes of 0 and of 1, (channels,)
            zero, one = (norm(torch.full((1, channels, 1, 1), x).double()).flatten().float() for x in (0.0, 1.0))
        where = f"eps = {eps:.4f} and variances from {float(var.min()):.4f}"
        _swapped(got, (one - zero, zero), "offset and scale are swapped: return scale, offset")
        expect(got[0], one - zero, f"the scale with {where}", _wrong_scales(var, gain, eps))
        expect(got[1], zero, f"the offset with {where}", _wrong_offsets(mean, gain, shift, one - zero))


def _wrong_scales(var: Tensor, gain: Tensor, eps: float) -> list[tuple[str, Tensor]]:
    var, gain = var.double(), gain.double()
    return [
        ("it divides by the variance: divide by the standard deviation, sqrt(var + eps)", gain / (var + eps)),
        ("it divides by the variance: divide by the standard deviation, sqrt(var + eps)", gain / var),
        ("eps is forgotten: sqrt(var + eps)", gain / var.sqrt()),
        ("eps stands outside the root: sqrt(var + eps)", gain / (var.sqrt() + eps)),
        ("eps is an argument: this takes 1e-5, whatever it is", gain / (var + 1e-5).sqrt()),
        ("the gain is forgotten: scale = gain / sqrt(var + eps)", 1 / (var + eps).sqrt()),
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

    On a device only these two are kept, and a pair that the network is to serve costs two numbers a channel. Write
    `fold_norm(mean, var, gain, shift, eps)`: four tensors of shape `(channels,)`, mu, sigma squared, gamma and beta,
    and a number. Return `(scale, offset)`, both `(channels,)`.
    """,
    hints=[
        "What is in front of x if you multiply out? That is the scale.",
        "The rest is the offset: what comes out for x = 0?",
        "scale = gain / sqrt(var + eps); offset = shift - scale * mean.",
    ],
    solution=_fold_norm,
    grade=_grade_fold_norm,
)

EXERCISES = (break_even, pooled_stats, fold_norm)
