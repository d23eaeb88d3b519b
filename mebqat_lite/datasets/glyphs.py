"""Glyphs: handwriting-like characters of 16 scripts for few-shot learning, which need no download.

``data/make_glyphs.py`` made the file ``data/glyphs.npz`` from the outlines of the DejaVu fonts. Its checksum is fixed
here, so that all results on this dataset can be compared.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch

from mebqat_lite import paths
from mebqat_lite.datasets.base import Data, DataError, Split

SHA256 = "4b60907211d37446854a518fd36abf97594c0f67eeee05c78d0d1031d168e43d"
INSTANCES, SIDE = 20, 28


def glyphs(seed: int = 0) -> Data:
    """Load the glyphs: 20 images of each class, with different scripts in train, val and test.

    Images are uint8, (count, 1, 28, 28): white strokes (255) on black, in 4 grey levels. Labels index ``classes``, the
    names of the classes of all parts, such as ``"hebrew/U+05D0"``. The split does not depend on ``seed``, which exists
    only because every dataset has it.

    Raises:
        DataError: the file is missing or damaged.
    """
    with np.load(io.BytesIO(_verified(paths.shipped("glyphs.npz"))), allow_pickle=False) as file:
        names, parts, packed = file["name"], file["part"], file["images"]
    train, val, test = (_split(packed, np.flatnonzero(parts == part)) for part in ("train", "val", "test"))
    return Data("glyphs", train, val, test, tuple(names.tolist()))


def script(name: str) -> str:
    """Return the script of a class, such as ``hebrew`` for ``hebrew/U+05D0``."""
    return name.partition("/")[0]


def _verified(path: Path) -> bytes:
    """Read the file, and raise a DataError if its checksum is wrong."""
    mend = "restore it with `git checkout data/glyphs.npz`, or install mebqat_lite again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the data of Glyphs, {path}, cannot be read ({error.strerror}): {mend}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DataError(f"{path} is damaged, its checksum is not that of Glyphs: {mend}")
    return data


def _split(packed: np.ndarray, classes: np.ndarray) -> Split:
    """Unpack the images of ``classes``, (count,), from all images, (all classes, 20, 196), with four pixels per byte.

    The first pixel of a byte is in its highest bits. The images are shuffled, always in the same way, because the
    first ones are used for calibration and should come from all scripts.
    """
    levels = packed[classes][..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3
    images = (levels * np.uint8(85)).reshape(-1, 1, SIDE, SIDE)
    labels = np.repeat(classes.astype(np.int64), INSTANCES)
    order = np.random.default_rng(0).permutation(len(labels))
    return Split(torch.from_numpy(images[order]), torch.from_numpy(labels[order]))
