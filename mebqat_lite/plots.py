"""Figures from results, in one style: colours that survive colour-blindness, markers that survive grey print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from mebqat_lite.results import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
LOOKS: dict[str, dict[str, Any]] = {  # Okabe and Ito's palette
    "ptq_naive": {"color": ORANGE, "marker": "v", "linestyle": ":"},
    "ptq_mse": {"color": RED, "marker": "s", "linestyle": "--"},
    "qat": {"color": BLACK, "marker": "D", "linestyle": "none"},
    "mebqat": {"color": BLUE, "marker": "o", "linestyle": "-"},
}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def style() -> Any:
    """The package's look, as a context: ``with plots.style(): ...``."""
    return plt.rc_context(STYLE)


def accuracy_curves(
    accuracy: Table,
    pairs: Sequence[str],
    titles: Mapping[str, str],
    title: str = "",
    low: float | None = None,
) -> Figure:
    """Accuracy in percent over bitwidth pairs, a line or points per method, with intervals."""
    with style():
        figure, axes = plt.subplots(figsize=(7.5, 4.2))
        for method, row in accuracy.items():
            _draw(axes, row, pairs, titles.get(method, method), LOOKS.get(method, {}))
        axes.set_xticks(range(len(pairs)), pairs)
        axes.set(xlabel="bitwidths of weights and activations", ylabel="accuracy (%)", title=title)
        axes.set_ylim(low, 101)
        axes.legend(loc="lower right")
    return figure


def _draw(axes: Axes, row: Mapping[str, dict[str, float]], pairs: Sequence[str], label: str, look: dict) -> None:
    """One method: means and half-widths at the pairs that it has."""
    places = [i for i, pair in enumerate(pairs) if pair in row]
    means = [row[pairs[i]]["mean"] for i in places]
    halves = np.nan_to_num([row[pairs[i]]["ci95"] for i in places])
    axes.errorbar(places, means, yerr=halves, label=label, capsize=3, markersize=6, **look)
