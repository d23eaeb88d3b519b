"""Compare a step of MEBQAT-PN or MEBQAT-MAML with the plain FP32 passes of the same episodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.steps import repeated
from benchmarks.timing import Work
from mebqat_lite import models
from mebqat_lite.datasets import Split
from mebqat_lite.datasets.episodes import Episode, Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.loop import Loop, Passes
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import quantize

TASKS = 4  # the pairs of a PN step, or the class tasks of a MAML step
INNER_STEPS = 5


@dataclass(frozen=True)
class Case:
    """A method, the width of its Conv4, and its episodes."""

    method: str
    channels: int
    ways: int
    queries: int
    runs: int = 12


CASES = {
    "mebqat_pn_step/conv4_64": Case("mebqat_pn", 64, 20, 5),
    "mebqat_pn_step/conv4_32": Case("mebqat_pn", 32, 20, 5),
    "in_turn_step/pn_conv4_32": Case("mebqat_pn_in_turn", 32, 20, 5),
    "mebqat_maml_step/conv4_64": Case("mebqat_maml", 64, 5, 15),
}


def images() -> Split:
    """Make random images, 28 x 28, of 100 classes with 20 images each."""
    generator = torch.Generator().manual_seed(0)
    return Split(torch.rand(2000, 1, 28, 28, generator=generator), torch.arange(100).repeat_interleave(20))


def network(case: Case) -> torch.nn.Module:
    """Build a Conv4, which has a classifier for MAML and none for PN."""
    return models.conv4(channels=case.channels, classes=case.ways if case.method == "mebqat_maml" else None)


def our_step(case: Case, tasks: int = TASKS, passes: Passes | None = None, device: str = "cpu") -> Work:
    """Return the step of the training loop, which includes drawing the episodes."""
    data = images()
    model = quantize(network(case), "lsq", sample=data.images[:8]).to(device)
    recipe = Recipe(ways=case.ways, queries=case.queries, m=tasks, tasks=tasks, inner_steps=INNER_STEPS)
    step = Loop(model, data, case.method, recipe, passes).step
    return repeated(step) if case.method == "mebqat_pn_in_turn" else step


def plain_step(case: Case) -> Work:
    """Return the forward and backward passes of the same episodes in one fixed float network.

    Only beside steps in turn there is an optimizer, which updates the network after each of the four passes.
    """
    model = models.channels_last(network(case)).train()
    episodes = [Episodes(images(), case.ways, 1, case.queries)[number] for number in range(TASKS)]
    learner, optimizer = ProtoNet("labels"), torch.optim.AdamW(model.parameters(), lr=1e-3)
    joint, labels = learner.read(episodes[0])

    def embed() -> None:
        for _ in range(TASKS):
            F.cross_entropy(learner.score(model(joint), episodes[0]), labels).backward()
            if case.method == "mebqat_pn_in_turn":
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)

    def adapt() -> None:
        for support, query in episodes:
            known, asked = support.flatten(0, 1), query.flatten(0, 1)
            for _ in range(INNER_STEPS):
                F.cross_entropy(model(known), Episode(support, support).labels).backward()
            F.cross_entropy(model(asked), Episode(support, query).labels).backward()
        model.zero_grad(set_to_none=True)

    return adapt if case.method == "mebqat_maml" else embed
