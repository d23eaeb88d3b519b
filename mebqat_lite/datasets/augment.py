"""Random crops and flips of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Random crop after zero padding, and random horizontal flip: the usual augmentation of CIFAR-10.

    Each image draws its own of the (2 pad + 1)^2 crops, with ``flip`` times two, all equally likely: the distribution
    of torchvision's ``RandomCrop(size, padding=pad)`` and ``RandomHorizontalFlip()``, without a loop over images.
    On bytes it is about twice as fast as on floats, so augment before `tensors.as_float`.

    Args:
        pad: zeros (black) added on each side, in pixels.
        flip: flip half of the images, left to right. Not for digits.
    """

    pad: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A new batch from ``images``, (batch, channels, height, width), float or uint8.

        All randomness is the generator's, so that a batch can be drawn again; with a generator on the CPU the result
        is the same on every device.
        """
        return self.transform(images, self.draw(len(images), generator).to(images.device))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Choices for `transform`, (count,), where the generator is."""
        choices = (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)
        return torch.randint(choices, (count,), generator=generator, device=generator.device)

    def transform(self, images: Tensor, choice: Tensor) -> Tensor:
        """Crop and flip each image as its ``choice``, (batch,), says: ((flip (2 pad + 1) + dy) (2 pad + 1)) + dx."""
        batch, channels, height, width = images.shape
        span, wide = 2 * self.pad + 1, width + 2 * self.pad
        dx, dy, flip = choice % span, choice // span % span, choice // span**2  # each (batch,)
        y, x = (torch.arange(side, device=images.device) for side in (height, width))
        columns = torch.where(flip[:, None] == 1, width - 1 - x, x) + dx[:, None]  # (batch, width)
        rows = y + dy[:, None]  # (batch, height)
        pixels = (rows[:, :, None] * wide + columns[:, None, :]).flatten(1)  # (batch, height * width)
        padded = F.pad(images, [self.pad] * 4).flatten(2)  # (batch, channels, padded height * padded width)
        taken = padded.gather(2, pixels[:, None].expand(-1, channels, -1))
        return taken.view(batch, channels, height, width)
