"""The training loop: the state of a run, and the training step that all methods share."""

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
from mebqat_lite.switching.state import going_backward, plan_of
from mebqat_lite.tensors import best_device, keep_memory, like_model, place


class TrainingError(RuntimeError):
    """Training cannot go on, for example because a loss is not finite."""


@dataclass
class Costs:
    """Counts of the work that training did: steps, forward passes (those of teachers too) and backward passes."""

    steps: int = 0
    forwards: int = 0
    backprops: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass
class Run:
    """The record of a training run: its counted costs, the mean loss of each step, and the seconds it took."""

    method: str
    recipe: Recipe
    costs: Costs = field(default_factory=Costs)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Loop:
    """The state of one training run: the model, the sampler, the learner, the source of tasks and the optimizer."""

    def __init__(
        self, model: nn.Module, train: Split, method: str, recipe: Recipe, passes: Passes | None = None
    ) -> None:
        keep_memory()
        chosen, (device, dtype), images = methods.get(method), place(model), train.images
        if images.dtype != torch.uint8 or dtype != torch.float32:  # bytes become float32 in each batch
            images = like_model(images, model)
        self.model, self.train, self.recipe = channels_last(model).train(), train, recipe
        self.run, self.passes = Run(method, recipe), passes or Passes()
        kind = dtype if train.has_values else torch.int64
        split = Split(images.to(device), train.labels.to(device, kind))
        self.sampler, self.learner, self.source = methods.parts(chosen, model, split, recipe)
        chosen.prepare(model, self.sampler)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.buffers = list(model.buffers())
        self.gradients = GradientMean(self.parameters.values())
        self.optimizer = torch.optim.AdamW(groups(model), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.optimizer.zero_grad(set_to_none=True)  # drops gradients from before the run
        torch.manual_seed(recipe.seed + self.passes.rank)  # for dropout
        self.learner.begin(model)
        self.passes.begin(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the training data, so that a checkpoint is not continued on other data."""
        return files.checksum(self.train)

    def close(self) -> None:
        """Remove the hooks from the model."""
        self.passes.end(self)
        self.gradients.close()

    def finite(self, value: float, bits: Pair) -> float:
        """Return ``value``, the loss at ``bits``; a TrainingError if it is not a finite number."""
        if math.isfinite(value):
            return value
        raise TrainingError(
            f"the loss is {value} at step {self.run.costs.steps}, {bits}: lower lr "
            f"(now {self.recipe.lr:g}) or look for bad values in the images"
        )

    def check(self) -> None:
        """Raise a TrainingError if a weight or a norm statistic is not a finite number any more."""
        bad = [name for name, t in self.model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            raise TrainingError(f"{bad[0]} is not finite after step {self.run.costs.steps}: lower lr")

    def step(self) -> None:
        """Do one training step: compute the losses of all tasks at their pairs, average the gradients, update once.

        With a sampler of m pairs and one batch this is MEBQAT (ECCV 2022, algorithm 1). MEBQAT-MAML (algorithm 2) and
        MEBQAT-PN (algorithm 3) have another sampler and another learner; float training, QAT and AdaBits have MEBQAT's
        learner and another sampler.
        """
        started = time.perf_counter()
        with undone_by_error(self.buffers):  # forward passes change norm statistics
            losses = self.passes.backpropagate(self)
        self.gradients.average()
        nn.utils.clip_grad_value_(self.parameters.values(), self.recipe.clip)
        set_learning_rate(self.optimizer, self.recipe, self.run.costs.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # None, so that unused parameters get no update and no decay
        keep_steps_positive(self.model)
        self.run.costs.steps += 1
        self.run.losses.append(sum(losses) / len(losses))
        self.run.seconds += time.perf_counter() - started


class Passes:
    """Make the forward and backward passes of a step: one task after the other, one pair after the other.

    `scale.speed.Fast` overrides the small methods below to make the same passes faster, or in several processes.
    """

    def backpropagate(self, loop: Loop) -> list[float]:
        """Add up the gradients of all pairs of all tasks, and return the mean loss of each task."""
        means = []
        for index, pairs in enumerate(loop.sampler.draw()):
            task, losses = loop.source.task(loop.run.costs.steps, index), []  # a batch, or an episode
            for bits, loss in self.losses(loop, task, pairs):  # highest bits first
                losses.append(loop.finite(self.value(loss), bits))
                with going_backward(loop.model, bits):
                    loss.backward()
                loop.run.costs.backprops += 1
            means.append(sum(losses) / len(losses))
        return means

    def losses(self, loop: Loop, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield the learner's ``(bits, loss)``, one after the other."""
        return loop.learner.losses(loop.model, task, pairs)

    def value(self, loss: Tensor) -> float:
        """Return a loss as a number."""
        return loss.item()

    rank = 0  # the number of this process; only process 0 logs and writes files

    def start(self, model: nn.Module, device: str | torch.device | None) -> None:
        """Move the model to its device, by default `best_device`, before the run begins."""
        model.to(best_device() if device is None else device)

    def share(self, source: object) -> None:
        """Tell the source of tasks which part of each task this process learns; here it is all of it."""

    def begin(self, loop: Loop) -> None:
        """Prepare a run: from here on forward passes are counted, those of a teacher too."""
        self.share(loop.source)
        networks = [loop.model] + ([loop.learner.frozen] if loop.learner.frozen else [])
        self.counters = [count_forwards(last_layer(network), loop.run) for network in networks]

    def end(self, loop: Loop) -> None:
        """Undo `begin`."""
        for counter in self.counters:
            counter.remove()

    @property
    def settings(self) -> dict[str, Any]:
        """Name the settings that can change a result, such as mixed precision; plain passes have none.

        A checkpoint is continued only with the same settings.
        """
        return {}

    def adopt(self, settings: dict[str, Any]) -> None:
        """Take over automatic choices from the settings of a checkpoint; plain passes make no such choices."""

    def first(self, work: Callable[[], Any]) -> None:
        """Call ``work`` in the first of several processes only, for example to write a file."""
        work()

    def gather(self, value: Tensor) -> list[Tensor]:
        """Collect the ``value`` of every process."""
        return [value]

    def agree(self, value: bool, problem: str) -> bool:
        """Return ``value`` if it is the same in all processes; otherwise raise a ValueError that says ``problem``."""
        return value


# Kind of device -> the passes that `fit` makes there by default. Filled in by `scale.speed`.
AUTOMATIC: dict[str, Callable[[], Passes]] = {}


@contextlib.contextmanager
def undone_by_error(buffers: Sequence[Tensor]) -> Iterator[None]:
    """If the block raises an error, give the buffers the values that they had before it."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise


def last_layer(model: nn.Module) -> nn.Module:
    """Return the layer that the sample executed last; its calls are counted as forward passes."""
    return model.get_submodule(plan_of(model).sites[-1].name)


def count_forwards(module: nn.Module, run: Run) -> torch.utils.hooks.RemovableHandle:
    """Count each forward pass of ``module`` in ``run.costs``, until the returned handle is removed."""

    def count(*_: object) -> None:
        run.costs.forwards += 1  # looks up ``costs`` at each pass, because resuming replaces it

    return module.register_forward_hook(count)
