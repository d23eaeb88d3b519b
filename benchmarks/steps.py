"""Compare a MEBQAT step with four plain forward and backward passes and one optimizer step of the same network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Work
from mebqat_lite import models
from mebqat_lite.datasets import Split
from mebqat_lite.loop import Loop, Passes
from mebqat_lite.quantizers import QUANTIZERS, Params, Quantizer, Site, register
from mebqat_lite.recipe import Recipe
from mebqat_lite.scale.speed import compile_forwards
from mebqat_lite.switching.convert import quantize

TASKS = 4


class Identity(Quantizer):
    """Quantizes nothing, so that what a step costs beyond plain PyTorch is due to the training loop."""

    one_bit = True

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Return ``w``."""
        return w

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Return ``x``."""
        return x


@contextlib.contextmanager
def registered(name: str, quantizer: Quantizer) -> Iterator[None]:
    """Inside the block, register the quantizer under ``name``; outside, users must not be offered it."""
    register(name, quantizer)
    try:
        yield
    finally:
        del QUANTIZERS[name]


@dataclass(frozen=True)
class Case:
    """A network and the batch that it is timed on."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]  # (batch, channels, height, width)
    runs: int
    quantizer: str = "dorefa"


CASES = {
    "digits": Case(models.digit_net_wide, (128, 1, 8, 8), 60),
    "digits_narrow": Case(models.digit_net, (128, 1, 8, 8), 60),
    "digits_identity": Case(models.digit_net_wide, (128, 1, 8, 8), 60, "identity"),
    "cnn8": Case(models.cnn8, (64, 3, 40, 40), 12),
    "preact_resnet20_w1": Case(functools.partial(models.preact_resnet20, width=1), (64, 3, 32, 32), 12),
    "preact_resnet20_w5": Case(functools.partial(models.preact_resnet20, width=5), (8, 3, 32, 32), 8),
    "mobilenet_v2": Case(models.mobilenet_v2, (32, 3, 32, 32), 8, "sat"),
}


def batch(case: Case) -> Split:
    """Make random images and labels; the images are channels-last in memory, as in the training loop."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(case.shape, generator=generator).to(memory_format=torch.channels_last)
    return Split(images, torch.randint(10, (case.shape[0],), generator=generator))


def loop(case: Case, method: str = "mebqat", passes: Passes | None = None, device: str = "cpu") -> Loop:
    """Make the training loop of a case, with teacher, sampler of four pairs, gradient mean, clipping and AdamW."""
    data = batch(case)
    with registered("identity", Identity()):
        model = quantize(case.build(), case.quantizer, sample=data.images[:8])
    return Loop(model.to(device), data, method, Recipe(batch_size=case.shape[0], m=TASKS), passes)


def mebqat_step(case: Case) -> Work:
    """Return the step of the training loop."""
    return loop(case).step


def in_turn_steps(case: Case) -> Work:
    """Return four steps of MEBQAT in turn, with an update after each, which visit FP, W1A1 and two drawn pairs."""
    return repeated(loop(case, "mebqat_in_turn").step)


def repeated(step: Work) -> Work:
    """Return four steps as one piece of work."""

    def steps() -> None:
        for _ in range(TASKS):
            step()

    return steps


def plain_step(
    case: Case,
    tasks: int = TASKS,
    model: nn.Module | None = None,
    device: str = "cpu",
    amp: bool = False,
    compiled: bool = False,
) -> Work:
    """Return a step of a network, by default the float one: ``tasks`` forward and backward passes, and then AdamW.

    ``amp`` and ``compiled`` are those of `scale.speed.Fast`.
    """
    images, labels = (part.to(device) for part in batch(case))
    net = models.channels_last(case.build() if model is None else model).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    if compiled:
        compile_forwards(net)

    def loss() -> Tensor:
        return F.cross_entropy(net(images), labels)

    forward = torch.autocast(images.device.type, torch.bfloat16)(loss) if amp else loss

    def step() -> None:
        for _ in range(tasks):
            forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peak_bytes(work: Work) -> int:
    """Measure the most memory that one call of ``work`` holds, beyond what was in use before, with the profiler."""
    work()  # in its first step the optimizer makes its state, which should not count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
