"""Batches of a run: each a function of the seed and the step alone, so that a resumed run draws the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import Split
from mebqat_lite.tensors import as_float


class Batches:
    """Shuffled batches of a split, epoch after epoch; a last, smaller one is left out.

    Args:
        split: where it lies, batches will lie.
        size: images a batch; at most all of them.
        seed: of the order and of the augmentation.
        augment: crops and flips, if any.
    """

    def __init__(self, split: Split, size: int, seed: int = 0, augment: Augment | None = None) -> None:
        self.split, self.size, self.seed, self.augment = split, min(size, len(split.labels)), seed, augment
        self.order: tuple[int, Tensor] | None = None  # the epoch at hand and its order of images
        self.part = 0, 1  # which of how many parts of each batch `task` gives (`mebqat_lite.parallel`)

    def task(self, step: int, index: int = 0) -> Split:
        """The batch of a step (or `part` of it), the same for each of its tasks, with float images for a network."""
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
        """The part of a batch's values, (batch,), that this source gives, where the split lies."""
        part, parts = self.part
        return values.tensor_split(parts)[part].to(self.split.labels.device)
