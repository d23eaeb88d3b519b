"""Load images from any folder that has one folder per class.

::

    photos/cat/1.jpg               photos/train/cat/1.jpg
    photos/cat/2.png      or       photos/val/cat/2.png        (or valid, validation)
    photos/dog/...                 photos/test/dog/...
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.datasets.cache import Parts, cached
from mebqat_lite.datasets.splits import complete

PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
GREY = {"1", "L", "LA", "La"}
LAYOUT = "expected <folder>/<class>/<image>, or <folder>/train/<class>/<image> and the same for val and test"

Files = dict[str, dict[str, list[str]]]  # part -> class -> paths of its images; classes and paths are sorted


def folder(path: str | Path, seed: int = 0, size: int | None = None) -> Data:
    """Load a folder that has one folder per class, or folders for train, val and test that have them.

    Images are uint8, (count, 3, height, width), or (count, 1, height, width) if all files are grey. Missing parts are
    split from train, stratified, by ``seed``: 15 % for test and 15 % for validation, or 10 % for validation if there
    is a test folder. Folders below a class folder belong to the class. Hidden files are ignored.

    The images are decoded once and cached (`cache.cached`). If an image, its name or its modification time changes,
    the folder is decoded again. Each part is shuffled, always in the same way, because batch statistics need batches
    of several classes.

    Args:
        path: the folder.
        seed: chooses the split.
        size: height and width in pixels that every image is resized to (bilinear; the aspect ratio is not kept).
            Without it all images must have the same size.

    Raises:
        DataError: the folder is missing, is empty or has one class; an image cannot be read; the images have
            different sizes; there are too few images to split.
    """
    root = Path(path).expanduser().resolve()
    files = find(root)
    _check(root, files)
    parts = cached(root.name[:60], fingerprint(root, files, size), lambda: decode(files, size))
    return complete(root.name, parts.splits, parts.classes, seed)


def find(root: Path) -> Files:
    """List the images below ``root`` by part and class; without folders for the parts, all images are ``train``."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: {LAYOUT}")
    parts: dict[str, Path] = {}
    for place in _folders(root):
        part = PART_NAMES.get(place.name.lower())
        if part is None or any(map(_is_image, os.listdir(place))):  # it holds images: a class with the name of a part
            continue
        if part in parts:
            raise DataError(f"{place} and {parts[part]} are both the {part} part: keep one of them")
        parts[part] = place
    return {
        part: {place.name: sorted(image_files(place)) for place in _folders(parent)}
        for part, parent in (parts or {"train": root}).items()
    }


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not _is_hidden(path.name))


def image_files(place: Path) -> Iterator[str]:
    """Yield the paths of the images in a folder and in the folders below it."""
    for parent, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (os.path.join(parent, name) for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a leftover of archives made on macOS."""
    return name.startswith(".") or name == "__MACOSX"


def _check(root: Path, files: Files) -> None:
    """Raise a DataError if the files that were found cannot be trained on."""
    if not any(images for classes in files.values() for images in classes.values()):
        raise DataError(f"no images in {root}: {LAYOUT}; images end with {' '.join(sorted(SUFFIXES))}")
    if "train" not in files:
        raise DataError(f"{root} has {' and '.join(files)}, but no train: {LAYOUT}")
    train = files["train"]
    if len(train) < 2:
        raise DataError(f"a classifier needs two or more classes, {root} has {list(train)}: {LAYOUT}")
    if empty := [name for name, images in train.items() if not images]:
        raise DataError(f"no images to train on for {empty} in {root}: add some, or remove these folders")
    for part, classes in files.items():
        if unknown := [name for name, images in classes.items() if images and name not in train]:
            raise DataError(f"{part} has classes that train has not: {unknown}; in {root}")
        if not any(classes.values()):
            raise DataError(f"{part} has no images: add some, or remove the folder, and it is split from train; {root}")


def fingerprint(root: Path, files: Files, size: int | None) -> str:
    """Compute a checksum over the images' parts, classes, names, sizes and modification times (ns), and ``size``."""
    checksum = hashlib.sha256(f"2 {size}\n".encode())  # 2 is the version of the cached format
    start = len(os.path.join(root, ""))
    for part, name, path in _listed(files):
        stat = os.stat(path)
        relative = path[start:].replace(os.sep, "/")
        line = f"{part}\0{name}\0{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        checksum.update(line.encode("utf-8", "surrogateescape"))
    return checksum.hexdigest()[:16]


def _listed(files: Files) -> list[tuple[str, str, str]]:
    """List every image as (part, class, path)."""
    return [(part, name, path) for part in files for name, paths in files[part].items() for path in paths]


def decode(files: Files, size: int | None) -> Parts:
    """Read all images into memory, and shuffle each part, always in the same way."""
    listed = _listed(files)
    classes = tuple(dict.fromkeys(name for _, name, _ in listed))  # of all parts together
    counts = {part: sum(map(len, of_class.values())) for part, of_class in files.items()}
    starts = np.cumsum([0, *counts.values()])
    order = [np.random.default_rng(0).permutation(count) for count in counts.values()]
    places = np.concatenate([start + within for start, within in zip(starts, order, strict=False)])  # (images,)
    images = _read_all([path for _, _, path in listed], places, size)  # (images, channels, height, width)
    labels = torch.empty(len(listed), dtype=torch.int64)
    number = {name: label for label, name in enumerate(classes)}
    labels[torch.from_numpy(places)] = torch.tensor([number[name] for _, name, _ in listed])
    ends = zip(counts, starts[:-1], starts[1:], strict=True)
    return Parts({part: Split(images[start:end], labels[start:end]) for part, start, end in ends}, classes)


def _read_all(paths: list[str], places: np.ndarray, size: int | None) -> torch.Tensor:
    """Read images into one uint8 tensor, (images, channels, height, width), with 1 channel if all images are grey.

    The image of ``paths[i]`` goes to the index ``places[i]``.
    """
    height, width, _ = read(paths[0], size)[0].shape
    images, grey = np.empty((len(paths), 3, height, width), np.uint8), True
    for path, place in zip(tqdm(paths, "Reading images", leave=False, delay=1), places, strict=True):
        pixels, is_grey = read(path, size)
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{paths[0]} is {height} high and {width} wide, {path} {pixels.shape[0]} and {pixels.shape[1]}: "
                'to resize all, give size=, as in folder(path, size=32) or "folder:PATH,size=32"'
            )
        images[place], grey = pixels.transpose(2, 0, 1), grey and is_grey
    return torch.from_numpy(images[:, :1].copy() if grey else images)


def read(path: str, size: int | None = None) -> tuple[np.ndarray, bool]:
    """Read an image file: return its RGB pixels, (height, width, 3), uint8, and whether it is grey.

    Transparency is ignored. With ``size`` the image is resized to that height and width.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits (mode {image.mode})")
            grey = image.mode in GREY
            ImageOps.exif_transpose(image, in_place=True)  # turns photographs that were taken upright
            rgb = image.convert("L").convert("RGB") if grey else image.convert("RGB")
            if size is not None:
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb), grey
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"cannot read the image {path} ({error}): remove it, or save it again as PNG") from error
