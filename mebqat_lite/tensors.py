"""Small helpers for tensors and models: image batches, evaluation mode, devices, and memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Images = Tensor | Iterable[Any]
Sample = Images | Callable[[nn.Module], Any]  # images, or a function that runs a model on its inputs


def image_batches(source: Images, batch_size: int = 512) -> Iterator[Tensor]:
    """Yield batches of float images, each (batch, channels, height, width).

    ``source`` is a tensor of images, an ``(images, labels)`` pair, or a loader that yields either of them. A tensor
    is cut into batches of nearly equal size, so that the last batch is not a single image, which would have no
    variance for batch norm.

    Raises:
        TypeError: ``source`` is something else.
    """
    if isinstance(source, Tensor):
        for part in source.tensor_split(max(1, -(-len(source) // batch_size))):
            yield as_float(part)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor):
        yield from image_batches(source[0], batch_size)
    elif isinstance(source, Iterable) and not isinstance(source, (Mapping, str)):
        for batch in source:
            first = batch if isinstance(batch, Tensor) or not isinstance(batch, Sequence) else batch[0]
            if not isinstance(first, Tensor):
                raise TypeError(f"a loader must yield tensors of images or (images, labels), not {_kind(batch)}")
            yield as_float(first)
    else:
        raise TypeError(f"expected a tensor of images or a loader of batches, not {_kind(source)}")


def _kind(value: object) -> str:
    """Name the type of a value in an error, with what to do if it is a dictionary."""
    cure = "; where a function that runs the model is allowed, give lambda model: model(**batch)"
    return type(value).__name__ + (cure if isinstance(value, Mapping) else "")


def as_float(images: Tensor) -> Tensor:
    """Convert images of any shape for a network: bytes from 0 to 255 become float32 in [0, 1], floats stay as they are.

    No mean is subtracted per channel: the first convolution and batch norm, which stay in floating point, learn it.
    """
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def like_model(images: Tensor, model: nn.Module) -> Tensor:
    """Move images of any shape to a model's device and data type; whole numbers, such as tokens, stay whole."""
    device, dtype = place(model)
    images = as_float(images)
    return images.to(device, dtype if images.is_floating_point() else images.dtype)


def logits_of(out: Any) -> Tensor:
    """Return what a network gave if it is a tensor of logits, (batch, classes); otherwise raise a TypeError."""
    if isinstance(out, Tensor) and out.dim() == 2:
        return out
    found = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    raise TypeError(f"the network gives {found}, not logits (batch, classes): wrap it in a module that returns them")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode inside the block; afterwards every module has its previous mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the data type of a model's first parameter, or CPU and float32 if it has no parameters."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), torch.float32
    return parameter.device, parameter.dtype


def best_device() -> torch.device:
    """CUDA if it is available, else the CPU; never MPS, which is untested."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_memory() -> bool:
    """Let the process keep the memory that it frees, so that the next training step can use it again.

    Otherwise a small network on Linux spends half of its training time on getting the same pages back from the
    system. Returns False where the C library is not glibc, which alone offers this.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX, see `man 3 mallopt`
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))
