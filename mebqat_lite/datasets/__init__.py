"""Datasets, held in tensors: each has a name, the names of its classes, and train, validation and test splits."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.datasets.classes import class_folders, rotate
from mebqat_lite.datasets.digits import digits
from mebqat_lite.datasets.downloads import cifar10, svhn
from mebqat_lite.datasets.episodes import Episode, Episodes
from mebqat_lite.datasets.folder import folder
from mebqat_lite.datasets.glyph_classes import glyph_classes
from mebqat_lite.datasets.glyphs import glyphs
from mebqat_lite.datasets.miniimagenet import miniimagenet
from mebqat_lite.datasets.omniglot import alphabets, omniglot
from mebqat_lite.datasets.paint import paint, picture
from mebqat_lite.datasets.splits import subset

DATASETS: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "cifar10": cifar10,
    "svhn": svhn,
    "glyphs": glyphs,
    "glyph_classes": glyph_classes,
    "omniglot": omniglot,
    "paint": paint,
}
FOLDERS: dict[str, Callable[..., Data]] = {  # datasets from folders, given as kind:PATH
    "folder": folder,
    "classes": class_folders,
    "omniglot": alphabets,
    "miniimagenet": miniimagenet,
}
SUBSETS = {"count": "train", "val": "val", "test": "test"}  # option of `load` -> the part that it shortens

__all__ = [
    "DATASETS",
    "FOLDERS",
    "Augment",
    "Data",
    "DataError",
    "Episode",
    "Episodes",
    "Split",
    "alphabets",
    "cifar10",
    "class_folders",
    "digits",
    "folder",
    "glyph_classes",
    "glyphs",
    "load",
    "miniimagenet",
    "omniglot",
    "paint",
    "picture",
    "rotate",
    "subset",
    "svhn",
]


def load(name: str, seed: int = 0) -> Data:
    """Load a dataset by name; ``seed`` chooses the split.

    The name is a key of `DATASETS`, or ``folder:PATH`` for your own images (see `folder`). For methods that learn new
    classes there are also ``classes:PATH`` (`class_folders`), ``omniglot:PATH`` (`alphabets`) and
    ``miniimagenet:PATH``. Options may follow the name, as in ``folder:photos,size=32`` or
    ``omniglot:images_background,test=Korean+Sanskrit``. The options ``count``, ``val`` and ``test`` with whole numbers
    take a `subset` of the train, validation or test images, as in ``cifar10,count=5000,test=1000``.

    Raises:
        ValueError: the name or an option is unknown.
        DataError: the data cannot be read, or has too few images.
    """
    plain, options = _parse(name)
    kind, _, path = plain.partition(":")
    if kind in FOLDERS and path:
        make: Callable[..., Data] = functools.partial(FOLDERS[kind], path)
    elif plain in DATASETS:
        make = DATASETS[plain]
    else:
        folders = ", ".join(f"{kind}:PATH" for kind in FOLDERS)
        raise ValueError(f"no dataset {name!r}; known: {', '.join(DATASETS)}, {folders}")
    parameters = inspect.signature(make).parameters
    known = set(parameters) - {"seed", "path"}
    texts = set(SUBSETS) | {key for key in known if isinstance(parameters[key].default, str)}
    words = {key for key, value in options.items() if isinstance(value, str)}  # names of classes, of the few that have
    counts = {part: options.pop(key) for key, part in SUBSETS.items() if key in options and key not in words & known}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{kind} has no option {', '.join(unknown)}; known: {', '.join(sorted(known | set(SUBSETS)))}")
    if wrong := sorted(words - (known & texts)):
        raise ValueError(f"{wrong[0]} must be a whole number, in {name!r}")
    data = make(seed=seed, **options)
    for part, count in counts.items():
        data = subset(data, count, seed, part)
    return data


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``cifar10,count=5000`` into ``cifar10`` and {"count": 5000}; other commas belong to the name."""
    options = re.search(r"(,[a-z_]+=[\w+().-]+)*$", name)
    assert options is not None  # it may be empty
    pairs = [option.split("=") for option in options[0].split(",")[1:]]
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"each option of a dataset once, not {options[0][1:]!r}")
    numbers = {key: int(value) for key, value in pairs if re.fullmatch(r"-?[0-9]+", value)}
    return name[: options.start()], dict(pairs) | numbers
