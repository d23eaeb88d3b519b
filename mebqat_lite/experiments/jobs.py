"""Run one training of a comparison. Its result only depends on its description, so jobs may run anywhere.

All jobs of a seed start from the same FP network, trained on the same split. There are three exceptions: a job may
train its own warm start, or start from the network of another job, and a job that only quantizes an FP network gets
one that was trained as long as the other networks, if the budget counts back-propagations.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import checkpoint, datasets, methods
from mebqat_lite.datasets import Data
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.learners import Classes, objective
from mebqat_lite.loop import Costs, Run
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.measure.evaluate import agreement, grid, norm_images
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.measure.saved import few_shot
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.train import fit

PAIRS = ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP")  # the pairs that tables and curves show
ENDS = ("W2A2", "FP")  # the pairs at which few-shot methods are measured under their own norm policy too
PARTS = ("val", "test")
BUDGETS = ("backprops", "steps", "total")  # what is equal between the methods; the first is the default
# The FP method that a comparison starts from -> the two methods whose paired difference is reported.
RIVALS = {"fp": ("mebqat", "qat"), "pn": ("mebqat_pn", "pn_qat"), "fomaml": ("mebqat_maml", "fomaml_qat")}
ALONE = 200  # this many images are also classified one at a time, at the lowest and at the highest pair


def assignment(text: str) -> tuple[str, Any]:
    """Read ``lr=0.1`` as a name and a Python value; a value that is not a literal is text.

    Raises:
        ValueError: there is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected NAME=VALUE, not {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def assignments(texts: Iterable[str], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read several of them, and add them to what is ``given`` already; a name that comes twice is a ValueError."""
    found = dict(given or {})
    for name, value in map(assignment, texts):
        if name in found:
            raise ValueError(f"{name} is given twice, once as {name}={value}: give it once")
        found[name] = value
    return found


@dataclass(frozen=True)
class Variant:
    """A method, and the options in which it differs from the recipe: ``mebqat+teacher=next+sandwich=True``.

    One option is not the recipe's: ``qat+start=mebqat_in_turn+steps=30`` starts from the network of the method
    ``start`` in the same comparison and seed. It trains for its own steps, whatever the budget of the others.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    start: str = ""

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read a variant from ``method`` or ``method+option=value+...``.

        Raises:
            ValueError: the method or the start is unknown, an option comes twice, or a start has no use.
            TypeError: an option is unknown.
        """
        method, *options = re.split(r"\+(?!\d)", name)  # does not split a number such as 1e+1
        chosen, found = methods.get(method), assignments(options)
        start = found.pop("start", "")
        Recipe().with_options(**found)
        if start and not (chosen.trains and methods.get(start).base == chosen.base and "warm_steps" not in found):
            raise ValueError(f"{name}: only a method that trains, without warm_steps, can start from {start}")
        return cls(name, method, found, start)


@dataclass(frozen=True)
class Job:
    """One training of a variant on one seed; ``qat`` also has a pair, and may have a learning rate of its own."""

    variant: str
    seed: int
    bits: str = ""
    lr: float = 0.0

    @property
    def name(self) -> str:
        """The name of the job's files, such as ``qat_w2a2-seed0``."""
        parts = [self.variant.replace("=", "-"), *([self.bits.lower()] if self.bits else [])]
        return "_".join(parts) + (f"-lr{self.lr:g}" if self.lr else "") + f"-seed{self.seed}"


@dataclass
class Outcome:
    """What a job measured.

    Args:
        job: the job.
        accuracy: in percent, by part and pair, under the norm policy of the set-up; the PSNR in dB where labels are
            values.
        native: the same under the method's own norm policy; of many pairs, only those in `PAIRS`.
        alone: the percentage of images that get the same class alone as in a large batch, at the first and the last of
            the pairs that were measured; {} for values.
        costs: the costs of this training, without those of the common FP network.
        bytes: the bytes of the model, without recalibrated norm statistics.
        measure: what ``accuracy`` and ``native`` hold: ``accuracy (%)`` or ``PSNR (dB)``.
    """

    job: Job
    accuracy: dict[str, dict[str, float]]
    native: dict[str, dict[str, float]]
    alone: dict[str, float]
    costs: Costs
    bytes: int
    measure: str = Classes.measure

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Outcome:
        """Make an outcome from its ``asdict`` after JSON, where null stands for NaN (not measured)."""

        def table(parts: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float]]:
            return {p: {b: math.nan if v is None else v for b, v in row.items()} for p, row in parts.items()}

        tables = {"accuracy": table(found["accuracy"]), "native": table(found["native"])}
        return cls(**{**found, **tables, "job": Job(**found["job"]), "costs": Costs(**found["costs"])})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block, compute with one thread, because several jobs share the cores.

    For small networks one thread is faster anyway.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start_path(folder: Path, base: str, seed: int) -> Path:
    """Return the file of the FP network that all jobs of a seed start from; no job of a comparison has this name."""
    return folder / f"start-{base}-seed{seed}.safetensors"


@one_thread()
def train_start(setup: Setup, seed: int, folder: Path, base: str = "fp") -> Run:
    """Train the full-precision network (``fp``, ``pn`` or ``fomaml``) that every method of a seed starts from."""
    data = datasets.load(setup.data, seed)
    model = untrained(setup, data, seed)
    recipe = setup.recipe.for_images(len(data.train.labels))
    steps = recipe.warm_steps or recipe.steps
    run = fit(model, data, base, recipe, steps=steps, warm_steps=0, seed=seed, progress=False)
    accuracy = _accuracy(setup, base, model, data, ["FP"])
    _save(setup, Job(base, seed), model, start_path(folder, base, seed), accuracy)
    return run


def starts_alone(setup: Setup, variant: Variant, budget: str) -> bool:
    """Tell whether a variant trains a network from the beginning, instead of starting from the common FP network.

    It does so if it has ``warm_steps`` of its own, or if it only quantizes an FP network and the budget counts
    back-propagations: that network is trained as long as those of the other methods.
    """
    if not methods.get(variant.method).trains:
        return budget != "steps"
    return not variant.start and ("warm_steps" in variant.options or setup.recipe.warm_steps == 0)


def untrained(setup: Setup, data: Data, seed: int) -> nn.Module:
    """Build the network of a seed before any training."""
    torch.manual_seed(seed)
    return quantize(setup.build(data), setup.recipe.quantizer, sample=methods.calibration(data))


def within(
    budget: str, recipe: Recipe, pairs: int, models_delivered: int, reference: int, start: int = 0, own_start: int = 0
) -> Recipe:
    """Change the steps of a recipe so that a method with ``pairs`` back-propagations per step keeps to a budget.

    - ``steps``: the recipe keeps its steps.
    - ``backprops``: each model gets the back-propagations that the recipe's steps take with ``reference`` per step. If
      it does not use the network that the others start from, it also gets the ``start`` back-propagations of that one,
      and its own warm start takes ``own_start`` of all these.
    - ``total``: all models that a method delivers share these back-propagations.

    Raises:
        ValueError: the own warm start takes the whole budget.
    """
    if budget == "steps":
        return recipe
    total = (recipe.steps * reference + start) / (models_delivered if budget == "total" else 1)
    if own_start >= total:
        raise ValueError(f"warm_steps take {own_start} back-propagations, but the budget is {total:g}: give fewer")
    return recipe.with_options(steps=max(1, round((total - own_start) / pairs)))


@one_thread()
def run_job(
    setup: Setup, job: Job, pairs: Sequence[str], folder: Path, budget: str = BUDGETS[0], models_delivered: int = 1
) -> Outcome:
    """Train one variant, by default from the FP network of its seed, save it, and measure it."""
    variant = Variant.parse(job.variant)
    mine = setup.with_options(**variant.options, **({"lr": job.lr} if job.lr else {}))
    chosen, data, costs = methods.get(variant.method), datasets.load(setup.data, job.seed), Costs()
    alone = starts_alone(setup, variant, budget)
    model = untrained(mine, data, job.seed) if alone else _started(mine, variant, job.seed, data, folder)
    if alone or chosen.trains:
        recipe = _recipe(mine.recipe.for_images(len(data.train.labels)), job, variant, alone)
        if not variant.start:
            recipe = _within(setup, model, variant, recipe, budget, models_delivered, alone)
        costs = fit(model, data, variant.method, recipe, progress=False).costs
    else:
        chosen.finish(model, data)
    size = stored_bytes(model, statistics=False)
    return measure(mine, job, model, data, [job.bits] if job.bits else pairs, folder, costs, size)


def _within(
    setup: Setup, model: nn.Module, variant: Variant, recipe: Recipe, budget: str, models_delivered: int, alone: bool
) -> Recipe:
    """Call `within` with the back-propagations of a variant's steps, of the set-up's own method, and of warm starts."""
    base, pairs = methods.get(variant.method).base, each_step(model, variant.method, recipe)
    reference = each_step(model, own_method(setup, base), setup.recipe)
    start = setup.recipe.warm_steps * each_step(model, base, setup.recipe) if alone else 0
    own_start = recipe.warm_steps * each_step(model, base, recipe) if alone else 0
    return within(budget, recipe, pairs, models_delivered, reference, start, own_start)


def own_method(setup: Setup, base: str) -> str:
    """Return the method whose steps the budgets count: that of the set-up, if it starts from the method ``base``."""
    return setup.method if methods.get(setup.method).base == base else RIVALS[base][0]


def each_step(model: nn.Module, method: str, recipe: Recipe) -> int:
    """Count the back-propagations of one training step of a method."""
    return sum(map(len, methods.get(method).sampler(model, recipe).draw()))


def _started(setup: Setup, variant: Variant, seed: int, data: Data, folder: Path) -> nn.Module:
    """Load the network that a variant starts from; with another quantizer, its steps start from the loaded weights."""
    base, other = methods.get(variant.method).base, Job(variant.start, seed)
    path = folder / f"{other.name}.safetensors" if variant.start else start_path(folder, base, seed)
    model, _ = checkpoint.load_model(path)
    if "quantizer" in variant.options:
        methods.set_steps(model, setup.recipe.quantizer, data, base)
    return model


def _recipe(recipe: Recipe, job: Job, variant: Variant, alone: bool) -> Recipe:
    """Give the recipe the seed, the pair and the warm start of a job."""
    own = variant.options.get("warm_steps", 0) if alone else 0
    return recipe.with_options(seed=job.seed, bits=job.bits or recipe.bits, warm_steps=own)


def measure(
    setup: Setup, job: Job, model: nn.Module, data: Data, pairs: Sequence[str], folder: Path, costs: Costs, size: int
) -> Outcome:
    """Measure a model on validation and test data under both norm policies, and save it with its accuracy."""
    method = Variant.parse(job.variant).method
    accuracy, native = _accuracy(setup, method, model, data, pairs), methods.get(method).norm_stats
    few = [pair for pair in pairs if pair in PAIRS or len(pairs) <= len(PAIRS)]
    if methods.get(method).learns_new_classes:  # their own policy measures statistics in each episode, which is slow
        few = [pair for pair in few if pair in ENDS]
    own = {part: _row(setup, method, model, data, part, few, norm_stats=native) for part in PARTS}
    alone = {}
    if not methods.get(method).learns_new_classes and not data.test.has_values:
        known = [pair for pair in few if own["test"][pair] >= 0]
        ends = dict.fromkeys([*known[:1], *known[-1:]])  # only one, if only one is known
        alone = {pair: agreement(model, data.test.images[:ALONE], pair) for pair in ends}
    _save(setup, job, model, folder / f"{job.name}.safetensors", accuracy)
    return Outcome(job, accuracy, own, alone, costs, size, objective(data.test.labels).measure)


def _save(setup: Setup, job: Job, model: nn.Module, path: Path, accuracy: dict[str, dict[str, float]]) -> None:
    """Save a model with its accuracy, and with its data and seed.

    These determine the split, so that nobody tests the model on images that it was trained on.
    """
    described: dict[str, Any] = {"method": Variant.parse(job.variant).method, "variant": job.variant, "bits": job.bits}
    described |= {"setup": asdict(setup), "data": setup.data, "seed": job.seed}
    checkpoint.save_model(model, path, accuracy=accuracy, **described)


def _accuracy(
    setup: Setup, method: str, model: nn.Module, data: Data, pairs: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measure the accuracy in percent on both parts; norm statistics are measured once per pair on training images."""
    calibration = norm_images(data.train) if setup.norm_stats == "recalibrated" else None
    found: dict[str, dict[str, float]] = {}
    for part in PARTS:
        sample = None if any(found.values()) else calibration  # the second part uses the statistics of the first
        found[part] = _row(setup, method, model, data, part, pairs, setup.norm_stats, sample)
    return found


def _row(
    setup: Setup,
    method: str,
    model: nn.Module,
    data: Data,
    part: str,
    pairs: Sequence[str],
    norm_stats: str,
    calibration: Tensor | None = None,
) -> dict[str, float]:
    """Measure the accuracy in percent at each pair on a part of the data.

    For few-shot methods this is the mean over episodes. The result is {} if the part is empty or there are no pairs.
    """
    images, chosen = getattr(data, part), methods.get(method)
    if not len(images.labels) or not pairs:
        return {}
    if not chosen.learns_new_classes:
        lend = calibration is not None or norm_stats == "recalibrated"
        frame = grid(model, images, pairs, norm_stats=norm_stats, calibration=calibration, lend_sets=lend)
        return {str(pair): float(value) for pair, value in frame["mean"].items()}
    if calibration is not None:
        recalibrate(model, calibration, pairs)
    learner, episodes = few_shot(chosen, images, setup.recipe)
    count = setup.episodes
    scores = episode_scores(model, learner, episodes, pairs, count=count, norm_stats=norm_stats)
    return dict(zip(pairs, scores.mean(1).tolist(), strict=True))
