"""The graders, tried on right answers of several kinds and on every wrong answer that they claim to name."""

import inspect
import re
import warnings

import numpy as np
import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.datasets.base import Split
from mebqat_lite.exercises import Exercise, Mistake, checked, expect, lesson_00, lesson_01

EXERCISES = (*lesson_00.EXERCISES, *lesson_01.EXERCISES)
SEEDS = (0, 1, 2)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
every = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


def signed(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


# --- right answers, each written another way -------------------------------------------------------------------


def table_of_candidates(w, a):
    excluded = {(32, a) for a in WIDTHS[:-1]} | {(1, a) for a in WIDTHS[1:-1]} | {(w, 1) for w in WIDTHS[1:]}
    return (w, a) not in excluded


def one_line_candidate(w, a):
    return np.bool_((w != 32 or a == 32) and (w != 1 or a in [1, 32]) and (a != 1 or w == 1))


@torch.no_grad()
def accuracy_with_reset(model, images, labels, bits):
    before = mq.state.setting_of(model).bits
    mq.set_bits(model, bits)
    hits = sum(int(model(images[i : i + 1]).argmax()) == int(labels[i]) for i in range(len(labels)))
    mq.set_bits(model, before)
    return 100 * hits / len(labels)


def accuracy_as_tensor(model, images, labels, bits):
    with mq.at(model, bits):
        return (model(images).softmax(1).max(1).indices == labels).double().mean() * 100


def uniform_by_hand(x, step, low, high):
    out = torch.zeros_like(x)
    for code in range(low, high + 1):
        below = -torch.inf if code == low else (code - 0.5) * step
        above = torch.inf if code == high else (code + 0.5) * step
        out[(x >= below) & (x < above)] = code * step
    return out


def uniform_double(x, step, low, high):
    return torch.fake_quantize_per_tensor_affine(x, step, 0, low, high).double()


def step_by_golden_section(x, bits):
    low, high = signed(bits)

    def error(step):
        return float((step * (x / step).round().clamp(low, high) - x).square().sum())

    a, b = float(x.std()) / 2**bits, 4 * float(x.std()) / 2 ** (bits - 1)
    for _ in range(40):
        c, d = b - (b - a) * 0.618, a + (b - a) * 0.618
        a, b = (a, d) if error(c) < error(d) else (c, b)
    return torch.tensor([(a + b) / 2])


def step_by_alternation(x, bits):
    """Codes of a step, then the step of least error for these codes, from two starts."""
    best = []
    for step in (float(x.std()) / 2 ** (bits - 2), 1.5 * float(x.std()) / 2 ** (bits - 2)):
        for _ in range(200):
            codes = (x / step).round().clamp(*signed(bits))
            step = float((codes * x).sum() / codes.square().sum())
        best.append((float((step * codes - x).square().mean()), step))
    return np.float32(min(best)[1])


def steps_of_ptq(x, bits):
    return mq.ptq.mse_step(x.reshape(1, -1), *signed(bits)).item()


def matmul_in_float(x, w, x_step, w_step):
    return (x.float() * x_step) @ (w.float() * w_step).T


def matmul_in_loops(x, w, x_step, w_step):
    rows = [[sum(map(int.__mul__, a, b)) * x_step * w_step for b in w.tolist()] for a in x.tolist()]
    return torch.tensor(rows)


RIGHT = {
    "is_candidate": [table_of_candidates, one_line_candidate, lambda w, a: mq.Bits(w, a).is_candidate],
    "saving": [
        lambda used, baseline: 100 - used / (baseline / 100),
        lambda used, baseline: torch.tensor((baseline - used) * 100.0, dtype=torch.float64) / baseline,
        lambda few, many: np.float64(-100) * np.subtract(few, many) / many,
    ],
    "accuracy_at": [
        accuracy_with_reset,
        accuracy_as_tensor,
        lambda model, images, labels, bits: mq.accuracy(model, Split(images, labels), bits),
    ],
    "uniform": [
        uniform_by_hand,
        uniform_double,
        lambda x, step, low, high: torch.clip(torch.floor(x / step + 0.5), low, high) * step,
        lambda x, step, low, high: (x.clamp(low * step, high * step) / step).round() * step,
        lambda x, step, low, high: mq.quantizers.step_clip(x.requires_grad_(), torch.tensor(step), low, high),
    ],
    "best_step": [step_by_golden_section, step_by_alternation, steps_of_ptq],
    "integer_matmul": [
        matmul_in_float,
        matmul_in_loops,
        lambda x, w, s, t: (x.long()[:, None] * w[None]).sum(-1).double() * s * t,
        lambda x, w, s, t: torch.nn.functional.linear(x.int(), w.int()) * torch.tensor(s) * torch.tensor(t),
    ],
}


@every
@pytest.mark.parametrize("seed", SEEDS)
def test_the_solution_is_right(exercise, seed):
    assert exercise.check(exercise.reference, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "answer"), [(name, f) for name in RIGHT for f in RIGHT[name]])
def test_other_right_answers_pass(name, answer, seed, capsys):
    result = by_name(name).check(answer, seed=seed)
    assert result.status == "OK", result.line
    assert capsys.readouterr().out == f"[OK] {name}: right on every input that was tried\n"


def by_name(name):
    return next(exercise for exercise in EXERCISES if exercise.name == name)


# --- wrong answers, each with the message that names it --------------------------------------------------------

is_valid = lesson_00.is_candidate.reference
saved = lesson_00.saving.reference
accuracy = lesson_00.accuracy_at.reference


def at_the_start(model, images, labels, bits):
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


def left_switched(model, images, labels, bits):
    mq.set_bits(model, bits)
    return at_the_start(model, images, labels, bits)


def back_to_fp(model, images, labels, bits):
    percent = left_switched(model, images, labels, bits)
    mq.set_bits(model, "FP")
    return percent


def left_training(model, images, labels, bits):
    percent = accuracy(model, images, labels, bits)
    model.train()
    return percent


def left_with_other_norms(model, images, labels, bits):
    mq.set_norm_stats(model, "batch")
    return accuracy(model, images, labels, bits)


def left_with_quantized_weights(model, images, labels, bits):
    percent = accuracy(model, images, labels, bits)
    with torch.no_grad():
        model[3].weight.copy_(model[3].weight.sign())
    return percent


def left_as_float(model, images, labels, bits):
    percent = accuracy(model, images, labels, bits)
    mq.restore_float(model)
    return percent


def clip_round(x, step, low, high):
    return (x / step).round().clamp(low, high)


def search(x, bits, low, high, error=torch.square, pick=min):
    steps = [float(x.abs().max()) / 2 ** (bits - 1) * k / 200 for k in range(1, 240)]
    return pick((float(error(step * (x / step).round().clamp(low, high) - x).mean()), step) for step in steps)


def product(x, w, wide=torch.int32):
    return x.to(wide) @ w.to(wide).T


WRONG = {
    "is_candidate": [
        ("w = 32 with a < 32", lambda w, a: is_valid(w, a) or w == 32),
        ("w = 32 with a < 32", lambda w, a: (w == 32 and a > 1) or is_valid(w, a)),
        ("W1A4 is not valid", lambda w, a: is_valid(w, a) or w == 1),
        ("W3A1 is not valid", lambda w, a: is_valid(w, a) or (a == 1 and w < 32)),
        ("W1A32 is forgotten", lambda w, a: is_valid(w, a) and (w, a) != (1, 32)),
        ("W1A1 is forgotten", lambda w, a: is_valid(w, a) and (w, a) != (1, 1)),
        ("FP is forgotten", lambda w, a: is_valid(w, a) and w != 32),
        ("a = 32 is forgotten", lambda w, a: is_valid(w, a) and (a < 32 or w in (1, 32))),
        ("16 is forgotten", lambda w, a: is_valid(w, a) and 16 not in (w, a)),
        ("only the diagonal", lambda w, a: w == a),
        ("only the diagonal", lambda w, a: w == a and w < 32),
        ("True for all 100", lambda w, a: True),
        ("False for all 100", lambda w, a: False),
        ("swapped", lambda w, a: is_valid(a, w)),
        ("yes for no", lambda w, a: not is_valid(w, a)),
        ("among them W7A5", lambda w, a: is_valid(w, a) and (w, a) not in [(7, 5), (8, 2)]),
        ("return True or False", lambda w, a: int(is_valid(w, a))),
        ("return True or False", lambda w, a: "yes"),
        ("let every branch|does every branch end with return", lambda w, a: is_valid(w, a) or None),
    ],
    "saving": [
        ("fraction", lambda used, baseline: 1 - used / baseline),
        ("swapped", lambda used, baseline: saved(baseline, used)),
        ("stops at zero", lambda used, baseline: max(0, saved(used, baseline))),
        ("rounded", lambda used, baseline: round(saved(used, baseline))),
        ("rounded", lambda used, baseline: round(saved(used, baseline), 1)),
        ("rounded", lambda used, baseline: round(saved(used, baseline), 2)),
        ("rounded", lambda used, baseline: int(saved(used, baseline))),
        ("divide by the baseline", lambda used, baseline: 100 * (baseline - used) / used),
        ("the part that is used", lambda used, baseline: 100 * used / baseline),
        ("sign is wrong", lambda used, baseline: -saved(used, baseline)),
        ("lost its sign", lambda used, baseline: abs(saved(used, baseline))),
        ("whole-number division", lambda used, baseline: 100 * (1 - used // baseline)),
        ("this is the difference", lambda used, baseline: baseline - used),
        ("right is", lambda used, baseline: 98.7),
        ("type str: return a number", lambda used, baseline: f"{saved(used, baseline):.1f} %"),
        ("type bool: return a number", lambda used, baseline: used < baseline),
        ("NaN or infinity", lambda used, baseline: float("nan")),
        ("tensor of 2 values", lambda used, baseline: torch.tensor([used, baseline])),
    ],
    "accuracy_at": [
        ("ignores bits: this is the accuracy at .*, where the model stood", at_the_start),
        ("ignores bits: .*(FP|where the model stood)", lambda m, x, y, bits: accuracy(m, x, y, "FP")),
        ("ignores bits: .*(W2A2|where the model stood)", lambda m, x, y, bits: accuracy(m, x, y, "W2A2")),
        ("left at", left_switched),
        ("is left at FP", back_to_fp),
        ("fraction: multiply", lambda m, x, y, bits: accuracy(m, x, y, bits) / 100),
        ("this is the error: ", lambda m, x, y, bits: 100 - accuracy(m, x, y, bits)),
        ("the error, and as a fraction", lambda m, x, y, bits: 1 - accuracy(m, x, y, bits) / 100),
        ("number of right answers", lambda m, x, y, bits: accuracy(m, x, y, bits) / 100 * len(y)),
        ("rounded", lambda m, x, y, bits: round(accuracy(m, x, y, bits))),
        ("rounded", lambda m, x, y, bits: round(accuracy(m, x, y, bits), 1)),
        ("left in training mode", left_training),
        ("another norm policy", left_with_other_norms),
        ("weights have changed", left_with_quantized_weights),
        ("no longer quantized", left_as_float),
        ("tensor of 60 values", lambda m, x, y, bits: m(x).argmax(1) == y),
        ("for bits = .* and a model left at .*: it returns 33.7, right is", lambda m, x, y, bits: 33.7),
    ],
    "uniform": [
        ("beyond high .* clip the codes, not x", lambda x, s, low, high: s * (x / s).round()),
        ("clip.* codes", lambda x, s, low, high: s * (x.clamp(low, high) / s).round()),
        ("it clips x at low and high", lambda x, s, low, high: (s * (x / s).round()).clamp(low, high)
         if s > 1 else s * clip_round(x, s, low, high)),
        ("it clips x at low and high", lambda x, s, low, high: s * (x.clamp(low, high) / s).round()
         if s > 1 else s * clip_round(x, s, low, high)),
        ("rounds down", lambda x, s, low, high: s * (x / s).floor().clamp(low, high)),
        ("rounds down", lambda x, s, low, high: s * (x // s).clamp(low, high)),
        ("towards zero", lambda x, s, low, high: s * (x / s).clamp(low, high).int().float()),
        ("towards zero", lambda x, s, low, high: s * (x / s).trunc().clamp(low, high)),
        ("rounds up", lambda x, s, low, high: s * (x / s).ceil().clamp(low, high)),
        ("multiply them by step again", clip_round),
        ("highest code is high, not high", lambda x, s, low, high: s * clip_round(x, s, low, high + 1)),
        ("lowest code is low, not low", lambda x, s, low, high: s * clip_round(x, s, low - 1, high)),
        ("one level is missing", lambda x, s, low, high: s * clip_round(x, s, low, high - 1)),
        ("clip at low, not at 0", lambda x, s, low, high: s * clip_round(x, s, 0, high)),
        ("not symmetric", lambda x, s, low, high: s * clip_round(x, s, -high, high)),
        ("does not round", lambda x, s, low, high: s * (x / s).clamp(low, high)),
        ("divide first", lambda x, s, low, high: s * (x.round() / s).clamp(low, high)),
        ("never divided by step", lambda x, s, low, high: s * x.round().clamp(low, high)),
        ("divided by step: multiply", lambda x, s, low, high: clip_round(x, s, low, high) / s),
        ("x comes back", lambda x, s, low, high: x),
        ("below low . step", lambda x, s, low, high: s * (x / s).round().clamp(max=high)),
        ("beyond high", lambda x, s, low, high: s * (x / s).floor()),
        ("not multiples of step", lambda x, s, low, high: s * clip_round(x, s, low, high) * 0.9),
        ("for step = .* values are wrong", lambda x, s, low, high: torch.zeros_like(x)),
        ("has shape", lambda x, s, low, high: (s * clip_round(x, s, low, high)).flatten()),
        ("dtype torch.int32", lambda x, s, low, high: clip_round(x, s, low, high).int()),
        ("dtype torch.float16", lambda x, s, low, high: (s * clip_round(x, s, low, high)).half()),
        ("type list: return a tensor", lambda x, s, low, high: (s * clip_round(x, s, low, high)).tolist()),
        ("NaN or infinity", lambda x, s, low, high: x / 0),
        ("changes its input x in place", lambda x, s, low, high: x.div_(s).round_().clamp_(low, high).mul_(s)),
    ],
    "best_step": [
        ("clips nothing", lambda x, bits: float(x.abs().max()) / signed(bits)[1]),
        ("clips nothing", lambda x, bits: float(x.abs().max()) / 2 ** (bits - 1)),
        ("clips nothing", lambda x, bits: float(x.max() - x.min()) / (2**bits - 1)),
        ("too small", lambda x, bits: float(x.abs().mean()) / 4**bits),
        ("too large", lambda x, bits: 3 * search(x, bits, *signed(bits))[1]),
        ("the same step whatever x and bits are", lambda x, bits: 0.1),
        ("the same step whatever x is", lambda x, bits: 1 / 2**bits),
        ("fewer levels need a larger step", lambda x, bits: float(x.std()) / 2),
        ("fewer levels need a larger step", lambda x, bits: float(x.abs().max())),
        ("this is the least error", lambda x, bits: search(x, bits, *signed(bits))[0]),
        ("too small|too large", lambda x, bits: search(x, bits, *signed(bits), pick=max)[1]),
        ("clips nothing|too large", lambda x, bits: float(x.std()) * {2: 0.9957, 3: 0.586, 4: 0.3352}[bits] * 2),
        ("at . bits your step .* is too small", lambda x, bits: float(x.std()) * 0.9957 * 0.58 ** (bits - 2)),
        ("LSQ's start", lambda x, bits: 2 * float(x.abs().mean()) / signed(bits)[1] ** 0.5),
        ("codes 0 .. 2.bits - 1", lambda x, bits: search(x, bits, 0, 2**bits - 1)[1]),
        ("twice as many codes", lambda x, bits: search(x, bits, -(2**bits), 2**bits - 1)[1]),
        ("absolute error: square it", lambda x, bits: search(x, bits, *signed(bits), torch.abs)[1]),
        ("finer grid", lambda x, bits: 1.12 * search(x, bits, *signed(bits))[1]),
        ("too small", lambda x, bits: 0.4 * search(x, bits, *signed(bits))[1]),
        ("a step is positive", lambda x, bits: 0.0),
        ("tensor of 40 values: return one number", lambda x, bits: x.abs().amax(1) / 2**bits),
        ("type tuple: return a number", lambda x, bits: search(x, bits, *signed(bits))),
        ("changes its input x", lambda x, bits: float(x.abs_().max()) / bits),
    ],
    "integer_matmul": [
        ("the sum overflows in int8", lambda x, w, s, t: (x @ w.T) * (s * t)),
        ("the sum overflows in int8", lambda x, w, s, t: (x @ w.T).int() * (s * t)),
        ("the sum overflows in int16", lambda x, w, s, t: product(x, w, torch.int16) * (s * t)),
        ("single products overflow", lambda x, w, s, t: (x[:, None] * w).sum(2) * (s * t)),
        ("range of int8", lambda x, w, s, t: product(x, w).clamp(-128, 127) * (s * t)),
        ("w_step is forgotten", lambda x, w, s, t: product(x, w) * s),
        ("x_step is forgotten", lambda x, w, s, t: product(x, w) * t),
        ("whole numbers .torch.int32.", lambda x, w, s, t: product(x, w)),
        ("both steps are forgotten", lambda x, w, s, t: product(x, w).float()),
        ("divided by the steps", lambda x, w, s, t: product(x, w) / (s * t)),
        ("steps are added", lambda x, w, s, t: product(x, w) * (s + t)),
        ("take the sum", lambda x, w, s, t: product(x, w) * (s * t) / x.shape[1]),
        ("multiply by its transpose", lambda x, w, s, t: (x.int() @ w.int()) * (s * t)),
        ("multiply by its transpose", lambda x, w, s, t: product(x, w.reshape(w.shape[1], -1).T) * (s * t)),
        ("RuntimeError", lambda x, w, s, t: (x.float() @ w) * (s * t)),
        ("has shape", lambda x, w, s, t: product(w, x) * (s * t)),
        ("dtype torch.float16", lambda x, w, s, t: (product(x, w) * (s * t)).half()),
        ("values are wrong", lambda x, w, s, t: product(x.abs(), w) * (s * t)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "message", "answer"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_wrong_answers_are_named(name, message, answer, seed, capsys):
    result = by_name(name).check(answer, seed=seed)
    assert result.status == "try again"
    assert re.search(message, result.line), result.line
    assert capsys.readouterr().out == result.line + "\n"
    assert result.line.startswith(f"[try again] {name}: ") and result.line.endswith(f" (seed {seed})")


@every
def test_every_exercise_has_many_wrong_answers(exercise):
    assert len(WRONG[exercise.name]) >= 6 and len(RIGHT[exercise.name]) >= 2


@every
def test_a_hard_coded_answer_fails(exercise):
    """What is right for one seed is wrong for the next."""
    recorded = []

    def record(*args):
        recorded.append(exercise.reference(*args))
        return recorded[-1]

    assert exercise.check(record, seed=5)
    replay = iter(recorded)
    assert not exercise.check(lambda *args: recorded[0], seed=6)
    assert not exercise.check(lambda *args: next(replay), seed=6)


# --- not attempted ---------------------------------------------------------------------------------------------


def placeholder(*args):
    raise NotImplementedError("write me")


def empty(*args):
    """To do."""


@every
@pytest.mark.parametrize(
    "function", [None, ..., placeholder, empty, lambda *_: ..., lambda *_: NotImplemented, torch.nn.Module()]
)
def test_not_attempted_is_not_wrong(exercise, function, capsys):
    result = exercise.check(function)
    assert result.status == "not attempted" and not result
    line = capsys.readouterr().out
    assert line.startswith(f"[not attempted] {exercise.name}: ") and line.count("\n") == 1
    assert "seed" not in line


def test_not_attempted_without_an_argument():
    assert lesson_01.uniform.check().line == "[not attempted] uniform: write uniform, then run this again"


def test_none_later_is_a_mistake():
    result = lesson_00.saving.check(lambda used, baseline: saved(used, baseline) if used < baseline else None)
    assert result.status == "try again" and "every branch" in result.line


def test_a_library_that_cannot_is_a_mistake_not_a_placeholder():
    def half(x, w, s, t):
        torch.ones(2, dtype=torch.bool).logical_not().float().to(torch.complex64).floor()

    result = lesson_01.integer_matmul.check(half)
    assert result.status == "try again" and "of your function" in result.line

    def library(x, w, s, t):
        return torch.nn.Module()(x)

    result = lesson_01.integer_matmul.check(library)
    assert result.status == "try again" and "NotImplementedError" in result.line


# --- what a learner's function may do to the grader ------------------------------------------------------------


def boom(x, step, low, high):
    codes = x / step
    codes = codes / undefined  # noqa: F821
    return codes


@torch.no_grad()
def wrapped(x, step, low, high):
    codes = [x][3]
    return codes


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (boom, "it stops with NameError: name 'undefined' is not defined, in line 3 of your function: "
               "codes = codes / undefined"),
        (wrapped, r"it stops with IndexError: list index out of range, in line 3 of your function: codes = \[x\]\[3\]"),
        (lambda x: x, r"it stops with TypeError: .*takes 1 positional argument but 4 were given \(seed"),
        (lambda *_: torch.ones(2) @ torch.ones(3), "it stops with RuntimeError: .* in line 1 of your function"),
        (3.0, r"give the function itself, not what it returns: check\(uniform\)"),
    ],
)  # fmt: skip
def test_an_exception_inside_is_one_line(function, text, capsys):
    result = lesson_01.uniform.check(function)
    out = capsys.readouterr()
    assert re.search(text, result.line), result.line
    assert result.status == "try again"
    assert out.out.count("\n") == 1 and "Traceback" not in out.out and not out.err


def test_a_long_error_message_is_cut():
    def shout(*args):
        raise ValueError("no\n" * 500)

    assert len(lesson_01.uniform.check(shout).line) < 400


def test_keyboard_interrupt_passes():
    def stop(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesson_01.uniform.check(stop)


def test_input_changed_in_place_is_told_and_does_not_reach_the_grader():
    def spoil(x, step, low, high):
        x.zero_()
        return x

    assert "changes its input x in place" in lesson_01.uniform.check(spoil).line

    def spoil_second(x, w, s, t):
        w.data = w.data.int()
        return product(x, w) * (s * t)

    assert "changes its input w_codes in place" in lesson_01.integer_matmul.check(spoil_second).line


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    for exercise in EXERCISES:
        exercise.check(exercise.reference)
    assert torch.equal(torch.rand(3), want)


def inputs(exercise, seed=None):
    """The arguments of every call of one check, as text."""
    seen = []

    def watch(*args):
        shown = [arg.sum() if isinstance(arg, torch.Tensor) else arg for arg in args]
        seen.append(str([arg for arg in shown if not isinstance(arg, torch.nn.Module)]))
        return exercise.reference(*args)

    return exercise.check(watch, seed=seed).seed, seen


@every
def test_a_seed_repeats_the_input_and_another_changes_it(exercise):
    assert inputs(exercise, 1) == inputs(exercise, 1)
    assert inputs(exercise, 1)[1] != inputs(exercise, 2)[1]
    seed, seen = inputs(exercise)  # a fresh one
    assert inputs(exercise, seed)[1] == seen


def test_fresh_seeds_differ_whatever_the_learner_seeds():
    drawn = set()
    for _ in range(5):
        torch.manual_seed(0)
        drawn.add(lesson_00.saving.check(saved).seed)
    assert len(drawn) > 1


def test_the_same_seed_gives_the_same_line():
    wrong = WRONG["best_step"][3][1]
    assert lesson_01.best_step.check(wrong, seed=7) == lesson_01.best_step.check(wrong, seed=7)


# --- what is shown ---------------------------------------------------------------------------------------------


def test_a_result_shows_nothing_more_in_a_notebook():
    formatters = pytest.importorskip("IPython.core.formatters")
    result = lesson_00.saving.check(saved, seed=1)
    assert formatters.DisplayFormatter().format(result) == ({}, {})
    assert repr(result) == "Result(name='saving', status='OK')"
    assert result and not lesson_00.saving.check(None)


def test_a_cell_prints_the_line_once():
    """In a real kernel: one line of text, no second value, no traceback."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "from mebqat_lite.exercises import lesson_01\nlesson_01.uniform",
        "def mine(x, step, low, high):\n    return x / zero\n\nlesson_01.uniform.check(mine, seed=3)",
        "lesson_01.uniform.check(None)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    [question], [failed], [not_attempted] = (cell.outputs for cell in notebook.cells)
    assert question.data["text/markdown"] == lesson_01.uniform._repr_markdown_()
    assert failed.name == "stdout" and failed.text == (
        "[try again] uniform: it stops with NameError: name 'zero' is not defined, "
        "in line 2 of your function: return x / zero (seed 3)\n"
    )
    assert not_attempted.text == "[not attempted] uniform: write uniform, then run this again\n"


@every
def test_an_exercise_shows_itself(exercise, capsys):
    markdown = exercise._repr_markdown_()
    assert exercise.name in markdown and exercise.title in markdown
    assert f"{exercise.minutes} minutes" in markdown and len(re.findall("[●○]", markdown)) == 3
    assert "●" in exercise.dots and "\n" not in repr(exercise) and exercise.title in repr(exercise)
    assert not any(line.startswith("    ") for line in markdown.splitlines())  # would be a code block
    assert not capsys.readouterr().out


@every
def test_hints(exercise, capsys):
    count = len(exercise.hints)
    for n in range(1, count + 1):
        exercise.hint(n)
        assert capsys.readouterr().out == f"Hint {n} of {count}: {exercise.hints[n - 1]}\n"
    exercise.hint()
    assert capsys.readouterr().out.startswith(f"Hint 1 of {count}: ")
    for n in (0, -1, 9):
        exercise.hint(n)
        assert capsys.readouterr().out == f"{exercise.name} has {count} hints: hint(1) to hint({count})\n"


@every
def test_the_printed_solution_runs_and_is_right(exercise, capsys):
    exercise.solution()
    source = capsys.readouterr().out
    assert source.startswith(f"def {exercise.name}(") and source.endswith("\n")
    names = {"torch": torch, "mq": mq}
    exec(source, names)
    assert exercise.check(names[exercise.name])
    assert next(iter(inspect.signature(names[exercise.name]).parameters)) in exercise.question


@every
def test_the_question_gives_the_signature(exercise):
    arguments = ", ".join(inspect.signature(exercise.reference).parameters)
    assert f"`{exercise.name}({arguments})`" in exercise.question


# --- the graders' own tools ------------------------------------------------------------------------------------


def test_checked_accepts_what_is_a_number():
    for value in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor([[2.0]])):
        assert float(checked(value, 0.0)) == 2
    for value in ("2", True, [2.0], (2.0,), 2j, np.array([2.0]), len):
        with pytest.raises(Mistake, match="return a number"):
            checked(value, 0.0)


def test_expect_names_the_first_mistake_that_fits():
    x = torch.ones(3)
    expect(x, x, "x")
    with pytest.raises(Mistake, match=r"^second$"):
        expect(2 * x, x, "x", [("first", 3 * x), ("second", 2 * x), ("third", 2 * x)])
    with pytest.raises(Mistake, match=r"^for x: 1 of 3 values are wrong: it returns 5, right is 1$"):
        expect(torch.tensor([1.0, 5.0, 1.0]), x, "x", [("first", 3 * x)])


def test_an_exercise_of_your_own(capsys):
    def _double(x):
        return 2 * x

    def grade(student, rng):
        x = float(torch.rand((), generator=rng))
        expect(student(x), 2 * x, f"x = {x:.3g}", [("this is x squared", x * x)])

    exercise = Exercise("double", "9.1: Twice", 3, 1, "Write `double(x)`.", ["Add."], _double, grade)
    assert exercise.check(lambda x: x + x)
    assert "this is x squared" in exercise.check(lambda x: x * x).line
    assert exercise._repr_markdown_() == "**Exercise 9.1: Twice** · ●●● · 1 minutes\n\nWrite `double(x)`."


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exercise in EXERCISES:
            exercise.check(exercise.reference)
