"""Load miniImageNet from a folder: 600 photographs of each of 100 classes, 64 to train, 16 for val, 20 for test.

::

    miniimagenet/train.csv, val.csv, test.csv         filename,label
    miniimagenet/images/n0153282900000005.jpg         n0153282900000005.jpg,n01532829
    miniimagenet/images/...                           (or images in class folders: images/n01532829/...)
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from mebqat_lite.datasets.base import Data, DataError
from mebqat_lite.datasets.classes import PARTS, convert, keep
from mebqat_lite.datasets.folder import Files, image_files

COLUMNS = ("filename", "label")
SOURCE = (
    "miniImageNet has no official download: its images are ImageNet's (ILSVRC 2012), and its split files train.csv, "
    "val.csv and test.csv those of Ravi and Larochelle, https://github.com/twitter-research/meta-learning-lstm, "
    "data/miniImagenet"
)


def miniimagenet(path: str | Path, seed: int = 0, size: int = 84) -> Data:
    """Load miniImageNet (Vinyals et al., 2016) with the split of Ravi and Larochelle (2017).

    Images are uint8, (count, 3, size, size). The classes, 64 / 16 / 20, are the WordNet labels of the split files. The
    images are decoded once and cached, as by `folder.folder`. At 84 x 84 pixels the 60,000 images take 1.3 GB;
    decoding them needs about 4 GB of memory.

    Args:
        path: a folder with the three split files; the images may be anywhere below it.
        seed: not used, because the split is fixed.
        size: height and width in pixels (bilinear with antialiasing; the aspect ratio is not kept).

    Raises:
        DataError: the folder, a split file or an image is missing; a split file has other columns; two split files
            share a class; an image cannot be read.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. {SOURCE}")
    parts = keep(root, _files(root), size)
    splits = convert(parts.splits, channels=3)
    return Data("miniimagenet", splits["train"], splits["val"], splits["test"], parts.classes)


def _files(root: Path) -> Files:
    """List the images of the split files by part and class."""
    listed = {part: _listed(root / f"{part}.csv") for part in PARTS}
    _check(root, listed)
    places = _places(root, {label for rows in listed.values() for label, _ in rows})
    files: Files = {}
    for part, rows in listed.items():
        missing, of_class = [], files.setdefault(part, {})
        for label, name in sorted(rows):
            if path := places.get((label, name)) or places.get(("", name)):
                of_class.setdefault(label, []).append(path)
            else:
                missing.append(name)
        if missing:
            raise DataError(_not_found(root, part, missing))
    return files


def _listed(path: Path) -> list[tuple[str, str]]:
    """Read the rows of a split file as (label, file name without folders)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"there is no {path.name} in {path.parent}: put it there. {SOURCE}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of text ({error}): fetch it anew. {SOURCE}") from error
    if not set(COLUMNS) <= set(columns):
        raise DataError(f"{path} has the columns {columns}, expected {','.join(COLUMNS)}. {SOURCE}")
    if not rows:
        raise DataError(f"{path} lists no images. {SOURCE}")
    return [(row["label"], row["filename"].rpartition("/")[2]) for row in rows]


def _check(root: Path, listed: dict[str, list[tuple[str, str]]]) -> None:
    """Raise a DataError if a class is in two parts."""
    part_of: dict[str, str] = {}
    for part, rows in listed.items():
        for label, _ in rows:
            if (other := part_of.setdefault(label, part)) != part:
                raise DataError(f"{other}.csv and {part}.csv in {root} both have class {label}. {SOURCE}")


def _places(root: Path, labels: set[str]) -> dict[tuple[str, str], str]:
    """Find the images below ``root`` by (class folder, file name), because classes may use the same file names."""
    places = {}
    for path in sorted(image_files(root)):
        parent, name = path.split(os.sep)[-2:]
        places[parent if parent in labels else "", name] = path
    return places


def _not_found(root: Path, part: str, missing: list[str]) -> str:
    more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    return (
        f"{root / 'images' / missing[0]}{more} not found, which {part}.csv lists: put the images there, or into class "
        f"folders. {SOURCE}"
    )
