"""Results in one JSON schema, and the table printed from it.

``{"accuracy": {method: {bits: {"mean", "ci95", "n"}}}, "norm_stats", "costs", "seconds"}``; accuracies in percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite.checkpoint import replace

if TYPE_CHECKING:
    import pandas as pd

Cell = dict[str, float]
Table = Mapping[str, Mapping[str, Cell]]


def write_json(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Write results atomically; NaN (an interval over one value, say) becomes null."""
    path = Path(path)
    replace(path, (json.dumps(_plain(results), indent=1) + "\n").encode())
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells(frame: pd.DataFrame) -> dict[str, Cell]:
    """A row of the table from what `evaluate.grid` returns."""
    names = ("mean", "ci95", "n")
    return {str(bits): {name: float(row[name]) for name in names} for bits, row in frame.iterrows()}


def table(accuracy: Table, pairs: Sequence[str], titles: Mapping[str, str] | None = None) -> str:
    """Rows of methods, columns of pairs, ``mean ± half-width``; a dash where nothing was measured."""
    rows = [["", *pairs]]
    for method, cells in accuracy.items():
        rows.append([(titles or {}).get(method, method), *(_cell(cells.get(pair)) for pair in pairs)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first, *rest = zip(*rows, strict=True)
    columns = [[cell.ljust(widths[0]) for cell in first]]
    columns += [[cell.rjust(w) for cell in column] for column, w in zip(rest, widths[1:], strict=True)]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cell(cell: Cell | None) -> str:
    if cell is None or not is_known(cell["mean"]):
        return "-"
    half = cell["ci95"]
    return f"{cell['mean']:.1f}" + (f" ±{half:.1f}" if is_known(half) else "")


def is_known(value: float | None) -> bool:
    """Whether a number is there: neither NaN nor, read back from JSON, null."""
    return value is not None and not math.isnan(value)
