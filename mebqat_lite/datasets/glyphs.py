"""Glyphs: handwriting-like characters of 16 scripts for few-shot learning, which need no download.

``data/make_glyphs.py`` made the file ``data/glyphs.npz`` from the outlines of the DejaVu fonts. Its checksum is fixed
here, so that all results on this dataset can be compared.
"""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import torch

from mebqat_lite import paths
from mebqat_lite.datasets.base import Data, DataError, Split

SHA256 = "4b60907211d37446854a518fd36abf97594c0f67eeee05c78d0d1031d168e43d"


def glyphs(seed: int = 0) -> Data:
    """Load the glyphs: 20 images of each class, with different scripts in train, val and test.

    Images are uint8, (count, 1, 28, 28): white strokes (255) on black, in 4 grey levels. Labels index ``classes``, the
    names of the classes of all parts, such as ``"hebrew/U+05D0"``. The split does not depend on ``seed``, which exists
    only because every dataset has it.

    Raises:
        DataError: the file is missing or damaged.
    """
    file = shipped_arrays("glyphs.npz", SHA256)
    members = (np.flatnonzero(file["part"] == part) for part in ("train", "val", "test"))
    train, val, test = (unpacked(file["images"][classes], classes) for classes in members)
    return Data("glyphs", train, val, test, tuple(file["name"].tolist()))


def script(name: str) -> str:
    """Return the script of a class, such as ``hebrew`` for ``hebrew/U+05D0``."""
    return name.partition("/")[0]


def shipped_arrays(name: str, sha256: str) -> dict[str, np.ndarray]:
    """Read the arrays of a file that the package ships, by their names.

    Raises:
        DataError: the file is missing, or its checksum is not ``sha256``.
    """
    path, mend = paths.shipped(name), f"restore it with `git checkout data/{name}`, or install mebqat_lite again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the shipped data {path} cannot be read ({error.strerror}): {mend}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} is damaged, its checksum is not that of the shipped data: {mend}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def unpacked(packed: np.ndarray, labels: np.ndarray) -> Split:
    """Unpack the images of some classes, (classes, images of a class, pixels / 4), whose ``labels`` are (classes,).

    A byte holds four pixels, the first one in its highest bits. The images are square. They are shuffled, always in
    the same way, because the first ones are used for calibration and should come from all classes.
    """
    levels = packed[..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3
    side = math.isqrt(4 * packed.shape[-1])
    images = (levels * np.uint8(85)).reshape(-1, 1, side, side)
    every = np.repeat(labels.astype(np.int64), packed.shape[1])
    order = np.random.default_rng(0).permutation(len(every))
    return Split(torch.from_numpy(images[order]), torch.from_numpy(every[order]))
