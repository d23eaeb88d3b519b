"""Lesson 00: right answers, each written another way, and wrong ones with the message that names them."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch

import mebqat_lite as mq
from mebqat_lite.course.exercises import lesson_00
from mebqat_lite.datasets.base import Split

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def table_of_candidates(w, a):
    excluded = {(32, a) for a in WIDTHS[:-1]} | {(1, a) for a in WIDTHS[1:-1]} | {(w, 1) for w in WIDTHS[1:]}
    return (w, a) not in excluded


def one_line_candidate(w, a):
    return np.bool_((w != 32 or a == 32) and (w != 1 or a in [1, 32]) and (a != 1 or w == 1))


def candidate_by_cases(w, a):
    match w, a:
        case (32, 32) | (1, 1) | (1, 32):
            return True
        case (32 | 1, _) | (_, 1):
            return False
    return True


def candidate_by_numpy(w, a):
    valid = np.ones((33, 33), dtype=bool)
    valid[32, :32] = valid[1, 2:32] = False
    valid[2:, 1] = False
    return valid[w, a]


def candidate_by_lists(w, a):
    pairs = []
    for v in WIDTHS:
        for b in WIDTHS:
            if v == 32 and b < 32:
                continue
            if v == 1 and b not in (1, 32):
                continue
            if b == 1 and v > 1:
                continue
            pairs.append((v, b))
    return (w, a) in pairs


def candidate_by_dictionary(w, a):
    return a in {1: [1, 32], 32: [32]}.get(w, [2, 3, 4, 5, 6, 7, 8, 16, 32])


def candidate_by_xor(w, a):
    return not ((w == 32) & (a < 32) | (w == 1) & (a not in (1, 32)) | (a == 1) & (w != 1))


def saving_by_steps(used, baseline):
    rest = baseline
    rest -= used
    rest /= baseline
    rest *= 100
    return rest


def saving_by_interpolation(used, baseline):
    return np.interp(used, [0, 100 * baseline], [100, 100 - 100 * 100])


@torch.no_grad()
def accuracy_with_reset(model, images, labels, bits, norm_stats):
    setting = mq.switching.state.setting_of(model)
    before = setting.bits, setting.norm_stats
    mq.set_bits(model, bits)
    mq.set_norm_stats(model, norm_stats)
    hits = sum(int(model(images[i : i + 1]).argmax()) == int(labels[i]) for i in range(len(labels)))
    mq.set_bits(model, before[0])
    mq.set_norm_stats(model, before[1])
    return 100 * hits / len(labels)


def accuracy_as_tensor(model, images, labels, bits, norm_stats):
    with mq.at(model, bits, norm_stats):
        return (model(images).softmax(1).max(1).indices == labels).double().mean() * 100


def accuracy_in_numpy(model, images, labels, bits, norm_stats):
    with mq.at(model, bits, norm_stats):
        logits = model(images).detach().numpy()
    return np.mean(np.argmax(logits, axis=1) == labels.numpy()) * 100


def accuracy_in_batches(model, images, labels, bits, norm_stats):
    hits = 0
    with torch.inference_mode(), mq.at(model, mq.Bits.parse(bits), norm_stats):
        for x, y in zip(images.split(16), labels.split(16), strict=True):
            hits += model(x).argmax(dim=-1).eq(y).sum()
    return hits * 100 / labels.numel()


def accuracy_by_counting(model, images, labels, bits, norm_stats):
    with mq.at(model, bits, norm_stats):
        answers = [int(row.topk(1).indices) for row in model(images)]
    right = [a for a, y in zip(answers, labels.tolist(), strict=True) if a == y]
    return len(right) / len(answers) * 100


def accuracy_by_a_matrix(model, images, labels, bits, norm_stats):
    with mq.at(model, bits, norm_stats), torch.no_grad():
        classes = model(images).argmax(1)
    confusion = torch.zeros(10, 10)
    for pair in zip(labels, classes, strict=True):
        confusion[pair] += 1
    return 100 * confusion.trace() / confusion.sum()


def accuracy_with_nested_blocks(model, images, labels, bits, norm_stats):
    with mq.at(model, bits):
        with mq.at(model, bits, norm_stats), torch.no_grad():
            logits = model(images)
        wrong = torch.count_nonzero(logits.argmax(1) - labels)
    return 100 - 100 * wrong.item() / len(labels)


RIGHT = {
    "is_candidate": [
        table_of_candidates,
        one_line_candidate,
        lambda w, a: np.array([is_valid(w, a)]),
        candidate_by_cases,
        candidate_by_numpy,
        candidate_by_lists,
        candidate_by_dictionary,
        candidate_by_xor,
        lambda w, a: mq.Bits(w, a).is_candidate,
        lambda w, a: mq.Bits(w, a) in mq.candidates(),
        lambda w, a: str(mq.Bits(w, a)) in map(str, mq.candidates()),
        lambda w, a: torch.tensor(w == a == 32 or (w == 1 and a in (1, 32)) or (1 < w < 32 and a > 1)),
    ],
    "saving": [
        saving_by_steps,
        saving_by_interpolation,
        lambda used, baseline: 100 - used / (baseline / 100),
        lambda used, baseline: torch.tensor((baseline - used) * 100.0, dtype=torch.float64) / baseline,
        lambda few, many: np.float64(-100) * np.subtract(few, many) / many,
        lambda used, baseline: np.array(100 - 100 * used / baseline),
        lambda used, baseline: torch.tensor([100 - 100 * used / baseline]),
        lambda used, baseline: Fraction(100) * (1 - Fraction(used) / Fraction(baseline)),
        lambda used, baseline: 100 * (1 - Decimal(used) / Decimal(baseline)),
        lambda used, baseline: 100 * (1 - math.exp(math.log(used) - math.log(baseline))),
        lambda used, baseline: torch.lerp(torch.tensor(100.0), torch.tensor(0.0), used / baseline),
    ],
    "accuracy_at": [
        accuracy_with_reset,
        accuracy_as_tensor,
        accuracy_in_numpy,
        accuracy_in_batches,
        accuracy_by_counting,
        accuracy_by_a_matrix,
        accuracy_with_nested_blocks,
        lambda model, images, labels, bits, policy: mq.accuracy(model, Split(images, labels), bits, policy),
        lambda model, images, labels, bits, policy: mq.grid(model, Split(images, labels), bits, norm_stats=policy).loc[
            bits, "mean"
        ],
        lambda model, images, labels, bits, policy: np.float32(mq.accuracy(model, Split(images, labels), bits, policy)),
    ],
}

is_valid = lesson_00.is_candidate.reference
saved = lesson_00.saving.reference
accuracy = lesson_00.accuracy_at.reference


def at_the_start(model, images, labels, bits, norm_stats):
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


def left_switched(model, images, labels, bits, norm_stats):
    mq.set_bits(model, bits)
    return accuracy(model, images, labels, bits, norm_stats)


def back_to_fp(model, images, labels, bits, norm_stats):
    percent = accuracy(model, images, labels, bits, norm_stats)
    mq.set_bits(model, "FP")
    return percent


def left_training(model, images, labels, bits, norm_stats):
    percent = accuracy(model, images, labels, bits, norm_stats)
    model.train()
    return percent


def left_with_other_norms(model, images, labels, bits, norm_stats):
    mq.set_norm_stats(model, norm_stats)
    return accuracy(model, images, labels, bits, norm_stats)


def left_with_quantized_weights(model, images, labels, bits, norm_stats):
    percent = accuracy(model, images, labels, bits, norm_stats)
    with torch.no_grad():
        model[4].weight.copy_(model[4].weight.sign())
    return percent


def left_with_other_statistics(model, images, labels, bits, norm_stats):
    percent = accuracy(model, images, labels, bits, norm_stats)
    model.train()
    model(images)
    model.eval()
    return percent


def left_with_a_hook(model, images, labels, bits, norm_stats):
    model[4].register_forward_hook(lambda *_: None)
    return accuracy(model, images, labels, bits, norm_stats)


def left_as_float(model, images, labels, bits, norm_stats):
    percent = accuracy(model, images, labels, bits, norm_stats)
    mq.restore_float(model)
    return percent


def percents(change):
    return lambda *args: change(accuracy(*args))


WRONG = {
    "is_candidate": [
        ("for W32A1 it returns True, and for 8 more like it: full-precision", lambda w, a: is_valid(w, a) or w == 32),
        ("full-precision weights, w = 32, go with a = 32 only", lambda w, a: (w == 32 and a > 1) or is_valid(w, a)),
        ("for W1A2 it returns True.*w = 1 goes with", lambda w, a: is_valid(w, a) or w == 1),
        ("for W2A1 it returns True.*a = 1 goes with", lambda w, a: is_valid(w, a) or (a == 1 and w < 32)),
        ("for W1A32 it returns False: one-bit weights also", lambda w, a: is_valid(w, a) and (w, a) != (1, 32)),
        ("for W1A1 it returns False: weights and activations", lambda w, a: is_valid(w, a) and (w, a) != (1, 1)),
        ("for W32A32 it returns False: .*full precision", lambda w, a: is_valid(w, a) and w != 32),
        ("for W2A32 it returns False.*a = 32 is valid", lambda w, a: is_valid(w, a) and (a < 32 or w in (1, 32))),
        ("for W2A16 it returns False.*16 is one of the widths", lambda w, a: is_valid(w, a) and 16 not in (w, a)),
        ("accepts only w = a", lambda w, a: w == a),
        ("accepts only w = a", lambda w, a: w == a and w < 32),
        ("True for all 100", lambda w, a: True),
        ("False for all 100", lambda w, a: False),
        ("swapped", lambda w, a: is_valid(a, w)),
        ("yes for no", lambda w, a: not is_valid(w, a)),
        ("for W7A5 it returns False, and for 1 more", lambda w, a: is_valid(w, a) and (w, a) not in [(7, 5), (8, 2)]),
        ("return True or False", lambda w, a: int(is_valid(w, a))),
        ("return True or False", lambda w, a: "yes"),
        ("does every branch end with return", lambda w, a: is_valid(w, a) or None),
    ],
    "saving": [
        ("this is a fraction", lambda used, baseline: 1 - used / baseline),
        ("swapped", lambda used, baseline: saved(baseline, used)),
        ("swapped.*fraction", lambda used, baseline: saved(baseline, used) / 100),
        ("stops at zero", lambda used, baseline: max(0, saved(used, baseline))),
        ("the result is rounded.*for used = ", lambda used, baseline: round(saved(used, baseline))),
        ("rounded", lambda used, baseline: round(saved(used, baseline), 1)),
        ("rounded", lambda used, baseline: round(saved(used, baseline), 2)),
        ("rounded", lambda used, baseline: int(saved(used, baseline))),
        ("divide by the baseline", lambda used, baseline: 100 * (baseline - used) / used),
        ("divide by the baseline, and as a fraction", lambda used, baseline: (baseline - used) / used),
        ("only the part that is used: what", lambda used, baseline: 100 * used / baseline),
        ("only the part that is used, as a fraction", lambda used, baseline: used / baseline),
        ("how many times as much the baseline is: ", lambda used, baseline: baseline / used),
        ("how many times as much the baseline is, in percent", lambda used, baseline: 100 * baseline / used),
        ("sign is wrong", lambda used, baseline: -saved(used, baseline)),
        ("sign is wrong.*fraction", lambda used, baseline: used / baseline - 1),
        ("lost its sign", lambda used, baseline: abs(saved(used, baseline))),
        ("whole-number division", lambda used, baseline: 100 * (1 - used // baseline)),
        ("100 percent minus", lambda used, baseline: 1 - 100 * used / baseline),
        ("no percentage yet", lambda used, baseline: 100 - used / baseline),
        ("this is the difference: divide", lambda used, baseline: baseline - used),
        ("the difference times 100", lambda used, baseline: 100 * (baseline - used)),
        ("right is", lambda used, baseline: 98.7),
        ("right is", lambda used, baseline: {(1, 75): saved(1, 75), (4, 75): saved(4, 75)}.get((used, baseline), 0)),
        ("type str: return a number", lambda used, baseline: f"{saved(used, baseline):.1f} %"),
        ("dtype torch.bool: return a number", lambda used, baseline: torch.tensor(used < baseline)),
        ("type bool: return a number", lambda used, baseline: used < baseline),
        ("NaN or infinity", lambda used, baseline: float("nan")),
        ("tensor of 2 values", lambda used, baseline: torch.tensor([used, baseline])),
        ("type list: return a number", lambda used, baseline: [saved(used, baseline)]),
    ],
    "accuracy_at": [
        ("ignores bits and norm_stats.*as the model stood", at_the_start),
        ("ignores bits|ignores bits and|by its arguments.*FP", lambda m, x, y, b, n: accuracy(m, x, y, "FP", n)),
        ("ignores bits|by its arguments.*W2A2", lambda m, x, y, b, n: accuracy(m, x, y, "W2A2", n)),
        ("ignores norm_stats|by its arguments", lambda m, x, y, b, n: accuracy(m, x, y, b, "running")),
        ("ignores norm_stats", lambda m, x, y, b, n: accuracy(m, x, y, b, None)),
        ("is left at", left_switched),
        ("is left at FP", back_to_fp),
        ("fraction: multiply", percents(lambda p: p / 100)),
        ("this is the error: ", percents(lambda p: 100 - p)),
        ("the error, and as a fraction", percents(lambda p: 1 - p / 100)),
        ("number of right answers", percents(lambda p: round(p / 100 * 61))),
        ("rounded", percents(round)),
        ("rounded", percents(lambda p: round(p, 1))),
        ("cut off|rounded", percents(int)),
        ("for bits = .* the accuracy is right, but the model is left in training mode", left_training),
        ("another norm policy", left_with_other_norms),
        ("weights have changed", left_with_quantized_weights),
        ("statistics have changed", left_with_other_statistics),
        ("a hook is left", left_with_a_hook),
        ("no longer quantized", left_as_float),
        ("dtype torch.bool", lambda m, x, y, b, n: m(x).argmax(1) == y),
        ("tensor of 61 values", lambda m, x, y, b, n: m(x).argmax(1)),
        ("for bits = .* the model standing at .*: it returns 33.7, right is", lambda m, x, y, b, n: 33.7),
    ],
}  # fmt: skip
