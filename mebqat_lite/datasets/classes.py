"""Data whose train, val and test parts have different classes, for methods that learn new classes.

The ``classes`` of such a `Data` are those of all parts together, and each part uses only some of the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.datasets.cache import Parts, cached
from mebqat_lite.datasets.folder import LAYOUT, SUFFIXES, Files, decode, find, fingerprint

PARTS = ("train", "val", "test")
# The name of the only part while classes are not divided yet. It is the one that `folder.folder` uses, so that both
# share the cached images of a folder.
ALL = "train"
HELD_OUT = 0.2  # the share of the classes for validation, and again for test
LUMA = (19595, 38470, 7471)  # weights of red, green and blue in grey, times 2^16 (ITU-R 601), as in Pillow


def class_folders(
    path: str | Path,
    *,
    seed: int = 0,
    size: int | None = None,
    channels: int | None = None,
    whole: bool = False,
    invert: bool | None = None,
) -> Data:
    """Load a folder of class folders, with different classes in train, val and test.

    If the folder has the folders train and test, and perhaps val, and no class is in two of them, these are the
    parts. Otherwise ``seed`` divides the classes at random: 60 % train, 20 % val, 20 % test. The images are decoded
    once and cached, as by `folder.folder`. They are uint8, (count, channels, height, width).

    Args:
        path: the folder.
        seed: chooses the classes of each part.
        size: height and width in pixels that every image is resized to (bilinear with antialiasing; the aspect ratio
            is not kept). Without it all images must have the same size.
        channels: 1 converts the images to grey, 3 repeats the channel of grey images; None leaves them as they are.
        whole: whether all classes go to test, and train and val stay empty. Use this to evaluate on a few classes.
        invert: whether to replace each value x by 255 - x. None decides for the whole set: with ``channels=1``, images
            with a mean above half of 255 are taken for dark strokes on white paper, and inverted.

    Raises:
        DataError: the folder is missing or empty, or has too few classes; an image cannot be read; the images have
            different sizes; ``channels`` is another number.
    """
    root = Path(path).expanduser().resolve()
    parts = keep(root, _class_files(root, whole), size)
    splits = convert(parts.splits, channels, invert)
    if set(splits) != {ALL}:
        return _data(root.name, splits, parts.classes)
    count = len(parts.classes)
    chosen = {"test": list(range(count))} if whole else _divide(root, count, seed)
    return choose(root.name, splits[ALL], parts.classes, chosen)


def keep(root: Path, files: Files, size: int | None) -> Parts:
    """Return the images of ``files``, from the cache if they were decoded before."""
    return cached(root.name[:60], fingerprint(root, files, size), lambda: decode(files, size))


def _class_files(root: Path, whole: bool) -> Files:
    """List the images by part and class; if the classes are still to be divided, all are in the part `ALL`."""
    found = find(root)
    if not any(images for of_class in found.values() for images in of_class.values()):
        raise DataError(f"no images in {root}: {LAYOUT}; images end with {' '.join(sorted(SUFFIXES))}")
    if empty := [name for of_class in found.values() for name, images in of_class.items() if not images]:
        raise DataError(f"no images for {empty} in {root}: add some, or remove these folders")
    merged: dict[str, list[str]] = {}
    for of_class in found.values():
        for name, images in of_class.items():
            merged.setdefault(name, []).extend(images)
    share = len(merged) < sum(map(len, found.values()))
    if whole or share or set(found) == {"train"}:
        return {ALL: {name: sorted(merged[name]) for name in sorted(merged)}}
    if missing := {"train", "test"} - set(found):
        raise DataError(
            f"{root} has {' and '.join(found)}, but no {' and '.join(sorted(missing))}: give this part as well, or "
            "evaluate on all classes, with whole=True"
        )
    return found


def _divide(root: Path, count: int, seed: int) -> dict[str, list[int]]:
    held_out = max(1, round(HELD_OUT * count))
    if count < 2 * held_out + 1:
        raise DataError(
            f"{root} has {count} classes, too few for different ones in train, val and test: have 3 or more, or "
            "evaluate on all of them, with whole=True"
        )
    return shuffled({"train": count - 2 * held_out, "val": held_out, "test": held_out}, seed)


def shuffled(counts: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Divide the numbers 0, 1, 2, ... at random among parts of the sizes ``counts``; each part is sorted."""
    order = np.random.default_rng(seed).permutation(sum(counts.values()))
    ends = pairwise(np.cumsum([0, *counts.values()]))
    return {part: sorted(order[start:end].tolist()) for part, (start, end) in zip(counts, ends, strict=True)}


def choose(name: str, whole: Split, classes: Sequence[str], chosen: Mapping[str, Sequence[int]]) -> Data:
    """Give each part the examples of ``whole`` whose labels are ``chosen`` for it; parts without a choice are empty."""
    splits = {}
    for part, labels in chosen.items():
        is_mine = torch.isin(whole.labels, torch.tensor(labels, dtype=torch.int64))  # (images,)
        splits[part] = whole.select(is_mine.nonzero().flatten())
    return _data(name, splits, classes)


def _data(name: str, splits: Mapping[str, Split], classes: Sequence[str]) -> Data:
    """Make a dataset of ``splits``; missing parts become empty splits with images of the same shape."""
    some = next(iter(splits.values()))
    empty = Split(some.images[:0], some.labels[:0])
    train, val, test = (splits.get(part, empty) for part in PARTS)
    return Data(name, train, val, test, tuple(classes))


def rotate(data: Data) -> Data:
    """Add each class rotated by 90, 180 and 270 degrees (counter-clockwise) as a new class, in the same part.

    The class ``Greek/character01`` gives ``Greek/character01/rot090`` and so on. If there were n classes, the rotation
    by k times 90 degrees adds k n to the label. Images must be square.
    """
    count = len(data.classes)
    train, val, test = (_rotate(getattr(data, part), count) for part in PARTS)
    turned = [f"{name}/rot{90 * k:03}" for k in (1, 2, 3) for name in data.classes]
    return Data(data.name, train, val, test, (*data.classes, *turned))


def _rotate(split: Split, count: int) -> Split:
    images = torch.cat([split.images.rot90(k, (2, 3)) for k in range(4)])  # (4 images, channels, height, width)
    return Split(images, torch.cat([split.labels + k * count for k in range(4)]))


def convert(splits: Mapping[str, Split], channels: int | None, invert: bool | None = None) -> dict[str, Split]:
    """Convert uint8 images to ``channels`` channels, and invert them as `class_folders` says."""
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 or 3 channels, not {channels}")
    images = {part: _with_channels(split.images, channels) for part, split in splits.items()}
    if invert is None:
        invert = channels == 1 and _are_bright(images.values())
    return {part: Split(255 - images[part] if invert else images[part], splits[part].labels) for part in splits}


def _with_channels(images: Tensor, channels: int | None) -> Tensor:
    if channels is None or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    return torch.cat([_grey(some) for some in images.split(1024)])  # in parts: int32 takes four times the memory


def _grey(images: Tensor) -> Tensor:
    """Convert uint8 images, (count, 3, height, width), to grey, (count, 1, height, width), rounded as in Pillow."""
    luma = (images.int() * torch.tensor(LUMA, dtype=torch.int32)[:, None, None]).sum(1, keepdim=True)
    return ((luma + 2**15) >> 16).to(torch.uint8)


def _are_bright(images: Iterable[Tensor]) -> bool:
    sums, counts = zip(*((int(some.sum()), some.numel()) for some in images), strict=True)
    return sum(sums) > sum(counts) * 255 / 2
