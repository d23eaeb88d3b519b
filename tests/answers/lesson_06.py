"""Lesson 06: right answers, each written another way, and wrong ones with the message that names them."""

import math

import torch
import torch.nn.functional as F

import mebqat_lite as mq


def highest(widths):
    return torch.tensor([2.0 ** (bits - 1) - 1 for bits in widths])


def steps_in_a_loop(w, widths):
    found = []
    for bits in widths:
        found.append(2 * float(w.double().abs().mean()) / math.sqrt(2 ** (bits - 1) - 1))
    return found


def steps(w, widths, size=None, p=None):
    return 2 * (w.abs().mean() if size is None else size) / (highest(widths) if p is None else p).sqrt()


def codes(widths):
    return 2 ** torch.tensor(widths)


def matrix_in_loops(support, query):
    pairs, ways, queries = query.shape[:3]
    found = torch.zeros(pairs, pairs)
    for i in range(pairs):
        prototypes = support[i].mean(1)
        for j in range(pairs):
            hits = 0
            for n in range(ways):
                for q in range(queries):
                    hits += int((prototypes - query[j, n, q]).square().sum(1).argmin()) == n
            found[i, j] = 100 * hits / (ways * queries)
    return found


def matrix_by_logits(support, query):
    labels = torch.arange(query.shape[1]).repeat_interleave(query.shape[2])
    rows = [
        torch.stack(
            [
                (mq.learners.prototype_logits(q.flatten(0, 1), s.mean(1)).argmax(1) == labels).double().mean() * 100
                for q in query
            ]
        )
        for s in support
    ]
    return torch.stack(rows)


def enrolled(support, query, prototypes=None, score=None, order="repeat_interleave"):
    prototypes = support.mean(2) if prototypes is None else prototypes
    score = score or (lambda q, c: -torch.cdist(q, c))
    ways, asked = query.shape[1:3]
    labels = (
        torch.arange(ways).repeat_interleave(asked)
        if order == "repeat_interleave"
        else torch.arange(ways).repeat(asked)
    )
    rows = [[(score(q.flatten(0, 1), c).argmax(1) == labels).float().mean() for q in query] for c in prototypes]
    return 100 * torch.tensor(rows)


def nearest_example(support, query):
    labels = torch.arange(query.shape[1]).repeat_interleave(query.shape[2])
    shots = support.shape[2]
    rows = [
        [(torch.cdist(q.flatten(0, 1), s.flatten(0, 1)).argmin(1) // shots == labels).float().mean() for q in query]
        for s in support
    ]
    return 100 * torch.tensor(rows)


def batch(support, query):
    return torch.cat([support.flatten(0, 1), query.flatten(0, 1)])


def labels_of(query):
    return torch.arange(query.shape[0]).repeat_interleave(query.shape[1])


def squares(query, centres):
    return -(query[:, None] - centres).square().sum(2)


def logits_at(model, support, query, bits, score=squares, middle=None):
    """Logits of the queries, (N Q, N), support and query in one batch."""
    count = support.shape[0] * support.shape[1]
    with mq.at(model, bits):
        out = model(batch(support, query))
    known = out[:count].unflatten(0, support.shape[:2])
    return score(out[count:], middle(known) if middle else known.mean(1))


def losses(model, support, query, pairs, at=logits_at, hard=1, soft=1, target=None, fp=0, cross=F.cross_entropy, **how):
    """A loss for each pair; ``target`` makes the teacher's probabilities of the logits at FP."""
    labels, teacher, found = how.pop("labels", labels_of)(query), None, []
    target = target or (lambda z: z.detach().softmax(1))
    for bits in pairs:
        z = at(model, support, query, bits, **how)
        teacher = target(z) if teacher is None else teacher
        weights = (1, fp) if bits == mq.FP else (hard, soft)
        found.append(weights[0] * cross(z, labels) + weights[1] * cross(z, teacher))
    return torch.stack(found)


def losses_with_a_frozen_teacher(model, support, query, pairs):
    with torch.no_grad():
        teacher = logits_at(model, support, query, mq.FP).softmax(1)
    found = [F.cross_entropy(z := logits_at(model, support, query, b), labels_of(query)) + (b != mq.FP) *
             F.cross_entropy(z, teacher) for b in pairs]  # fmt: skip
    return torch.stack(found)


def losses_by_hand(model, support, query, pairs):
    found, teacher = torch.zeros(len(pairs), dtype=support.dtype), None
    for i, bits in enumerate(pairs):
        said = logits_at(model, support, query, bits).log_softmax(1)
        found[i] = -said[range(len(said)), labels_of(query)].mean()
        if i == 0:
            teacher = said.detach().exp()
        else:
            found[i] = found[i] - (teacher * said).sum(1).mean()
    return found


def losses_set_and_restored(model, support, query, pairs):
    before = mq.switching.state.setting_of(model).bits

    def at(model, support, query, bits):
        mq.set_bits(model, bits)
        out = model(batch(support, query))
        mq.set_bits(model, before)
        count = support.shape[0] * support.shape[1]
        return mq.learners.prototype_logits(out[count:], out[:count].unflatten(0, support.shape[:2]).mean(1))

    return losses(model, support, query, pairs, at)


def left_at_bits(model, support, query, pairs):
    mq.set_bits(model, "W2A2")
    return losses(model, support, query, pairs)


def left_policy(model, support, query, pairs):
    mq.set_norm_stats(model, "batch")
    return losses(model, support, query, pairs)


def left_evaluating(model, support, query, pairs):
    return losses(model.eval(), support, query, pairs)


def moved(model, support, query, pairs):
    found = losses(model, support, query, pairs)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    return found


def gone_backward(model, support, query, pairs):
    found = losses(model, support, query, pairs)
    found.sum().backward(retain_graph=True)
    return found


def previous_teaches(model, support, query, pairs):
    zs, labels = [logits_at(model, support, query, bits) for bits in pairs], labels_of(query)
    pairs_of = zip(zs[1:], zs, strict=False)
    taught = [F.cross_entropy(z, labels) + F.cross_entropy(z, by.detach().softmax(1)) for z, by in pairs_of]
    return torch.stack([F.cross_entropy(zs[0], labels), *taught])


def two_batches(model, support, query, bits):
    with mq.at(model, bits):
        known, asked = model(support.flatten(0, 1)), model(query.flatten(0, 1))
    return squares(asked, known.unflatten(0, support.shape[:2]).mean(1))


def of_queries(model, support, query, bits):
    with mq.at(model, bits):
        out = model(batch(support, query))[support.shape[0] * support.shape[1] :]
    return squares(out, out.unflatten(0, query.shape[:2]).mean(1))


def cycled(query):
    return torch.arange(query.shape[0]).repeat(query.shape[1])


def divergence(z, target):
    return F.kl_div(z.log_softmax(1), target, reduction="batchmean") if target.dim() > 1 else F.cross_entropy(z, target)


def other_classes(known):
    return known.flatten(0, 1).unflatten(0, (known.shape[1], known.shape[0])).mean(0)


def unit(x):
    return F.normalize(x, dim=-1)


RIGHT = {
    "own_steps": [
        steps_in_a_loop,
        lambda w, b: steps(w.double(), b).numpy(),
        lambda w, b: torch.stack([2 * w.norm(1) / w.numel() / (2 ** (bits - 1) - 1) ** 0.5 for bits in b]),
    ],
    "pair_losses": [losses_with_a_frozen_teacher, losses_by_hand, losses_set_and_restored, losses],
    "cross_enrolment": [
        lambda s, q: enrolled(s, q).tolist(),
        matrix_in_loops,
        matrix_by_logits,
        lambda s, q: enrolled(s, q),
    ],
}


WRONG = {
    "own_steps": [
        ("negative weights cancel", lambda w, b: steps(w, b, w.mean())),
        ("absolute value of the mean|negative weights cancel", lambda w, b: steps(w, b, w.mean().abs())),
        ("you take the median", lambda w, b: steps(w, b, w.abs().median())),
        ("standard deviation", lambda w, b: steps(w, b, w.std())),
        ("root of the mean square", lambda w, b: steps(w, b, w.square().mean().sqrt())),
        ("you take the largest", lambda w, b: steps(w, b, w.abs().max())),
        ("you take the sum", lambda w, b: steps(w, b, w.abs().sum())),
        ("factor 2", lambda w, b: steps(w, b) / 2),
        ("root is missing", lambda w, b: 2 * w.abs().mean() / highest(b)),
        ("only p is under it", lambda w, b: steps(w, b).sqrt()),
        ("multiplies by sqrt", lambda w, b: 2 * w.abs().mean() * highest(b).sqrt()),
        ("count all codes", lambda w, b: steps(w, b, p=codes(b))),
        ("unsigned activations", lambda w, b: steps(w, b, p=codes(b) - 1)),
        ("negative codes", lambda w, b: steps(w, b, p=codes(b) / 2)),
        ("number of bits", lambda w, b: steps(w, b, p=torch.tensor(b))),
        ("step of the first one", lambda w, b: steps(w, b)[:1].expand(len(b))),
        ("fewest bits|step of the first", lambda w, b: steps(w, b).max().expand(len(b))),
        ("largest weight", lambda w, b: w.abs().max() / highest(b)),
        ("another order", lambda w, b: steps(w, b).flip(0)),
        ("another order", lambda w, b: steps(w, sorted(b)).flip(0)),
        ("shape", lambda w, b: steps(w, b)[:1]),
        ("values are wrong", lambda w, b: steps(w, b) * 1.1),
    ],
    "pair_losses": [
        ("teacher is missing", lambda *x: losses(*x, soft=0)),
        ("only the teacher teaches", lambda *x: losses(*x, hard=0)),
        ("FP teaches itself", lambda *x: losses(*x, fp=1)),
        ("averaged: add them", lambda *x: losses(*x, hard=0.5, soft=0.5)),
        ("divergence from the teacher", lambda *x: losses(*x, cross=divergence)),
        ("answer only", lambda *x: losses(*x, target=lambda z: z.argmax(1))),
        ("make probabilities of them", lambda *x: losses(*x, target=lambda z: z.detach())),
        ("the pair before", previous_teaches),
        ("sums over the queries", lambda *x: losses(*x, cross=lambda z, y: F.cross_entropy(z, y, reduction="sum"))),
        ("divided by the number of pairs", lambda *x: losses(*x) / len(x[-1])),
        ("add up over the pairs", lambda *x: losses(*x).cumsum(0)),
        ("labels are in another order", lambda *x: losses(*x, labels=cycled)),
        ("wrong sign", lambda *x: losses(*x, score=lambda q, c: -squares(q, c))),
        ("square it", lambda *x: losses(*x, score=lambda q, c: -(-squares(q, c)).sqrt())),
        ("averaged over the features", lambda *x: losses(*x, score=lambda q, c: squares(q, c) / q.shape[1])),
        ("all pairs run at FP", lambda m, s, q, p: losses(m, s, q, p, lambda m, s, q, b: logits_at(m, s, q, "FP"))),
        ("two batches", lambda *x: losses(*x, at=two_batches)),
        ("you take the sum", lambda *x: losses(*x, middle=lambda known: known.sum(1))),
        ("you take the first", lambda *x: losses(*x, middle=lambda known: known[:, 0])),
        ("you take the median", lambda *x: losses(*x, middle=lambda known: known.median(1)[0])),
        ("mean is over the classes", lambda *x: losses(*x, middle=other_classes)),
        ("make them of the queries", lambda *x: losses(*x, at=of_queries)),
        ("inner product", lambda *x: losses(*x, score=lambda q, c: q @ c.T)),
        ("by angle", lambda *x: losses(*x, score=lambda q, c: unit(q) @ unit(c).T)),
        ("sums .difference.", lambda *x: losses(*x, score=lambda q, c: -(q[:, None] - c).abs().sum(2))),
        ("flows into the teacher", lambda *x: losses(*x, target=lambda z: z.softmax(1))),
        ("have no gradient", lambda *x: losses(*x).detach()),
        ("type list: return a tensor", lambda *x: list(losses(*x))),
        ("shape", lambda *x: losses(*x).mean()),
        ("values are wrong", lambda *x: losses(*x) * 1.1),
        ("left at W2A2, it was at FP", left_at_bits),
        ('left with norm statistics "batch"', left_policy),
        ("left in evaluation mode", left_evaluating),
        ("parameters of the model have changed", moved),
        ("goes backward already", gone_backward),
    ],
    "cross_enrolment": [
        ("rows and columns are exchanged", lambda s, q: enrolled(s, q).T),
        ("return percent", lambda s, q: enrolled(s, q) / 100),
        ("this is the error", lambda s, q: 100 - enrolled(s, q)),
        ("every row is the same-pair", lambda s, q: enrolled(s, q).diagonal().expand(len(s), -1)),
        ("every column is the same-pair", lambda s, q: enrolled(s, q).diagonal()[:, None].expand(-1, len(s))),
        ("only the diagonal", lambda s, q: enrolled(s, q).diagonal().diag()),
        ("greatest distance", lambda s, q: enrolled(s, q, score=torch.cdist)),
        ("labels are in another order", lambda s, q: enrolled(s, q, order="repeat")),
        ("you take the sum", lambda s, q: enrolled(s, q, s.sum(2))),
        ("only the first", lambda s, q: enrolled(s, q, s[:, :, 0])),
        ("you take the median", lambda s, q: enrolled(s, q, s.median(2)[0])),
        ("the nearest example", nearest_example),
        ("make them of the queries", lambda s, q: enrolled(s, q, q.mean(2))),
        ("inner product", lambda s, q: enrolled(s, q, score=lambda a, c: a @ c.T)),
        ("by angle", lambda s, q: enrolled(s, q, score=lambda a, c: F.normalize(a, dim=1) @ F.normalize(c, dim=1).T)),
        ("sums .difference.", lambda s, q: enrolled(s, q, score=lambda a, c: -torch.cdist(a, c, p=1))),
        ("shape", lambda s, q: enrolled(s, q).diagonal()),
        ("values are wrong", lambda s, q: enrolled(s, q, s.amax(2) + 1)),
    ],
}  # fmt: skip
