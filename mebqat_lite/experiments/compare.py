"""Train several methods on several seeds, side by side, and measure all of them in the same way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite import methods, quantizers
from mebqat_lite.bits import FULL, Bits, parse_all
from mebqat_lite.experiments.collect import RIVALS, base_of, choose_rates, collect
from mebqat_lite.experiments.jobs import BUDGETS, PAIRS, Job, Variant
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import run_jobs

ONE_PAIR = [one for _, one in RIVALS.values()]  # trained for each listed pair anew
QAT_PAIRS = ("W1A1", "W2A2", "W4A4")  # what dedicated QAT is trained for


def list_jobs(
    names: Iterable[str], listed: Sequence[str], seeds: Iterable[int], qat_lrs: Sequence[float] = ()
) -> list[Job]:
    """The jobs of a comparison, the long ones first; ``qat`` is one job for each listed pair and learning rate."""
    variants = [Variant.parse(name) for name in names]
    if len({variant.name for variant in variants}) < len(variants):
        raise ValueError(f"each method once: {', '.join(variant.name for variant in variants)}")
    jobs = []
    for seed in seeds:
        for variant in sorted(
            variants, key=lambda variant: variant.method in ONE_PAIR or not methods.get(variant.method).trains
        ):
            if variant.method in ONE_PAIR:
                jobs += [Job(variant.name, seed, bits, lr) for bits in listed for lr in qat_lrs or (0.0,)]
            else:
                jobs.append(Job(variant.name, seed))
    return jobs


def compare(
    setup: Setup,
    names: Sequence[str],
    *,
    pairs: Sequence[str] = PAIRS,
    listed: Sequence[str] = QAT_PAIRS,
    seeds: int = 3,
    folder: str | Path,
    budget: str = "steps",
    qat_lrs: Sequence[float] = (),
    workers: int | None = None,
    progress: bool = True,
    engine: str = "loky",
    address: str = "",
    retries: int = 1,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run a comparison and return it in the schema of `results`.

    Every job leaves its model and a result file in ``folder``; called again with the same arguments it runs only what
    has none yet. A job of other arguments, of another version of this package's code or of PyTorch is run again, over
    what is there.

    Args:
        setup: what is held equal.
        names: the methods, each with what it does differently, as in ``mebqat`` or ``mebqat+teacher=next``; mean
            differences are against the first.
        pairs: the pairs at which all are measured (``qat`` at its own).
        listed: the pairs for which ``qat`` is trained, one run each.
        seeds: how many; a seed chooses the split, the start and the order of batches.
        folder: where models are saved, ``<method>-seed<n>.safetensors``, and what they measured, ``.json``; one that
            all machines share. One comparison at a time.
        budget: what is equal between methods, one of `jobs.BUDGETS`; see `jobs.within`.
        qat_lrs: learning rates among which each pair of ``qat`` takes the one best on validation data over all
            seeds; by default the recipe's.
        workers: processes of one thread; by default one a core. A cluster has its own.
        engine: what runs the jobs, one of `engines.ENGINES`; the numbers are the same.
        address: of a cluster of ``dask``; by default one is started on this machine.
        retries: how often a job that failed is tried again, after the others.
        fresh: run all jobs, whatever the folder holds.

    Raises:
        SweepError: jobs failed, named with their reasons, after all others were run.
        EngineError: the engine cannot start.
    """
    if budget not in BUDGETS:
        raise ValueError(f"no budget {budget!r}; choose one of {', '.join(BUDGETS)}")
    started = time.perf_counter()
    pairs, listed = [str(b) for b in parse_all(pairs)], [str(b) for b in parse_all(listed)]
    jobs = list_jobs(names, listed, range(seeds), qat_lrs)
    base = base_of(names)
    _check_bits(setup, names, {*pairs, *listed})
    delivered = len(listed) if budget == "total" else 1
    how: dict[str, Any] = {"engine": engine, "workers": workers, "address": address}
    how |= {"retries": retries, "fresh": fresh, "progress": progress}
    starts, outcomes = run_jobs(setup, jobs, base, pairs, budget, delivered, folder, **how)
    chosen, rates = choose_rates(outcomes)
    return {
        "budget": budget,
        **collect(setup, names, starts, chosen),
        "qat_lr": rates,
        "searched_backprops": sum(o.costs.backprops for o in outcomes if o not in chosen and o.job.seed == 0),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _check_bits(setup: Setup, names: Iterable[str], pairs: Iterable[str]) -> None:
    """Refuse, before anything is trained, pairs that a quantizer does not define."""
    for name in names:
        recipe = setup.recipe.with_options(**Variant.parse(name).options)
        quantizer = quantizers.get(recipe.quantizer)[1]
        for width in {width for pair in pairs for width in (Bits.parse(pair).w, Bits.parse(pair).a)} - {FULL}:
            if methods.get(Variant.parse(name).method).trains:
                quantizer.check(width)
