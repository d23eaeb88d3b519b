"""Wrong answers: each loses the points of its check, with a message that names the mistake, and no others."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.classroom.made import FOUR, ONE, SEVEN, SIX, TWO, Case, solved, written

CUT_OFF = """def affine_range(x, bits):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / (2**bits - 1)
    return step, int(-low / step)"""
SQNR = "def sqnr(x, y):\n    return {} * torch.{}(x.pow(2).sum() / (x - y).pow(2).sum())"
IN_PLACE = "def sqnr(x, y):\n    x -= y\n    return 10 * torch.log10(y.pow(2).sum() / x.pow(2).sum())"
NO_SCALE = """def lsq(x, step, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    u = (x / step).clamp(low, high)
    return step * (u + (torch.round(u) - u).detach())"""
NO_CLIP = """def qat_step(w, x, y, step, bits, lr):
    rounded = step * torch.round((w / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    return w - lr * 2 * (x @ rounded.T - y).T @ x / y.numel()"""
CHANCE = """def draw_step(candidates, guaranteed, m, seed, step):
    chance = random.Random({})
    return guaranteed + chance.choices(candidates, k=m - len(guaranteed))"""
SETS = CHANCE.format("f'{seed}/{step}'").replace("choices(candidates", "choices(list(set(candidates))")
BY_DRAWS = """def mean_gradients(gradients, pairs, limit):
    means = dict()
    for name in gradients[pairs[0]]:
        used = [gradients[pair][name] for pair in pairs if gradients[pair][name] is not None]
        means[name] = (sum(used) / len(pairs)).clamp(-limit, limit) if used else None
    return means"""
UNBIASED = """def normalized(support, query, policy, stored, bits):
    seen = support.flatten(0, 1) if policy == "support" else torch.cat([support.flatten(0, 1), query])
    mean, variance = stored[bits] if policy == "stored" else (seen.mean((0, 2, 3)), seen.var((0, 2, 3)))
    spread = (variance + 1e-5).sqrt()[:, None, None]
    return (support - mean[:, None, None]) / spread, (query - mean[:, None, None]) / spread"""
CUT = """def proto_logits(w, support, labels, query, bits):
    few = quantize(w, bits).detach()
    means = torch.stack([(support @ few.T)[labels == n].mean(0) for n in range(int(labels.max()) + 1)])
    return -(query @ few.T - means[:, None]).square().sum(2).T"""
SMALLEST = """def worst_pairs(accuracy, reference, k):
    lost = {p: accuracy[p] - reference[p] for p in accuracy if p in reference}
    return sorted((p for p in lost if lost[p] == lost[p]), key=lost.get, reverse=True)[:k]"""
MEAN = """def decide(table, needed, budget, margin):
    rows = {}
    for name, row in table.items():
        cost = row["backprops"] * (len(needed) if row["dedicated"] else 1)
        if cost <= budget and all(pair in row["accuracy"] for pair in needed):
            rows[name] = sum(row["accuracy"][pair] for pair in needed) / len(needed), cost
    best = max((score for score, _ in rows.values()), default=0)
    return min((n for n in rows if rows[n][0] >= best - margin), key=lambda n: rows[n][1], default="none")"""


def wrong(name: str, assignment: str, parts: Mapping[str, str], loses: Mapping[str, int], *says: str) -> Case:
    """A notebook with mistakes in some parts."""
    return Case("wrong", name, assignment, written(solved(assignment, parts)), loses, says)


def cases() -> list[Case]:
    """All wrong ones."""
    natural = SQNR.format(10, "log")
    stop, text = "def sqnr(x, y):\n    return 10 * log10(x)", "def sqnr(x, y):\n    return '12 dB'"
    stub = "def affine_range(x, bits):\n    ..."
    return [
        wrong("cut_off", ONE, {"affine_range": CUT_OFF, "sqnr": natural}, {"affine_range": 3, "sqnr": 0},
              "it is cut off", "natural logarithm"),
        wrong("in_place", ONE, {"sqnr": IN_PLACE}, {"sqnr": 0}, "changes its input x in place"),
        wrong("name_error", ONE, {"sqnr": stop}, {"sqnr": 0}, r"'log10' is not defined, in line 2 of your cell"),
        wrong("text_and_stub", ONE, {"sqnr": text, "affine_range": stub}, {"sqnr": 0, "affine_range": 0},
              "type str: return a number", "not attempted"),
        wrong("slopes", TWO, {"lsq": NO_SCALE, "qat_step": NO_CLIP}, {"lsq": 3, "qat_step": 3},
              "scale of the step's gradient is missing", "gradient passes the clip"),
        wrong("hash", FOUR, {"draw_step": CHANCE.format("hash(f'{seed}/{step}')")}, {"draw_step": 4}, "started anew"),
        wrong("set", FOUR, {"draw_step": SETS}, {"draw_step": 4}, "the order of a set"),
        wrong("digits", FOUR, {"draw_step": CHANCE.format("f'{seed}{step}'"), "mean_gradients": BY_DRAWS},
              {"draw_step": 4, "mean_gradients": 2}, "the same pairs", "of all draws|number of draws"),
        wrong("unbiased", SIX, {"normalized": UNBIASED, "proto_logits": CUT}, {"normalized": 2, "proto_logits": 3},
              "count less one", "no gradient comes back"),
        wrong("smallest", SEVEN, {"worst_pairs": SMALLEST, "decide": MEAN}, {"worst_pairs": 0, "decide": 2},
              "smallest regret", "compares the mean"),
    ]  # fmt: skip
