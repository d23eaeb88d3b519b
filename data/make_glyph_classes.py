"""Make Glyph Classes: `python data/make_glyph_classes.py`, or with `--check` compare only.

It is a small data set of fixed classes on which methods differ: two characters of each script of Glyphs, at half the
resolution, with few training images and many to measure on. The training images are the first ones of each class in
``glyphs.npz``. Validation and test images are drawn like them, in the same faces (the training images use all that a
class has), with seeds of their own.
"""

from __future__ import annotations

import hashlib
import sys
from functools import reduce

import numpy as np
from make_glyphs import FOLDER, SEED, flat, hands, main, npz, packed, unpacked
from tqdm import tqdm

NAME = "glyph_classes.npz"
OF_SCRIPT, SIDE, TRAIN, HELD_OUT = 2, 14, 12, 100  # classes of a script; pixels; images of a class in the parts
SEEDS = {"val": 1, "test": 2}
ALIKE = 0.92  # the `likeness` from which two images are near duplicates; those of two classes come to 0.903 at most


def chosen(names: np.ndarray) -> np.ndarray:
    """Indices of the classes, (32,): of each script's in turn, some that a seeded generator chooses."""
    scripts = np.array([name.split("/")[0] for name in names])
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(scripts == script) for script in dict.fromkeys(scripts.tolist())]
    return np.concatenate([np.sort(rng.choice(of_script, OF_SCRIPT, replace=False)) for of_script in members])


def reduced(images: np.ndarray) -> np.ndarray:
    """Averages of 2 x 2 pixels, (count, SIDE, SIDE), rounded to the four levels of the images, (count, 28, 28)."""
    sums = images.reshape(len(images), SIDE, 2, SIDE, 2).sum((2, 4), dtype=np.uint8)
    return (sums + 2) // 4


def likeness(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine between the pixels of two images, (count, others): the most of nine shifts by at most one pixel."""
    images, others = (np.pad(stack, ((0, 0), (1, 1), (1, 1))) for stack in (images, others))
    shifted = (np.roll(images, (dy - 1, dx - 1), (1, 2)) for dy, dx in np.ndindex(3, 3))
    most = reduce(np.maximum, (flat(stack) @ flat(others).T for stack in shifted))  # whole numbers: exact
    lengths = (np.linalg.norm(flat(stack), axis=1) for stack in (images, others))
    return most / np.outer(*lengths)


def parts(code: int, bits: int, train: np.ndarray) -> dict[str, np.ndarray]:
    """The images of a class by part, each (count, SIDE, SIDE): ``train`` as given, the others drawn with SEEDS.

    An image that is a near duplicate of one taken before, of any part, is left out, and the next one is drawn.
    """
    taken = train
    for seed in SEEDS.values():
        wanted = len(taken) + HELD_OUT
        for image in hands(code, bits, seed):
            new = reduced(image[None])
            if likeness(new, taken).max() < ALIKE:
                taken = np.concatenate([taken, new])
            if len(taken) == wanted:
                break
    return dict(zip(("train", *SEEDS), np.split(taken, [len(train), len(train) + HELD_OUT]), strict=True))


def make() -> dict[str, np.ndarray]:
    """The arrays of the data file, by class: ``name``, and ``train``, ``val``, ``test`` of two bits a pixel."""
    with np.load(FOLDER / "glyphs.npz", allow_pickle=False) as glyphs:
        index = chosen(glyphs["name"])
        names, faces, images = (glyphs[key][index] for key in ("name", "faces", "images"))
    made = []
    for name, bits, of_class in zip(tqdm(names, "classes"), faces, images, strict=True):
        drawn = parts(int(name.split("U+")[1], 16), int(bits), reduced(unpacked(of_class[:TRAIN])))
        made.append({part: packed(levels) for part, levels in drawn.items()})
    return {"name": names} | {part: np.stack([of_class[part] for of_class in made]) for part in made[0]}


def write(arrays: dict[str, np.ndarray]) -> None:
    """Write the data."""
    file = npz(arrays)
    (FOLDER / NAME).write_bytes(file)
    print(
        f"{len(arrays['name'])} classes, {len(file):,} bytes; SHA256 in mebqat_lite/datasets/glyph_classes.py must be"
    )
    print(hashlib.sha256(file).hexdigest())


if __name__ == "__main__":
    sys.exit(main(NAME, make, write))
