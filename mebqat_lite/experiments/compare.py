"""Train several methods on several seeds, side by side, and measure all of them in the same way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mebqat_lite import datasets, methods, quantizers
from mebqat_lite.bits import Bits, parse_all
from mebqat_lite.datasets import Data
from mebqat_lite.experiments.collect import base_of, choose_rates, collect, first_seed
from mebqat_lite.experiments.jobs import BUDGETS, PAIRS, RIVALS, Job, Variant, each_step, own_method, untrained
from mebqat_lite.experiments.setups import Setup, check_classes
from mebqat_lite.experiments.sweeps import run_jobs

ONE_PAIR = [one for _, one in RIVALS.values()]  # methods that train a network of its own for each listed pair
MEASURED = {"quantizer", "ways", "shots", "queries", "inner_steps", "inner_lr", "test_steps"}  # read without training
QAT_PAIRS = ("W1A1", "W2A2", "W4A4")  # the pairs that dedicated QAT is trained for by default


def list_jobs(
    names: Iterable[str], listed: Sequence[str], seeds: Iterable[int], qat_lrs: Sequence[float] = ()
) -> list[Job]:
    """List the jobs of a comparison; in each seed the long ones come first.

    A method that trains for one pair, such as ``qat``, has a job for each listed pair and learning rate. Any other
    method has one job per seed, and so has ``qat+bits=W4A4``, which is measured at all pairs.
    """
    variants = [Variant.parse(name) for name in names]
    if len({variant.name for variant in variants}) < len(variants):
        raise ValueError(f"each method once: {', '.join(variant.name for variant in variants)}")
    for variant in variants:
        if variant.start and variant.start not in names:
            raise ValueError(f"{variant.name} starts from {variant.start}: add that to the methods of the comparison")
        if variant.start in ONE_PAIR:
            raise ValueError(f"{variant.start} has one network for each pair: start from a method with one for all")
    jobs = []
    for seed in seeds:
        for variant in sorted(
            variants, key=lambda variant: variant.method in ONE_PAIR or not methods.get(variant.method).trains
        ):
            if variant.method in ONE_PAIR and "bits" not in variant.options:
                rates = (0.0,) if "lr" in variant.options else qat_lrs or (0.0,)
                jobs += [Job(variant.name, seed, bits, lr) for bits in listed for lr in rates]
            else:
                jobs.append(Job(variant.name, seed))
    return jobs


def refuse_unread(setup: Setup, names: Sequence[str], given: Iterable[str], budget: str = BUDGETS[0]) -> None:
    """Raise a ValueError if an option has no effect, because nothing that is trained or measured reads it.

    Args:
        setup: what all methods share.
        names: the methods with their own options, each of which the method must read.
        given: the options that were given for all methods together; each must be read by one of them, or by the
            training of the network that they start from.
        budget: with another than ``steps``, methods that only quantize train an FP network of their own, and the
            back-propagations are those of the set-up's own method, which may depend on ``m`` or ``tasks``.
    """
    data, base = datasets.load(setup.data, 0), base_of(names)
    start = _reads(setup, base, data) - ({"steps", "epochs"} if setup.recipe.warm_steps else set())
    left = set(given) - start - {"warm_steps"}
    if budget != "steps":
        left -= _counted(setup, own_method(setup, base), data)
    for name in names:
        variant = Variant.parse(name)
        check_classes(variant.method, data)
        mine = _reads(setup.with_options(**variant.options), variant.method, data)
        mine = mine | {"bits"} if variant.method in ONE_PAIR else mine  # its pair, instead of each listed one
        mine = mine if methods.get(variant.method).trains or budget != "steps" else mine & MEASURED
        if unread := set(variant.options) - mine:
            raise ValueError(f"{name}: {variant.method} does not use {', '.join(sorted(unread))}: leave it out")
        left -= mine - {"bits"} if variant.method in ONE_PAIR else mine
    if left:
        raise ValueError(f"none of {', '.join(names)} uses {', '.join(sorted(left))}: leave it out")


def _counted(setup: Setup, method: str, data: Data) -> set[str]:
    """Find the options that change how many back-propagations a step of a method takes."""
    model, recipe = untrained(setup, data, 0), setup.recipe
    more = {name: recipe.with_options(**{name: getattr(recipe, name) + 1}) for name in ("m", "tasks")}
    return {name for name in more if each_step(model, method, more[name]) != each_step(model, method, recipe)}


def _reads(setup: Setup, method: str, data: Data) -> set[str]:
    """Find the options of a recipe that a job reads; it has a seed, and perhaps a pair, of its own."""
    recipe = setup.recipe.with_options(bits="W2A2")
    found = methods.reads(methods.get(method), untrained(setup, data, 0), data.train, recipe)
    return found - ({"seed", "bits"} if method in ONE_PAIR else {"seed"})


def compare(
    setup: Setup,
    names: Sequence[str],
    *,
    pairs: Sequence[str] = PAIRS,
    listed: Sequence[str] = QAT_PAIRS,
    seeds: int | Sequence[int] = 3,
    folder: str | Path,
    budget: str = BUDGETS[0],
    qat_lrs: Sequence[float] = (),
    workers: int | None = None,
    progress: bool = True,
    engine: str = "loky",
    address: str = "",
    retries: int = 1,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train and measure several methods on several seeds, and return the result in the schema of `measure.results`.

    Each job saves its model and a result file in ``folder``. A second call with the same arguments only runs the jobs
    that have no result yet. If a job's arguments, the code of this package or the version of PyTorch has changed, the
    job runs again and overwrites its files.

    Args:
        setup: the data, network, recipe and norm policy that all methods share.
        names: the methods, each with the options in which it differs from the recipe, as in ``mebqat`` or
            ``mebqat+teacher=next``. ``qat+start=mebqat_in_turn+steps=30`` adapts the network of ``mebqat_in_turn``,
            which must be one of the methods, to each listed pair in 30 steps. Mean differences are computed against
            the first method.
        pairs: the pairs at which all methods are measured, except for ``qat``, which is measured at its own pair.
        listed: the pairs for which ``qat`` is trained, one run for each.
        seeds: the number of seeds, or the seeds themselves, as in ``(10, 11, 12)`` for choices that are then measured
            on others. A seed determines the split, the start and the order of the batches.
        folder: where models (``<method>-seed<n>.safetensors``) and their results (``.json``) are saved. All machines
            must be able to reach it, and it serves one comparison at a time: a second one is a BlockingIOError.
        budget: what is equal between methods, one of `jobs.BUDGETS`; see `jobs.within`. By default each network gets
            the same back-propagations, and the FP network that PTQ rounds gets them too.
        qat_lrs: learning rates for ``qat``. Each pair takes the one that is best on validation data over all seeds. By
            default there is only the recipe's.
        workers: the number of processes, each with one thread; by default one per core. A cluster has its own workers.
        engine: what runs the jobs, one of `engines.ENGINES`; the numbers do not depend on it.
        address: the address of a ``dask`` cluster; by default one is started on this machine.
        retries: how often a failed job is tried again, after all others.
        fresh: whether to run all jobs, even if they have results in ``folder``.

    Raises:
        SweepError: some jobs failed; the error names them and their reasons. All other jobs were run.
        EngineError: the engine cannot start.
    """
    if budget not in BUDGETS:
        raise ValueError(f"no budget {budget!r}; choose one of {', '.join(BUDGETS)}")
    started = time.perf_counter()
    pairs, listed = [str(b) for b in parse_all(pairs)], [str(b) for b in parse_all(listed)]
    jobs = list_jobs(names, listed, range(seeds) if isinstance(seeds, int) else seeds, qat_lrs)
    base = base_of(names)
    _check_bits(setup, jobs, pairs)
    delivered = len(listed) if budget == "total" else 1
    how: dict[str, Any] = {"engine": engine, "workers": workers, "address": address}
    how |= {"retries": retries, "fresh": fresh, "progress": progress}
    starts, outcomes = run_jobs(setup, jobs, base, pairs, budget, delivered, folder, **how)
    chosen, rates = choose_rates(outcomes)
    return {
        "budget": budget,
        **collect(setup, names, starts, chosen, budget),
        "qat_lr": rates,
        "searched_backprops": sum(o.costs.backprops for o in first_seed(outcomes) if o not in chosen),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _check_bits(setup: Setup, jobs: Iterable[Job], pairs: Sequence[str]) -> None:
    """Raise a ValueError, before anything is trained, if the quantizer of a job does not define one of its pairs.

    A job that starts from another's network has the quantizer of that one.
    """
    for job in jobs:
        variant = Variant.parse(job.variant)
        recipe = setup.recipe.with_options(**variant.options)
        trained = [job.bits] if job.bits else [*pairs, *(recipe.bits if "bits" in variant.options else ())]
        for pair in trained if methods.get(variant.method).trains and not variant.start else ():
            try:
                quantizers.get(recipe.quantizer)[1].check(Bits.parse(pair))
            except ValueError as error:
                raise ValueError(f"{variant.name}: {error}") from error
