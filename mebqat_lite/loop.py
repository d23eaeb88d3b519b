"""The one loop: the state of a run, and the step that all methods share."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import files, methods
from mebqat_lite.bits import Pair
from mebqat_lite.datasets.base import Split
from mebqat_lite.models import channels_last
from mebqat_lite.optim import GradientMean, groups, keep_steps_positive, set_learning_rate
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import plan_of
from mebqat_lite.tensors import best_device, keep_memory


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Costs:
    """Work done by the training loop. ``forwards`` counts the passes of teachers too."""

    steps: int = 0
    forwards: int = 0
    backprops: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass
class Run:
    """What a training run leaves besides the model: its counted costs, the loss of each step, and seconds."""

    method: str
    recipe: Recipe
    costs: Costs = field(default_factory=Costs)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Loop:
    """The state of one run, a sampler x a learner on a model and a source of tasks; and its step."""

    def __init__(
        self, model: nn.Module, train: Split, method: str, recipe: Recipe, passes: Passes | None = None
    ) -> None:
        keep_memory()
        chosen, device = methods.get(method), next(model.parameters()).device
        teacher = methods.teacher_of(chosen, recipe, warm=recipe.warm_steps > 0)
        self.model, self.train, self.recipe = channels_last(model).train(), train, recipe
        self.run, self.passes = Run(method, recipe), passes or Passes()
        self.source = chosen.source(Split(train.images.to(device), train.labels.to(device)), recipe)
        self.sampler, self.learner = chosen.sampler(model, recipe), chosen.learner(recipe, teacher)
        chosen.prepare(model, self.sampler)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.buffers = list(model.buffers())
        self.gradients = GradientMean(self.parameters.values())
        self.optimizer = torch.optim.AdamW(groups(model), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.optimizer.zero_grad(set_to_none=True)  # gradients from before the run do not count
        torch.manual_seed(recipe.seed + self.passes.rank)  # dropout
        self.learner.begin(model)
        self.passes.begin(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the training data, by which a checkpoint knows its run."""
        return files.checksum(self.train)

    def close(self) -> None:
        """Leave no hook on the model."""
        self.passes.end(self)
        self.gradients.close()

    def finite(self, value: float, bits: Pair) -> float:
        """The loss at ``bits``; a TrainingError if it is not a finite number."""
        if math.isfinite(value):
            return value
        raise TrainingError(
            f"the loss is {value} at step {self.run.costs.steps}, {bits}: lower lr "
            f"(now {self.recipe.lr:g}) or look for bad values in the images"
        )

    def step(self) -> None:
        """One training step: the losses of all tasks at their pairs, the mean of their gradients, one update.

        MEBQAT is algorithm 1 of ECCV 2022: one batch at m pairs. MEBQAT-MAML (algorithm 2) and MEBQAT-PN (algorithm 3)
        differ from it in their sampler and their learner; float training, QAT and AdaBits in their sampler alone.
        """
        started = time.perf_counter()
        with undone_by_error(self.buffers):  # norm statistics move in a forward pass
            losses = self.passes.backpropagate(self)
        self.gradients.average()
        nn.utils.clip_grad_value_(self.parameters.values(), self.recipe.clip)
        set_learning_rate(self.optimizer, self.recipe, self.run.costs.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # so a parameter that no task uses gets no update and no decay
        keep_steps_positive(self.model)
        self.run.costs.steps += 1
        self.run.losses.append(sum(losses) / len(losses))
        self.run.seconds += time.perf_counter() - started


class Passes:
    """How the forward and backward passes of a step are made: task after task, and pair after pair.

    This class makes them plainly. `scale.speed.Fast` overrides the small methods below to make them faster.
    """

    rank = 0  # which of several processes this is; the first one logs and writes

    def backpropagate(self, loop: Loop) -> list[float]:
        """Add up the gradients of each pair of each task; returns each task's mean loss."""
        means = []
        for index, pairs in enumerate(loop.sampler.draw()):
            task, losses = loop.source.task(loop.run.costs.steps, index), []  # a batch, or an episode
            for bits, loss in self.losses(loop, task, pairs):  # highest bits first
                losses.append(loop.finite(self.value(loss), bits))
                loss.backward()
                loop.run.costs.backprops += 1
            means.append(sum(losses) / len(losses))
        return means

    def losses(self, loop: Loop, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """The learner's ``(bits, loss)``, one by one."""
        return loop.learner.losses(loop.model, task, pairs)

    def value(self, loss: Tensor) -> float:
        """A loss as a number."""
        return loss.item()

    def start(self, model: nn.Module, device: str | torch.device | None) -> None:
        """Bring the model to its device, by default the best one, before anything else is done."""
        model.to(best_device() if device is None else device)

    def share(self, source: object) -> None:
        """Tell a source of tasks which part of each task is wanted: all of it."""

    def begin(self, loop: Loop) -> None:
        """Get ready for a run: count forward passes from here on, those of a teacher too."""
        self.share(loop.source)
        networks = [loop.model] + ([loop.learner.frozen] if loop.learner.frozen else [])
        self.counters = [count_forwards(last_layer(network), loop.run) for network in networks]

    def end(self, loop: Loop) -> None:
        """Undo `begin`."""
        for counter in self.counters:
            counter.remove()

    @property
    def settings(self) -> dict[str, Any]:
        """What is not plain, by name: nothing. A checkpoint goes on only with the settings that it was begun with."""
        return {}

    def adopt(self, settings: dict[str, Any]) -> None:
        """Settle what was left open as it was settled in the run that a checkpoint is of: nothing was."""

    def first(self, work: Callable[[], Any]) -> None:
        """Do what only one of several processes may do, as writing a file."""
        work()

    def gather(self, value: Tensor) -> list[Tensor]:
        """A value of each process."""
        return [value]

    def agree(self, value: bool, problem: str) -> bool:
        """``value``, if all processes have the same; otherwise ``problem`` is a ValueError."""
        return value


AUTOMATIC: dict[
    str, Callable[[], Passes]
] = {}  # by kind of device, where nobody asks for other ones; `scale` registers


@contextlib.contextmanager
def undone_by_error(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block an error puts the buffers back to what they were before it."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        torch._foreach_copy_(list(buffers), before)
        raise


def last_layer(model: nn.Module) -> nn.Module:
    """The layer by which passes are counted: the last one as executed."""
    return model.get_submodule(plan_of(model).sites[-1].name)


def count_forwards(module: nn.Module, run: Run) -> torch.utils.hooks.RemovableHandle:
    """Count each pass of ``module`` in ``run.costs``."""

    def count(*_: object) -> None:
        run.costs.forwards += 1  # looked up anew each time: a resumed run has other costs

    return module.register_forward_hook(count)
