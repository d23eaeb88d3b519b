"""Read from a checkpoint which pairs it was trained for, and on which episodes it should be measured.

``extra`` is always the description of the checkpoint, as `checkpoint.load_model` returns it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mebqat_lite import datasets, methods
from mebqat_lite.bits import Bits
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import Learner
from mebqat_lite.measure.evaluate import norm_images
from mebqat_lite.measure.fewshot import EVALUATION_SEED
from mebqat_lite.methods import Method
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import MapOrBits, key_of, pairs_of, parse_settings


def trained_for(model: nn.Module, extra: Mapping[str, Any]) -> list[Bits]:
    """List the pairs that the method of a checkpoint trains for.

    For post-training quantization these are all candidates, because it can quantize to each of them.
    """
    name = extra["method"]
    method, recipe = methods.get(name), Recipe(**extra["setup"]["recipe"])
    if name != method.base and not method.trains:
        return pairs_of(model)
    sampler = method.sampler(model, recipe.with_options(bits=extra.get("bits") or recipe.bits))
    return sorted({*getattr(sampler, "pairs", []), *getattr(sampler, "pool", [])})


def few_shot(method: Method, split: Split, recipe: Recipe) -> tuple[Learner, Episodes]:
    """Return the learner of a method, and the evaluation episodes that a recipe describes, made from ``split``."""
    episodes = Episodes(split, recipe.ways, recipe.shots, recipe.queries, EVALUATION_SEED)
    return method.learner(recipe, method.teacher), episodes


def learns_new_classes(extra: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint holds a few-shot network."""
    name = extra.get("method", "")
    return name in methods.METHODS and methods.METHODS[name].learns_new_classes


def episodes_for(
    model: nn.Module, extra: Mapping[str, Any], data: str | None = None, part: str = "test", **asked: int
) -> tuple[Learner, Episodes, str]:
    """Return the learner of a few-shot checkpoint, the episodes to measure it on, and the name of their data.

    Args:
        model: the network. Images from a folder are loaded with the size and the channels that it expects.
        extra: the description of the checkpoint.
        data: the name of a dataset, by default the one of the training. All classes of a ``folder:PATH``, which holds
            a folder per class, belong to its part ``test``.
        part: ``train``, ``val`` or ``test``.
        asked: ``ways``, ``shots`` or ``queries``; the others are those of the training.
    """
    recipe = Recipe(**extra["setup"]["recipe"]).with_options(**asked)
    name = data or extra["data"]
    if name.startswith("folder:"):
        if taken := re.search(r",(size|channels|whole)=[^,]*", name):
            raise ValueError(f"a folder is read whole, as the network needs it: leave out {taken[0][1:]}")
        options: Any = model.spec["options"]  # type: ignore[index]
        size, channels = options.get("image_size", 28), options.get("in_channels", 1)
        name = f"classes:{name.partition(':')[2]},size={size},channels={channels},whole=1"
    split = getattr(datasets.load(name, extra.get("seed", 0)), part)
    return *few_shot(methods.get(extra["method"]), split, recipe), name


def give_statistics(model: nn.Module, extra: Mapping[str, Any], bits: str | Iterable[MapOrBits] | None = None) -> None:
    """Measure the recalibrated norm statistics that a checkpoint lacks, on images that it was trained on.

    ``bits`` are the pairs that need statistics, by default all candidates.
    """
    pairs = pairs_of(model) if bits is None else parse_settings(bits)
    missing = [pair for pair in pairs if not is_recalibrated(model, key_of(model, pair))]
    if missing:
        train = datasets.load(extra["data"], extra.get("seed", 0)).train
        recalibrate(model, norm_images(train), missing)
