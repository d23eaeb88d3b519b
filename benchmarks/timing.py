"""Time two things in turns, A B A B ..., and take a ratio from each pair, so that a drifting machine cancels out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Measure how many seconds one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(ours: Work, plain: Work, runs: int, warmup: int = 3) -> dict[str, Any]:
    """Measure ``ours / plain`` over ``runs`` pairs of calls, after ``warmup`` pairs that do not count."""
    for _ in range(warmup):
        ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(runs)]
    return summarize([a / b for a, b in pairs], [a for a, _ in pairs], [b for _, b in pairs])


def summarize(ratios: list[float], ours: list[float], plain: list[float]) -> dict[str, Any]:
    """Make the record of a benchmark.

    ``ratio`` is the median, ``spread`` the quartiles of the ratios, and ``seconds`` the median times of both.
    """
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(low, 3), round(high, 3)],
        "runs": len(ratios),
        "seconds": [statistics.median(ours), statistics.median(plain)],
    }
