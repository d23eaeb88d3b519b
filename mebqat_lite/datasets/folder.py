"""Load images from any folder that has one folder per class.

::

    photos/cat/1.jpg               photos/train/cat/1.jpg
    photos/cat/2.png      or       photos/val/cat/2.png        (or valid, validation)
    photos/dog/...                 photos/test/dog/...
"""

from __future__ import annotations

import hashlib
import os
import warnings
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
MOST = 2**15  # pixels of a side
GREY = {"1", "L", "LA", "La"}
LAYOUT = "expected <folder>/<class>/<image>, or <folder>/train/<class>/<image> and the same for val and test"

Files = dict[str, dict[str, list[str]]]  # part -> class -> paths of its images; classes and paths are sorted


def folder(path: str | Path, seed: int = 0, size: int | None = None) -> Data:
    """Load a folder that has one folder per class, or folders for train, val and test that have them.

    Images are uint8, (count, 3, height, width), or (count, 1, height, width) if all files are grey. Missing parts are
    split from train, stratified, by ``seed``: 15 % for test and 15 % for validation, or 10 % for validation if there
    is a test folder. Folders below a class folder belong to the class. Hidden files are ignored, and a warning counts
    all other files that are left out: images in no class folder of a part, and what is no image by its name. `read`
    says how files of several kinds are read.

    The images are decoded once and cached (`cache.cached`). If an image, its name or its modification time changes,
    the folder is decoded again. Each part is shuffled, always in the same way, because batch statistics need batches
    of several classes.

    Args:
        path: the folder.
        seed: chooses the split.
        size: height and width in pixels that every image is resized to (bilinear; the aspect ratio is not kept).
            Without it all images must have the same size.

    Raises:
        DataError: the folder is missing, is empty or has one class; a folder or an image cannot be read; the images
            have different sizes; ``size`` is no number of pixels; there are too few images to split.
    """
    root = Path(path).expanduser().resolve()
    files = find(root)
    _check(root, files)
    parts = cached(root.name[:60], fingerprint(root, files, size), lambda: decode(files, size))
    return complete(root.name, parts.splits, parts.classes, seed)


def find(root: Path) -> Files:
    """List the images below ``root`` by part and class; without folders for the parts, all images are ``train``.

    A warning counts the files that are in none of them.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: {LAYOUT}")
    parts: dict[str, Path] = {}
    for place in _folders(root):
        part = PART_NAMES.get(place.name.lower())
        if part is None or any(map(_is_image, _visible(place))):  # it holds images: a class with the name of a part
            continue
        if part in parts:
            raise DataError(f"{place} and {parts[part]} are both the {part} part: keep one of them")
        parts[part] = place
    files = {
        part: {place.name: sorted(image_files(place)) for place in _folders(parent)}
        for part, parent in (parts or {"train": root}).items()
    }
    _warn_of_others(root, {path for _, _, path in _listed(files)})
    return files


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in _visible(parent) if path.is_dir())


def _visible(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if not _is_hidden(path.name)]


def _warn_of_others(root: Path, taken: set[str]) -> None:
    """Warn of files below ``root`` that are not among the images that were taken."""
    others = sorted(path for path in _walk(root) if path not in taken)
    images = [path for path in others if _is_image(path)]
    rest = [path for path in others if not _is_image(path)]
    kinds = f"no images, which are regular files named *{' *'.join(sorted(SUFFIXES))}"
    for left, why in ((images, "in no class folder, or in one beside those of the parts"), (rest, kinds)):
        if left:
            text = f"{root}: {len(left)} files are left out, because they are {why}; the first is {left[0]}"
            warnings.warn(text, stacklevel=4)


def image_files(place: Path) -> Iterator[str]:
    """Yield the paths of the images in a folder and in the folders below it; an unreadable one is a DataError."""
    return filter(_is_image, _walk(place))


def _walk(place: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder that are not hidden; links to folders are followed once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(place, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            names = folders[:] = []
        seen.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (os.path.join(parent, name) for name in names if not _is_hidden(name))


def _refuse(error: OSError) -> None:
    raise DataError(f"the folder {error.filename} cannot be read ({error.strerror}): allow it, or move it away")


def _is_image(path: str | Path) -> bool:
    """Whether a path ends as those of images and is a regular file: a pipe could be read for ever."""
    return os.path.splitext(path)[1].lower() in SUFFIXES and os.path.isfile(path)


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
    """Read all images into memory, and shuffle each part, always in the same way.

    Raises:
        DataError: images cannot be read or have different sizes; ``size`` is no number of pixels.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST):
        raise DataError(f"size must be a whole number of pixels from 1 to {MOST:,}, not {size!r}")
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
    images, grey, broken = np.empty((0, 3, 0, 0), np.uint8), True, []
    for path, place in zip(tqdm(paths, "Reading images", leave=False, delay=1), places, strict=True):
        try:
            pixels, is_grey = read(path, size)
        except DataError as error:
            broken.append(str(error))
            continue
        if not images.size:
            images, first = np.empty((len(paths), 3, *pixels.shape[:2]), np.uint8), path
        height, width = images.shape[2:]
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{first} is {height} high and {width} wide, {path} {pixels.shape[0]} and {pixels.shape[1]}: "
                f'to resize all, give size=, as in folder(path, size=32) or "folder:PATH,size=32"'
            )
        images[place], grey = pixels.transpose(2, 0, 1), grey and is_grey
    if broken:
        others = f"; {len(broken) - 1} more of {len(paths)} images cannot be read either" if len(broken) > 1 else ""
        raise DataError(broken[0] + others)
    return torch.from_numpy(images[:, :1].copy() if grey else images)


def read(path: str, size: int | None = None) -> tuple[np.ndarray, bool]:
    """Read an image file: return its RGB pixels, (height, width, 3), uint8, and whether it is grey.

    Grey values of 16 bits, 0 to 65,535, become 0 to 255. Photographs are turned upright, as their EXIF data says.
    Transparency is ignored: a transparent pixel has the colour that is stored in it. Of several pictures in a file the
    first one is taken. With ``size`` the image is resized to that height and width.

    Raises:
        DataError: the file cannot be read, or its pixels have more bits than that.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            picture = _eight_bits(image)
            grey = picture.mode in GREY
            rgb = picture.convert("L").convert("RGB") if grey else picture.convert("RGB")
            if size is not None:
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb), grey
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"cannot read the image {path} ({error}): remove it, or save it again as PNG") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey pixels of 16 bits to 8; Pillow has them as ``I`` too, if they are of a PNG or PGM file."""
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"its pixels have more than 16 bits (mode {image.mode})")
    values = np.asarray(image).astype(np.int64)  # (height, width), 0 to 65,535
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
