"""The batches of a training run, which depend on the seed and the step alone.

A resumed run therefore draws the same batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.tensors import as_float


class Batches:
    """Shuffled batches of a split, in a new order in each epoch.

    If the last batch of an epoch would be smaller than the others, it is left out.

    Args:
        split: the images and labels; the batches are on the same device.
        size: images per batch. A larger number than there are images means all of them.
        seed: chooses the order and the augmentation.
        augment: crops and flips, or None.

    Raises:
        DataError: images that are to be augmented are no images.
    """

    def __init__(self, split: Split, size: int, seed: int = 0, augment: Augment | None = None) -> None:
        if augment is not None and split.images.dim() != 4:
            shape = tuple(split.images.shape[1:])
            raise DataError(f"pad and flip are for images (channels, height, width), but these have the shape {shape}")
        self.split, self.size, self.seed, self.augment = split, min(size, len(split.labels)), seed, augment
        self.order: tuple[int, Tensor] | None = None  # the current epoch and its order of the images
        self.part = 0, 1  # part 0 of 1: `task` returns whole batches; `scale.parallel` changes this

    def task(self, step: int, index: int = 0) -> Split:
        """Return the batch of a step, with float images in [0, 1]; every task of the step gets the same batch.

        In a run with several processes this is the part of the batch that belongs to this process.
        """
        count = len(self.split.labels)
        epoch, position = divmod(step, count // self.size)
        if self.order is None or self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.order = (epoch, torch.randperm(count, generator=generator))
        chosen = self.order[1][position * self.size : (position + 1) * self.size]  # (batch,)
        images, labels = self.split.select(self._mine(chosen))
        if self.augment is not None:
            generator = torch.Generator().manual_seed(2**31 + self.seed * 1_000_003 + step)
            images = self.augment.transform(images, self._mine(self.augment.draw(self.size, generator)))
        return Split(as_float(images), labels)

    def _mine(self, values: Tensor) -> Tensor:
        """Return this process's part of ``values``, (batch,), on the device of the split."""
        part, parts = self.part
        return values.tensor_split(parts)[part].to(self.split.labels.device)
