"""Data that is held in tensors: a name, the classes, and a train, a validation and a test split."""

import functools
import inspect
import re
from collections.abc import Callable

from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.datasets.digits import digits
from mebqat_lite.datasets.downloads import cifar10, svhn
from mebqat_lite.datasets.folder import folder
from mebqat_lite.datasets.splits import subset

DATASETS: dict[str, Callable[..., Data]] = {"digits": digits, "cifar10": cifar10, "svhn": svhn}
SUBSETS = {"count": "train", "val": "val", "test": "test"}  # option -> part

__all__ = ["DATASETS", "Augment", "Data", "DataError", "Split", "cifar10", "digits", "folder", "load", "subset", "svhn"]


def load(name: str, seed: int = 0) -> Data:
    """Load a dataset by name; the seed chooses the split.

    ``folder:PATH`` is a `folder` of your own. Whole numbers may follow as options: ``folder:photos,size=32``, and
    ``count``, ``val`` and ``test`` for a `subset` of the images of a part, as in ``cifar10,count=5000,test=1000``.
    """
    plain, options = _parse(name)
    kind, _, path = plain.partition(":")
    if kind == "folder" and path:
        make: Callable[..., Data] = functools.partial(folder, path)
    elif plain in DATASETS:
        make = DATASETS[plain]
    else:
        raise ValueError(f"no dataset {name!r}; known: {', '.join(DATASETS)}, folder:PATH")
    counts = {part: options.pop(name) for name, part in SUBSETS.items() if name in options}
    known = set(inspect.signature(make).parameters) - {"seed"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{kind} has no option {', '.join(unknown)}; known: {', '.join(sorted(known | set(SUBSETS)))}")
    data = make(seed=seed, **options)
    for part, count in counts.items():
        data = subset(data, count, seed, part)
    return data


def _parse(name: str) -> tuple[str, dict[str, int]]:
    """``cifar10,count=5000`` -> ``cifar10`` and {"count": 5000}; commas elsewhere belong to the name."""
    options = re.search(r"(,[a-z_]+=\d+)*$", name)
    assert options is not None  # it may be empty
    pairs = (option.split("=") for option in options[0].split(",")[1:])
    return name[: options.start()], {key: int(value) for key, value in pairs}
