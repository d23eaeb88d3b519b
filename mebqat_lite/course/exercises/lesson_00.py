"""Exercises of lesson 00: which bitwidth pairs there are, what one model saves, and a model at a bitwidth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
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
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (bool, np.bool_)):
        raise Mistake(f"for {_written(pair)} it returns a {type(value).__name__} value: return True or False")
    return bool(value)


def _right_pairs() -> set[Pair]:
    """The 75 pairs, counted up part by part."""
    middle = range(2, 9)
    pairs = {(w, a) for w in (*middle, 16) for a in (*middle, 16, 32)}  # 8 x 9 = 72
    return pairs | {(1, 1), (1, 32), (32, 32)}


def _name_pairs(accepted: set[Pair], right: set[Pair], grid: set[Pair]) -> str:
    """The mistake that a set of accepted pairs shows."""
    extra, missing = accepted - right, right - accepted
    tests = [
        (not accepted, "it returns False for all 100 pairs; 75 of them are valid"),
        (accepted == grid, "it returns True for all 100 pairs: 25 are not valid. Write the three rules"),
        (accepted == grid - right, "it says yes for no and no for yes: turn the answer round"),
        (accepted == {(a, w) for w, a in right}, "w and a are swapped: the weights come first"),
        (bool(missing) and all(w == a for w, a in accepted), "only the diagonal w = a: the two may differ"),
        (any(w == 32 for w, a in extra), "w = 32 with a < 32 counts as valid: FP weights go with a = 32 only"),
        (any(w == 1 for w, a in extra), "w = 1 goes with a = 1 or 32 only, so that W1A4 is not valid"),
        (any(a == 1 for w, a in extra), "a = 1 goes with w = 1 only, so that W3A1 is not valid"),
        ((1, 32) in missing, "W1A32 is forgotten: one-bit weights also go with a = 32"),
        ((1, 1) in missing, "W1A1 is forgotten: both may be one bit"),
        ((32, 32) in missing, "FP is forgotten: w = 32 with a = 32 is valid"),
        (all(a == 32 for w, a in missing), "a = 32 is forgotten: w bits alone may be quantized, as in W4A32"),
        (any(16 in pair for pair in missing), "16 is forgotten: the widths are 1 to 8, 16 and 32"),
    ]
    for found, message in tests:
        if found:
            return message
    wrong = _written(min(missing))
    return f"{len(missing)} valid pairs are left out, among them {wrong}"


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
        if 1e-5 * abs(want) + 1e-6 < abs(got - want) < 1 and abs(got - round(got, 2)) < 1e-4:
            raise Mistake("the result is rounded: return all digits, and round when you print")
        expect(got, want, f"used = {few:.6g} and baseline = {many:.6g}", _wrong_savings(few, many, want))


def _wrong_savings(used: float, baseline: float, want: float) -> list[tuple[str, float]]:
    return [
        ("it stops at zero: where more is used than by the baseline, the saving is negative", max(want, 0.0)),
        ("the saving has lost its sign: where more is used, it is negative", abs(want)),
        ("this is a fraction: multiply it by 100 for percent", want / 100),
        ("used and baseline are swapped: it is the baseline that counts as 100 %", 100 * (1 - baseline / used)),
        ("it divides by what is used: divide by the baseline", 100 * (baseline - used) / used),
        ("this is the part that is used: what is saved is the rest, up to 100 %", 100 * used / baseline),
        ("the sign is wrong: a saving is positive when less is used", -want),
        ("whole-number division // cuts off: divide with /", 100 * (1 - used // baseline)),
        ("this is the difference: divide it by the baseline", baseline - used),
    ]


saving = Exercise(
    "saving",
    "0.2: What is saved?",
    difficulty=1,
    minutes=5,
    question="""
    One model serves 75 bitwidth pairs, where dedicated training needs 75 models; a training step visits 4 pairs,
    where another method visits all 75. How much is that, in percent?

    Write `saving(used, baseline)`: how much less `used` is than `baseline`, in percent of the baseline. It is
    negative if more is used. Do not round. Then `saving(1, 75)` is 98.7 and `saving(4, 75)` is 94.7, rounded; and
    a step of 4 pairs saves nothing to a user who needs 4 pairs, less than nothing for 3.
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


def _accuracy_at(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, bits: str) -> float:
    """Percent of ``images`` (batch, ...) that ``model`` classifies as ``labels`` (batch,) at ``bits``."""
    with mq.at(model, bits), torch.no_grad():
        predicted = model(images).argmax(1)  # (batch, classes) -> (batch,)
    return 100 * (predicted == labels).float().mean().item()


def _grade_accuracy_at(student: Student, rng: Generator) -> None:
    model, images, labels, right = _classifier(rng)
    pairs = list(right)
    for i in torch.randperm(len(pairs), generator=rng).tolist():
        bits, start = pairs[i], pairs[i - 1]
        mq.set_bits(model, start)
        before = _state(model)
        got = student(model, images, labels, bits)
        where = f"bits = {bits} and a model left at {start}"
        expect(got, right[bits], where, _wrong_accuracies(right, bits, start, len(labels)))
        _same_state(before, _state(model))


def _classifier(rng: Generator) -> tuple[nn.Module, Tensor, Tensor, dict[str, float]]:
    """A network, 60 images, labels, and its accuracy at four pairs; each number tells what it is."""
    while True:
        images = torch.randn(60, 1, 8, 8, generator=rng).mul(4).round() / 4
        model = _random_net(images, int(torch.randint(2**31, (), generator=rng)))
        predicted, margin = {}, 1.0
        for bits in ("FP", "W8A2", "W2A2", "W1A1"):
            with mq.at(model, bits), torch.no_grad():
                best = model(images).topk(2)  # values and indices, (batch, 2)
            predicted[bits] = best.indices[:, 0]
            margin = min(margin, float((best.values[:, 0] - best.values[:, 1]).min()))
        random = torch.randint(10, (60,), generator=rng)
        labels = torch.where(torch.rand(60, generator=rng) < 0.25, random, predicted["FP"])
        right = {bits: 100 * float((classes == labels).sum()) / 60 for bits, classes in predicted.items()}
        told = sorted(n for value in right.values() for n in (value, 100 - value, value * 60 / 100))
        if margin > 1e-5 and min(b - a for a, b in pairwise(told)) > 0.1:  # no ties
            return model, images, labels, right


def _random_net(images: Tensor, seed: int) -> nn.Module:
    """Three linear layers, in evaluation mode. Sums of the first are exact: one image at a time gives the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a, b, c = (nn.Linear(n_in, n_out, bias=False) for n_in, n_out in ((64, 32), (32, 32), (32, 10)))
    with torch.no_grad():
        a.weight.mul_(64).round_().div_(64)
    model = nn.Sequential(nn.Flatten(), a, nn.ReLU(), b, nn.ReLU(), c)
    return mq.quantize(model, "dorefa", sample=images).eval()


def _wrong_accuracies(right: dict[str, float], bits: str, start: str, count: int) -> list[tuple[str, float]]:
    want = right[bits]
    named = [
        (f"it ignores bits: this is the accuracy at {start}, where the model stood. Use mq.at", right[start]),
        ("this is a fraction: multiply it by 100 for percent", want / 100),
        ("this is the error: the accuracy is the share of right answers", 100 - want),
        ("this is the error, and as a fraction: return the share of right answers in percent", 1 - want / 100),
        ("this is the number of right answers: divide by the number of labels, times 100", want * count / 100),
        ("the result is rounded: return all digits", round(want)),
        ("the result is rounded: return all digits", round(want, 1)),
    ]
    others = [pair for pair in right if pair not in (bits, start)]
    return named + [(f"it ignores bits: this is the accuracy at {p} in place of {bits}", right[p]) for p in others]


def _state(model: nn.Module) -> dict[str, Any]:
    """What a function that only evaluates must leave as it was."""
    try:
        setting = setting_of(model)
    except mq.NotQuantizedError:
        raise Mistake("the model is no longer quantized afterwards: switch bits, do not restore") from None
    weights = torch.cat([value.flatten() for value in model.state_dict().values()])
    mode = [module.training for module in model.modules()]
    return {"bits": setting.key, "norm_stats": setting.norm_stats, "mode": mode, "weights": weights}


def _same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    if after["bits"] != before["bits"]:
        raise Mistake(
            f"the accuracy is right, but the model is left at {after['bits']} and was at {before['bits']}: "
            "with mq.at(model, bits): puts it back"
        )
    if after["norm_stats"] != before["norm_stats"]:
        raise Mistake("the accuracy is right, but the model is left with another norm policy")
    if after["mode"] != before["mode"]:
        raise Mistake("the accuracy is right, but the model is left in training mode: it was in evaluation mode")
    if not torch.equal(after["weights"], before["weights"]):
        raise Mistake("the accuracy is right, but the model's weights have changed: only evaluate it")


accuracy_at = Exercise(
    "accuracy_at",
    "0.3: One model, any bitwidth",
    difficulty=2,
    minutes=10,
    question="""
    Write `accuracy_at(model, images, labels, bits)`: the accuracy in percent of a quantized `model` at `bits`, for
    example `"W2A4"`. `images` is `(batch, channels, height, width)`, `labels` is `(batch,)`, and
    `model(images)` gives logits, `(batch, classes)`. The model is in evaluation mode.

    The model may stand at any bitwidth when it comes; leave it as it was.
    """,
    hints=[
        "with mq.at(model, bits): switches the model inside the block, and back behind it.",
        "The class is where the logit is largest: model(images).argmax(1).",
        "(predicted == labels).float().mean().item() is a fraction between 0 and 1.",
    ],
    solution=_accuracy_at,
    grade=_grade_accuracy_at,
)

EXERCISES = (is_candidate, saving, accuracy_at)
