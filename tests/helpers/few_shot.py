"""Small few-shot networks in float64, episodes, and gradients to compare."""

import copy
import functools

import torch
from torch import nn

from mebqat_lite import Recipe, models, quantize
from mebqat_lite.datasets import Data, Episode, Split
from mebqat_lite.switching.state import setting_of

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def images(*shape, seed=0):
    return torch.rand(*shape, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def episode(ways=3, shots=2, queries=4, seed=1):
    return Episode(images(ways, shots, seed=seed), images(ways, queries, seed=seed + 1))


def plain_net(classes=None):
    """A conv4 in float64. Its pools take means: maxima of few-bit sums have ties, which layouts break differently."""
    model = models.conv4(channels=4, image_size=16, classes=classes).double()
    for block in (model.stem, *model.body[:3]):
        block[2] = nn.AvgPool2d(2)
    return model


def net(classes=None, quantizer="lsq", seed=0):
    """Quantized, with gains, shifts and running statistics that matter, in training mode."""
    return copy.deepcopy(built(classes, quantizer, seed))


@functools.cache
def built(classes, quantizer, seed):
    torch.manual_seed(seed)
    model = plain_net(classes)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.uniform_(norm.bias, 0, 0.6)
    with torch.no_grad():
        for seed_of_batch in range(20):
            model(images(16, seed=seed_of_batch))
    return quantize(model, quantizer, sample=images(32, seed=9)).train()


def grads(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_grads(mine, wanted):
    assert mine.keys() == wanted.keys()
    assert [n for n in mine if (mine[n] is None) != (wanted[n] is None)] == []
    for name, grad in mine.items():
        if grad is not None:
            torch.testing.assert_close(grad, wanted[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def frozen_running(model):
    setting_of(model).track_running = False
    return model


TRAIN = Split(images(60).float(), torch.arange(60) % 6)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("abcdef"))
FAST = Recipe(steps=2, ways=3, shots=2, queries=2, m=3, tasks=3, inner_steps=2, lr=0.01, schedule="constant")


def small(classes=None, quantizer="lsq"):
    torch.manual_seed(0)
    return quantize(models.conv4(channels=4, image_size=16, classes=classes), quantizer, sample=TRAIN.images)
