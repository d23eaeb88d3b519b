"""What a saved checkpoint says of itself: what it was trained for, and on which episodes it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mebqat_lite import datasets, methods
from mebqat_lite.bits import Bits, candidates
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import Learner
from mebqat_lite.measure.evaluate import CALIBRATION_NORMS
from mebqat_lite.measure.fewshot import EVALUATION_SEED
from mebqat_lite.methods import Method
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import MapOrBits, has_one_bit, parse_settings


def trained_for(model: nn.Module, extra: Mapping[str, Any]) -> list[Bits]:
    """The pairs that a checkpoint's method trains for or quantizes to; ``extra`` as `load_model` gives it."""
    name = extra["method"]
    method, recipe = methods.get(name), Recipe(**extra["setup"]["recipe"])
    if name != method.base and not method.trains:
        return candidates(has_one_bit(model))
    sampler = method.sampler(model, recipe.with_options(bits=extra.get("bits") or recipe.bits))
    return sorted({*getattr(sampler, "pairs", []), *getattr(sampler, "pool", [])})


def few_shot(method: Method, split: Split, recipe: Recipe) -> tuple[Learner, Episodes]:
    """The learner of a method, and the frozen episodes of a part of the data, as a recipe asks for them."""
    episodes = Episodes(split, recipe.ways, recipe.shots, recipe.queries, EVALUATION_SEED)
    return method.learner(recipe, method.teacher), episodes


def learns_new_classes(extra: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's description, as `checkpoint.load_model` gives it, is of a few-shot network."""
    name = extra.get("method", "")
    return name in methods.METHODS and methods.METHODS[name].learns_new_classes


def episodes_for(
    model: nn.Module, extra: Mapping[str, Any], data: str | None = None, part: str = "test", **asked: int
) -> tuple[Learner, Episodes, str]:
    """The learner of a checkpoint and the episodes to measure it on, with the name of the data.

    Args:
        model: the network; images of a folder take its size and channels.
        extra: its description.
        data: by default what it was trained on; a ``folder:PATH`` of class folders is all ``test``.
        part: of the data.
        asked: ``ways``, ``shots``, ``queries``; what is not named is as in training.
    """
    recipe = Recipe(**extra["setup"]["recipe"]).with_options(**asked)
    name = data or extra["data"]
    if name.startswith("folder:"):
        options: Any = model.spec["options"]  # type: ignore[index]
        size, channels = options.get("image_size", 28), options.get("in_channels", 1)
        name = f"classes:{name.partition(':')[2]},size={size},channels={channels},whole=1"
    split = getattr(datasets.load(name, extra.get("seed", 0)), part)
    return *few_shot(methods.get(extra["method"]), split, recipe), name


def give_statistics(model: nn.Module, extra: Mapping[str, Any], bits: Iterable[MapOrBits] | None = None) -> None:
    """Measure the norm statistics that a checkpoint lacks, on the images that it was trained on."""
    pairs = candidates(has_one_bit(model)) if bits is None else parse_settings(bits)
    missing = [pair for pair in pairs if not is_recalibrated(model, str(pair))]
    if missing:
        train = datasets.load(extra["data"], extra.get("seed", 0)).train
        recalibrate(model, train.images[:CALIBRATION_NORMS], missing)
