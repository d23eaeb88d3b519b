"""A dataset consists of three splits of images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mebqat_lite.tensors import as_float


class DataError(ValueError):
    """Data cannot be used as asked; the message says what to do."""


class Split(NamedTuple):
    """Images, (count, channels, height, width), and their labels, (count,), int64.

    Labels may also be values to predict, such as colours: floats, (count, outputs). Then images may be vectors.

    Images are floats in [0, 1]. Large datasets keep them as uint8 from 0 to 255, which takes a quarter of the memory:
    184 MB instead of 737 MB for CIFAR-10. `take` and `tensors.as_float` convert them for a network.
    """

    images: Tensor
    labels: Tensor

    @property
    def has_values(self) -> bool:
        """Whether the labels are values to predict, and not classes."""
        return self.labels.is_floating_point()

    def check(self, classes: int | None = None) -> Split:
        """Return this split, unless its labels cannot be those of its images.

        Args:
            classes: how many outputs the network has; by default labels may be as large as they are.

        Raises:
            DataError: there is not one label for each image, or a label is no class number. Or, where labels are
                values, one of them is not in [0, 1], there are more or fewer than the network has outputs, or they
                are classes in one-hot rows.
        """
        if not isinstance(self.images, Tensor) or not isinstance(self.labels, Tensor):
            kinds = f"{type(self.images).__name__} and {type(self.labels).__name__}"  # type: ignore[unreachable]
            raise DataError(f"images and labels are tensors, not {kinds}: make them with torch.as_tensor")
        if self.has_values and self.labels.dim() == 2 and len(self.labels) == len(self.images):
            return self._check_values(classes)
        if self.labels.dim() != 1 or len(self.labels) != len(self.images):
            shape = tuple(self.labels.shape)
            other = "; values to predict are floats of this shape" if self.labels.dim() == 2 else ""
            raise DataError(
                f"{len(self.images)} images need one label each, but the labels have the shape {shape}{other}"
            )
        if self.has_values or self.labels.dtype == torch.bool:
            other = "; values to predict are floats of shape (count, outputs)" if self.has_values else ""
            raise DataError(f"labels are whole numbers, the index of a class, not {self.labels.dtype}{other}")
        if not len(self.labels):
            return self
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0 or (classes is not None and highest >= classes):
            known = f"0 to {classes - 1}" if classes is not None else "0 or more"
            raise DataError(f"labels are {known}, but these go from {lowest} to {highest}")
        return self

    def _check_values(self, outputs: int | None) -> Split:
        """Return this split, unless its labels, (count, values), are not in [0, 1] or not as many as the outputs."""
        if outputs is not None and self.labels.shape[1] != outputs:
            raise DataError(f"labels have {self.labels.shape[1]} values each, but this network has {outputs} outputs")
        if not self.labels.isfinite().all():
            raise DataError("labels are not finite: look for bad values in them")
        if len(self.labels) and not 0 <= float(self.labels.min()) <= float(self.labels.max()) <= 1:
            ends = f"{float(self.labels.min()):g} to {float(self.labels.max()):g}"
            raise DataError(f"values to predict are in [0, 1], but these go from {ends}: divide bytes by 255")
        if self.labels.shape[1] > 1 and len(self.labels) > 1 and self._is_one_hot():
            raise DataError("all labels are one-hot rows: give the numbers of the classes, labels.argmax(1)")
        return self

    def _is_one_hot(self) -> bool:
        return bool(((self.labels == 1).any(1) & (self.labels.count_nonzero(1) == 1)).all())

    def of_classes(self, what: str, instead: str = "") -> Split:
        """Return this split; a DataError if its labels are values, because ``what`` is for classes only."""
        if self.has_values:
            raise DataError(f"{what} is for classes, but the labels of these data are values: take other data{instead}")
        return self

    def take(self, index: Tensor) -> Split:
        """Return the examples at ``index``, (count,), with float images in [0, 1], for a network."""
        return Split(as_float(self.images[index]), self.labels[index])

    def select(self, index: Tensor) -> Split:
        """Return the examples at ``index``, (count,), with images of the same data type as here."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """A dataset: train on ``train``, make all choices on ``val``, and use ``test`` only once, at the end.

    ``classes`` are the names of the classes, or of the values where the labels are values.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part).labels)}" for part in ("train", "val", "test"))
        kind = "values" if self.train.has_values else "classes"
        return f"Data({self.name}: {len(self.classes)} {kind}; {sizes})"
