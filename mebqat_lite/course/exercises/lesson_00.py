"""Exercises of lesson 00: which bitwidth pairs there are, what one model saves, and a model at a bitwidth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

import mebqat_lite as mq
from mebqat_lite.bits import WIDTHS
from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect
from mebqat_lite.switching.state import setting_of

Student = Callable[..., Any]
Pair = tuple[int, int]
Place = tuple[str, str]  # bits and norm policy
PLACES: list[Place] = [(bits, policy) for bits in ("FP", "W2A2", "W1A1") for policy in ("recalibrated", "running")]

# --- 0.1 -------------------------------------------------------------------------------------------------------


def _is_candidate(w: int, a: int) -> bool:
    """Whether weights of ``w`` bits and activations of ``a`` bits are one of the 75 pairs."""
    if w == 32:
        return a == 32
    if w == 1:
        return a in (1, 32)
    return a != 1


def _grade_is_candidate(student: Student, rng: Generator) -> None:
    grid = [(w, a) for w in WIDTHS for a in WIDTHS]
    order = [(4, 4), *(grid[i] for i in torch.randperm(len(grid), generator=rng))]
    answers = {pair: _yes_or_no(student(*pair), pair) for pair in order}
    accepted = {pair for pair in grid if answers[pair]}
    right = _right_pairs()
    if accepted != right:
        raise Mistake(_name_pairs(accepted, right, set(grid)))


def _yes_or_no(value: Any, pair: Pair) -> bool:
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, (bool, np.bool_)):
        raise Mistake(f"for {_written(pair)} it returns a value of type {type(value).__name__}: return True or False")
    return bool(value)


def _right_pairs() -> set[Pair]:
    """The 75 pairs, counted up part by part."""
    middle = range(2, 9)
    pairs = {(w, a) for w in (*middle, 16) for a in (*middle, 16, 32)}  # 8 x 9 = 72
    return pairs | {(1, 1), (1, 32), (32, 32)}


def _name_pairs(accepted: set[Pair], right: set[Pair], grid: set[Pair]) -> str:
    """The mistake that a set of accepted pairs shows."""
    extra, missing = accepted - right, right - accepted
    whole = [
        (not accepted, "it returns False for all 100 pairs, but 75 of them are valid"),
        (accepted == grid, "it returns True for all 100 pairs, but 25 are not valid: write the three rules"),
        (accepted == grid - right, "it says yes for no and no for yes: turn the answer round"),
        (accepted == {(a, w) for w, a in right}, "w and a are swapped: the weights come first"),
        (bool(missing) and all(w == a for w, a in accepted), "it accepts only w = a, but the two may differ"),
    ]
    for found, message in whole:
        if found:
            return message
    pairs, rule = _broken_rule(extra, missing)
    answer, valid = ("True", "not valid") if pairs <= extra else ("False", "valid")
    more = f", and for {len(pairs) - 1} more like it" if len(pairs) > 1 else ""
    return f"for {_written(min(pairs))} it returns {answer}{more}: {rule or f'this pair is {valid}'}"


def _broken_rule(extra: set[Pair], missing: set[Pair]) -> tuple[set[Pair], str]:
    """Pairs that are answered wrongly for one reason, and the reason; "" if they have none in common."""
    weights = {pair for pair in extra if pair[0] == 32}
    ones = {pair for pair in extra if pair[0] == 1}
    floats = missing if all(a == 32 and w not in (1, 32) for w, a in missing) else set()
    rules = [
        (weights, "full-precision weights, w = 32, go with a = 32 only"),
        (ones, "w = 1 goes with a = 1 and a = 32 only"),
        (extra, "a = 1 goes with w = 1 only"),
        (missing & {(1, 32)}, "one-bit weights also go with a = 32"),
        (missing & {(1, 1)}, "weights and activations may both have one bit"),
        (missing & {(32, 32)}, "w = 32 with a = 32 is full precision (FP), which is valid"),
        (floats, "a = 32 is valid, too: the weights alone may be quantized"),
        ({pair for pair in missing if 16 in pair}, "16 is one of the widths, which are 1 to 8, 16 and 32"),
    ]
    return next(((pairs, rule) for pairs, rule in rules if pairs), (missing, ""))


def _written(pair: Pair) -> str:
    return "W{}A{}".format(*pair)


is_candidate = Exercise(
    "is_candidate",
    "0.1: Which pairs are there?",
    difficulty=1,
    minutes=5,
    question="""
    Weights have `w` bits, activations `a` bits, each one of 1, 2, ..., 8, 16, 32, where 32 means full precision.
    Of these 100 pairs the paper uses 75. Not valid are

    - full-precision weights with quantized activations (`w = 32`, `a < 32`),
    - one-bit weights, unless `a` is 1 or 32,
    - one-bit activations with weights of more than one bit.

    Write `is_candidate(w, a)`, which returns `True` for a valid pair and `False` for another.
    """,
    hints=[
        "Go by the weights: what may a be if w is 32, if w is 1, and otherwise?",
        "w = 32 leaves a = 32 only; w = 1 leaves a = 1 and a = 32; any other w leaves all but a = 1.",
        "Count with sum(is_candidate(w, a) for w in widths for a in widths): 1 + 2 + 8 * 9 = 75.",
    ],
    solution=_is_candidate,
    grade=_grade_is_candidate,
)

# --- 0.2 -------------------------------------------------------------------------------------------------------


def _saving(used: float, baseline: float) -> float:
    """How much less ``used`` is than ``baseline``, in percent; below zero if it is more."""
    return 100 * (1 - used / baseline)


def _grade_saving(student: Student, rng: Generator) -> None:
    baseline = int(torch.randint(20, 90, (), generator=rng))
    used = baseline * float(torch.empty(()).uniform_(0.1, 0.4, generator=rng))
    cases = [(used, float(baseline)), (1, 75), (4, 75), (7, baseline), (baseline, baseline)]
    cases += [(1.7 * baseline, float(baseline)), (4, 3), (used * 50, used)]
    for few, many in cases:
        got, want = float(checked(student(few, many), 0.0)), 100 * (many - few) / many
        where = f"used = {few:.6g} and baseline = {many:.6g}"
        if 1e-5 * abs(want) + 1e-6 < abs(got - want) < 1 and abs(got - round(got, 2)) < 1e-4:
            raise Mistake(f"the result is rounded: return all digits, and round when you print (for {where})")
        expect(got, want, where, _wrong_savings(few, many, want))


def _wrong_savings(used: float, baseline: float, want: float) -> list[tuple[str, float]]:
    swapped = "used and baseline are swapped: the baseline counts as 100 %"
    ratio = "this is only the part that is used{}: what is saved is the rest, up to 100 %"
    times = "this is how many times as much the baseline is{}: return the saving, in percent of the baseline"
    fraction = ", and as a fraction: multiply by 100 for percent"
    return [
        ("it stops at zero: where more is used than by the baseline, the saving is negative", max(want, 0.0)),
        ("the saving has lost its sign: where more is used, it is negative", abs(want)),
        ("this is a fraction: multiply it by 100 for percent", want / 100),
        (swapped, 100 * (1 - baseline / used)),
        (swapped + fraction, 1 - baseline / used),
        ("it divides by what is used: divide by the baseline", 100 * (baseline - used) / used),
        ("it divides by what is used: divide by the baseline" + fraction, (baseline - used) / used),
        (ratio.format(""), 100 * used / baseline),
        (ratio.format(", as a fraction"), used / baseline),
        (times.format(""), baseline / used),
        (times.format(", in percent"), 100 * baseline / used),
        ("the sign is wrong: a saving is positive when less is used", -want),
        ("the sign is wrong: a saving is positive when less is used" + fraction, -want / 100),
        ("whole-number division // cuts off: divide with /", 100 * (1 - used // baseline)),
        ("the 1 is missing its 100: 100 percent minus the part that is used", 1 - 100 * used / baseline),
        ("the part that is used is no percentage yet: 100 * used / baseline", 100 - used / baseline),
        ("this is the difference: divide it by the baseline", baseline - used),
        ("this is the difference times 100: divide it by the baseline", 100 * (baseline - used)),
    ]


saving = Exercise(
    "saving",
    "0.2: What is saved?",
    difficulty=1,
    minutes=5,
    question="""
    One model serves 75 bitwidth pairs, where dedicated training needs 75 models. A training step visits 4 pairs,
    where another method visits all 75. How much does that save, in percent?

    Write `saving(used, baseline)`, which says how much less `used` is than `baseline`, in percent of the baseline. The
    saving is negative if more is used. Do not round. Then `saving(1, 75)` is about 98.7 and `saving(4, 75)` about 94.7.
    For somebody who needs only 4 pairs, a step of 4 pairs saves nothing; for 3 pairs it costs more.
    """,
    hints=[
        "What part of the baseline is used? The saving is the rest.",
        "With used = 1 and baseline = 4 a quarter is used, so 75 percent are saved.",
        "One line: 100 * (1 - used / baseline).",
    ],
    solution=_saving,
    grade=_grade_saving,
)

# --- 0.3 -------------------------------------------------------------------------------------------------------


def _accuracy_at(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, bits: str, norm_stats: str
) -> float:
    """Percent of ``images`` (batch, ...) that ``model`` classifies as ``labels`` (batch,) at ``bits``."""
    with mq.at(model, bits, norm_stats), torch.no_grad():
        predicted = model(images).argmax(1)  # (batch, classes) -> (batch,)
    return 100 * (predicted == labels).float().mean().item()


def _grade_accuracy_at(student: Student, rng: Generator) -> None:
    model, images, labels, right = _classifier(rng)
    places = [list(right)[i] for i in torch.randperm(len(right), generator=rng).tolist()]
    for place in places:
        start = next(other for other in places if other[0] != place[0] and other[1] != place[1])
        mq.set_bits(model, start[0])
        mq.set_norm_stats(model, start[1])
        before = state_of(model)
        got = student(model, images, labels, *place)
        where = f"bits = {place[0]} and norm_stats = {place[1]}, the model standing at {_place(start)}"
        expect(got, right[place], where, _wrong_accuracies(right, place, start, len(labels)))
        left_alone(before, state_of(model), f"for {where}: the accuracy is right, but")


def _place(place: Place) -> str:
    return "{} under {}".format(*place)


def _classifier(rng: Generator) -> tuple[nn.Module, Tensor, Tensor, dict[Place, float]]:
    """A network, 61 images, labels, and its accuracy at three pairs under two norm policies, no two of them equal."""
    while True:
        images = torch.randn(61, 1, 8, 8, generator=rng).mul(4).round() / 4
        model = _random_net(images, int(torch.randint(2**31, (), generator=rng)))
        predicted, margin = {}, 1.0
        for place in PLACES:
            with mq.at(model, *place), torch.no_grad():
                best = model(images).topk(2)  # values and indices, (batch, 2)
            predicted[place] = best.indices[:, 0]
            margin = min(margin, float((best.values[:, 0] - best.values[:, 1]).min()))
        random = torch.randint(10, (61,), generator=rng)
        labels = torch.where(torch.rand(61, generator=rng) < 0.25, random, predicted[PLACES[0]])
        hits = {place: int((classes == labels).sum()) for place, classes in predicted.items()}
        told = {*hits.values(), *(61 - count for count in hits.values())}
        if margin > 1e-5 and len(told) == 2 * len(PLACES):  # no ties; each number tells what it is
            return model, images, labels, {place: 100 * count / 61 for place, count in hits.items()}


def _random_net(images: Tensor, seed: int) -> nn.Module:
    """Three linear layers and two norms. The sums of the first are exact: one image at a time gives the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a, b, c = (nn.Linear(n_in, n_out, bias=False) for n_in, n_out in ((64, 32), (32, 32), (32, 10)))
        norms = nn.BatchNorm1d(32), nn.BatchNorm1d(32)
        for norm in norms:  # statistics of training that do not suit these images
            norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.1, 0.5)  # type: ignore[union-attr]
    with torch.no_grad():
        a.weight.mul_(64).round_().div_(64)
    model = nn.Sequential(nn.Flatten(), a, norms[0], nn.ReLU(), b, norms[1], nn.ReLU(), c)
    mq.quantize(model, "dorefa", sample=images).eval()
    return mq.recalibrate(model, images, [bits for bits, _ in PLACES[::2]])


def _wrong_accuracies(right: dict[Place, float], place: Place, start: Place, count: int) -> list[tuple[str, float]]:
    want, (bits, norm_stats) = right[place], place
    stood = "this is the accuracy at {}. Give mq.at both bits and norm_stats"
    named = [
        ("it ignores bits and norm_stats: " + stood.format(_place(start) + ", as the model stood"), right[start]),
        ("it ignores norm_stats: " + stood.format(_place((bits, start[1]))), right[bits, start[1]]),
        ("it ignores bits: " + stood.format(_place((start[0], norm_stats))), right[start[0], norm_stats]),
        ("this is a fraction: multiply it by 100 for percent", want / 100),
        ("this is the error: the accuracy is the share of right answers", 100 - want),
        ("this is the error, and as a fraction: return the share of right answers in percent", 1 - want / 100),
        ("this is the number of right answers: divide it by the number of labels, times 100", want * count / 100),
        ("the result is rounded: return all digits", round(want)),
        ("the result is rounded: return all digits", round(want, 1)),
        ("the result is cut off: return all digits", int(want)),
    ]
    others = [other for other in right if other not in (place, start)]
    return named + [
        (f"it does not go by its arguments: {stood.format(_place(other))}", right[other]) for other in others
    ]


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a function that only evaluates must leave as it was: bits, norm policy, modes, weights and hooks."""
    try:
        setting = setting_of(model)
    except mq.NotQuantizedError:
        raise Mistake("the model is no longer quantized afterwards: switch its bits, do not restore it") from None
    return {
        "bits": setting.key,
        "norm_stats": setting.norm_stats,
        "mode": [module.training for module in model.modules()],
        "weights": torch.cat([value.detach().flatten() for value in model.parameters()]),
        "statistics": torch.cat([value.flatten() for value in model.buffers()]),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    }


def left_alone(before: dict[str, Any], after: dict[str, Any], right: str, changes: str = "") -> None:
    """A Mistake, which begins with ``right``, unless a model is as before, but for what it ``changes`` on purpose."""
    back = "with mq.at(model, bits, norm_stats): puts both back"
    told = {
        "bits": f"the model is left at {after['bits']} and was at {before['bits']}: {back}",
        "norm_stats": f"the model is left with another norm policy, {after['norm_stats']}: {back}",
        "mode": f"the model is left in {'training' if any(after['mode']) else 'evaluation'} mode: put it back",
        "weights": "the model's weights have changed: leave them as they are",
        "statistics": "the norms' statistics have changed: only evaluate the model",
        "hooks": "a hook is left on the model, and would go on watching it: call remove() on each hook",
    }
    for name, message in told.items():
        same = (
            torch.equal(before[name], after[name]) if isinstance(before[name], Tensor) else before[name] == after[name]
        )
        if name != changes and not same:
            raise Mistake(f"{right} {message}")


accuracy_at = Exercise(
    "accuracy_at",
    "0.3: One model, any bitwidth",
    difficulty=2,
    minutes=10,
    question="""
    Write `accuracy_at(model, images, labels, bits, norm_stats)`: the accuracy in percent of a quantized `model` at
    `bits`, for example `"W2A4"`. `norm_stats` is the norm policy, for example `"recalibrated"`. It says whose
    statistics batch norm uses, and no accuracy means anything without it; lesson 03 tells why. `mq.at` takes both.

    `images` is `(batch, channels, height, width)`, `labels` is `(batch,)`, and `model(images)` gives logits,
    `(batch, classes)`. The model is in evaluation mode. It may stand at any bits and policy when it comes; leave it as
    it was.
    """,
    hints=[
        "with mq.at(model, bits, norm_stats): switches the model inside the block, and back behind it.",
        "The class is where the logit is largest: model(images).argmax(1).",
        "(predicted == labels).float().mean().item() is a fraction between 0 and 1.",
    ],
    solution=_accuracy_at,
    grade=_grade_accuracy_at,
)

EXERCISES = (is_candidate, saving, accuracy_at)
