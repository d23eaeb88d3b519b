"""Data that is held in tensors: a name, the classes, and a train, a validation and a test split."""

from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.datasets.digits import digits

DATASETS = {"digits": digits}

__all__ = ["DATASETS", "Data", "Split", "digits", "load"]


def load(name: str, seed: int = 0) -> Data:
    """Load a dataset by name; the seed chooses the split."""
    if name not in DATASETS:
        raise ValueError(f"no dataset {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name](seed=seed)
