"""Assignment 07: right answers, each written another way, and wrong ones with the message that names them."""

import math

import numpy as np

PLAN = {"guaranteed": ["FP", "W1A1"], "m": 4, "exclude": [], "teacher": "fp"}
PLAN |= {"lr": 0.02, "steps": 120, "warm_steps": 120, "norm_stats": "recalibrated"}


def plan(**changes):
    """A right plan with other settings; None leaves one out."""
    return lambda: {key: value for key, value in {**PLAN, **changes}.items() if value is not None}


def gaps(ours, reference):
    return {p: reference[p] - ours[p] for p in ours if p in reference and not math.isnan(reference[p] - ours[p])}


def by(key, reverse=True):
    """The names of the first k known pairs by another order."""
    return lambda ours, ref, k: sorted(gaps(ours, ref), key=lambda p: key(ours, ref, p), reverse=reverse)[:k]


def popped(ours, reference, k):
    left, found = gaps(ours, reference), []
    while left and len(found) < k:
        found.append(max(left, key=left.get))
        left.pop(found[-1])
    return tuple(found)


def by_numpy(ours, reference, k):
    left = gaps(ours, reference)
    names = list(left)
    return [names[i] for i in np.argsort([-left[name] for name in names])[:k]]


def counted_up(plan, start, delivered, rule):
    one = plan["warm_steps"] + plan["m"] * plan["steps"]
    networks = {"steps": 0, "each": 1, "total": delivered}[rule]
    s = 0
    while networks and start + networks * (s + 1) <= one:
        s += 1
    return s if networks else plan["steps"]


def steps_by(each, total):
    """Right under equal steps; the other two rules as given, from (warm, m * steps, start, delivered)."""

    def answer(plan, start, delivered, rule):
        found = plan["warm_steps"], plan["m"] * plan["steps"], start, delivered
        return plan["steps"] if rule == "steps" else max(0, (each if rule == "each" else total)(*found))

    return answer


def right_each(w, ms, start, k):
    return w + ms - start


def right_total(w, ms, start, k):
    return max(w + ms - start, 0) // k


def deciding(networks=True, full=True, score=min, within=True, near=True, over=None, everywhere=False):
    """The rule, with parts of it left out."""

    def answer(table, needed, budget, margin):
        rows = []
        for name, row in table.items():
            cost = row["backprops"] * (len(needed) if networks and row["dedicated"] else 1)
            found = [row["accuracy"].get(pair) for pair in (row["accuracy"] if everywhere else needed)]
            if (within and cost > budget) or (full and None in found) or all(value is None for value in found):
                continue
            rows.append((score([value for value in found if value is not None]), cost, name))
        if not rows:
            return "none"
        if not near:
            return max(rows)[2]
        return min((cost, name) for value, cost, name in rows if value >= max(rows)[0] - margin)[1]

    return answer


def best_of_all(table, needed, budget, margin):
    """The best is looked for among methods that cost too much as well."""
    best = deciding(within=False, near=False)(table, needed, budget, margin)
    least = min(table[best]["accuracy"][pair] for pair in needed) - margin if best in table else 0
    good = {name: row for name, row in table.items() if min(row["accuracy"].get(p, -1) for p in needed) >= least}
    return deciding()(good, needed, budget, margin)


def sorted_rows(table, needed, budget, margin):
    def total(name):
        return table[name]["backprops"] * len(needed) ** table[name]["dedicated"]

    def worst(name):
        return min(table[name]["accuracy"].get(pair, -math.inf) for pair in needed)

    fit = [name for name in sorted(table, key=total) if total(name) <= budget and worst(name) > -math.inf]
    best = max(map(worst, fit), default=0)
    return next((name for name in fit if best - worst(name) <= margin), "none")


RIGHT = {
    "choose": [
        plan(m=np.int64(4), guaranteed=[(32, 32), (1, 1)]),
        plan(lr=np.float64(0.02), guaranteed=("fp", "w1a1"), exclude=()),
    ],
    "worst_pairs": [popped, by_numpy],
    "dedicated_steps": [counted_up, lambda p, start, k, rule: float(counted_up(p, start, k, rule))],
    "decide": [deciding(), sorted_rows],
}
WRONG = {
    "choose": [
        ("return a dictionary", lambda: list(PLAN.items())),
        ("no setting 'batch_size'", plan(batch_size=64)),
        ("'exclude' is missing", plan(exclude=None)),
        ("budget is exceeded: warm_steps", plan(steps=121)),
        ("one image at a time", plan(norm_stats="batch")),
        ("do not fit into m = 1", plan(m=1)),
        ("widths is excluded", plan(exclude=[1])),
        ("m is True", plan(m=True)),
        ("steps is 60.0", plan(steps=60.0)),
        ("lr is 1", plan(lr=1)),
        ("teacher is 'me'", plan(teacher="me")),
        ("which without warm_steps", plan(teacher="start", warm_steps=0)),
        ("none of the 75", plan(guaranteed=["W1A2"])),
        ("write the pairs as", plan(guaranteed=["W1"])),
        ("a list of pairs", plan(guaranteed="FP,W1A1")),
        ("may hold the widths", plan(exclude=[32])),
        ("Running statistics are", plan(norm_stats="running")),
        ("uses 12 of 600", plan(steps=3, warm_steps=0)),
    ],
    "worst_pairs": [
        ("smallest regret", by(lambda ours, ref, p: ref[p] - ours[p], reverse=False)),
        ("No abs", by(lambda ours, ref, p: abs(ref[p] - ours[p]))),
        ("lowest accuracy", by(lambda ours, ref, p: ours[p], reverse=False)),
        ("highest reference", by(lambda ours, ref, p: ref[p])),
        ("largest regret comes first", lambda ours, ref, k: popped(ours, ref, k)[::-1]),
        ("it is NaN there", lambda ours, ref, k: sorted(
            {*ours} & {*ref}, key=lambda p: (math.isnan(ref[p] - ours[p]), ref[p] - ours[p]), reverse=True)[:k]),
        ("not in both", lambda ours, ref, k: sorted(
            (p for p in ref if ref[p] >= 0 and ours.get(p, 0) >= 0),
            key=lambda p: ref[p] - ours.get(p, 0), reverse=True)[:k]),
        ("it should be", lambda ours, ref, k: popped(ours, ref, 99)),
        ("names of the pairs alone", lambda ours, ref, k: [(p, ref[p]) for p in popped(ours, ref, k)]),
        ("names of the pairs, such", lambda ours, ref, k: [gaps(ours, ref)[p] for p in popped(ours, ref, k)]),
        ("comes twice", lambda ours, ref, k: [*popped(ours, ref, 1)] * k),
        ("return a list", lambda ours, ref, k: popped(ours, ref, 1)[0]),
        ("divides by the reference", by(lambda ours, ref, p: (ref[p] - ours[p]) / ref[p])),
        ("taken for 0", by(lambda ours, ref, p: max(ref[p] - ours[p], 0))),
        ("rounded before", by(lambda ours, ref, p: round(ref[p] - ours[p]))),
        ("it should be", lambda ours, ref, k: [p for p in popped(ours, ref, k) if ref[p] > ours[p]]),
    ],
    "dedicated_steps": [
        ("not by each dedicated network", steps_by(right_each, lambda w, ms, start, k: (w + ms - k * start) // k)),
        ("costs something too", steps_by(right_each, lambda w, ms, start, k: (w + ms) // k)),
        ("warm start of the one", steps_by(lambda w, ms, start, k: ms - start, right_total)),
        ("of a dedicated network counts", steps_by(lambda w, ms, start, k: w + ms, right_total)),
        ("neither start", steps_by(lambda w, ms, start, k: ms, lambda w, ms, start, k: ms // k)),
        ("rounds up", steps_by(right_each, lambda w, ms, start, k: -(-max(w + ms - start, 0) // k))),
        ("round down", steps_by(right_each, lambda w, ms, start, k: (w + ms - start) / k)),
        ("may take as many", steps_by(right_total, right_total)),
        ("divide among all", steps_by(right_each, right_each)),
        ("the least is 0", lambda p, start, k, rule: p["steps"] if rule == "steps" else (
            p["warm_steps"] + p["m"] * p["steps"] - start) // (k if rule == "total" else 1)),
        ("does not matter what they cost", lambda p, start, k, rule: p["m"] * p["steps"]),
        ("warm start takes one", lambda p, start, k, rule: counted_up(
            {**p, "warm_steps": p["m"] * p["warm_steps"]}, start, k, rule)),
        ("stays below", lambda p, start, k, rule: counted_up(p, start + (rule != "steps"), k, rule)),
        ("or round", steps_by(right_each, lambda w, ms, start, k: round((w + ms - start) / k))),
        ("takes m back-propagations", lambda p, start, k, rule: counted_up({**p, "m": 1}, start, k, rule)),
    ],
    "decide": [
        ("one dedicated network", deciding(networks=False)),
        ("not measured at a needed", deciding(full=False)),
        ("costs more than the budget", deciding(within=False)),
        ("compares the mean", deciding(score=lambda found: sum(found) / len(found))),
        ("not needed", deciding(everywhere=True)),
        ("within the margin", deciding(near=False)),
        ("lower, by more than", lambda table, needed, budget, margin: deciding(near=True)(table, needed, budget, 99)),
        ("not as good", lambda table, needed, budget, margin: deciding()(table, needed, budget, 99)),
        ("return the name", lambda table, needed, budget, margin: 1),
        ("in no row", lambda table, needed, budget, margin: "MEBQAT"),
        ("just the budget", lambda table, needed, budget, margin: deciding()(table, needed, budget - 1, margin)),
        ("for a method that is one network", lambda table, *args: deciding()(
            {name: row | {"dedicated": True} for name, row in table.items()}, *args)),
        ("only among those", best_of_all),
        ("or another pair", deciding(score=max)),
    ],
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
