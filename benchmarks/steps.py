"""A MEBQAT step over four plain forward and backward passes and one optimizer step of the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import Work
from mebqat_lite import models
from mebqat_lite.convert import quantize
from mebqat_lite.datasets import Split
from mebqat_lite.methods import Recipe
from mebqat_lite.train import Loop

TASKS = 4


@dataclass(frozen=True)
class Case:
    """A network and the batch that it is timed on."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]  # (batch, channels, height, width)
    runs: int


CASES = {
    "digits": Case(models.digit_net, (128, 1, 8, 8), 60),
    "cnn8": Case(models.cnn8, (64, 3, 40, 40), 12),
}


def batch(case: Case) -> Split:
    """Random images, channels last as the training loop lays them out, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(case.shape, generator=generator).to(memory_format=torch.channels_last)
    return Split(images, torch.randint(10, (case.shape[0],), generator=generator))


def mebqat_step(case: Case) -> Work:
    """The training loop's own step: four pairs, teacher, sampler, gradient mean, clipping, AdamW."""
    data = batch(case)
    model = quantize(case.build(), "dorefa", sample=data.images[:8])
    return Loop(model, data, "mebqat", Recipe(batch_size=case.shape[0], m=TASKS)).step


def plain_step(case: Case) -> Work:
    """Four times forward and backward of the float network, then AdamW."""
    images, labels = batch(case)
    model = models.channels_last(case.build()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        for _ in range(TASKS):
            F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
