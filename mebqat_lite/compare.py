"""Train several methods on several seeds, side by side, and measure all of them in the same way.

Every method of a seed starts from the same FP network, trained on the same split. A job is a pure function of its
description, so that jobs may run anywhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from mebqat_lite import checkpoint, datasets, methods
from mebqat_lite.bits import parse_all
from mebqat_lite.convert import quantize, requantize
from mebqat_lite.costs import Costs, stored_bytes
from mebqat_lite.datasets import Data
from mebqat_lite.evaluate import CALIBRATION_NORMS, grid, interval
from mebqat_lite.methods import Recipe
from mebqat_lite.recipes import Setup
from mebqat_lite.train import Run, fit

PAIRS = ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP")
PARTS = ("val", "test")
BUDGETS = ("steps", "backprops", "total")


@dataclass(frozen=True)
class Job:
    """One training: a method (for ``qat`` with its pair) on one seed."""

    method: str
    seed: int
    bits: str = ""

    @property
    def name(self) -> str:
        """Name of its file: ``qat_w2a2-seed0``."""
        return f"{self.method}{'_' + self.bits.lower() if self.bits else ''}-seed{self.seed}"


@dataclass
class Outcome:
    """What a job measured: accuracy in percent by part and pair, counted costs, stored bytes."""

    job: Job
    accuracy: dict[str, dict[str, float]]
    costs: Costs  # of this training alone, without the common FP start
    bytes: int


def list_jobs(names: Iterable[str], listed: Sequence[str], seeds: Iterable[int]) -> list[Job]:
    """The jobs of a comparison, the long ones first; ``qat`` is one job for each listed pair."""
    names = list(names)
    for name in names:
        methods.get(name)
    jobs = []
    for seed in seeds:
        for name in sorted(names, key=lambda name: name != "mebqat"):
            jobs += [Job(name, seed, bits) for bits in (listed if name == "qat" else [""])]
    return jobs


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Several jobs share the cores: each computes with one thread, which is faster for small networks too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train_start(setup: Setup, seed: int, folder: Path) -> Run:
    """Train the FP network that every method of a seed starts from, and save it."""
    data = datasets.load(setup.data, seed)
    torch.manual_seed(seed)
    model = setup.build(data)
    quantize(model, setup.recipe.quantizer, sample=methods.calibration(data))
    steps = setup.recipe.warm_steps or setup.recipe.steps
    run = fit(model, data, "fp", setup.recipe, steps=steps, warm_steps=0, seed=seed, progress=False)
    _save(setup, model, data, ["FP"], folder / f"fp-seed{seed}.safetensors")
    return run


def within(budget: str, recipe: Recipe, pairs: int, models_delivered: int) -> Recipe:
    """The recipe with the steps that a method of ``pairs`` back-propagations a step has under a budget.

    ``steps``: the recipe's. ``backprops``: each model has the back-propagations of the recipe's steps with m pairs.
    ``total``: all the models that a method delivers share them.
    """
    if budget == "steps":
        return recipe
    share = recipe.steps * recipe.m / pairs / (models_delivered if budget == "total" else 1)
    return recipe.with_options(steps=max(1, round(share)))


@one_thread()
def run_job(
    setup: Setup, job: Job, pairs: Sequence[str], folder: Path, budget: str = "steps", models_delivered: int = 1
) -> Outcome:
    """Train one method from its seed's FP network, save it and measure it."""
    data = datasets.load(setup.data, job.seed)
    model, _ = checkpoint.load_model(folder / f"fp-seed{job.seed}.safetensors")
    chosen, costs = methods.get(job.method), Costs()
    if chosen.trains:
        requantize(model, setup.recipe.quantizer, methods.calibration(data))  # steps of trained weights
        teacher = methods.teacher_of(chosen, setup.recipe, warm=True)
        recipe = setup.recipe.with_options(seed=job.seed, bits=job.bits, teacher=teacher, warm_steps=0)
        recipe = within(budget, recipe, len(chosen.sampler(model, recipe).draw()[0]), models_delivered)
        costs = fit(model, data, job.method, recipe, progress=False).costs
    else:
        chosen.finish(model, data)
    size = stored_bytes(model, statistics=False)
    measured = [job.bits] if job.bits else pairs
    return Outcome(job, _save(setup, model, data, measured, folder / f"{job.name}.safetensors"), costs, size)


def _save(setup: Setup, model: nn.Module, data: Data, pairs: Sequence[str], path: Path) -> dict[str, dict[str, float]]:
    """Measure a model on all parts and save it with what was found."""
    accuracy, sample = {}, data.train.images[:CALIBRATION_NORMS]
    for part in PARTS:
        frame = grid(model, getattr(data, part), pairs, norm_stats=setup.norm_stats, calibration=sample)
        accuracy[part] = {str(pair): float(value) for pair, value in frame["mean"].items()}
    checkpoint.save_model(model, path, accuracy=accuracy, setup=asdict(setup))
    return accuracy


def compare(
    setup: Setup,
    names: Sequence[str],
    *,
    pairs: Sequence[str] = PAIRS,
    listed: Sequence[str] = ("W1A1", "W2A2", "W4A4"),
    seeds: int = 3,
    folder: str | Path,
    budget: str = "steps",
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a comparison and return it in the schema of `results`.

    Args:
        setup: what is held equal.
        names: the methods.
        pairs: the pairs at which all are measured (``qat`` at its own).
        listed: the pairs for which ``qat`` is trained, one run each.
        seeds: how many; a seed chooses the split, the start and the order of batches.
        folder: where models are saved, ``<method>-seed<n>.safetensors``.
        budget: what is equal between methods, one of `BUDGETS`; see `within`.
        workers: processes of one thread; by default one a core.
    """
    if budget not in BUDGETS:
        raise ValueError(f"no budget {budget!r}; choose one of {', '.join(BUDGETS)}")
    from joblib import Parallel, delayed

    started = time.perf_counter()
    folder = Path(folder)
    pairs, listed = [str(b) for b in parse_all(pairs)], [str(b) for b in parse_all(listed)]
    jobs = list_jobs(names, listed, range(seeds))
    pool = Parallel(n_jobs=workers or os.cpu_count() or 1, return_as="generator")
    bar = tqdm(total=seeds + len(jobs), desc="training", disable=not progress)
    starts = []
    for run in pool(delayed(train_start)(setup, seed, folder) for seed in range(seeds)):
        starts.append(run)
        bar.update()
    outcomes = []
    for outcome in pool(
        delayed(run_job)(setup, job, pairs, folder, budget, len(listed) if job.method == "qat" else 1) for job in jobs
    ):
        outcomes.append(outcome)
        bar.update()
    bar.close()
    return {"budget": budget} | collect(setup, names, starts, outcomes, time.perf_counter() - started)


def collect(
    setup: Setup, names: Sequence[str], starts: list[Run], outcomes: list[Outcome], seconds: float
) -> dict[str, Any]:
    """Outcomes of all seeds as one result: test and validation accuracy, paired differences, costs."""
    values = {part: _values(names, outcomes, part) for part in PARTS}
    tables = {
        part: {m: {b: interval(list(v.values())) for b, v in row.items()} for m, row in values[part].items()}
        for part in PARTS
    }
    return {
        "accuracy": tables["test"],
        "validation": tables["val"],
        "paired": {part: paired(values[part]) for part in PARTS},
        "norm_stats": setup.norm_stats,
        "costs": _costs(names, starts[0].costs, outcomes),
        "setup": asdict(setup),
        "seconds": round(seconds, 1),
    }


def _values(names: Sequence[str], outcomes: list[Outcome], part: str) -> dict[str, dict[str, dict[int, float]]]:
    """values[method][bits][seed], methods in the order asked for."""
    values: dict[str, dict[str, dict[int, float]]] = {name: {} for name in names}
    for outcome in outcomes:
        for bits, value in outcome.accuracy[part].items():
            values[outcome.job.method].setdefault(bits, {})[outcome.job.seed] = value
    return values


def paired(
    values: dict[str, dict[str, dict[int, float]]], ours: str = "mebqat", other: str = "qat"
) -> dict[str, dict[str, float]]:
    """``ours - other`` at each pair that both measured, seed by seed, with its interval."""
    shared = [bits for bits in values.get(ours, {}) if bits in values.get(other, {})]
    return {
        bits: interval([values[ours][bits][seed] - values[other][bits][seed] for seed in values[ours][bits]])
        for bits in shared
    }


def _costs(names: Sequence[str], start: Costs, outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """Counted costs of the first seed by method; the FP network that all start from counts once for each method."""
    costs = {}
    for name in names:
        mine = [o for o in outcomes if o.job.method == name and o.job.seed == 0]
        total = sum((o.costs for o in mine), start)
        costs[name] = {"models": len(mine), "bytes": sum(o.bytes for o in mine), **asdict(total)}
    return costs
