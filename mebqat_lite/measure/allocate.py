"""Choose bits for each layer: what each layer loses at each pair, what it costs there, and the best that fits a budget.

    losses = mq.sensitivity(model, data.train, pairs, rest="W2A2", metric="KL", calibration=images).loss.unstack()
    prices = mq.allocate.prices(model, images[0], pairs, "bytes")
    chosen = mq.allocate.solve(losses, prices, budget=2_000)  # {"body.0.0": W2A2, "body.1.0": W4A4, ...}

Tables have a row per layer and a column per pair, such as ``"W2A4"``. A sum of losses is only a proxy: what an
allocation is worth is measured with `scores`, on images that played no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, BitsLike
from mebqat_lite.datasets.base import Split
from mebqat_lite.measure.costs import by_layer
from mebqat_lite.measure.evaluate import goal_of, scores
from mebqat_lite.switching.state import MapOrBits, pairs_of, parse_settings, quantized_layers
from mebqat_lite.tensors import Images

if TYPE_CHECKING:
    import pandas as pd

Allocation: TypeAlias = dict[str, Bits]  # a pair for each layer, as `set_bits` takes it
UNITS = ("bytes", "bitops")


def sensitivity(
    model: nn.Module,
    split: Split,
    bits: BitsLike | Iterable[BitsLike] = "W2A2",
    *,
    rest: BitsLike = "FP",
    metric: str = "score",
    norm_stats: str | None = None,
    calibration: Images | None = None,
) -> pd.DataFrame:
    """Measure what is lost when one layer alone goes to each pair of ``bits`` and all other layers stay at ``rest``.

    With ``rest="FP"`` layers look harmless that are not once the others are low too. To choose bits for all layers,
    a low ``rest`` such as W2A2 with ``metric="KL"`` ranks better.

    Args:
        model: a quantized model, which does not change.
        split: the images and their labels.
        bits: one or several pairs.
        rest: the pair of all other layers.
        metric: ``score`` (accuracy in percent, or PSNR in dB) or ``KL``, as in `evaluate.scores`.
        norm_stats: the norm policy; by default ``recalibrated`` where ``calibration`` is given, else the model's own.
        calibration: training images, on which norm statistics are measured for each of these settings.

    Returns:
        A frame with a row per quantized layer and pair, indexed by both (``layer``, ``bits``): what was measured
        (``accuracy``, ``PSNR`` or ``KL``), and ``loss``, by how much it is worse than with all layers at ``rest``.
        ``frame.attrs["measure"]`` is as in `grid`. ``frame.loss.unstack()`` is the table that `allocate.solve` takes.
    """
    import pandas as pd

    pairs = parse_settings(bits)
    settings = {(name, str(pair)): {"*": rest, name: pair} for name in _body(model) for pair in pairs}
    how: dict[str, Any] = {"metric": metric, "norm_stats": norm_stats, "calibration": calibration}
    wanted: Any = [rest, *settings.values()]
    whole, *found = scores(model, split, wanted, **how)
    goal, sign = goal_of(split, metric), 1 if metric == "score" else -1
    index = pd.MultiIndex.from_tuples(settings, names=["layer", "bits"])
    frame = pd.DataFrame({goal.name: found, "loss": [sign * (whole - value) for value in found]}, index)
    frame.attrs["measure"] = goal.measure
    return frame


def prices(
    model: nn.Module, image: Tensor, bits: str | Iterable[BitsLike] | None = None, unit: str = "bytes"
) -> pd.DataFrame:
    """Tabulate what each layer costs at each pair, by default all candidates; ``image``: (channels, height, width).

    ``unit`` is ``bytes`` or ``bitops``, as `costs.by_layer` counts them. The frame, layers x pairs, leaves out the
    first, the last and other kept layers, which cost the same at every pair but FP.
    """
    import pandas as pd

    if unit not in UNITS:
        raise ValueError(f"no unit {unit!r}; choose one of {', '.join(UNITS)}")
    pairs = pairs_of(model) if bits is None else parse_settings(bits)
    found = {str(pair): by_layer(model, image, pair)[unit] for pair in pairs}
    return pd.DataFrame(found).loc[_body(model)].rename_axis(index="layer", columns="bits")


def total(setting: MapOrBits, table: pd.DataFrame) -> float:
    """Add up what a pair, or a map of layers to pairs, has in a table of prices or losses, layers x pairs."""
    named = setting if isinstance(setting, Mapping) else {"*": setting}
    chosen = {layer: named[layer] if layer in named else named.get("*", FP) for layer in table.index}
    return sum(float(table[str(Bits.parse(pair))][layer]) for layer, pair in chosen.items())


def solve(losses: pd.DataFrame, prices: pd.DataFrame, budget: float) -> Allocation:
    """Choose one pair for each layer, so that the sum of the losses is least and that of the prices within ``budget``.

    This is the multiple-choice knapsack problem, which `scipy.optimize.milp` solves exactly.

    Args:
        losses: layers x pairs, what each layer loses, as ``sensitivity(...).loss.unstack()``.
        prices: layers x pairs, what it costs, in the unit of the budget; it may hold more pairs.
        budget: the most that all layers may cost together.

    Raises:
        ValueError: not even the cheapest pairs fit, or a loss is not finite.
    """
    from scipy.optimize import LinearConstraint, milp

    costs = prices.loc[losses.index, losses.columns].to_numpy(float)  # (layers, pairs)
    values = losses.to_numpy(float)
    if not np.isfinite(values).all():
        raise ValueError(
            "a loss is not finite: norm sets serve the pairs that they were made for, not a pair per layer"
        )
    _check(costs.min(1).sum(), budget)
    one_each = np.kron(np.eye(len(costs)), np.ones(costs.shape[1]))  # (layers, layers * pairs)
    rules = [LinearConstraint(one_each, 1, 1), LinearConstraint(costs.ravel() / budget, ub=1)]
    goal, exact = (values / (np.abs(values).max() or 1)).ravel(), {"mip_rel_gap": 0}
    while True:
        found = milp(goal, constraints=rules, integrality=np.ones(goal.size), bounds=(0, 1), options=exact)
        best = found.x.reshape(costs.shape).argmax(1)
        if costs[range(len(costs)), best].sum() <= budget:
            return {layer: Bits.parse(losses.columns[i]) for layer, i in zip(losses.index, best, strict=True)}
        rules.append(LinearConstraint(found.x.round(), ub=len(costs) - 1))  # within the solver's rounding, but not ours


def front(
    model: nn.Module,
    split: Split,
    settings: Mapping[str, MapOrBits],
    losses: pd.DataFrame,
    *,
    calibration: Images | None = None,
) -> pd.DataFrame:
    """Lay allocations side by side: what they cost, what the sum of their losses foretells, and what was measured.

    ``settings`` are pairs or maps of layers to pairs by any names, and ``losses`` is as in `solve`. `scores` measures
    them on ``split``: validation images, if one of them is to be chosen. The frame has a row per setting with ``bytes``
    and ``bitops`` of all layers, the same ``inside`` (without the first, the last and other kept layers), the ``summed
    losses``, and ``accuracy`` or ``PSNR``.
    """
    import pandas as pd

    found = scores(model, split, settings.values(), calibration=calibration)
    rows = {}
    for (name, setting), value in zip(settings.items(), found, strict=True):
        costs = by_layer(model, split.images[0], setting)
        parts = {"": costs, " inside": costs[~costs.edge]}
        row: dict[str, float] = {f"{unit}{of}": int(part[unit].sum()) for unit in UNITS for of, part in parts.items()}
        rows[name] = row | {"summed losses": total(setting, losses), goal_of(split, "score").name: value}
    return pd.DataFrame.from_dict(rows, orient="index")


def greedy(
    measure: Callable[[list[Allocation]], Sequence[float]], prices: pd.DataFrame, budget: float
) -> list[Allocation]:
    """Lower one layer after the other, each time the one that loses least for what it saves, until the budget is met.

    All layers start at their dearest pair. A step takes one layer to its next cheaper pair; of pairs with the same
    price only the highest counts. Each step measures whole allocations, so no sum of losses is needed.

    Args:
        measure: gives a score for each of a list of allocations, more is better, for example
            ``lambda found: scores(model, data.val, found, calibration=images)``.
        prices, budget: as in `solve`, with the same error.

    Returns:
        The allocations from the first to the one that fits. Each costs less than the one before.
    """
    _check(prices.min(axis=1).sum(), budget)
    ladders = {str(layer): _ladder(row) for layer, row in prices.iterrows()}
    path = [{layer: ladder[0] for layer, ladder in ladders.items()}]
    [now] = measure(path)
    while (spent := total(path[-1], prices)) > budget:
        nexts = {layer: ladder[ladder.index(path[-1][layer]) + 1 :][:1] for layer, ladder in ladders.items()}
        tried = [{**path[-1], layer: pair} for layer, pairs in nexts.items() for pair in pairs]
        found = measure(tried)
        gains = [(value - now) / (spent - total(one, prices)) for value, one in zip(found, tried, strict=True)]
        best = int(np.argmax(gains))
        path.append(tried[best])
        now = found[best]
    return path


def _ladder(row: pd.Series) -> list[Bits]:
    """The pairs of a layer from the dearest to the cheapest, of those with the same price the highest."""
    highest = {cost: max(Bits.parse(pair) for pair in row.index[row == cost]) for cost in set(row)}
    return [highest[cost] for cost in sorted(highest, reverse=True)]


def _body(model: nn.Module) -> list[str]:
    """The layers whose bits can be chosen."""
    return [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"]


def _check(least: float, budget: float) -> None:
    if not budget > 0 or least > budget:
        raise ValueError(f"the cheapest pairs of these layers cost {least:,.0f} together: {budget:,.0f} is too little")
