"""Hold results in one JSON schema, write them to files, and format them as text.

``{"accuracy": {method: {bits: {"mean", "ci95", "n"}}}, "norm_stats", "costs", "seconds"}``; accuracies are in percent.
Where labels are values, ``"measure"`` is ``PSNR (dB)``, and the same tables hold decibels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite.files import replace
from mebqat_lite.learners import Classes
from mebqat_lite.methods import METHODS

if TYPE_CHECKING:
    import pandas as pd

Cell = dict[str, float]
Table = Mapping[str, Mapping[str, Cell]]


def check_frame_name(path: Path) -> None:
    """Raise a ValueError if the file name does not end with .csv or .parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path.name}: a grid is written as .csv or .parquet")


def write_frame(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a grid to a file atomically, as CSV or parquet according to the ending of its name.

    Raises:
        ValueError: the name has another ending, or the package that writes parquet is not installed.
    """
    path = Path(path)
    check_frame_name(path)
    if path.suffix == ".csv":
        content = frame.to_csv().encode()
    else:
        try:
            content = frame.to_parquet()
        except ImportError as error:
            raise ValueError(f"{path.name}: parquet needs a package: pip install pyarrow; or write a .csv") from error
    replace(path, content)
    return path


def cells(frame: pd.DataFrame) -> dict[str, Cell]:
    """Make a row of a `table`, ``{bits: {"mean", "ci95", "n"}}``, from a frame of `evaluate.grid`."""
    names = ("mean", "ci95", "n")
    return {str(bits): {name: float(row[name]) for name in names} for bits, row in frame.iterrows()}


def table(accuracy: Table, pairs: Sequence[str], titles: Mapping[str, str] | None = None) -> str:
    """Format a table as text, with a row for each method, a column for each pair, and ``mean ± half-width`` in cells.

    A dash means that nothing was measured. ``titles`` gives the methods other names.
    """
    rows = [["", *pairs]]
    for method, cells in accuracy.items():
        rows.append([(titles or {}).get(method, method), *(_cell(cells.get(pair)) for pair in pairs)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first, *rest = zip(*rows, strict=True)
    columns = [[cell.ljust(widths[0]) for cell in first]]
    columns += [[cell.rjust(w) for cell in column] for column, w in zip(rest, widths[1:], strict=True)]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def report(
    outcome: Mapping[str, Any], pairs: Sequence[str], part: str = "test", titles: Mapping[str, str] | None = None
) -> str:
    """Format a comparison as text: what was measured under two norm policies, means, paired differences, and costs.

    Args:
        outcome: what `experiments.compare.compare` returns.
        pairs: the pairs that the tables show.
        part: the images that were classified: ``test``, or ``val`` if something is to be chosen.
        titles: other names for the methods.
    """
    native, key = outcome["native"], {"test": "accuracy", "val": "validation"}[part]
    policies = set(native["norm_stats"].values())
    whose = ", ".join(f"{name} {policy}" for name, policy in native["norm_stats"].items())
    gaps = outcome["paired"][part]
    count = max(int(cell["n"]) for row in outcome[key].values() for cell in row.values())
    seeds = f"{count} seed{'s' * (count > 1)}"
    ours, other = outcome.get("rivals", ("mebqat", "qat"))
    what = "classes" if METHODS[ours.partition("+")[0]].learns_new_classes else "images"
    measure = outcome.get("measure", Classes.measure)
    blocks = [
        f"{measure[0].upper()}{measure[1:]}, {part} {what}, {seeds}, norm statistics {outcome['norm_stats']}, "
        f"budget: equal {outcome['budget']}",
        table(outcome[key], pairs, titles),
        f"\nNorm statistics of each method's own policy ({whose if len(policies) > 1 else policies.pop()})",
        table(native[key], pairs, titles),
        _means(outcome["means"][part], len(max(outcome[key].values(), key=len)) > len(pairs), titles),
        f"\n{ours} - {other}, paired, {outcome['norm_stats']}: {differences(gaps)}" if gaps else "",
        f"\nBatches of one image: {_lowest(outcome['alone'])}" if any(outcome["alone"].values()) else "",
        _spent(outcome["costs"]),
    ]
    for name, rates in outcome.get("qat_lr", {}).items():
        found = ", ".join(f"{bits} {rate:g}" for bits, rate in rates.items())
        blocks.append(f"Learning rate of {name}, chosen on validation images: {found}")
    if outcome["break_even"]:
        blocks.append(f"{ours} takes fewer than {other} from {outcome['break_even']} delivered pairs on.")
    return "\n".join(block for block in blocks if block)


def _spent(costs: Mapping[str, Mapping[str, int]]) -> str:
    """Say how many back-propagations each network got, and how many the methods with several networks took in all."""
    each = {name: f"{row['each']:,}" for name, row in costs.items()}
    equal = len(set(each.values())) == 1
    first = next(iter(each.values())) if equal else ", ".join(f"{name} {count}" for name, count in each.items())
    several = [
        f"; {name} took {row['backprops']:,} for {row['models']} networks"
        for name, row in costs.items()
        if row["models"] > 1
    ]
    return f"Back-propagations of {'each' if equal else 'a'} network, its FP start included: {first}{''.join(several)}"


def _means(means: Mapping[str, Any], many: bool, titles: Mapping[str, str] | None) -> str:
    """Format the means over all, over listed and over other pairs, if there are ``many``: more than the tables show."""
    groups = [group for group in ("all", "listed", "off_list", "held_out") if group in means]
    if "off_list" not in means or len(means["all"]) < 2 or not many:
        return ""
    rows = {name: {group: means[group][name] for group in groups} for name in means["all"]}
    gaps = {n: {g: means["minus_first"][g][n] for g in groups} for n in rows if n in means["minus_first"]["all"]}
    first = next(iter(rows))
    lines = ["\nMean over all pairs; those that listing methods visit; the others", table(rows, groups, titles)]
    return "\n".join([*lines, f"Minus {first}, paired", table(gaps, groups, titles)])


def differences(gaps: Mapping[str, Cell]) -> str:
    """Format paired differences in one line: ``W2A2 +0.2 ±0.8, ...``."""
    half = {bits: f" ±{gap['ci95']:.1f}" if is_known(gap["ci95"]) else "" for bits, gap in gaps.items()}
    return ", ".join(f"{bits} {gap['mean']:+.1f}{half[bits]}" for bits, gap in gaps.items())


def _lowest(alone: Mapping[str, Mapping[str, float]]) -> str:
    shares = [share for row in alone.values() for share in row.values()]
    return f"at least {min(shares):.2f} % of the predictions of a large batch" if shares else "not measured"


def _cell(cell: Cell | None) -> str:
    if cell is None or not is_known(cell["mean"]):
        return "-"
    half = cell["ci95"]
    return f"{cell['mean']:.1f}" + (f" ±{half:.1f}" if is_known(half) else "")


def is_known(value: float | None) -> bool:
    """Tell whether ``value`` is a number: not NaN, and not None, which NaN becomes in JSON."""
    return value is not None and not math.isnan(value)
