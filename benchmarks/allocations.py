"""Does it pay to choose bits for each layer? ``python -m benchmarks.allocations [--seeds N] [--store]``.

Three networks of six quantized layers are trained on the glyph classes for equal back-propagations: one for all pairs,
one that draws a pair for each layer, and one at full precision that is rounded (PTQ). Under budgets of BitOPs or of
bytes, a searched allocation is compared with the best uniform pair that fits. Both are chosen on one half of the
validation images and confirmed on the other half; test images are looked at once. ``--store`` writes
``allocations.json`` and the tables of README.md in this folder.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.accuracy import FOLDER, rounded
from benchmarks.machine import machine
from benchmarks.page import command, put
from mebqat_lite import datasets
from mebqat_lite.bits import Bits, parse_all
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.experiments.jobs import one_thread
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import write_json
from mebqat_lite.measure.allocate import UNITS, greedy, prices, scores, sensitivity, solve, total
from mebqat_lite.measure.costs import by_layer
from mebqat_lite.measure.intervals import interval
from mebqat_lite.measure.results import table
from mebqat_lite.methods import calibration
from mebqat_lite.models import GlobalMean
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import quantize
from mebqat_lite.train import fit

PAIRS = ("W1A1", "W1A32", "W2A2", "W2A3", "W2A8", "W3A3", "W4A4", "W4A8", "W8A8")
RESTS = ("FP", "W2A2")  # the pairs of all other layers, at which the sensitivities of a layer are measured
BUDGETS = {"bitops": (1.25, 1.5, 2.0, 3.0, 4.0), "bytes": (1.25, 1.5, 2.0, 3.0)}  # times what W1A1 costs
BITOPS, DRAWN = 4.0, 50  # allocations drawn at random, each of at most four times the BitOPs of W1A1
FEW = 20  # one image in so many of the half to search on: 160 of 3,200
ONE, MIXED, PTQ = "one network", "one network, layers drawn", "FP + PTQ"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    ONE: ("mebqat_in_turn", {}),
    MIXED: ("mebqat_in_turn", {"per_layer": True}),
    PTQ: ("ptq_mse", {}),
}
RECIPE = get("glyph-classes").recipe.with_options(lr=0.05)


@dataclass(frozen=True)
class Case:
    """What is trained and searched: the size of the experiment."""

    data: str = "glyph_classes"
    recipe: Recipe = RECIPE
    layers: int = 6  # that are quantized
    pairs: Sequence[str] = PAIRS
    drawn: int = DRAWN
    budgets: Mapping[str, Sequence[float]] = field(default_factory=lambda: BUDGETS)


def network(layers: int, classes: int) -> nn.Module:
    """Build 3 x 3 convolutions, each with batch norm, and a linear layer; all but the first and last are quantized."""
    widths = [1, 8, *[16] * layers]
    blocks = [
        [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()] for a, b in itertools.pairwise(widths)
    ]
    blocks[1].append(nn.MaxPool2d(2))
    return nn.Sequential(*(nn.Sequential(*block) for block in blocks), GlobalMean(), nn.Linear(16, classes))


def train(name: str, data: Data, case: Case, seed: int) -> nn.Module:
    """Train one of `METHODS`. The one that is rounded gets its back-propagations of the others at full precision."""
    method, options = METHODS[name]
    recipe = case.recipe.with_options(seed=seed, **options)
    if method == "ptq_mse":
        recipe = replace(recipe, steps=recipe.steps + recipe.warm_steps, warm_steps=0)
    torch.manual_seed(seed)
    model = quantize(network(case.layers, len(data.classes)), recipe.quantizer, sample=calibration(data))
    fit(model, data, method, recipe, progress=False, device="cpu")
    return model


class Search:
    """Choose allocations of one network for many budgets, and measure them."""

    def __init__(self, model: nn.Module, data: Data, case: Case, seed: int) -> None:
        self.model, self.data, self.case, self.seed = model, data, case, seed
        self.images = data.train.images
        self.search, self.confirm = every(data.val, 2), every(data.val, 2, 1)
        how: dict[str, Any] = {"metric": "KL", "calibration": self.images}
        self.losses = {
            rest: sensitivity(model, data.train, case.pairs, rest=rest, **how).loss.unstack() for rest in RESTS
        }

    def measured(self, split: Split, settings: Sequence[Any]) -> list[float]:
        """Measure accuracies; every setting has norm statistics of its own."""
        return scores(self.model, split, settings, calibration=self.images)

    def at_budgets(self, unit: str) -> dict[str, dict[str, float]]:
        """Compare the best uniform pair with the searched allocation at each budget, each chosen on the search half."""
        costs = prices(self.model, self.images[0], self.case.pairs, unit)
        budgets = {f"{times:g}x": times * float(costs["W1A1"].sum()) for times in self.case.budgets[unit]}
        path = greedy(self._agreement, costs, min(budgets.values()))
        found = {}
        for name, budget in budgets.items():
            uniform = [pair for pair in self.case.pairs if float(costs[pair].sum()) <= budget]
            solved = [solve(losses, costs, budget) for losses in self.losses.values()]
            settings = [*uniform, *solved, next(step for step in path if total(step, costs) <= budget)]
            values = self.measured(self.search, settings)
            best = settings[max(range(len(uniform)), key=values.__getitem__)]
            chosen = settings[max(range(len(settings)), key=values.__getitem__)]
            found[name] = self._compared(best, chosen)
        return found

    def _agreement(self, settings: Sequence[Any]) -> list[float]:
        """Tell how near the answers on training images are to those at full precision; no label is looked at."""
        kl = scores(self.model, self.data.train, settings, metric="KL", calibration=self.images)
        return [-value for value in kl]

    def _compared(self, uniform: Any, chosen: Any) -> dict[str, float]:
        """Measure both on images that played no part in the choice."""
        found = {}
        for part, split in (("val", self.confirm), ("test", self.data.test)):
            first, second = self.measured(split, [uniform, chosen])
            found |= {f"{part} uniform": first, f"{part} searched": second, f"{part} gain": second - first}
        return found

    def pitfalls(self) -> dict[str, float]:
        """Rank random allocations by summed sensitivities, and choose the best of them on few images."""
        from scipy.stats import spearmanr

        drawn = self._drawn()
        few, true = self.measured(every(self.search, FEW // 2), drawn), self.measured(self.confirm, drawn)
        best = max(range(len(drawn)), key=few.__getitem__)
        found = {"optimism": few[best] - true[best]}
        for rest, losses in self.losses.items():
            summed = [-total(one, losses) for one in drawn]
            found[f"rank, rest {rest}"] = float(spearmanr(summed, true).statistic)
        return found

    def _drawn(self) -> list[dict[str, Bits]]:
        """Draw allocations that cost at most `BITOPS` times the BitOPs of W1A1."""
        costs, draw = prices(self.model, self.images[0], self.case.pairs, "bitops"), torch.Generator()
        draw.manual_seed(self.seed)
        pairs, budget = parse_all(self.case.pairs), BITOPS * float(costs["W1A1"].sum())
        drawn: list[dict[str, Bits]] = []
        while len(drawn) < self.case.drawn:
            picks = torch.randint(len(pairs), (len(costs),), generator=draw).tolist()
            one = dict(zip(costs.index, [pairs[i] for i in picks], strict=True))
            drawn += [one] if total(one, costs) <= budget else []
        return drawn


def every(split: Split, step: int, start: int = 0) -> Split:
    """Take one of ``step`` images; their order is random."""
    return split.select(torch.arange(start, len(split.labels), step))


def run(seeds: int = 3, case: Case | None = None) -> dict[str, Any]:
    """Train, search and measure everything, with one thread: ``budgets[unit][network, part, row][budget]``."""
    case, started = case or Case(), time.perf_counter()
    at, traps = [], []
    with one_thread():
        for seed in range(seeds):
            data = datasets.load(case.data, seed)
            searches = {name: Search(train(name, data, case, seed), data, case, seed) for name in METHODS}
            at.append({(u, name): s.at_budgets(u) for name, s in searches.items() for u in UNITS})
            traps.append({name: s.pitfalls() for name, s in searches.items()})
            print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        edges = edge_costs(searches[ONE].model, data.train.images[0])
        found = {"machine": machine(), "seeds": seeds, "drawn": case.drawn}
    budgets = {unit: {name: over_seeds([one[unit, name] for one in at]) for name in METHODS} for unit in UNITS}
    return found | {"edges": edges, "budgets": budgets, "pitfalls": over_seeds(traps)}


def over_seeds(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Turn the numbers of each seed into means and intervals over the seeds."""
    return {name: {key: interval([one[name][key] for one in found]) for key in row} for name, row in found[0].items()}


def edge_costs(model: nn.Module, image: Tensor) -> dict[str, dict[str, int]]:
    """Count what W1A1 costs in the quantized layers, and what the layers at full precision cost beside them."""
    frame: pd.DataFrame = by_layer(model, image, "W1A1")
    return {
        unit: {"W1A1": int(frame[unit][~frame.edge].sum()), "edges": int(frame[unit][frame.edge].sum())}
        for unit in UNITS
    }


def text(found: dict[str, Any]) -> str:
    """Write a table for each unit and part, and one of the pitfalls."""
    when = f"{found['seeds']} seeds; {found['machine']}"
    blocks = [f"Accuracy (%), glyph classes, budgets in multiples of what W1A1 costs in the quantized layers; {when}"]
    for unit, networks in found["budgets"].items():
        costs = found["edges"][unit]
        names = {"bitops": "BitOPs", "bytes": "Bytes of weights"}
        head = f"{names[unit]}: W1A1 takes {costs['W1A1']:,}; the first and the last layer add {costs['edges']:,}"
        for part, title in (("val", "the half of the validation images that confirms"), ("test", "test images")):
            rows = {
                f"{name}, {row}": {budget: cells[f"{part} {row}"] for budget, cells in network.items()}
                for name, network in networks.items()
                for row in ("uniform", "searched", "gain")
            }
            blocks.append(f"{head}; {title}\n{table(rows, list(next(iter(networks.values()))))}")
    columns = list(next(iter(found["pitfalls"].values())))
    ranks = {name: {key: percent(key, cell) for key, cell in row.items()} for name, row in found["pitfalls"].items()}
    head = f"{found['drawn']} random allocations: by how many points the best on 160 images is too optimistic,"
    rest = "and the rank correlation (x 100) of the accuracy with summed sensitivities, all others at FP or at W2A2"
    blocks.append(f"{head}\n{rest}\n{table(ranks, columns)}")
    return "\n\n".join(blocks)


def percent(key: str, cell: Mapping[str, float]) -> dict[str, float]:
    """Show a rank correlation times 100, so that one digit after the point is fine enough."""
    scale = 100 if key.startswith("rank") else 1
    return {name: scale * cell[name] if cell[name] is not None else cell[name] for name in ("mean", "ci95")}


def store(found: dict[str, Any]) -> None:
    """Write the numbers, and put the tables into the README."""
    write_json(FOLDER / "allocations.json", rounded(found), indent=None)
    put(FOLDER, "allocations", f"```text\n{text(found)}\n```")


def main() -> None:
    """Measure, print the tables, and store them with ``--store``."""
    command(__doc__, 3, run, text, store)


if __name__ == "__main__":
    main()
