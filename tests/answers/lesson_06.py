"""Lesson 06: right answers, each written another way, and wrong ones with the message that names them."""

import torch
import torch.nn.functional as F

import mebqat_lite as mq


def ends(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def coded(w, step, bits, rounding=torch.round):
    return rounding(w / step).clamp(*ends(bits)).long().flatten()


def counts_in_a_loop(w, step, bits):
    low, high = ends(bits)
    found = [0] * 2**bits
    for value in (w.double() / step).round().flatten().tolist():
        found[int(min(max(value, low), high)) - low] += 1
    return torch.tensor(found)


def counts_by_levels(w, step, bits):
    levels = step * torch.arange(ends(bits)[0], ends(bits)[1] + 1)
    return F.one_hot((w[..., None] - levels).abs().argmin(-1), 2**bits).flatten(0, -2).sum(0)


def histogram(codes, low, size):
    return torch.stack([(codes == code).sum() for code in range(low, low + size)])


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


def logits(asked, prototypes):
    return -(asked[:, None] - prototypes).square().sum(2)


def means(out, support):
    return out.unflatten(0, support.shape[:2]).mean(1)


def adapt_by_learner(model, support, query, bits):
    return mq.learners.ProtoNet().adapt(model, support, bits, "recalibrated")(query)


def adapt_in_one_batch(model, support, query, bits):
    with torch.no_grad(), mq.at(model, bits, "recalibrated"):
        out = model(torch.cat([support.flatten(0, 1), query]))
    count = support.shape[0] * support.shape[1]
    return logits(out[count:], means(out[:count], support))


def adapt_one_by_one(model, support, query, bits):
    prototypes = []
    with mq.at(model, bits), mq.at(model, bits, "recalibrated"):
        for images in support:
            prototypes.append(sum(model(image[None])[0] for image in images) / len(images))
        rows = [[-((model(q[None])[0] - c) ** 2).sum() for c in prototypes] for q in query]
    return torch.stack([torch.stack(row) for row in rows]).detach()


def adapt_and_restore_by_hand(model, support, query, bits):
    before = mq.switching.state.setting_of(model).bits, mq.switching.state.setting_of(model).norm_stats
    mq.set_bits(model, bits)
    mq.set_norm_stats(model, "recalibrated")
    with torch.no_grad():
        known, asked = model(support.flatten(0, 1)), model(query)
    mq.set_bits(model, before[0])
    mq.set_norm_stats(model, before[1])
    return logits(asked, means(known, support))


RIGHT = {
    "codes_used": [
        counts_in_a_loop,
        counts_by_levels,
        lambda w, s, b: histogram(coded(w, s, b), ends(b)[0], 2**b),
        lambda w, s, b: torch.histc(coded(w, s, b).float(), 2**b, ends(b)[0] - 0.5, ends(b)[1] + 0.5),
        lambda w, s, b: counts_in_a_loop(w, s, b).tolist(),
        lambda w, s, b: counts_in_a_loop(w, s, b).int(),
    ],
    "cross_enrolment": [
        lambda s, q: enrolled(s, q).tolist(),
        matrix_in_loops,
        matrix_by_logits,
        lambda s, q: enrolled(s, q),
    ],
    "adapt_at_bits": [adapt_by_learner, adapt_in_one_batch, adapt_one_by_one, adapt_and_restore_by_hand],
}


def passes(model, images, bits, stats="recalibrated"):
    with torch.no_grad(), mq.at(model, bits, stats):
        return model(images)


def left_at_bits(model, support, query, bits):
    mq.set_norm_stats(model, "recalibrated")
    mq.set_bits(model, bits)
    with torch.no_grad():
        return logits(model(query), means(model(support.flatten(0, 1)), support))


def left_policy(model, support, query, bits):
    mq.set_norm_stats(model, "recalibrated")
    with torch.no_grad(), mq.at(model, bits):
        return logits(model(query), means(model(support.flatten(0, 1)), support))


def left_training(model, support, query, bits):
    model.train()
    return adapt_by_learner(model, support, query, bits)


def moved(model, support, query, bits):
    out = adapt_by_learner(model, support, query, bits)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    return out


def measured_anew(model, support, query, bits):
    mq.recalibrate(model, torch.cat([support.flatten(0, 1), query]), bits)
    return adapt_by_learner(model, support, query, bits)


def outside(model, support, query, bits, which):
    known, asked = passes(model, support.flatten(0, 1), bits), passes(model, query, bits)
    with torch.no_grad():
        known = model(support.flatten(0, 1)) if which == "support" else known
        asked = model(query) if which == "query" else asked
    return logits(asked, means(known, support))


def at_two(model, support, query, known_at, asked_at, stats="recalibrated"):
    known = passes(model, support.flatten(0, 1), known_at, stats)
    return logits(passes(model, query, asked_at, stats), means(known, support))


def one_batch(model, support, query, bits):
    out = passes(model, torch.cat([support.flatten(0, 1), query]), bits, "batch")
    count = support.shape[0] * support.shape[1]
    return logits(out[count:], means(out[:count], support))


def with_prototypes(model, support, query, bits, make):
    known = passes(model, support.flatten(0, 1), bits).unflatten(0, support.shape[:2])
    return logits(passes(model, query, bits), make(known))


def no_mean(model, support, query, bits):
    return logits(passes(model, query, bits), passes(model, support.flatten(0, 1), bits))


WRONG = {
    "codes_used": [
        ("clipped weights are lost", lambda w, s, b: histogram((w / s).round().flatten(), ends(b)[0], 2**b)),
        ("rounds down", lambda w, s, b: histogram(coded(w, s, b, torch.floor), ends(b)[0], 2**b)),
        ("towards zero", lambda w, s, b: histogram((w / s).int().clamp(*ends(b)).flatten(), ends(b)[0], 2**b)),
        ("weights are signed", lambda w, s, b: torch.bincount((w / s).round().clamp(0, 2**b - 1).long().flatten(),
                                                              minlength=2**b)),
        ("from the highest code down", lambda w, s, b: counts_in_a_loop(w, s, b).flip(0)),
        ("code 0 comes first", lambda w, s, b: counts_in_a_loop(w, s, b).roll(ends(b)[0])),
        ("one lower than -high", lambda w, s, b: histogram(coded(w, s, b).clamp(-ends(b)[1]), ends(b)[0], 2**b)),
        ("not divided by step", lambda w, s, b: histogram(coded(w, 1 / s, b), ends(b)[0], 2**b)),
        ("not divided by step", lambda w, s, b: histogram(coded(w, 1, b), ends(b)[0], 2**b)),
        ("these are shares", lambda w, s, b: counts_in_a_loop(w, s, b) / w.numel()),
        ("whether a code is in use", lambda w, s, b: (counts_in_a_loop(w, s, b) > 0).int()),
        ("shape", lambda w, s, b: coded(w, s, b).unique(return_counts=True)[1][:3]),
        ("shape", lambda w, s, b: torch.cat([counts_in_a_loop(w, s, b), torch.zeros(1).long()])),
        ("type dict: return a tensor", lambda w, s, b: dict(enumerate(counts_in_a_loop(w, s, b).tolist()))),
        ("values are wrong", lambda w, s, b: counts_in_a_loop(w, s, b) + 1),
        ("dtype torch.bool", lambda w, s, b: counts_in_a_loop(w, s, b) > 0),
        ("changes its input w", lambda w, s, b: counts_in_a_loop(w.div_(s), 1, b)),
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
        ("the nearest example", nearest_example),
        ("make them of the queries", lambda s, q: enrolled(s, q, q.mean(2))),
        ("inner product", lambda s, q: enrolled(s, q, score=lambda a, c: a @ c.T)),
        ("by angle", lambda s, q: enrolled(s, q, score=lambda a, c: F.normalize(a, dim=1) @ F.normalize(c, dim=1).T)),
        ("sums .difference.", lambda s, q: enrolled(s, q, score=lambda a, c: -torch.cdist(a, c, p=1))),
        ("shape", lambda s, q: enrolled(s, q).diagonal()),
        ("values are wrong", lambda s, q: enrolled(s, q, s.amax(2) + 1)),
    ],
    "adapt_at_bits": [
        ("left at W.A., it was at FP: use", left_at_bits),
        ('left with norm statistics "recalibrated"', left_policy),
        ("left in training mode", left_training),
        ("numbers of the model have changed", moved),
        ("numbers of the model have changed", measured_anew),
        ("both run at full precision", lambda m, s, q, b: at_two(m, s, q, "FP", "FP")),
        ("both run at full precision", lambda m, s, q, b: at_two(m, s, q, "FP", "FP", "running")),
        ("the support runs at FP and the query at bits", lambda m, s, q, b: at_two(m, s, q, "FP", b)),
        ("the query runs at FP, after", lambda m, s, q, b: at_two(m, s, q, b, "FP")),
        ("the query runs after the block", lambda m, s, q, b: outside(m, s, q, b, "query")),
        ("the support runs before the block", lambda m, s, q, b: outside(m, s, q, b, "support")),
        ("running statistics, which are those of full", lambda m, s, q, b: at_two(m, s, q, b, b, "running")),
        ("a query depends on its neighbours", lambda m, s, q, b: at_two(m, s, q, b, b, "batch")),
        ("queries leak into the prototypes", one_batch),
        ("wrong sign: the nearest", lambda m, s, q, b: -at_two(m, s, q, b, b)),
        ("this is the distance: square", lambda m, s, q, b: -(-at_two(m, s, q, b, b)).sqrt()),
        ("minus its square", lambda m, s, q, b: (-at_two(m, s, q, b, b)).sqrt()),
        ("you take the sum", lambda m, s, q, b: with_prototypes(m, s, q, b, lambda k: k.sum(1))),
        ("only the first", lambda m, s, q, b: with_prototypes(m, s, q, b, lambda k: k[:, 0])),
        ("the mean is over the classes", lambda m, s, q, b: with_prototypes(
            m, s, q, b, lambda k: k.flatten(0, 1).unflatten(0, (s.shape[1], s.shape[0])).mean(0))),
        ("these are probabilities", lambda m, s, q, b: at_two(m, s, q, b, b).softmax(1)),
        ("log-probabilities", lambda m, s, q, b: at_two(m, s, q, b, b).log_softmax(1)),
        ("over the features: take the sum", lambda m, s, q, b: at_two(m, s, q, b, b) / 6),
        ("inner product", lambda m, s, q, b: passes(m, q, b) @ means(passes(m, s.flatten(0, 1), b), s).T),
        ("shape", no_mean),
        ("values are wrong", lambda m, s, q, b: at_two(m, s, q, b, b) * 2),
    ],
}  # fmt: skip
