"""Assignment 06: episodes of a device, whose norm statistics, prototypes and FOMAML with weights of few bits."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.exercises import Mistake, checked, expect
from torch import Generator, Tensor

Mistakes = list[tuple[str, Tensor]]


def whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def parts_of(got: Any, *names: str) -> list[Any]:
    """The values that were returned, one for each name."""
    if not isinstance(got, (tuple, list)) or len(got) != len(names):
        count = f" of {len(got)}" if isinstance(got, (tuple, list)) else ""
        raise Mistake(f"it returns a {type(got).__name__}{count}: return {len(names)} tensors, {', '.join(names)}")
    return list(got)


# --- device_episode --------------------------------------------------------------------------------------------

Episode = tuple[Tensor, Tensor, Tensor]


def collection(ways: int, shots: int, rng: Generator) -> Tensor:
    """Shuffled labels with gaps: ways + 2 classes that can take part, one large, one just so, and two that cannot.

    The data do not hold those that can take part in the order of their labels.
    """
    names = torch.randperm(40, generator=rng)[: ways + 4] + 3
    counts = torch.tensor([shots + whole(3, 5, rng) for _ in names])
    counts[0], counts[1], counts[-2:] = shots + 20, shots + 1, shots
    labels = names.repeat_interleave(counts)
    while True:
        labels = labels[torch.randperm(len(labels), generator=rng)]
        if not in_order(labels[torch.isin(labels, names[:-2])]):
            return labels


def in_order(labels: Tensor) -> bool:
    """Whether the classes first appear in rising or in falling order."""
    steps = torch.tensor(list(dict.fromkeys(labels.tolist()))).diff()
    return bool((steps > 0).all() or (steps < 0).all())


def indices(value: Any, name: str) -> Tensor:
    """Whole numbers as int64, from a tensor or from (nested) lists of numbers."""
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"the {name} is no tensor: torch.stack or torch.cat make one of several") from None
    if found.is_floating_point() or found.dtype == torch.bool:
        raise Mistake(f"the {name} has dtype {found.dtype}: its values are whole numbers")
    return found.long()


def drawn(student: Any, labels: Tensor, ways: int, shots: int, count: int, seed: int) -> Episode:
    """What the student returns, of the right shapes."""
    got = parts_of(student(labels, ways, shots, count, seed), "support", "query", "answers")
    support, query, answers = (indices(v, n) for v, n in zip(got, ("support", "query", "answers"), strict=True))
    if support.shape != (ways, shots):
        turned = "it is turned, a row is a class; " if support.shape == (shots, ways) else ""
        raise Mistake(f"the support has shape {tuple(support.shape)}: {turned}it should be ({ways}, {shots})")
    parts = ((query, "query"), (answers, "answers"))
    for part, name in parts:
        if part.shape == (ways * count,):
            raise Mistake(f"the {name} has `count` values for each class: `count` is the number of all queries")
    if shots > 1 and (support == support[:, :1]).all():
        raise Mistake(
            "a row of the support holds one number over and over: return the indices of its images, not its class"
        )
    rows = labels[support.clamp(0, len(labels) - 1)]  # before the query, which may lack images for a small class
    if (rows == rows[:, :1]).all() and min(int((labels == c).sum()) for c in rows[:, 0]) <= shots:
        raise Mistake("a class has only `shots` images, so that nothing is left to ask: leave such classes out")
    if (rows == rows[:, :1]).all() and len(rows[:, 0].unique()) < ways:
        raise Mistake("a class comes twice in one episode: draw the classes without replacement")
    for part, name in parts:
        if part.shape != (count,):
            raise Mistake(f"the shape of the {name} is {tuple(part.shape)}: it should be ({count},)")
    return support, query, answers


def refuse_invalid(episode: Episode, labels: Tensor) -> None:
    """A Mistake names what breaks a rule that every single episode must keep."""
    support, query, answers = episode
    both = torch.cat([support.flatten(), query])
    if both.min() < 0 or both.max() >= len(labels):
        raise Mistake(f"an index lies outside 0 .. {len(labels) - 1}: return indices of images")
    rows = labels[support]  # (ways, shots)
    if (rows != rows[:, :1]).any():
        raise Mistake("a row of the support holds several classes: a row is one class")
    classes = rows[:, 0].tolist()
    if set(support.flatten().tolist()) & set(query.tolist()):
        raise Mistake("an image is in the support and in the query: what it learned from, it must not be asked")
    if len(both.unique()) < len(both):
        raise Mistake("an image comes twice in the support or in the query: draw without replacement")
    if not set(labels[query].tolist()) <= set(classes):
        raise Mistake("a query is of a class that is not in the support: no answer could be right")
    refuse_answers(answers, labels[query], classes)


def refuse_answers(answers: Tensor, asked: Tensor, classes: list[int]) -> None:
    """The answers are rows of the support."""
    rows = [classes.index(c) for c in asked.tolist()]
    if answers.tolist() == rows:
        return
    ranks = [sorted(classes).index(c) for c in asked.tolist()]
    named = {
        "an answer is a row of the support, 0 to ways - 1, not the label in the data": asked.tolist(),
        "the answers count the classes in the order of their labels: count the rows of the support": ranks,
        "the rows are counted from 0, not from 1": [row + 1 for row in rows],
    }
    for message, values in named.items():
        if answers.tolist() == values:
            raise Mistake(message)
    if sorted(answers.tolist()) == sorted(rows):
        raise Mistake("query and answers are in different orders: answer i belongs to query i")
    raise Mistake(f"the answers are {answers.tolist()}; the rows of the queries' classes are {rows}")


def grade_episode(student: Any, rng: Generator) -> None:
    """One episode: enrolled classes, disjoint parts, answers; the same again for the same seed."""
    for _ in range(4):
        ways, shots, seed = whole(3, 4, rng), whole(2, 3, rng), whole(0, 10**6, rng)
        count, labels = whole(ways + 1, 2 * ways, rng), collection(ways, shots, rng)
        first, other, again = (drawn(student, labels, ways, shots, count, seed + n) for n in (0, 1, 0))
        for episode in (first, other):
            refuse_invalid(episode, labels)
        if not all(map(torch.equal, first, again)):
            raise Mistake("the same seed gives another episode: take every choice from a generator with that seed")


def grade_draw(student: Any, rng: Generator) -> None:
    """Many episodes: classes are equally likely, images are, and so the queries are as many as a class has images."""
    ways, shots, count, seed = 3, 2, 6, whole(0, 10**6, rng)
    labels = collection(ways, shots, rng)
    one_more = torch.cat([labels, labels.max()[None] + 1])  # a class of a single image
    many = [drawn(student, one_more, ways, shots, count, seed + n) for n in range(400)]
    for episode in many:
        refuse_invalid(episode, one_more)
    support, query, answers = (torch.stack(part) for part in zip(*many, strict=True))
    if (support == support[0]).all():
        raise Mistake("every seed gives the same episode: use the seed")
    different = len({tuple(torch.cat([known.flatten(), asked]).tolist()) for known, asked, _ in many})
    equal = Mistake("different seeds give the same episode: make the generator of the whole seed")
    if different < 0.9 * len(many):
        raise equal
    classes, sizes = labels.unique(return_counts=True)
    classes, sizes = classes[sizes > shots], sizes[sizes > shots]
    refuse_classes(labels[support[..., 0]], classes, sizes)
    open_images = torch.isin(labels, classes).nonzero()[:, 0]
    for part, name in ((support, "support"), (query, "query")):
        if not torch.isin(open_images, part).all():
            raise Mistake(f"some images are never in the {name}: draw the images of a class at random too")
    big = int(classes[sizes.argmax()])
    left = dict(zip(classes.tolist(), (sizes - shots).tolist(), strict=True))
    refuse_shares(labels[support[..., 0]], answers, left, big)
    if different < len(many):  # last: without chance in classes or images, a few episodes are the same
        raise equal


def refuse_classes(rows: Tensor, classes: Tensor, sizes: Tensor) -> None:
    """``rows`` are the classes of the supports, (episodes, ways): equally often, in any order; six sigma."""
    counts = torch.stack([(rows == c).sum() for c in classes])
    share = rows.shape[1] / len(classes)
    far = (counts - len(rows) * share) / (len(rows) * share * (1 - share)) ** 0.5
    if counts.min() == 0:
        raise Mistake("some classes never come, whatever the seed is: choose the classes at random")
    if far.abs().max() > 6:
        biased = " A class with more images comes more often: draw classes, not images." * bool(far[sizes.argmax()] > 6)
        raise Mistake("some classes come far more often than others, but all are equally likely." + biased)
    refuse_order(rows, classes.tolist())


def refuse_order(rows: Tensor, classes: list[int]) -> None:
    """No two classes may come in the same order in all episodes, whatever puts them in order."""
    places = {c: torch.where((rows == c).any(1), (rows == c).int().argmax(1), -1) for c in classes}
    for one, other in itertools.combinations(classes, 2):
        both = (places[one] >= 0) & (places[other] >= 0)
        first = (places[one] < places[other])[both]
        if len(first) >= 30 and len(first.unique()) == 1:
            by_label = (rows[:, 1:] > rows[:, :-1]).float().mean() in (0, 1)
            order = "the order of their labels" if by_label else "one order, such as that in which they lie in the data"
            raise Mistake(f"the classes always come in {order}: the rows come in random order")


def refuse_shares(rows: Tensor, answers: Tensor, left: dict[int, int], big: int) -> None:
    """How many queries are of the class with many images; six sigma. ``left``: images outside the support by class."""
    ways = rows.shape[1]
    asked = torch.stack([(answers == n).sum(1) for n in range(ways)], 1)  # (episodes, ways)
    if (asked == asked[0]).all():
        raise Mistake("every class is asked about equally often: draw the queries from all images that are left")
    seen = expected = variance = 0.0
    for classes, counts in zip(rows.tolist(), asked.tolist(), strict=True):
        if big in classes:
            share = left[big] / sum(left[c] for c in classes)
            seen += counts[classes.index(big)]
            expected += sum(counts) * share
            variance += sum(counts) * share * (1 - share)
    if abs(seen - expected) > 6 * variance**0.5:
        word = "seldom" if seen < expected else "often"
        raise Mistake(
            f"a class with many images is asked about too {word}, {seen:.0f} times where about {expected:.0f} are "
            "right: each image that is left is equally likely, not each class"
        )


# --- normalized ------------------------------------------------------------------------------------------------

Stored = dict[str, tuple[Tensor, Tensor]]
Pair = tuple[Tensor, Tensor]
PAIRS = ("W2A2", "W3A3", "W4A4", "W8A8")


def maps(queries: int, rng: Generator) -> tuple[Tensor, Tensor, Stored, str]:
    """Support and query in which channels, examples and the two parts differ, and statistics of three pairs and FP."""
    ways, shots, channels, height = whole(3, 4, rng), whole(2, 3, rng), whole(3, 5, rng), whole(2, 3, rng)
    spread = torch.linspace(0.1, 2, channels)[torch.randperm(channels, generator=rng)][:, None, None]

    def values(*examples: int) -> Tensor:
        shift = torch.rand(*examples, channels, 1, 1, generator=rng)  # each example lies elsewhere
        return spread * (torch.randn(*examples, channels, height, 4, generator=rng) + 2 * shift)

    support, query = values(ways, shots), 1.3 * values(queries) + 0.5 * spread
    chosen = [PAIRS[i] for i in torch.randperm(4, generator=rng)[:3]]
    names = [chosen[0], "FP", *chosen[1:]]
    stored = {
        n: (0.1 + torch.randn(channels, generator=rng).abs(), 0.2 + torch.rand(channels, generator=rng)) for n in names
    }
    return support, query, stored, chosen[whole(1, 2, rng)]


def statistics(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over parts of shape (..., C, H, W), value by value in float64."""
    found = []
    for channel in range(parts[0].shape[-3]):
        values = torch.cat([part[..., channel, :, :].flatten() for part in parts]).double()
        mean = values.sum() / len(values)
        found.append((mean, (values - mean).square().sum() / len(values)))
    means, variances = zip(*found, strict=True)
    return torch.stack(means), torch.stack(variances)


def scaled(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalized by statistics of shape (C,)."""
    return (x.double() - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()


def wrong_norms(part: Tensor, support: Tensor, query: Tensor, stored: Stored, bits: str, policy: str) -> Mistakes:
    """Of one part, support or query, under a policy."""
    right = {"support": statistics(support), "batch": statistics(support, query), "stored": stored[bits]}
    mean, variance = (value.double() for value in right[policy])
    said = f'under "{policy}" '
    others = {
        said + "these are the statistics of the support": right["support"],
        said + "these are the statistics of support and query together": right["batch"],
        said + "these are the stored statistics": right["stored"],
        said + "the query is normalized by its own statistics": statistics(query),
        "these are the stored statistics of FP: those of a pair belong to it": stored["FP"],
        "these are the stored statistics of the first pair: take those of `bits`": next(iter(stored.values())),
    }
    found = [(message, scaled(part, *pair)) for message, pair in others.items() if pair is not right[policy]]
    named = [*stored.values()]
    found += [
        ("these are the stored statistics of another pair: take those of `bits`", scaled(part, *p)) for p in named
    ]
    count = support[..., 0, :, :].numel() + (query[:, 0].numel() if policy == "batch" else 0)
    half = [(a + b) / 2 for a, b in zip(statistics(support), statistics(query), strict=True)]
    far = part.double() - mean[:, None, None]
    wide = variance[:, None, None]
    turned = (part.double() - wide) / (mean[:, None, None].abs() + 1e-5).sqrt()
    found += [
        ("the variance is divided by the count less one: divide it by the count (correction=0)",
         scaled(part, mean, variance * count / (count - 1))),
        ("it divides by the variance: take its square root", far / (wide + 1e-5)),
        ("it divides by the variance: take its square root", far / wide),
        ("1e-5 is missing below the root", far / wide.sqrt()),
        ("1e-5 belongs below the root: sqrt(variance + 1e-5)", far / (wide.sqrt() + 1e-5)),
        ("the mean is not taken off", part / (wide + 1e-5).sqrt()),
        ("it only takes the mean off: divide by sqrt(variance + 1e-5)", far),
        ("nothing is normalized", part.double()),
        ("these are means of two statistics: take those of all values together", scaled(part, *half)),
        ("mean and variance are exchanged: `stored` has (mean, variance)", turned),
        ("these are the statistics of the first class: take those of all", scaled(part, *statistics(support[:1]))),
    ]  # fmt: skip
    examples = part.flatten(0, -4).double()  # (examples, C, H, W)
    own = torch.stack([scaled(x, *statistics(x)) for x in examples]).reshape(part.shape)
    found.append(("each example is normalized by itself: the statistics are over all examples and positions", own))
    layer = torch.nn.functional.layer_norm(part.double(), part.shape[-3:])
    found.append(
        ("each example is normalized by itself, over its channels (layer norm): each channel has its own", layer)
    )
    seen = support.flatten(0, 1) if policy != "batch" else torch.cat([support.flatten(0, 1), query])
    seen = seen.double()
    pixel = (part - seen.mean(0)) / (seen.var(0, correction=0) + 1e-5).sqrt()
    every = (part - seen.mean()) / (seen.var(correction=0) + 1e-5).sqrt()
    found.append(("every position has statistics of its own: take them over all positions of a channel", pixel))
    found.append(("all channels share one mean and variance: each channel has its own", every))
    return found


def normal(student: Any, support: Tensor, query: Tensor, policy: str, stored: Stored, bits: str) -> Pair:
    """What the student returns, of the right shapes."""
    copies = {name: (mean.clone(), variance.clone()) for name, (mean, variance) in stored.items()}
    known, asked = parts_of(student(support, query, policy, copies, bits), "support", "query")
    return checked(known, support), checked(asked, query)


def refuse_leak(student: Any, case: tuple[Tensor, Tensor, Stored, str], policy: str) -> None:
    """When the last query changes, neither the support nor another query may move."""
    support, query, stored, bits = case
    changed = query.clone()
    changed[-1] = 3 * query[-1] + 1
    before, after = (normal(student, support, x, policy, stored, bits) for x in (query, changed))
    moved = [float((a - b).abs().max()) > 1e-5 * float(a.abs().max()) for a, b in zip(before, after, strict=True)]
    others = (before[1][:-1] - after[1][:-1]).abs()
    if others.numel() and float(others.max()) > 1e-5 * float(before[1].abs().max()):
        raise Mistake(f'a leak: under "{policy}" a query moves when another query changes; leave the query out')
    if moved[0]:
        raise Mistake(f'a leak: under "{policy}" the support moves when a query changes; leave the query out')


def grade_norm(student: Any, policy: str, rng: Generator) -> None:
    """Both parts, for a batch of queries and for a single one."""
    for queries in (5, 1, 2):
        case = maps(queries, rng)
        support, query, stored, bits = case
        right = {"support": statistics(support), "batch": statistics(support, query), "stored": stored[bits]}[policy]
        got = normal(student, support, query, policy, stored, bits)
        if policy != "batch":
            refuse_leak(student, case, policy)
        for name, value, part in zip(("support", "query"), got, (support, query), strict=True):
            want, mistakes = scaled(part, *right).float(), wrong_norms(part, support, query, stored, bits, policy)
            expect(value, want, f'policy "{policy}", {bits}, {queries} queries, the {name}', mistakes)


def grade_support(student: Any, rng: Generator) -> None:
    """The statistics of the support."""
    grade_norm(student, "support", rng)


def grade_batch(student: Any, rng: Generator) -> None:
    """The statistics of both together."""
    grade_norm(student, "batch", rng)


def grade_stored(student: Any, rng: Generator) -> None:
    """The stored statistics of the pair."""
    grade_norm(student, "stored", rng)


# --- weights at a bitwidth -------------------------------------------------------------------------------------


def levels(w: Tensor, bits: int) -> Tensor:
    """The nearest of each row's levels, in float64; straight-through."""
    w = w.double()
    if bits == 32:
        return w
    top = 2 ** (bits - 1) - 1
    grid = torch.arange(-top, top + 1) * w.detach().abs().amax(1, keepdim=True) / top  # (rows, levels)
    nearest = (w.detach()[..., None] - grid[:, None]).abs().argmin(-1)  # (rows, features)
    return w + (grid.gather(1, nearest) - w).detach()


def is_clear(w: Tensor, bits: int) -> bool:
    """No weight is near the middle of two levels, where the last digit of a float would decide."""
    if bits == 32:
        return True
    codes = w / w.abs().amax(1, keepdim=True) * (2 ** (bits - 1) - 1)
    return bool(((codes - codes.floor() - 0.5).abs() > 1e-3).all())


def one_step(w: Tensor, bits: int) -> Tensor:
    """Levels with one step for the whole tensor."""
    w = w.double()
    step = w.abs().max() / (2 ** (bits - 1) - 1)
    return step * (w / step).round() if bits < 32 else w


# --- proto_logits ----------------------------------------------------------------------------------------------

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def task(bits: int, rng: Generator) -> Task:
    """Weights, an uneven shuffled support with labels, and queries."""
    ways, features, outputs = whole(3, 4, rng), whole(7, 9, rng), whole(5, 6, rng)
    w = torch.randn(outputs, features, generator=rng)
    while not is_clear(w, bits):
        w = torch.randn(outputs, features, generator=rng)
    labels = torch.arange(ways).repeat_interleave(torch.tensor([1, 3, 6, 4][:ways]))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    centres = torch.randn(ways, features, generator=rng)
    support = centres[labels] + 0.7 * torch.randn(len(labels), features, generator=rng)
    return w, support, labels, torch.randn(whole(10, 12, rng), features, generator=rng) + 0.3


def members(labels: Tensor) -> list[Tensor]:
    """The indices of each class."""
    return [torch.tensor([i for i, c in enumerate(labels.tolist()) if c == n]) for n in range(max(labels.tolist()) + 1)]


def distances(asked: Tensor, prototypes: Tensor) -> Tensor:
    """(M, N) squares, class by class."""
    return torch.stack([((asked - c) ** 2).sum(1) for c in prototypes], 1)


def logits_of(known: Tensor, asked: Tensor, labels: Tensor) -> Tensor:
    """From embeddings."""
    return -distances(asked, torch.stack([known[i].sum(0) / len(i) for i in members(labels)]))


def wrong_logits(w: Tensor, support: Tensor, labels: Tensor, query: Tensor, bits: int) -> Mistakes:
    """What mistakes would return."""
    few, full, (x, q) = levels(w, bits), w.double(), (support.double(), query.double())
    known, asked, groups = x @ few.T, q @ few.T, members(labels)
    right, ways = logits_of(known, asked, labels), len(groups)
    sums = torch.stack([known[i].sum(0) for i in groups])
    means, unit = torch.stack([known[i].mean(0) for i in groups]), torch.nn.functional.normalize
    far = (asked[:, None] - known).square().sum(2)  # (M, images)
    return [
        ("the sign is lost: the nearest prototype needs the highest logit", -right),
        ("the distance is not squared", -(-right).sqrt()),
        ("the distance is not squared, and the sign is lost", (-right).sqrt()),
        ("this is a mean over the outputs: sum them", right / len(w)),
        ("this is half of the squared distance", right / 2),
        ("the square of the query is missing, the same for all classes: the logit is the whole squared distance",
         right + asked.square().sum(1, keepdim=True)),
        ("the distance is divided by the root of the number of outputs", right / len(w) ** 0.5),
        ("the embeddings are brought to length 1: take them as they are",
         logits_of(unit(known), unit(asked), labels)),
        ("the images are quantized too: only the weights are", logits_of(
            levels(support, bits) @ few.T, levels(query, bits) @ few.T, labels)),
        ("these are absolute differences: square them", -(asked[:, None] - means).abs().sum(2)),
        ("this is a scalar product: take minus the squared distance", asked @ means.T),
        ("this is cosine similarity: take minus the squared distance", unit(asked) @ unit(means).T),
        ("these are probabilities: return the logits", right.softmax(1)),
        ("these are log-probabilities: return the logits", right.log_softmax(1)),
        ("both run at full precision: quantize the weights", logits_of(x @ full.T, q @ full.T, labels)),
        ("the support runs at full precision: both parts run at `bits`", logits_of(x @ full.T, asked, labels)),
        ("the query runs at full precision: both parts run at `bits`", logits_of(known, q @ full.T, labels)),
        ("the whole tensor has one step: each row has its own",
         logits_of(x @ one_step(w, bits).T, q @ one_step(w, bits).T, labels)),
        ("the embeddings are compared without the layer", logits_of(x, q, labels)),
        ("the prototype is the sum of a class's support: take the mean", -distances(asked, sums)),
        ("it divides by the mean number of images: each class has a number of its own",
         -distances(asked, sums * ways / len(labels))),
        ("it divides by the number of all images: divide by that of the class", -distances(asked, sums / len(labels))),
        ("only the first image of a class is used: take the mean",
         -distances(asked, torch.stack([known[i[0]] for i in groups]))),
        ("the median is taken: a prototype is the mean",
         -distances(asked, torch.stack([known[i].median(0).values for i in groups]))),
        ("this is the nearest image of a class: first the mean, then one distance",
         -torch.stack([far[:, i].amin(1) for i in groups], 1)),
        ("this is the mean of the distances: first the mean of the images, then one distance",
         -torch.stack([far[:, i].mean(1) for i in groups], 1)),
        ("the support is taken as if it were sorted by class: use the labels",
         logits_of(known, asked, labels.sort()[0])),
    ]  # fmt: skip


def grade_logits(student: Any, rng: Generator) -> None:
    """The logits, for several bitwidths."""
    for bits in (2, 4, 3, 32):
        w, support, labels, query = task(bits, rng)
        few = levels(w, bits)
        want = logits_of(support.double() @ few.T, query.double() @ few.T, labels).float()
        got = student(w, support, labels, query, bits)
        expect(got, want, f"{bits} bits, labels {labels.tolist()}", wrong_logits(w, support, labels, query, bits))


def pulled(
    w: Tensor, support: Tensor, labels: Tensor, query: Tensor, bits: int, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient with respect to the weights by way of the queries, and by way of the prototypes: by hand.

    logit = -|W (q - m)|^2 with m the class's mean of inputs, so its gradient is -2 W (q - m) (q - m)^T, of which
    (q)^T comes by way of the query and (-m)^T by way of the prototype.
    """
    few, q = levels(w, bits), query.double()
    mean = torch.stack([support.double()[i].mean(0) for i in members(labels)])
    off = q[:, None] - mean  # (M, N, features)
    pull = -2 * torch.einsum("mn,of,mnf->mno", upstream.double(), few, off)
    return torch.einsum("mno,mf->of", pull, q), -torch.einsum("mno,nf->of", pull, mean)


def grade_pull(student: Any, rng: Generator) -> None:
    """The gradient of the weights: straight-through, from both parts."""
    for bits in (3, 2, 4):
        w, support, labels, query = task(bits, rng)
        upstream = torch.randn(len(query), int(labels.max()) + 1, generator=rng)
        value, (got, *_) = student.gradients(w, support, labels, query, bits, upstream=upstream)
        checked(value, upstream)
        if got is None:
            raise Mistake("no gradient comes back to w: leave out detach() and no_grad(), quantize() passes it on")
        asked, known = pulled(w, support, labels, query, bits, upstream)
        free = pulled(w, support, labels, query, 32, upstream)
        expect(got, (asked + known).float(), f"{bits} bits, the gradient with respect to w", [
            ("the gradient is zero everywhere: torch.round has none. Use quantize()", 0 * asked),
            ("the gradient comes by way of the query only: the prototypes depend on w too", asked),
            ("the gradient comes by way of the prototypes only: the query depends on w too", known),
            ("this is the gradient at the weights of full precision: it belongs to the quantized ones",
             free[0] + free[1]),
            ("the sign is turned", -asked - known),
        ])  # fmt: skip


# --- fomaml_at_bits --------------------------------------------------------------------------------------------

Images = tuple[Tensor, Tensor]


def tuned(bits: int, lr: float, steps: int, rng: Generator) -> tuple[Tensor, Images, Images]:
    """Start weights, support and query, where no weight comes near the middle of two levels.

    It makes a difference whether weights that are rounded stay so from the start or after each step.
    """
    while True:
        ways, features = whole(3, 4, rng), whole(5, 7, rng)
        w, centres = (torch.randn(ways, features, generator=rng) for _ in "12")
        parts = []
        for count in (whole(7, 9, rng), whole(10, 12, rng)):
            y = (torch.arange(count) % ways)[torch.randperm(count, generator=rng)]
            parts.append((centres[y] + torch.randn(count, features, generator=rng), y))
        path = [w.double()]
        for _ in range(steps):
            path.append(path[-1] - lr * pull(path[-1], parts[0], bits))
        early, late = adapted(levels(w, bits), parts[0], bits, lr, steps), rounded(w, parts[0], bits, lr, steps)
        same = steps and bits < 32 and torch.allclose(pull(early, parts[1], bits), pull(late, parts[1], bits))
        if all(is_clear(x, bits) for x in path) and not same:
            return w, parts[0], parts[1]


def pull(w: Tensor, part: Images, bits: int, mean: bool = True) -> Tensor:
    """The gradient of the cross-entropy by hand: (probability - truth) times the image."""
    x, y = part[0].double(), part[1].tolist()
    off = torch.softmax(x @ levels(w, bits).T, 1)
    for i, c in enumerate(y):
        off[i, c] -= 1
    return torch.einsum("in,if->nf", off, x) / (len(y) if mean else 1)


def adapted(w: Tensor, part: Images, bits: int, lr: float, steps: int, mean: bool = True) -> Tensor:
    """The weights after the inner loop, in float64."""
    w = w.double()
    for _ in range(steps):
        w = w - lr * pull(w, part, bits, mean)
    return w


def rounded(w: Tensor, part: Images, bits: int, lr: float, steps: int) -> Tensor:
    """The weights are replaced by their levels after each step."""
    w = w.double()
    for _ in range(steps):
        w = levels(w - lr * pull(w, part, bits), bits)
    return w


def second_order(w: Tensor, support: Images, query: Images, bits: int, lr: float, steps: int) -> Tensor:
    """MAML's gradient, through the inner steps."""
    start = w.double().requires_grad_()
    fast = start
    for _ in range(steps):
        fast = fast - lr * torch.autograd.grad(loss(fast, support, bits), fast, create_graph=True)[0]
    return torch.autograd.grad(loss(fast, query, bits), start)[0]


def loss(w: Tensor, part: Images, bits: int) -> Tensor:
    """Mean cross-entropy."""
    return torch.nn.functional.cross_entropy(part[0].double() @ levels(w, bits).T, part[1])


def wrong_inner(w: Tensor, s: Images, q: Images, bits: int, lr: float, steps: int) -> Mistakes:
    """Mistakes of the inner loop, of the bits in it and of where the last gradient is taken."""
    start, fast = w.double(), adapted(w, s, bits, lr, steps)
    few, free = levels(start, bits), adapted(w, s, 32, lr, steps)
    stored = "the stored weights are replaced by their levels{}: keep full precision, quantize for each loss afresh"
    return [
        ("this is the gradient at the start weights: adapt on the support first, by a gradient that passes quantize()",
         pull(w, q, bits)),
        ("one inner step too few", pull(adapted(w, s, bits, lr, steps - 1), q, bits)),
        ("one inner step too many", pull(adapted(w, s, bits, lr, steps + 1), q, bits)),
        ("this is the gradient of the support's loss: take the query's, at the adapted weights", pull(fast, s, bits)),
        ("it adapts on the query: the query must stay unseen until the end",
         pull(adapted(w, q, bits, lr, steps), q, bits)),
        ("the inner loop runs at full precision: it runs at `bits` too", pull(free, q, bits)),
        ("the query's loss is at full precision: it runs at `bits` too", pull(fast, q, 32)),
        ("all runs at full precision: quantize the weights for each loss", pull(free, q, 32)),
        (stored.format(" after each step"), pull(rounded(w, s, bits, lr, steps), q, bits)),
        (stored.format(" before the first step"), pull(adapted(few, s, bits, lr, steps), q, bits)),
        (stored.format(" after each step"), pull(rounded(few, s, bits, lr, steps), q, bits)),
        (stored.format(" before the first step, and not again"), pull(adapted(few, s, 32, lr, steps), q, 32)),
        (stored.format(" before the first step, and not again until the query"),
         pull(adapted(few, s, 32, lr, steps), q, bits)),
        ("every inner step takes the gradient at the start: take it where the weights are now",
         pull(start - steps * lr * pull(w, s, bits), q, bits)),
        ("this is the second-order gradient of MAML: do not differentiate through the inner steps",
         second_order(w, s, q, bits, lr, steps)),
        ("the inner steps go uphill: subtract lr times the gradient", pull(adapted(w, s, bits, -lr, steps), q, bits)),
        ("lr is not used in the inner steps", pull(adapted(w, s, bits, 1.0, steps), q, bits)),
        ("lr is divided by the number of inner steps: each step takes lr",
         pull(adapted(w, s, bits, lr / steps, steps), q, bits)),
        ("support and query are exchanged: adapt on the support, and return the query's gradient",
         pull(adapted(w, q, bits, lr, steps), s, bits)),
        ("the inner loss is a sum: the loss is the mean over the images",
         pull(adapted(w, s, bits, lr, steps, mean=False), q, bits)),
        ("both losses are sums: the loss is the mean over the images",
         pull(adapted(w, s, bits, lr, steps, mean=False), q, bits, mean=False)),
        ("this is start minus adapted weights: Reptile's update, not FOMAML's gradient", start - fast),
        ("this is start minus adapted weights, divided by lr: Reptile's update, not FOMAML's gradient",
         (start - fast) / lr),
        ("these are the adapted weights: return the query's gradient there", fast),
    ]  # fmt: skip


def wrong_outer(w: Tensor, fast: Tensor, s: Images, q: Images, bits: int, lr: float, steps: int) -> Mistakes:
    """Mistakes of the last gradient."""
    right, both = pull(fast, q, bits), tuple(torch.cat(pair) for pair in zip(s, q, strict=True))
    return [
        ("the gradient is zero: torch.round has none. Use quantize(), which passes it straight through", 0 * right),
        ("it runs at full precision: quantize the weights for the loss", pull(fast, q, 32)),
        ("this is the gradient of the support's loss: take the query's", pull(fast, s, bits)),
        ("support and query are mixed: the gradient is the query's alone", pull(fast, both, bits)),
        ("the last gradient is a sum: the loss is the mean over the images", pull(fast, q, bits, mean=False)),
        ("the sign is turned: return the gradient, not the step", -right),
        ("the last gradient is divided by the number of inner steps: it is one gradient", right / max(1, steps)),
        ("the last gradient is multiplied by lr: return the gradient itself", lr * right),
        ("the last gradient is divided by lr: return the gradient itself", right / lr),
        ("these are updated weights: return the gradient itself", w - lr * right),
        ("these are updated weights: return the gradient itself", fast - lr * right),
    ]


def grade_fomaml(student: Any, settings: tuple[tuple[int, int], ...], rng: Generator) -> None:
    """For each (bits, steps)."""
    for bits, steps in settings:
        lr = 0.1 * whole(3, 6, rng)
        w, support, query = tuned(bits, lr, steps, rng)
        fast = adapted(w, support, bits, lr, steps)
        got = student(w, *support, *query, bits, lr, steps)
        if steps == 0:
            one = pull(adapted(w, support, bits, lr, 1), query, bits)
            mistakes = [("it takes an inner step although steps is 0", one)]
        else:
            mistakes = wrong_inner(w, support, query, bits, lr, steps)
        mistakes += wrong_outer(w, fast, support, query, bits, lr, steps)
        expect(got, pull(fast, query, bits).float(), f"{bits} bits, steps = {steps}, lr = {lr:.1f}", mistakes)


def grade_still(student: Any, rng: Generator) -> None:
    """Without an inner step: the query's gradient, straight through the rounding."""
    grade_fomaml(student, ((3, 0), (2, 0), (4, 0), (32, 0)), rng)


def grade_adapted(student: Any, rng: Generator) -> None:
    """With several steps, where all mistakes differ, and with one."""
    grade_fomaml(student, ((3, 2), (2, 3), (4, whole(4, 5, rng)), (2, 1), (32, 2)), rng)


ASSIGNMENT = Assignment(
    "06_new_classes_at_any_bitwidth",
    (
        Part("device_episode", ("labels", "ways", "shots", "count", "seed"), "The episode of a device", 20, (
            Check("a valid episode", 2, grade_episode), Check("the draw", 2, grade_draw))),
        Part("normalized", ("support", "query", "policy", "stored", "bits"), "Whose statistics?", 20, (
            Check("support", 2, grade_support), Check("batch", 1, grade_batch), Check("stored", 2, grade_stored))),
        Part("proto_logits", ("w", "support", "labels", "query", "bits"), "Prototypes at a bitwidth", 25, (
            Check("the logits", 3, grade_logits), Check("the gradient", 2, grade_pull))),
        Part("fomaml_at_bits", ("w", "support", "labels", "query", "answers", "bits", "lr", "steps"),
             "FOMAML at a bitwidth", 30, (
            Check("without an inner step", 2, grade_still), Check("after inner steps", 3, grade_adapted))),
    ),
    written={"analysis": 4},
)  # fmt: skip
