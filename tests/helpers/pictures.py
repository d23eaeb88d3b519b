"""Small image files, and what datasets make of them."""

import numpy as np
import torch
from PIL import Image

from mebqat_lite.datasets.base import Data, Split

HEIGHT, WIDTH = 5, 6
PARTS = ("train", "val", "test")


def picture(number, mode="RGB", size=(WIDTH, HEIGHT)):
    """A noise image; no two numbers share one."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def make(root, counts, mode="RGB", suffix=".png"):
    """Write images 0, 1, ... to class folders, ``{"train/cat": 5}``; returns {bytes: (part or "", class)}."""
    origin, number = {}, 0
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for index in range(count):
            image = picture(number, mode)
            image.save(root / place / f"{index}{suffix}")
            part, _, name = place.rpartition("/")
            origin[content(chw(image))] = (part, name)
            number += 1
    return origin


def chw(image):
    """(channels, height, width), uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def content(image):
    return image.numpy().tobytes()


def sizes(data):
    return [len(getattr(data, part).labels) for part in PARTS]


def numbered(counts):
    """A dataset whose images tell their index."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    other = Split(torch.zeros(4, 1, 1, 1), torch.zeros(4))
    return Data("made", Split(images, labels), other, other, tuple("abcdef"[: len(counts)]))


def no_decoding(*args, **kwargs):
    raise AssertionError("an image file was opened")


def paint(place, number, mode="RGB", side=6):
    """A photograph that is brighter than 0.5 on average."""
    place.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(100, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    image.save(place)
    return np.asarray(image)


def names(data, part):
    return {data.classes[label] for label in getattr(data, part).labels.unique().tolist()}


def check_disjoint(data):
    found = [names(data, part) for part in PARTS]
    assert sum(map(len, found)) == len(set.union(*found)) == len(data.classes) == len(set(data.classes))
    for part in PARTS:
        images, labels = getattr(data, part)
        assert images.dtype == torch.uint8 and images.dim() == 4 and labels.dtype == torch.int64
        assert len(images) == len(labels)


def check_equal(first, other):
    assert first.classes == other.classes
    for part in PARTS:
        pairs = zip(getattr(first, part), getattr(other, part), strict=True)
        assert all(torch.equal(mine, yours) for mine, yours in pairs), part
