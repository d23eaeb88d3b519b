"""Images of six classes, small networks for them, and set-ups that train in a moment."""

import copy
import functools

import torch

from mebqat_lite import Recipe, datasets, models, quantize, recalibrate
from mebqat_lite.datasets import Episodes, Split
from mebqat_lite.experiments.setups import Setup

PAIRS = "FP,W2A2,W4A8"


def split(classes=6, seed=0):
    """Twelve images a class: noise around a picture of the class, so that episodes are neither hopeless nor easy."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(12)
    centres = torch.rand(classes, 1, 16, 16, generator=g)
    return Split((0.4 * centres[labels] + 0.6 * torch.rand(len(labels), 1, 16, 16, generator=g)), labels)


SPLIT = split()


def net(classes=None, seed=0):
    return copy.deepcopy(built(classes, seed))


@functools.cache
def built(classes, seed):
    torch.manual_seed(seed)
    model = quantize(models.conv4(channels=4, image_size=16, classes=classes), "lsq", sample=SPLIT.images)
    return recalibrate(model.eval(), SPLIT.images, PAIRS)


def episodes(ways=3, shots=2, queries=4, seed=0):
    return Episodes(SPLIT, ways, shots, queries, seed)


FEW = Recipe(steps=2, ways=5, shots=1, queries=1, tasks=2, inner_steps=1, quantizer="lsq", m=3)
TINY = {
    "tiny-pn": Setup("glyphs", "conv4", {"channels": 4, "classes": None}, FEW),
    "tiny-maml": Setup("glyphs", "conv4", {"channels": 4, "classes": 5}, FEW, norm_stats="support"),
}


def made(seed=0):
    """Different classes in each part, and another split for each seed."""
    return datasets.Data("made", *(split(seed=3 * seed + part) for part in range(3)), tuple("abcdef"))
