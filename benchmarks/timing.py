"""Interleaved timing: A B A B ..., a ratio from each pair, so that a drifting machine cancels out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(ours: Work, plain: Work, runs: int, warmup: int = 3) -> dict[str, Any]:
    """Median of ``ours / plain`` over ``runs`` pairs; ``spread`` is the range of the middle half of them."""
    for _ in range(warmup):
        ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(runs)]
    return summarize([a / b for a, b in pairs], [a for a, _ in pairs], [b for _, b in pairs])


def summarize(ratios: list[float], ours: list[float], plain: list[float]) -> dict[str, Any]:
    """The record of a benchmark."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(low, 3), round(high, 3)],
        "runs": len(ratios),
        "seconds": [statistics.median(ours), statistics.median(plain)],
    }
