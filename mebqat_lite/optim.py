"""Helpers of the training loop: mean gradients over tasks, learning rates, and a lower bound for learned steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite.quantizers import TINY
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import quantized_layers


class GradientMean:
    """Average each parameter's gradient over the tasks that used the parameter.

    PyTorch sums the gradients of several backward passes. A hook counts how many passes reached each parameter, and
    `average` divides by that count, so that a rarely used quantizer step is not averaged with zeros.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.uses = dict.fromkeys(parameters, 0)
        self.hooks = [p.register_post_accumulate_grad_hook(self._count) for p in self.uses]

    def _count(self, parameter: Tensor) -> None:
        self.uses[parameter] += 1  # type: ignore[index]

    def average(self) -> None:
        """Turn the sums in ``grad`` into means, and start counting again."""
        for parameter, count in self.uses.items():
            if count > 1 and parameter.grad is not None:
                parameter.grad.div_(count)
            self.uses[parameter] = 0

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Compute the learning rate of a step.

    It depends on the step alone, so a resumed run needs no saved scheduler.
    """
    done = step / recipe.steps
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))
    passed = sum(done >= milestone for milestone in recipe.milestones)
    return recipe.lr * recipe.gamma ** (passed if recipe.schedule == "milestones" else 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Set the learning rate of each parameter group for a step."""
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(recipe, step)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Make the optimizer's parameter groups: the weights, and the quantizers' learned values with their own rate.

    A group's ``scale`` multiplies the learning rate (`Quantizer.step_lr`).
    """
    steps = {p: layer.quantizer.step_lr for layer in quantized_layers(model).values() for p in layer.quant.values()}
    weights = [p for p in model.parameters() if p.requires_grad and p not in steps]
    groups: list[dict[str, Any]] = [{"params": weights, "scale": 1.0}]
    for scale in sorted(set(steps.values())):
        groups.append({"params": [p for p, s in steps.items() if s == scale and p.requires_grad], "scale": scale})
    return [group for group in groups if group["params"]]


def keep_steps_positive(model: nn.Module) -> None:
    """Raise learned steps and clips to at least `quantizers.TINY`, because an update may make them negative."""
    learned = [p for layer in quantized_layers(model).values() for p in layer.quant.values()]
    if learned:
        with torch.no_grad():
            torch._foreach_clamp_min_(learned, TINY)
