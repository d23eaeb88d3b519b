"""One training of a comparison, as a pure function of its description, so that jobs may run anywhere.

Every job of a seed starts from the same FP network, trained on the same split, unless it asks for a cold start.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import checkpoint, datasets, methods
from mebqat_lite.datasets import Data
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Costs, Run
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.measure.evaluate import CALIBRATION_NORMS, agreement, grid
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.measure.saved import few_shot
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.train import fit

PAIRS = ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP")  # what tables and curves show
ENDS = ("W2A2", "FP")  # where few-shot methods are measured under their own norm policy too
PARTS = ("val", "test")
BUDGETS = ("steps", "backprops", "total")
ALONE = 200  # images that are also classified one at a time


def assignment(text: str) -> tuple[str, Any]:
    """``lr=0.1`` as a name and a Python value; what is no literal is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected NAME=VALUE, not {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@dataclass(frozen=True)
class Variant:
    """A method, and what it does differently from the recipe: ``mebqat+teacher=next+sandwich=True``."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read ``method`` or ``method+option=value+...``; an unknown method or option is an error that says so."""
        method, *options = re.split(r"\+(?!\d)", name)  # not at the plus of 1e+1
        methods.get(method)
        found = dict(assignment(text) for text in options)
        Recipe().with_options(**found)
        return cls(name, method, found)


@dataclass(frozen=True)
class Job:
    """One training: a variant of a method (for ``qat`` with its pair, perhaps with its own lr) on one seed."""

    variant: str
    seed: int
    bits: str = ""
    lr: float = 0.0

    @property
    def name(self) -> str:
        """Name of its file: ``qat_w2a2-seed0``."""
        parts = [self.variant.replace("=", "-"), *([self.bits.lower()] if self.bits else [])]
        return "_".join(parts) + (f"-lr{self.lr:g}" if self.lr else "") + f"-seed{self.seed}"


@dataclass
class Outcome:
    """What a job measured.

    accuracy: in percent by part and pair under the set-up's norm policy; native: the same under the method's own (of
    many pairs only those of `PAIRS`); alone: percent of images that get the same class in a batch of one.
    costs: of this training alone, without the common FP start.
    """

    job: Job
    accuracy: dict[str, dict[str, float]]
    native: dict[str, dict[str, float]]
    alone: dict[str, float]
    costs: Costs
    bytes: int

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Outcome:
        """An outcome from its ``asdict`` after JSON, which has null for what was not measured (NaN)."""

        def table(parts: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float]]:
            return {p: {b: math.nan if v is None else v for b, v in row.items()} for p, row in parts.items()}

        tables = {"accuracy": table(found["accuracy"]), "native": table(found["native"])}
        return cls(**{**found, **tables, "job": Job(**found["job"]), "costs": Costs(**found["costs"])})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Several jobs share the cores: each computes with one thread, which is faster for small networks too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start_path(folder: Path, base: str, seed: int) -> Path:
    """Where the common start of a seed is kept."""
    return folder / f"{base}-seed{seed}.safetensors"


@one_thread()
def train_start(setup: Setup, seed: int, folder: Path, base: str = "fp") -> Run:
    """Train the full-precision network (``fp``, ``pn`` or ``fomaml``) that every method of a seed starts from."""
    data = datasets.load(setup.data, seed)
    model = _cold(setup, data, seed)
    recipe = setup.recipe.for_images(len(data.train.labels))
    steps = recipe.warm_steps or recipe.steps
    run = fit(model, data, base, recipe, steps=steps, warm_steps=0, seed=seed, progress=False)
    accuracy = _accuracy(setup, base, model, data, ["FP"])
    _save(setup, Job(base, seed), model, start_path(folder, base, seed), accuracy)
    return run


def starts_cold(setup: Setup, variant: Variant) -> bool:
    """Whether a variant starts from the untrained network: it trains, and its recipe asks for no warm start."""
    warm_steps = variant.options.get("warm_steps", setup.recipe.warm_steps)
    return methods.get(variant.method).trains and warm_steps == 0


def _cold(setup: Setup, data: Data, seed: int) -> nn.Module:
    """The network of a seed before any training."""
    torch.manual_seed(seed)
    return quantize(setup.build(data), setup.recipe.quantizer, sample=methods.calibration(data))


def within(budget: str, recipe: Recipe, pairs: int, models_delivered: int, base: str = "fp") -> Recipe:
    """The recipe with the steps that a method of ``pairs`` back-propagations a step has under a budget.

    ``steps``: the recipe's. ``backprops``: each model has the back-propagations of the recipe's steps with m pairs (of
    MAML's steps with all tasks).
    ``total``: all the models that a method delivers share them.
    """
    if budget == "steps":
        return recipe
    reference = recipe.tasks if base == "fomaml" else recipe.m
    share = recipe.steps * reference / pairs / (models_delivered if budget == "total" else 1)
    return recipe.with_options(steps=max(1, round(share)))


@one_thread()
def run_job(
    setup: Setup, job: Job, pairs: Sequence[str], folder: Path, budget: str = "steps", models_delivered: int = 1
) -> Outcome:
    """Train one variant from its seed's FP network, save it and measure it."""
    variant = Variant.parse(job.variant)
    setup, chosen, costs = setup.with_options(**variant.options), methods.get(variant.method), Costs()
    data = datasets.load(setup.data, job.seed)
    cold = starts_cold(setup, variant)
    model, _ = checkpoint.load_model(start_path(folder, chosen.base, job.seed))
    if cold:
        model = _cold(setup, data, job.seed)
    if chosen.trains or "quantizer" in variant.options:
        methods.set_steps(model, setup.recipe.quantizer, data, chosen.base)  # steps of trained weights
    if chosen.trains:
        recipe = setup.recipe.for_images(len(data.train.labels))
        recipe = _recipe(recipe, job, methods.teacher_of(chosen, recipe, warm=not cold))
        each_step = sum(map(len, chosen.sampler(model, recipe).draw()))
        recipe = within(budget, recipe, each_step, models_delivered, chosen.base)
        costs = fit(model, data, variant.method, recipe, progress=False).costs
    else:
        chosen.finish(model, data)
    size = stored_bytes(model, statistics=False)
    return measure(setup, job, model, data, [job.bits] if job.bits else pairs, folder, costs, size)


def _recipe(recipe: Recipe, job: Job, teacher: str) -> Recipe:
    """The recipe of one job."""
    bits = job.bits or recipe.bits
    return recipe.with_options(seed=job.seed, bits=bits, teacher=teacher, warm_steps=0, lr=job.lr or recipe.lr)


def measure(
    setup: Setup, job: Job, model: nn.Module, data: Data, pairs: Sequence[str], folder: Path, costs: Costs, size: int
) -> Outcome:
    """Measure a model on all parts under both norm policies, and save it with what was found."""
    method = Variant.parse(job.variant).method
    accuracy, native = _accuracy(setup, method, model, data, pairs), methods.get(method).norm_stats
    few = [pair for pair in pairs if pair in PAIRS or len(pairs) <= len(PAIRS)]
    if methods.get(method).learns_new_classes:  # statistics of each episode are measured in each: slow
        few = [pair for pair in few if pair in ENDS]
    own = {part: _row(setup, method, model, data, part, few, norm_stats=native) for part in PARTS}
    alone = {}
    if not methods.get(method).learns_new_classes:
        alone = {pair: agreement(model, data.test.images[:ALONE], pair) for pair in few if own["test"][pair] >= 0}
    _save(setup, job, model, folder / f"{job.name}.safetensors", accuracy)
    return Outcome(job, accuracy, own, alone, costs, size)


def _save(setup: Setup, job: Job, model: nn.Module, path: Path, accuracy: dict[str, dict[str, float]]) -> None:
    """Save a model with its accuracy, and with what names its split, so that no one tests it on what it knows."""
    described: dict[str, Any] = {"method": Variant.parse(job.variant).method, "variant": job.variant, "bits": job.bits}
    described |= {"setup": asdict(setup), "data": setup.data, "seed": job.seed}
    checkpoint.save_model(model, path, accuracy=accuracy, **described)


def _accuracy(
    setup: Setup, method: str, model: nn.Module, data: Data, pairs: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Accuracy in percent on both parts, with norm statistics measured once for each pair on training images."""
    calibration = data.train.images[:CALIBRATION_NORMS] if setup.norm_stats == "recalibrated" else None
    found: dict[str, dict[str, float]] = {}
    for part in PARTS:
        sample = None if any(found.values()) else calibration  # measured once
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
    """Accuracy in percent by pair on a part of the data, for few-shot methods the mean over episodes; {} if there is
    no such part, or no pair.
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
