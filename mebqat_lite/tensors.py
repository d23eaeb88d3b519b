"""Small helpers: batches of images from whatever a caller has, a model in evaluation mode, memory that stays."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Images = Tensor | Iterable[Any]


def image_batches(source: Images, batch_size: int = 512) -> Iterator[Tensor]:
    """Yield batches of float images, (batch, channels, height, width).

    ``source`` is a tensor of images, an ``(images, labels)`` pair, or a loader of either. A tensor is cut into
    batches of nearly equal size, at most ``batch_size``: a lone last image would have no variance.
    """
    if isinstance(source, Tensor):
        for part in source.tensor_split(max(1, -(-len(source) // batch_size))):
            yield as_float(part)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor):
        yield from image_batches(source[0], batch_size)
    elif isinstance(source, Iterable):
        for batch in source:
            yield as_float(batch if isinstance(batch, Tensor) else batch[0])
    else:
        raise TypeError(f"expected a tensor of images or a loader of batches, not {type(source).__name__}")


def as_float(images: Tensor) -> Tensor:
    """Images as a network reads them: bytes, 0 to 255, become float32 in [0, 1]; floats stay as they are.

    images: any shape. There is no mean or scale per channel: the networks begin with a float convolution and a batch
    norm, which learn them.
    """
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode inside the block; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of a model, by its first parameter (a model without any: CPU, float32)."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    return parameter.device, parameter.dtype


def best_device() -> torch.device:
    """CUDA where there is one, else the CPU. (MPS works only when asked for by name: it is untested.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_memory() -> bool:
    """Let the process keep the memory that it frees, for the next step to use: half of the training time of a small
    network on Linux goes into getting the same pages from the system again. Returns whether the C library can.
    """
    trim_threshold, mmap_max = -1, -4  # names of glibc's mallopt (man 3 mallopt)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))
