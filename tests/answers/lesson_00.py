"""Lesson 00: right answers, each written another way, and wrong ones with the message that names them."""

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


@torch.no_grad()
def accuracy_with_reset(model, images, labels, bits):
    before = mq.switching.state.setting_of(model).bits
    mq.set_bits(model, bits)
    hits = sum(int(model(images[i : i + 1]).argmax()) == int(labels[i]) for i in range(len(labels)))
    mq.set_bits(model, before)
    return 100 * hits / len(labels)


def accuracy_as_tensor(model, images, labels, bits):
    with mq.at(model, bits):
        return (model(images).softmax(1).max(1).indices == labels).double().mean() * 100


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
}

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
}  # fmt: skip
