"""Glyph classes: 32 characters of the glyphs at 14 x 14 pixels, a quick task on which methods differ.

``data/make_glyph_classes.py`` made the file ``data/glyph_classes.npz``: two classes of each script, chosen by a seed.
Its checksum is fixed here, so that all results on this dataset can be compared.
"""

from __future__ import annotations

import numpy as np

from mebqat_lite.datasets.base import Data
from mebqat_lite.datasets.glyphs import shipped_arrays, unpacked

SHA256 = "373cccc23066fb1f2fdcda46468dc04acefbf473d8cef5deb7224b9a45f5be96"


def glyph_classes(seed: int = 0) -> Data:
    """Load the glyph classes: 384 training, 3,200 validation and 3,200 test images of the same 32 classes.

    Images are uint8, (count, 1, 14, 14): white strokes (255) on black, in 4 grey levels, each class with as many as
    the others. The training images are the first 12 of their class in `glyphs`, averaged over 2 x 2 pixels. Those of
    the other parts were drawn like them, and none is nearly another one of its class. Labels index ``classes``, such
    as ``"hebrew/U+05D0"``. The split does not depend on ``seed``, which exists only because every dataset has it.

    Raises:
        DataError: the file is missing or damaged.
    """
    file = shipped_arrays("glyph_classes.npz", SHA256)
    labels = np.arange(len(file["name"]))
    train, val, test = (unpacked(file[part], labels) for part in ("train", "val", "test"))
    return Data("glyph_classes", train, val, test, tuple(file["name"].tolist()))
