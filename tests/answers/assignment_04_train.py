"""Assignment 04, the whole run: right answers and wrong ones."""

import torch
import torch.nn.functional as F


def widths(pair):
    return (32, 32) if pair == "FP" else tuple(int(bits) for bits in pair[1:].split("A"))


def quantize_weights(w, pair):
    bits, _ = widths(pair)
    if bits == 32:
        return w
    if bits == 1:
        return w.sign() * w.abs().mean()
    top = 2 ** (bits - 1) - 1
    step = 2 * w.abs().mean() / top**0.5
    return step * torch.round(w / step).clamp(-top, top)


def quantize_input(x, pair):
    _, bits = widths(pair)
    return x if bits == 32 else torch.round(x * (2**bits - 1)) / (2**bits - 1)


def through(w, pair):
    return w + (quantize_weights(w, pair) - w).detach()


def loss_at(w, x, labels, pair, teacher, weights=through, inputs=quantize_input):
    logits = inputs(x, pair) @ weights(w, pair).T
    loss = F.cross_entropy(logits, labels)
    return loss if pair == "FP" else loss + F.cross_entropy(logits, teacher.softmax(1))


def by_autograd(w, x, labels, steps, lr):
    w = w.clone().requires_grad_()
    for pairs in steps:
        loss = sum(loss_at(w, x, labels, pair, (x @ w.T).detach()) for pair in pairs) / len(pairs)
        w = (w - lr * torch.autograd.grad(loss, w)[0]).detach().requires_grad_()
    return w


def by_sgd(w, x, labels, steps, lr):
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    for pairs in steps:
        optimizer.zero_grad()
        with torch.no_grad():
            teacher = layer(x)
        for pair in pairs:
            (loss_at(layer.weight, x, labels, pair, teacher) / len(pairs)).backward()
        optimizer.step()
    return layer.weight.detach()


def by_hand(w, x, labels, steps, lr):
    w, x, hot = w.double(), x.double(), F.one_hot(labels, len(w)).double()
    for pairs in steps:
        teacher = torch.softmax(x @ w.T, 1)
        seen = torch.stack([quantize_input(x, pair) for pair in pairs])  # (pairs, batch, features)
        said = (seen @ torch.stack([quantize_weights(w, pair) for pair in pairs]).mT).softmax(2)
        wanted = torch.stack([hot if pair == "FP" else hot + teacher for pair in pairs])
        pull = wanted.sum(2, keepdim=True) * said - wanted
        w = w - lr * torch.einsum("pbc,pbf->cf", pull, seen) / (len(pairs) * len(x))
    return w


def run(count=len, choose=lambda pairs: pairs, sign=1.0, first=False, **how):
    """An answer with another count, other pairs, another sign, a teacher that ``first`` sets, or another loss."""

    def answer(w, x, labels, steps, lr):
        start = w
        for pairs in steps:
            w = w.detach().requires_grad_()
            teacher = (x @ (start if first else w).T).detach()
            loss = sum(loss_at(w, x, labels, pair, teacher, **how) for pair in choose(pairs)) / count(choose(pairs))
            w = w - sign * lr * torch.autograd.grad(loss, w)[0]
        return w.detach()

    return answer


def with_step(w, pair):
    """Straight through the rounding alone, so that the step of the quantizer has a gradient."""
    bits, _ = widths(pair)
    top = 2 ** (min(bits, 8) - 1) - 1
    step = w.abs().mean() * (1 if bits == 1 else 2 / top**0.5)
    u = w if bits == 1 else w / step
    codes = u.sign() if bits == 1 else u.round().clamp(-top, top)
    return w if bits == 32 else step * (u + (codes - u).detach())


def lost(w, pair):
    return w if pair == "FP" else quantize_weights(w, pair).detach() + 0 * w


def teacher_moves(w, x, labels, steps, lr):
    for pairs in steps:
        w = w.detach().requires_grad_()
        loss = sum(loss_at(w, x, labels, pair, x @ w.T) for pair in pairs) / len(pairs)
        w = w - lr * torch.autograd.grad(loss, w)[0]
    return w


def one_by_one(w, x, labels, steps, lr):
    return by_autograd(w, x, labels, [[pair] for pairs in steps for pair in pairs], lr)


def with_inner_step(w, x, labels, steps, lr):
    for pairs in steps:
        moved = [by_autograd(w, x, labels, [[pair]], lr) for pair in pairs]
        again = [by_autograd(v, x, labels, [[pair]], lr) for v, pair in zip(moved, pairs, strict=True)]
        w = w - sum(a - b for a, b in zip(moved, again, strict=True)) / len(pairs)
    return w


def overwrites(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        soft, total = (x @ w.T).softmax(1), 0
        for pair in pairs:
            w, seen = quantize_weights(w, pair), quantize_input(x, pair)
            said = (seen @ w.T).softmax(1)
            total += ((said - hot) + (said - soft if pair != "FP" else 0)).T @ seen / len(x)
        w = w - lr * total / len(pairs)
    return w


def float_backward(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        soft = (x @ w.T).softmax(1)
        said = sum(2 * (quantize_input(x, pair) @ quantize_weights(w, pair).T).softmax(1) for pair in pairs)
        w = w - lr * (said / len(pairs) - hot - soft).T @ x / len(x)
    return w


def labels_only(w, x, labels, steps, lr):
    hot = torch.eye(len(w))[labels]
    for pairs in steps:
        seen = [(quantize_input(x, pair), quantize_weights(w, pair)) for pair in pairs]
        w = w - lr * sum(((s @ q.T).softmax(1) - hot).T @ s for s, q in seen) / len(x) / len(pairs)
    return w


def first_teaches(w, x, labels, steps, lr):
    for pairs in steps:
        w = w.detach().requires_grad_()
        teacher = (quantize_input(x, pairs[0]) @ quantize_weights(w, pairs[0]).T).detach()
        loss = sum(loss_at(w, x, labels, pair, teacher) for pair in pairs) / len(pairs)
        w = w - lr * torch.autograd.grad(loss, w)[0]
    return w


RIGHT = [by_autograd, by_sgd, by_hand]
WRONG = [
    ("lost in rounding", run(weights=quantize_weights)),
    ("lost in rounding", run(weights=lost)),
    ("teacher has a gradient", teacher_moves),
    ("teachers' term is missing", labels_only),
    ("first pair of the step teaches", first_teaches),
    ("last pair of the step teaches", lambda w, x, labels, steps, lr: first_teaches(
        w, x, labels, [pairs[::-1] for pairs in steps], lr)),
    ("teachers' term counts half", lambda w, *a: (by_hand(w, *a) + labels_only(w, *a)) / 2),
    ("weights are not quantized", run(weights=lambda w, pair: w)),
    ("different pairs", run(count=lambda pairs: len(set(pairs)))),
    ("step of the quantizer", run(weights=with_step)),
    ("input is not quantized", run(inputs=lambda x, pair: x)),
    ("with the float input", float_backward),
    ("sums of the gradients", run(count=lambda pairs: 1)),
    ("drawn twice counts once", run(choose=lambda pairs: list(dict.fromkeys(pairs)))),
    ("FP is not counted", run(count=lambda pairs: len([b for b in pairs if b != "FP"]))),
    ("only the first pair", run(choose=lambda pairs: pairs[:1])),
    ("only the last pair", run(choose=lambda pairs: pairs[-1:])),
    ("uphill", run(sign=-1.0)),
    ("lr is forgotten", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps, 1.0)),
    ("weights move between", one_by_one),
    ("inner loop", with_inner_step),
    ("take the place of w", overwrites),
    ("as it was", lambda w, *a: w.clone()),
    ("returns rounded", lambda *a: quantize_weights(by_hand(*a), a[3][-1][-1])),
    ("that of the start", run(first=True)),
    ("only the first step", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps[:1], lr)),
    ("only the last step", lambda w, x, labels, steps, lr: by_hand(w, x, labels, steps[-1:], lr)),
    ("taken at the first weights", lambda w, x, labels, steps, lr: w + sum(
        by_autograd(w, x, labels, [pairs], lr) - w for pairs in steps).detach()),
    ("one step is made of all", lambda w, x, labels, steps, lr: by_hand(
        w, x, labels, [[pair for pairs in steps for pair in pairs]], lr)),
    ("in place", lambda w, *a: w.copy_(by_hand(w, *a))),
]  # fmt: skip
