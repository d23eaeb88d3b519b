"""Exercises of lesson 06: the codes of a step, enrolment across bitwidths, and learning new classes at a bitwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

import mebqat_lite as mq
from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect
from mebqat_lite.switching.state import setting_of

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``."""
    return int(torch.randint(low, high + 1, (), generator=rng))


# --- 6.1 -------------------------------------------------------------------------------------------------------


def _codes_used(w: torch.Tensor, step: float, bits: int) -> torch.Tensor:
    """How many weights take each code, (2^bits,) int64, from the lowest code -2^(bits-1) up."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.round(w / step).clamp(low, high).long()
    return torch.bincount(codes.flatten() - low, minlength=2**bits)


def _grade_codes_used(student: Student, rng: Generator) -> None:
    for bits, share in ((3, 0.6), (2, 0.5), (4, 0.2), (8, 0.9), (5, 0.1)):  # with clipped weights and without
        shape = [_whole(3, 7, rng), _whole(3, 7, rng), 3, 3]
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        step = float(torch.empty(()).uniform_(0.01, 0.2, generator=rng))
        spread = torch.randn(shape, generator=rng) * (share * high + 0.4)  # in steps
        codes = spread.round()
        w = step * (codes + torch.empty(shape).uniform_(-0.45, 0.45, generator=rng))
        want = torch.tensor([int((codes.clamp(low, high) == code).sum()) for code in range(low, high + 1)])
        got = _counts(student(w, step, bits), w.numel())
        if isinstance(got, Tensor) and got.dim() == 1 and len(got) < len(want):
            shapes = f"the result has shape ({len(got)},); it should be ({len(want)},)"
            raise Mistake(f"{shapes}: a code that no weight takes gets a 0")
        expect(got, want, f"bits = {bits} and step = {step:.3g}", _wrong_counts(w, step, bits))


def _counts(got: Any, values: int) -> Any:
    """What is returned, with lists and any whole-number dtype as int64; a Mistake names what are no counts."""
    got = torch.tensor(got) if isinstance(got, list | tuple) and got else got
    if not isinstance(got, Tensor):
        return got
    total = float(got.double().sum()) if got.dtype != torch.bool else 0
    if got.is_floating_point() and abs(total - 1) < 1e-4 < abs(values - 1):
        raise Mistake("these are shares: return the counts themselves")
    return got.long() if got.dtype != torch.bool and bool((got == got.long()).all()) else got


def _wrong_counts(w: Tensor, step: float, bits: int) -> list[tuple[str, Tensor]]:
    low, high, u = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, w.flatten() / step

    def count(codes: Tensor, first: int = low) -> Tensor:
        return torch.stack([(codes == code).sum() for code in range(first, first + 2**bits)])

    right = count(u.round().clamp(low, high))
    undivided = "the weights are not divided by step: the code is round(w / step)"
    return [
        ("clipped weights are lost: clamp the codes to -2^(bits-1) and 2^(bits-1) - 1 first", count(u.round())),
        ("it rounds down: the code is round(w / step)", count(u.floor().clamp(low, high))),
        ("it rounds down: the code is round(w / step)", count(u.floor())),
        ("it cuts off towards zero: the code is round(w / step)", count(u.trunc().clamp(low, high))),
        ("it counts unsigned codes, 0 to 2^bits - 1: weights are signed", count(u.round().clamp(0, 2**bits - 1), 0)),
        ("the counts run from the highest code down: start with -2^(bits-1)", right.flip(0)),
        ("code 0 comes first, then the codes go on past the end: start with -2^(bits-1)", right.roll(low)),
        ("the lowest code is -2^(bits-1), one lower than -high", count(u.round().clamp(-high, high))),
        (undivided, count((w.flatten() * step).round().clamp(low, high))),
        (undivided, count(w.flatten().round().clamp(low, high))),
        ("this says whether a code is in use: count the weights that take it", (right > 0).long()),
    ]


codes_used = Exercise(
    "codes_used",
    "6.1: Which codes are in use?",
    difficulty=1,
    minutes=10,
    question="""
    A layer with $b$ bits has $2^b$ codes. Which of them its weights use depends on the step.

    Write `codes_used(w, step, bits)`. `w` is a float tensor of any shape, `step` a positive number. The codes are
    signed: round(w / step), clipped to -2^(bits-1) ... 2^(bits-1) - 1. Return how many weights take each code, a
    tensor of 2^bits whole numbers (`int64`), the lowest code first.

    Then try it: `codes_used(weights, layer.quant["w2"].item(), 8)` with the layer of section 6.
    """,
    hints=[
        "Compute the codes as in lesson 01, then move them so that the lowest becomes 0.",
        "torch.bincount counts how often 0, 1, 2, ... occur; minlength sees to it that codes out of use get a 0.",
        "codes = torch.round(w / step).clamp(low, high).long(); then bincount of codes.flatten() - low.",
    ],
    solution=_codes_used,
    grade=_grade_codes_used,
)

# --- 6.2 -------------------------------------------------------------------------------------------------------


def _cross_enrolment(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(P, N, K, D) and (P, N, Q, D) embeddings -> accuracy in percent, (P, P): support's pair by query's pair."""
    ways, queries = query.shape[1:3]
    prototypes = support.mean(2)  # (P, N, D)
    labels = torch.arange(ways).repeat_interleave(queries)  # (N Q,)
    rows = []
    for enrolled in prototypes:
        far = torch.cdist(query.flatten(1, 2), enrolled)  # (P, N Q, N)
        rows.append(100 * (far.argmin(2) == labels).float().mean(1))
    return torch.stack(rows)


def _grade_cross_enrolment(student: Student, rng: Generator) -> None:
    for shots in (1, 3, 2):
        support, query = _embeddings(shots, rng)
        while _margin(support.mean(2), query) < 1e-4:  # where float rounding would decide
            support, query = _embeddings(shots, rng)
        want = _accuracies(support.mean(2), query)
        got = student(support, query)
        where = f"embeddings at {len(support)} pairs, {support.shape[1]} ways, {shots} shots"
        expect(got, want, where, _wrong_accuracies(support, query, want))


def _embeddings(shots: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """Support (P, N, K, D) and query (P, N, Q, D) whose pairs differ in scale, place and noise."""
    pairs, ways, queries, features = _whole(3, 4, rng), _whole(6, 8, rng), 11, 5
    centres = 1.5 * torch.randn(ways, 1, features, generator=rng)
    found = []
    for count in (shots, queries):
        noise = torch.randn(pairs, ways, count, features, generator=rng)
        noise[:, :, :1] *= 1.0 + 2.0 * (count == shots > 1)  # the first example is an unlucky one
        scale = torch.linspace(0.5, 1.4, pairs).reshape(-1, 1, 1, 1)
        found.append(scale * (centres + noise + 1.0) + scale.square())
    return found[0], found[1]


def _margin(prototypes: Tensor, query: Tensor) -> float:
    """The least difference of a query's two least distances, of prototypes (P, N, D) and queries (P, N, Q, D)."""
    least = torch.cdist(query.flatten(1, 2)[None], prototypes[:, None]).topk(2, largest=False)[0]  # (P, P, N Q, 2)
    return float((least[..., 1] - least[..., 0]).min())


def _accuracies(prototypes: Tensor, query: Tensor, power: int = 2) -> Tensor:
    """Accuracy in percent, (P, P), of prototypes (P, N, D) and queries (P, N, Q, D)."""
    far = (query[None, :, :, :, None] - prototypes[:, None, None, None]).abs().pow(power).sum(-1)  # (P, P, N, Q, N)
    labels = torch.arange(far.shape[-1])[:, None]  # (N, 1)
    return 100 * (far.argmin(-1) == labels).float().mean((2, 3))


def _wrong_accuracies(support: Tensor, query: Tensor, right: Tensor) -> list[tuple[str, Tensor]]:
    own = right.diagonal()
    mean, labels = support.mean(2), torch.arange(query.shape[1])[:, None]
    product = torch.einsum("pnd,qmad->pqman", mean, query)  # (P, P, N, Q, N)
    unit = nn.functional.normalize
    cosine = torch.einsum("pnd,qmad->pqman", unit(mean, dim=-1), unit(query, dim=-1))
    by = {"product": product, "cosine": cosine}
    scores = {name: 100 * (value.argmax(-1) == labels).float().mean((2, 3)) for name, value in by.items()}
    far = torch.cdist(query.flatten(1, 2)[None], mean[:, None])  # (P, P, N Q, N)
    cycled = torch.arange(far.shape[-1]).repeat(query.shape[2])
    nearest = torch.cdist(query.flatten(1, 2)[None], support.flatten(1, 2)[:, None]).argmin(-1) // support.shape[2]
    truth = labels.expand(-1, query.shape[2]).flatten()
    return [
        ("rows and columns are exchanged: rows are the support's pair, columns the query's", right.T),
        ("these are shares: return percent", right / 100),
        ("this is the error: return the accuracy", 100 - right),
        ("every row is the same-pair accuracy: take the prototypes of one pair and the queries of another",
         own.expand_as(right)),
        ("every column is the same-pair accuracy: take the prototypes of one pair and the queries of another",
         own[:, None].expand_as(right)),
        ("only the diagonal is filled: prototypes of one pair also meet queries of another", own.diag()),
        ("the class of the greatest distance is taken: take the nearest", _accuracies_of(-far, truth)),
        ("the labels are in another order: the query's first index is its class", _accuracies_of(far, cycled)),
        ("a prototype is the mean of its K examples: you take the sum", _accuracies(support.sum(2), query)),
        ("a prototype is the mean of its K examples: you take only the first", _accuracies(support[:, :, 0], query)),
        ("a prototype is the mean of its K examples: you take the nearest example",
         100 * (nearest == truth).float().mean(-1)),
        ("prototypes are made of the support, and you make them of the queries", _accuracies(query.mean(2), query)),
        ("this compares by inner product: take the squared distance, or any distance of the same order",
         scores["product"]),
        ("this compares by angle: take the squared distance, or any distance of the same order", scores["cosine"]),
        ("this sums |difference|: take the squared distance", _accuracies(mean, query, 1)),
    ]  # fmt: skip


def _accuracies_of(far: Tensor, labels: Tensor) -> Tensor:
    return 100 * (far.argmin(-1) == labels).float().mean(-1)


cross_enrolment = Exercise(
    "cross_enrolment",
    "6.2: A server enrols, a device asks",
    difficulty=2,
    minutes=15,
    question="""
    The prototypes may be made at one pair and the queries asked at another. You get embeddings of one episode at P
    pairs: `support` is `(P, N, K, D)` and `query` is `(P, N, Q, D)`, where the second index is the class.

    Write `cross_enrolment(support, query)`. It returns a `(P, P)` float tensor of accuracies in percent: in row i and
    column j the prototypes come from pair i and the queries from pair j. A prototype is the mean of its K examples,
    and the answer is the class of the nearest prototype (squared Euclidean distance).
    """,
    hints=[
        "Prototypes of all pairs at once: support.mean(2) is (P, N, D).",
        "torch.cdist(query.flatten(1, 2), prototypes[i]) is (P, N Q, N): every pair's queries, prototypes of pair i.",
        "The right answers are torch.arange(N).repeat_interleave(Q); argmin(2) == labels, then the mean over dim 1.",
    ],
    solution=_cross_enrolment,
    grade=_grade_cross_enrolment,
)

# --- 6.3 -------------------------------------------------------------------------------------------------------


def _adapt_at_bits(model: torch.nn.Module, support: torch.Tensor, query: torch.Tensor, bits: str) -> torch.Tensor:
    """Logits of the query, (B, N), from prototypes of the support, (N, K, C, H, W), all at ``bits``."""
    ways, shots = support.shape[:2]
    with torch.no_grad(), mq.at(model, bits, "recalibrated"):
        known = model(support.flatten(0, 1)).unflatten(0, (ways, shots))  # (N, K, features)
        asked = model(query)  # (B, features)
    return -torch.cdist(asked, known.mean(1)).square()


def _grade_adapt_at_bits(student: Student, rng: Generator) -> None:
    for bits, shots in (("W2A2", 1), ("W4A2", 3), ("W2A8", 2)):
        model, images = _small_network(bits, rng)
        ways = _whole(4, 5, rng)
        count = ways * shots
        support, query = images[:count].unflatten(0, (ways, shots)), images[count : count + 7]
        before = _state(model)
        got = student(model, support, query, bits)
        _left_as_it_was(model, before)
        want = _logits(model, support, query, bits, bits).double()
        where = f"bits = {bits}, {ways} ways, {shots} shots"
        shown = checked(got, want.float())
        expect(shown, want, where, _wrong_logits(model, support, query, bits))


def _small_network(bits: str, rng: Generator) -> tuple[nn.Module, Tensor]:
    """A small embedding with statistics for ``bits`` and FP, and images, (32, 1, 16, 16), both in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(_whole(0, 2**30, rng))
        model = mq.models.conv4(channels=6, image_size=16, classes=None)
        images = torch.rand(32, 1, 16, 16, dtype=torch.float64).pow(3)  # no rounding falls another way in float64
        mq.quantize(model.double(), "lsq", sample=images)
        mq.recalibrate(model, images, f"{bits},FP")
        model.eval()
    return model, images


def _state(model: nn.Module) -> tuple[Any, ...]:
    setting = setting_of(model)
    numbers = {name: value.clone() for name, value in model.state_dict().items()}
    return (str(setting.bits), dict(setting.per_layer)), setting.norm_stats, model.training, numbers


def _left_as_it_was(model: nn.Module, before: tuple[Any, ...]) -> None:
    """A Mistake names what of the model has changed."""
    (bits, layers), policy, training, numbers = before
    setting = setting_of(model)
    if (str(setting.bits), dict(setting.per_layer)) != (bits, layers):
        raise Mistake(f"the model is left at {setting.bits}, it was at {bits}: use `with mq.at(model, bits, ...)`")
    if setting.norm_stats != policy:
        raise Mistake(
            f'the model is left with norm statistics "{setting.norm_stats}", it had "{policy}": '
            "give the policy to mq.at, which restores it"
        )
    if model.training != training:
        raise Mistake("the model is left in training mode: it was in evaluation mode")
    now = model.state_dict()
    if now.keys() != numbers.keys() or any(not torch.equal(now[name], value) for name, value in numbers.items()):
        raise Mistake("numbers of the model have changed: a prototypical network learns classes without changing any")


def _logits(
    model: nn.Module, support: Tensor, query: Tensor, known_at: str, asked_at: str, stats: str = "recalibrated"
) -> Tensor:
    """-|q - c|^2, (B, N), with the support at one pair and the query at another."""
    with torch.no_grad():
        with mq.at(model, known_at, stats):
            prototypes = model(support.flatten(0, 1)).unflatten(0, support.shape[:2]).mean(1)  # (N, features)
        with mq.at(model, asked_at, stats):
            asked = model(query)  # (B, features)
    return -(asked[:, None] - prototypes).square().sum(2)


def _wrong_logits(model: nn.Module, support: Tensor, query: Tensor, bits: str) -> list[tuple[str, Tensor]]:
    right = _logits(model, support, query, bits, bits)
    both = torch.cat([support.flatten(0, 1), query])
    ways, shots = support.shape[:2]
    with torch.no_grad():
        with mq.at(model, bits, "batch"):
            out = model(both)
            sums = out[: ways * shots].unflatten(0, (ways, shots))
        with mq.at(model, bits, "recalibrated"):
            known = model(support.flatten(0, 1)).unflatten(0, (ways, shots))
            asked = model(query)
    leak = -(out[ways * shots :][:, None] - sums.mean(1)).square().sum(2)
    foreign = _foreign(model, support, query, bits)
    neighbours = "it uses the statistics of the batch, so that a query depends on its neighbours: "
    policy = 'ask mq.at for "recalibrated" statistics'
    return [
        ("the logits have the wrong sign: the nearest class needs the largest", -right),
        ("this is the distance: square it", -(-right).sqrt()),
        ("this is the distance, with the wrong sign: the logit is minus its square", (-right).sqrt()),
        (f"both run at full precision: wrap the passes in mq.at(model, bits, ...) (bits = {bits})",
         _logits(model, support, query, "FP", "FP")),
        (f"both run at full precision: wrap the passes in mq.at(model, bits, ...) (bits = {bits})",
         _logits(model, support, query, "FP", "FP", "running")),
        ("the support runs at FP and the query at bits: that is another exercise, here both are at bits",
         _logits(model, support, query, "FP", bits)),
        ("the query runs at FP, after the block has ended: both passes belong inside",
         _logits(model, support, query, bits, "FP")),
        ("the query runs after the block has ended, at FP and under running statistics: both passes belong inside",
         foreign["query outside"]),
        ("the support runs before the block, at FP and under running statistics: both passes belong inside",
         foreign["support outside"]),
        (f"it uses the running statistics, which are those of full precision: {policy}",
         _logits(model, support, query, bits, bits, "running")),
        (neighbours + policy, _logits(model, support, query, bits, bits, "batch")),
        ("support and query run in one batch under its statistics, so that queries leak into the prototypes: " + policy,
         leak),
        ("it uses the statistics of FP at other bits: those of a pair belong to it", foreign["statistics of FP"]),
        *_wrong_prototypes(right, known, asked),
    ]  # fmt: skip


def _wrong_prototypes(right: Tensor, known: Tensor, asked: Tensor) -> list[tuple[str, Tensor]]:
    """Mistakes after the passes, whose embeddings are ``known``, (N, K, features), and ``asked``, (count, features)."""
    ways, shots = known.shape[:2]
    return [
        ("a prototype is the mean of its examples: you take the sum",
         -(asked[:, None] - known.sum(1)).square().sum(2)),
        ("a prototype is the mean of its examples: you take only the first",
         -(asked[:, None] - known[:, 0]).square().sum(2)),
        ("the mean is over the classes, not over the examples of a class: the shape is (N, K, ...)",
         -(asked[:, None] - known.flatten(0, 1).unflatten(0, (shots, ways)).mean(0)).square().sum(2)),
        ("these are probabilities: return the logits", right.softmax(1)),
        ("these are log-probabilities: return the logits", right.log_softmax(1)),
        ("this averages the squared differences over the features: take the sum", right / asked.shape[1]),
        ("this is the inner product: the logit is minus the squared distance", asked @ known.mean(1).T),
    ]  # fmt: skip


def _foreign(model: nn.Module, support: Tensor, query: Tensor, bits: str) -> dict[str, Tensor]:
    """Logits of passes that run in part outside the block, or under another pair's statistics."""
    with torch.no_grad():
        plain = [model(images) for images in (support.flatten(0, 1), query)]
        with mq.at(model, bits, "recalibrated"):
            inside = [model(images) for images in (support.flatten(0, 1), query)]
        saved = {name: value.clone() for name, value in model.named_buffers()}
        buffers = dict(model.named_buffers())
        for name in saved:
            if name.endswith(f"stats_{bits}"):
                buffers[name].copy_(saved[name.replace(bits, "FP")])
        with mq.at(model, bits, "recalibrated"):
            other = [model(images) for images in (support.flatten(0, 1), query)]
        for name, value in saved.items():
            buffers[name].copy_(value)

    def score(known: Tensor, asked: Tensor) -> Tensor:
        prototypes = known.unflatten(0, support.shape[:2]).mean(1)
        return -(asked[:, None] - prototypes).square().sum(2)

    return {
        "query outside": score(inside[0], plain[1]),
        "support outside": score(plain[0], inside[1]),
        "statistics of FP": score(other[0], other[1]),
    }


adapt_at_bits = Exercise(
    "adapt_at_bits",
    "6.3: Learn new classes at a bitwidth",
    difficulty=2,
    minutes=15,
    question="""
    Write `adapt_at_bits(model, support, query, bits)`: learn the classes of `support` with a prototypical network at
    `bits`, and return the logits of the query.

    `model` is a quantized embedding in evaluation mode, at FP, which has recalibrated norm statistics for `bits`.
    `support` is `(N, K, C, H, W)`, `query` is `(B, C, H, W)`, `bits` a string such as "W2A2". The logits are `(B, N)`:
    minus the squared Euclidean distance to each class's prototype. Support **and** query run at `bits`, under
    recalibrated statistics, and the model must afterwards be as it was before.
    """,
    hints=[
        "The model takes images, (batch, C, H, W): support.flatten(0, 1) makes one batch of N K images.",
        'Both passes go inside one block: with torch.no_grad(), mq.at(model, bits, "recalibrated"): ...',
        "out.unflatten(0, (N, K)).mean(1) are the prototypes; -torch.cdist(asked, prototypes).square() are the logits.",
    ],
    solution=_adapt_at_bits,
    grade=_grade_adapt_at_bits,
)

EXERCISES = (codes_used, cross_enrolment, adapt_at_bits)
