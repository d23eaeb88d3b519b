"""Compute means and their confidence intervals over seeds or episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the ``mean`` of values, the half-width ``ci95`` of its 95 % t-interval (NaN for one value), and ``n``."""
    n, data = len(values), torch.tensor(values, dtype=torch.float64)
    half = math.nan if n < 2 else t_quantile(n - 1) * float(data.std()) / math.sqrt(n)
    return {"mean": float(data.mean()), "ci95": half, "n": n}


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution with ``freedom`` degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
