"""What a dataset is: three splits of images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Split(NamedTuple):
    """Images, (count, channels, height, width), and labels, (count,)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Split:
        """The examples at ``index``, (count,)."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A dataset: train on ``train``, choose on ``val``, look at ``test`` once."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part).labels)}" for part in ("train", "val", "test"))
        return f"Data({self.name}: {len(self.classes)} classes; {sizes})"
