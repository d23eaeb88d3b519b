"""Collect the outcomes of a comparison's jobs in one result: tables, paired differences, means and costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

from mebqat_lite import methods
from mebqat_lite.bits import Bits, candidates, parse_all
from mebqat_lite.experiments.jobs import BUDGETS, PARTS, RIVALS, Outcome, Variant, own_method, starts_alone
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Costs, Run
from mebqat_lite.measure.intervals import interval
from mebqat_lite.measure.results import Cell

Values = dict[str, dict[str, dict[int, float]]]  # values[variant][bits][seed]


def base_of(names: Iterable[str]) -> str:
    """Return the full-precision method that all of ``names`` start from.

    Raises:
        ValueError: they start from different methods, so they cannot be compared.
    """
    kinds = {methods.get(Variant.parse(name).method).base for name in names}
    if len(kinds) > 1:
        raise ValueError(f"these methods start from {', '.join(sorted(kinds))}: compare methods that share their start")
    return kinds.pop()


def choose_rates(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], dict[str, dict[str, float]]]:
    """Choose, for each pair of ``qat``, the learning rate with the best mean validation accuracy.

    Returns:
        The outcomes without those of other learning rates, and the chosen rates by variant and pair.
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for o in outcomes:
        if o.job.lr:
            rates = found.setdefault((o.job.variant, o.job.bits), {})
            rates.setdefault(o.job.lr, []).append(o.accuracy["val"][o.job.bits])
    best = {key: max(rates, key=lambda lr: sum(rates[lr]), default=0.0) for key, rates in found.items()}
    kept = [o for o in outcomes if o.job.lr == best.get((o.job.variant, o.job.bits), 0.0)]
    table: dict[str, dict[str, float]] = {}
    for (variant, bits), lr in best.items():
        table.setdefault(variant, {})[bits] = lr
    return kept, table


def collect(
    setup: Setup, names: Sequence[str], starts: list[Run], outcomes: list[Outcome], budget: str = BUDGETS[0]
) -> dict[str, Any]:
    """Combine the outcomes of all seeds: accuracy under two norm policies, paired differences, means and costs.

    ``starts`` are the runs of the FP networks that the methods start from, one per seed.
    """
    values, rivals = {part: _values(names, outcomes, part) for part in PARTS}, _rivals(setup, names)
    recipes = [setup.recipe.with_options(**Variant.parse(name).options) for name in names]
    held_out = {width for recipe in recipes for width in recipe.exclude}
    native = {part: _values(names, outcomes, part, native=True) for part in PARTS}
    several = {o.job.variant for o in outcomes if not o.job.bits}  # variants whose networks serve more than one pair
    return {
        "accuracy": _table(values["test"]),
        "validation": _table(values["val"]),
        "paired": {part: paired(values[part], *rivals) for part in PARTS},
        "means": {part: means(values[part], _listing(setup), held_out, several) for part in PARTS},
        "measure": outcomes[0].measure,
        "norm_stats": setup.norm_stats,
        "native": {
            "accuracy": _table(native["test"]),
            "validation": _table(native["val"]),
            "norm_stats": {name: methods.get(Variant.parse(name).method).norm_stats for name in names},
        },
        "alone": _alone(names, outcomes),
        "costs": _costs(setup, names, starts[0].costs, outcomes, budget),
        "rivals": rivals,
        "break_even": _break_even(setup, rivals, starts[0].costs, outcomes, budget),
        "setup": asdict(setup),
    }


def _rivals(setup: Setup, names: Sequence[str]) -> tuple[str, str]:
    """Return the two variants whose paired difference is reported: the set-up's own method, or MEBQAT, and QAT."""
    ours, other = RIVALS[base_of(names)]
    plain = [v for v in map(Variant.parse, names) if not v.start and "bits" not in v.options]
    own = own_method(setup, base_of(names))
    first = {v.method: v.name for v in reversed(plain)}
    return first.get(own) or first.get(ours, ours), first.get(other, other)


def _listing(setup: Setup) -> list[str]:
    """List the pairs that a method with a fixed list visits, such as AdaBits."""
    return [str(b) for b in parse_all(setup.recipe.bits or methods.LISTED)]


def _values(names: Sequence[str], outcomes: list[Outcome], part: str, native: bool = False) -> Values:
    """Sort accuracies into ``values[variant][bits][seed]``, with the variants in the order of ``names``."""
    values: Values = {name: {} for name in names}
    for outcome in outcomes:
        for bits, value in (outcome.native if native else outcome.accuracy)[part].items():
            values[outcome.job.variant].setdefault(bits, {})[outcome.job.seed] = value
    return values


def _table(values: Values) -> dict[str, dict[str, Cell]]:
    """Compute mean and interval over the seeds, for each variant and pair."""
    return {name: {b: interval(list(v.values())) for b, v in row.items()} for name, row in values.items()}


def paired(values: Values, ours: str = "mebqat", other: str = "qat") -> dict[str, Cell]:
    """Compute ``ours - other`` at each pair where both were measured: the differences of each seed, as an interval."""
    shared = [bits for bits in values.get(ours, {}) if bits in values.get(other, {})]
    return {
        bits: interval([values[ours][bits][seed] - values[other][bits][seed] for seed in values[ours][bits]])
        for bits in shared
    }


def means(
    values: Values, listing: Sequence[str], held_out: Set[int] = frozenset(), several: Collection[str] = ()
) -> dict[str, Any]:
    """Compute the mean accuracy of each variant over groups of pairs, and its difference from the first variant.

    The groups are ``all`` pairs, those in ``listing`` (``listed``), the others (``off_list``), and those with a width
    in ``held_out``. All pairs are those of the variant that was measured at most pairs, among ``several`` if given:
    dedicated networks may have been trained at other pairs. Variants that were not measured at all of them are left
    out.

    Returns:
        ``{group: {variant: {"mean", "ci95", "n"}}}``, and the same for the differences under ``"minus_first"``.
    """
    known = {str(b) for b in candidates()}
    rows = [row for name, row in values.items() if name in (several or values)]
    pairs = [b for b in max(rows, key=len, default={}) if b in known]
    whole = [name for name, row in values.items() if set(row) >= set(pairs) and pairs]
    groups = {"all": pairs, "listed": [b for b in pairs if b in listing]}
    groups["off_list"] = [b for b in pairs if b not in listing]
    groups["held_out"] = [b for b in pairs if held_out & {Bits.parse(b).w, Bits.parse(b).a}]
    result: dict[str, Any] = {"minus_first": {}}
    for group, members in groups.items():
        if members:
            seeds = {name: _seed_means(values[name], members) for name in whole}
            result[group] = {name: interval(runs) for name, runs in seeds.items()}
            result["minus_first"][group] = {
                name: interval([a - b for a, b in zip(runs, seeds[whole[0]], strict=True)])
                for name, runs in seeds.items()
                if name != whole[0]
            }
    return result


def _seed_means(row: Mapping[str, Mapping[int, float]], pairs: Sequence[str]) -> list[float]:
    """Compute the mean over ``pairs`` for each seed."""
    seeds = sorted(row[pairs[0]])
    return [sum(row[bits][seed] for bits in pairs) / len(pairs) for seed in seeds]


def _alone(names: Sequence[str], outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Find the percentage of images that get the same class alone as in a large batch: the lowest of all seeds."""
    lowest: dict[str, dict[str, float]] = {name: {} for name in names}
    for outcome in outcomes:
        row = lowest[outcome.job.variant]
        for bits, share in outcome.alone.items():
            row[bits] = min(share, row.get(bits, 100.0))
    return lowest


def first_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of the lowest seed; costs are counted there, because they are the same for all seeds."""
    lowest = min((o.job.seed for o in outcomes), default=0)
    return [o for o in outcomes if o.job.seed == lowest]


def _break_even(
    setup: Setup, rivals: tuple[str, str], start: Costs, outcomes: Sequence[Outcome], budget: str
) -> int | None:
    """Apply `break_even` to the outcomes of two variants, with the network that they start from, if they use it."""
    runs = [[o.costs.backprops for o in first_seed(outcomes) if o.job.variant == name] for name in rivals]
    if not all(runs):
        return None
    once, each = runs[0][0], sum(runs[1]) / len(runs[1])
    starts = [0 if starts_alone(setup, Variant.parse(name), budget) else start.backprops for name in rivals]
    return break_even(once + starts[0], each, starts[1])


def break_even(once: float, each: float, start: float = 0) -> int:
    """Compute from how many delivered pairs on one network for all pairs takes fewer back-propagations.

    Args:
        once: those of the network for all pairs.
        each: those of a network for one pair, without its start.
        start: those of the network that all networks for one pair start from.
    """
    return max(1, math.floor((once - start) / each) + 1)


def _costs(
    setup: Setup, names: Sequence[str], start: Costs, outcomes: list[Outcome], budget: str
) -> dict[str, dict[str, int]]:
    """Add up the costs of each method in the first seed, including those of the network that it starts from.

    ``each`` counts the back-propagations of one network from its untrained beginning on.
    """
    first = {name: [o for o in first_seed(outcomes) if o.job.variant == name] for name in names}

    def before(name: str) -> Costs:
        variant = Variant.parse(name)
        if variant.start:
            return total(variant.start)
        return Costs() if starts_alone(setup, variant, budget) else start

    def total(name: str) -> Costs:
        return sum((o.costs for o in first[name]), before(name))

    def row(name: str, mine: list[Outcome]) -> dict[str, int]:
        each = max((o.costs.backprops for o in mine), default=0) + before(name).backprops
        return {"models": len(mine), "bytes": sum(o.bytes for o in mine), **asdict(total(name)), "each": each}

    return {name: row(name, mine) for name, mine in first.items()}
