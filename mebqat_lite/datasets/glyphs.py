"""Glyphs: handwriting-like characters of 16 scripts for few-shot learning, which need no network.

The file ``data/glyphs.npz`` is made by ``data/make_glyphs.py`` from the outlines of the DejaVu fonts, and frozen by its
checksum: a result on it can be compared with any other.
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
    """The characters, 20 images a class; no script, and so no class, is in two parts.

    Images are (count, 1, 28, 28), uint8: white strokes, 255, on black, in 4 grey levels. Labels index ``classes``, the
    names of the classes of all parts, as in ``"hebrew/U+05D0"`` (see `script`). The split is by script, the same
    for every ``seed``, which is there for the common signature. DataError if the file is missing or damaged.
    """
    with np.load(io.BytesIO(_verified(paths.shipped("glyphs.npz"))), allow_pickle=False) as file:
        names, parts, packed = file["name"], file["part"], file["images"]
    train, val, test = (_split(packed, np.flatnonzero(parts == part)) for part in ("train", "val", "test"))
    return Data("glyphs", train, val, test, tuple(names.tolist()))


def script(name: str) -> str:
    """The script of a class: ``hebrew`` for ``hebrew/U+05D0``."""
    return name.partition("/")[0]


def _verified(path: Path) -> bytes:
    """The file's bytes, if they are those that were frozen."""
    mend = "restore it with `git checkout data/glyphs.npz`, or install mebqat_lite again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the data of Glyphs, {path}, cannot be read ({error.strerror}): {mend}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DataError(f"{path} is damaged, its checksum is not that of Glyphs: {mend}")
    return data


def _split(packed: np.ndarray, classes: np.ndarray) -> Split:
    """The images of some classes, (count,), from all, (classes, 20, 196), of four pixels a byte, the first highest.

    They are shuffled, always in the same way: the first ones serve to calibrate, and should be of all scripts.
    """
    levels = packed[classes][..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3
    images = (levels * np.uint8(85)).reshape(-1, 1, SIDE, SIDE)
    labels = np.repeat(classes.astype(np.int64), INSTANCES)
    order = np.random.default_rng(0).permutation(len(labels))
    return Split(torch.from_numpy(images[order]), torch.from_numpy(labels[order]))
