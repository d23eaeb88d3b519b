"""Data whose parts hold different classes, for methods that learn classes they were not trained on.

Such a `Data` names the classes of all its parts in ``classes``; the labels of a part are only those of its own.
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
ALL = "train"  # the only part, where classes are divided after reading: as `folder.folder` keeps them, once for both
HELD_OUT = 0.2  # of the classes, for validation and again for test
LUMA = (19595, 38470, 7471)  # red, green, blue in 2^16ths: ITU-R 601, as Pillow makes grey


def class_folders(
    path: str | Path,
    *,
    seed: int = 0,
    size: int | None = None,
    channels: int | None = None,
    whole: bool = False,
    invert: bool | None = None,
) -> Data:
    """The images of a folder of class folders, with different classes in train, val and test.

    Where the folder has folders for train and test (and val) that share no class, these are the parts; without val
    that part is empty. Otherwise all classes are shuffled by ``seed``: 60 % train, 20 % val, 20 % test. The files are
    read once and kept by `cache.cached`, under a checksum as those of `folder.folder` are.

    Args:
        path: the folder.
        seed: chooses the classes of each part.
        size: height and width to resize every image to (bilinear with antialiasing; the aspect is not kept). Without
            it all images must have one size.
        channels: 1 makes the images grey, 3 repeats grey ones; without it they stay as they are.
        whole: all classes are the test part, and train and val are empty: to evaluate only, on a few classes.
        invert: make a negative, 255 - x. By default, None, decided for the set as a whole: with ``channels=1``, images
            whose mean is above 0.5 are taken for dark strokes on white paper, and inverted.

    Images are uint8, (count, channels, height, width).

    Raises:
        DataError: the folder is missing or empty, or has too few classes; an image cannot be read; sizes differ;
            ``channels`` is another number.
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
    """The images of ``files``, read once and kept under a checksum as those of `folder.folder` are."""
    return cached(root.name[:60], fingerprint(root, files, size), lambda: decode(files, size))


def _class_files(root: Path, whole: bool) -> Files:
    """The images by part and class; one part, ``ALL``, where classes have yet to be divided."""
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
    """The numbers from 0 to the sum of ``counts``, shuffled by ``seed`` and dealt to the parts, each sorted."""
    order = np.random.default_rng(seed).permutation(sum(counts.values()))
    ends = pairwise(np.cumsum([0, *counts.values()]))
    return {part: sorted(order[start:end].tolist()) for part, (start, end) in zip(counts, ends, strict=True)}


def choose(name: str, whole: Split, classes: Sequence[str], chosen: Mapping[str, Sequence[int]]) -> Data:
    """Each part gets the examples of ``whole`` whose labels are ``chosen`` for it; a part not named is empty."""
    splits = {}
    for part, labels in chosen.items():
        is_mine = torch.isin(whole.labels, torch.tensor(labels, dtype=torch.int64))  # (images,)
        splits[part] = whole.select(is_mine.nonzero().flatten())
    return _data(name, splits, classes)


def _data(name: str, splits: Mapping[str, Split], classes: Sequence[str]) -> Data:
    """A dataset of ``splits``; those that are missing are empty, in the shape of the others."""
    some = next(iter(splits.values()))
    empty = Split(some.images[:0], some.labels[:0])
    train, val, test = (splits.get(part, empty) for part in PARTS)
    return Data(name, train, val, test, tuple(classes))


def rotate(data: Data) -> Data:
    """Four times the classes: each one turned by 90, 180 and 270 degrees (counter-clockwise) is another.

    The class ``Greek/character01`` gives ``Greek/character01/rot090`` and so on, in the part that it is in. With n
    classes before, the label of a class turned k times is its own + k n. Images must be square.
    """
    count = len(data.classes)
    train, val, test = (_rotate(getattr(data, part), count) for part in PARTS)
    turned = [f"{name}/rot{90 * k:03}" for k in (1, 2, 3) for name in data.classes]
    return Data(data.name, train, val, test, (*data.classes, *turned))


def _rotate(split: Split, count: int) -> Split:
    images = torch.cat([split.images.rot90(k, (2, 3)) for k in range(4)])  # (4 images, channels, height, width)
    return Split(images, torch.cat([split.labels + k * count for k in range(4)]))


def convert(splits: Mapping[str, Split], channels: int | None, invert: bool | None = None) -> dict[str, Split]:
    """The images with as many ``channels`` as asked for, inverted as `class_folders` says. Bytes stay bytes."""
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
    return torch.cat([_grey(some) for some in images.split(1024)])  # whole numbers take four times the bytes' memory


def _grey(images: Tensor) -> Tensor:
    """Bytes, (count, 3, height, width), as (count, 1, height, width), rounded as Pillow does."""
    luma = (images.int() * torch.tensor(LUMA, dtype=torch.int32)[:, None, None]).sum(1, keepdim=True)
    return ((luma + 2**15) >> 16).to(torch.uint8)


def _are_bright(images: Iterable[Tensor]) -> bool:
    sums, counts = zip(*((int(some.sum()), some.numel()) for some in images), strict=True)
    return sum(sums) > sum(counts) * 255 / 2
