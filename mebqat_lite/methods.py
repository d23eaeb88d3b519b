"""Methods as data: a method is a sampler x a learner, and what happens before and after.

|                         | supervised                     |
|-------------------------|--------------------------------|
| always full precision   | ``fp``, then ``ptq_naive``, ``ptq_mse`` |
| always one (w, a)       | ``qat``                        |
| M sampled, every step   | ``mebqat``                     |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mebqat_lite.bits import FP, Bits, BitsLike, Listed, Sampled, candidates, parse_all
from mebqat_lite.convert import quantized_layers, requantize
from mebqat_lite.datasets.base import Data
from mebqat_lite.learners import Learner, Supervised

CALIBRATION = 512  # training images that calibrate steps


@dataclass(frozen=True)
class Recipe:
    """Everything that a run may vary, with the defaults for the digits."""

    steps: int = 300
    warm_steps: int = 0  # full-precision steps before these
    batch_size: int = 128
    lr: float = 1e-2
    weight_decay: float = 0.01
    schedule: str = "cosine"  # or "milestones" or "constant"
    milestones: tuple[float, ...] = (0.375, 0.625, 0.875)  # fractions of the steps
    gamma: float = 0.1
    clip: float = 10.0  # of each gradient element
    seed: int = 0
    bits: Sequence[BitsLike] = ()  # the pairs of a method that lists them: one for qat
    m: int = 4  # pairs a step of a method that samples them
    teacher: str = ""  # of quantized pairs: labels, fp, next or start; by default the method's own
    quantizer: str = "dorefa"  # for a model that is not quantized yet

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list, as JSON has it, is the same
        object.__setattr__(self, "bits", tuple(str(pair) for pair in parse_all(self.bits)) if self.bits else ())
        for name in ("steps", "batch_size", "m"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.schedule not in ("cosine", "milestones", "constant"):
            raise ValueError(f"no schedule {self.schedule!r}; choose cosine, milestones or constant")

    def with_options(self, **options: Any) -> Recipe:
        """A copy with other values; an unknown name is a TypeError that lists the known ones."""
        if unknown := set(options) - set(self.__dataclass_fields__):
            raise TypeError(f"no option {sorted(unknown)}; known: {', '.join(self.__dataclass_fields__)}")
        return replace(self, **options)


Sampler = Listed | Sampled


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    sampler: Callable[[nn.Module, Recipe], Sampler]
    learner: Callable[[str], Learner]  # from the teacher's name
    finish: Callable[[nn.Module, Data], object] = lambda model, data: None
    trains: bool = True  # beyond full precision
    norm_stats: str = "batch"  # the policy it is meant to be evaluated under
    teacher: str = "fp"
    warm_teacher: str = "fp"  # the same, for a run that starts from a trained FP network


def lowest_pairs(model: nn.Module) -> list[Bits]:
    """W1A1 where the quantizers define one bit, else nothing: the paper guarantees FP and W1A1."""
    return [Bits(1, 1)] if has_one_bit(model) else []


def has_one_bit(model: nn.Module) -> bool:
    """Whether every quantizer of the model defines one bit."""
    return all(layer.quantizer.one_bit for layer in quantized_layers(model).values())


def _sampled(model: nn.Module, recipe: Recipe) -> Sampler:
    guaranteed = [FP, *lowest_pairs(model)][: recipe.m]
    return Sampled(candidates(has_one_bit(model)), recipe.m, guaranteed, seed=recipe.seed)


def _one_pair(model: nn.Module, recipe: Recipe) -> Sampler:
    if len(recipe.bits) != 1:
        raise ValueError(f'qat trains exactly one pair: give bits="W2A2", not {recipe.bits or "none"}')
    return Listed(recipe.bits)


def _full_precision(model: nn.Module, recipe: Recipe) -> Sampler:
    return Listed([FP])


def _least_squares(model: nn.Module, data: Data) -> None:
    requantize(model, "least_squares", data.train.images[:CALIBRATION])


METHODS: dict[str, Method] = {
    "fp": Method("full precision", _full_precision, Supervised, trains=False, norm_stats="running"),
    "ptq_naive": Method("FP + PTQ naive", _full_precision, Supervised, trains=False, norm_stats="recalibrated"),
    "ptq_mse": Method("FP + PTQ-MSE", _full_precision, Supervised, _least_squares, False, "recalibrated"),
    # A run that never trains FP has no use for its own FP as a teacher: it drifts away and teaches nonsense. It learns
    # from the network that it started from, if that was trained, else from the labels.
    "qat": Method("QAT", _one_pair, Supervised, teacher="labels", warm_teacher="start"),
    "mebqat": Method("MEBQAT", _sampled, Supervised),
}


def get(name: str) -> Method:
    """A method by name; an unknown one is a ValueError that lists the known ones."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
