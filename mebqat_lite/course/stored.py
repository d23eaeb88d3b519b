"""The comparisons that were measured for the page of benchmarks, as a lesson reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite.measure.results import is_known
from mebqat_lite.paths import checkout, shipped


def comparisons() -> dict[str, dict[str, Any]]:
    """Read all stored comparisons, ``benchmarks/accuracy/NAME.json``, by their names.

    Each is what `experiments.compare.compare` returned; `mebqat_lite.measure.results` describes it.

    Raises:
        FileNotFoundError: the files are not there, because this is not a checkout of the repository.
    """
    folder = (checkout() or Path("..")) / "benchmarks" / "accuracy"
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise FileNotFoundError(
            "no stored comparisons: they are in benchmarks/accuracy of the repository, which a notebook finds from the "
            "checkout's folder notebooks"
        )
    return found


def accuracies(
    comparison: Mapping[str, Any], methods: Sequence[str], pairs: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Take mean test accuracies in percent, ``{method: {pair: mean}}``, from a comparison.

    Args:
        comparison: one of `comparisons`.
        methods: the methods to take; an unknown one is a KeyError.
        pairs: the pairs to take, where they were measured; by default all.
    """
    return {
        method: {
            pair: cell["mean"]
            for pair, cell in comparison["accuracy"][method].items()
            if is_known(cell["mean"]) and (not pairs or pair in pairs)
        }
        for method in methods
    }


def sheet(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """Read what shipped few-shot networks reached, ``{method: {pair: {"mean", "ci95", "n"}}}``, in percent.

    They are single networks, measured on 600 episodes of the validation scripts, and the intervals are over episodes.

    Args:
        name: a set-up of ``data/checkpoints/glyphs.json``, such as ``glyphs-5way``; an unknown one is a KeyError.
    """
    found = json.loads(shipped("checkpoints", "glyphs.json").read_text(encoding="utf-8"))[name]
    count = found["set"]["episodes"]

    def cell(stored: Mapping[str, float]) -> dict[str, float]:
        return {"mean": stored["mean"], "ci95": stored["ci95_episodes"], "n": count}

    return {method: {pair: cell(one) for pair, one in row.items()} for method, row in found["accuracy"].items()}


def best(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Find the highest mean test accuracy in percent at each pair, ``{pair: mean}``, of all methods measured there."""
    found: dict[str, float] = {}
    for row in accuracies(comparison, list(comparison["accuracy"])).values():
        for pair, value in row.items():
            found[pair] = max(value, found.get(pair, value))
    return found


def ahead(comparison: Mapping[str, Any], method: str) -> dict[str, float]:
    """Take how far the first method of a comparison is ahead of another one over all pairs, on test images.

    If the other was trained in several variants, such as learning rates, it is the one that is best on validation
    images.

    Args:
        comparison: one of `comparisons`.
        method: the name of the other method; an unknown one is a KeyError.

    Returns:
        The paired difference in points, ``{"mean": mean, "ci95": half of its 95 % interval, "n": seeds}``.
    """
    means = comparison["means"]
    variants = [name for name in means["val"]["all"] if name.partition("+")[0] == method] or [method]
    best = max(variants, key=lambda name: means["val"]["all"][name]["mean"])
    cell = means["test"]["minus_first"]["all"][best]
    return cell | {"mean": -cell["mean"]}


def minus(comparison: Mapping[str, Any], one: str, other: str, pairs: Sequence[str]) -> dict[str, float]:
    """Take the difference of two methods' mean test accuracies over some pairs, with a bound on its paired interval.

    The interval of a mean over chosen pairs is not stored. But a standard deviation over seeds of a mean, or of a
    difference, is at most the mean, or the sum, of the standard deviations (the triangle inequality), and half-widths
    over equally many seeds are multiples of them.

    Args:
        comparison: one of `comparisons`.
        one: the name of a method; an unknown one is a KeyError.
        other: the method that is subtracted.
        pairs: the pairs; one that was not measured is a KeyError.

    Returns:
        ``{"mean": difference in points, "ci95": what half of its 95 % interval does not exceed, "n": seeds}``.
    """
    first, second = ([comparison["accuracy"][name][pair] for pair in pairs] for name in (one, other))
    gap = sum(a["mean"] - b["mean"] for a, b in zip(first, second, strict=True)) / len(pairs)
    most = sum(cell["ci95"] for cell in (*first, *second)) / len(pairs)
    return {"mean": gap, "ci95": most, "n": comparison["seeds"]}
