"""What a dataset is: three splits of images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mebqat_lite.tensors import as_float


class DataError(ValueError):
    """Data that cannot be used as asked; the text says what to do."""


class Split(NamedTuple):
    """Images, (count, channels, height, width), and labels, (count,), int64.

    Images are float in [0, 1], or uint8 from 0 to 255 where there are many: CIFAR-10 takes 184 MB, not 737. A network
    reads what `take` or `tensors.as_float` makes of them.
    """

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Split:
        """A batch for a network: the examples at ``index``, (count,), with float images in [0, 1]."""
        return Split(as_float(self.images[index]), self.labels[index])

    def select(self, index: Tensor) -> Split:
        """The examples at ``index``, (count,), stored as they are here."""
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
