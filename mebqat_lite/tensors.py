"""Small helpers for images held in tensors: batches of them from whatever a caller has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Images = Tensor | Iterable[Any]


def image_batches(source: Images, batch_size: int = 512) -> Iterator[Tensor]:
    """Yield batches of images, (batch, channels, height, width).

    ``source`` is a tensor of images, an ``(images, labels)`` pair, or a loader of either.
    """
    if isinstance(source, Tensor):
        yield from source.split(batch_size)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor):
        yield from source[0].split(batch_size)
    elif isinstance(source, Iterable):
        for batch in source:
            yield batch if isinstance(batch, Tensor) else batch[0]
    else:
        raise TypeError(f"expected a tensor of images or a loader of batches, not {type(source).__name__}")


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of a model, by its first parameter (a model without any: CPU, float32)."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    return parameter.device, parameter.dtype


def best_device() -> torch.device:
    """CUDA where there is one, else the CPU. (MPS works only when asked for by name: it is untested.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
