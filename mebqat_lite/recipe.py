"""The recipe: everything that a training run may vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mebqat_lite.bits import FULL, WIDTHS, BitsLike, parse_all


@dataclass(frozen=True)
class Recipe:
    """Everything that a run may vary, with the defaults for the digits."""

    steps: int = 300
    epochs: int = 0  # if not 0, this many passes over the training images instead of ``steps``
    warm_steps: int = 0  # full-precision steps before these
    batch_size: int = 128
    lr: float = 1e-2
    weight_decay: float = 0.01
    schedule: str = "cosine"  # or "milestones" or "constant"
    milestones: tuple[float, ...] = (0.375, 0.625, 0.875)  # fractions of the steps
    gamma: float = 0.1
    clip: float = 10.0  # of each gradient element
    pad: int = 0  # augmentation: random crops after padding with so many black pixels
    flip: bool = False  # augmentation: random horizontal flips
    seed: int = 0
    bits: Sequence[BitsLike] = ()  # the pairs of a method that lists them: one for qat
    per_layer: bool = False  # a method that samples draws a pair for each layer
    sandwich: bool = True  # a method that samples visits W2A2 in each step where there is no 1 bit (not in the paper)
    exclude: Sequence[int] = ()  # widths that a method that samples never visits: (3, 5, 7) to test on them
    m: int = 4  # pairs a step of a method that samples them
    teacher: str = ""  # of quantized pairs: labels, fp, next or start; by default the method's own
    quantizer: str = "dorefa"  # for a model that is not quantized yet
    ways: int = 5  # few-shot: classes an episode
    shots: int = 1  # support images a class
    queries: int = 15  # query images a class
    tasks: int = 4  # episodes a step of MAML, each at one pair
    inner_steps: int = 5  # of SGD on the support
    inner_lr: float = 0.1
    test_steps: int = 0  # inner steps after training; 0: as in training
    second_order: bool = False  # MAML instead of FOMAML; at full precision only

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list, as JSON has it, is the same
        object.__setattr__(self, "bits", tuple(str(pair) for pair in parse_all(self.bits)) if self.bits else ())
        for item in fields(self):
            kind, value = type(item.default), getattr(self, item.name)
            if kind is bool and not isinstance(value, bool):
                raise ValueError(f"{item.name} must be True or False, not {value!r}")
            if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, kind))):
                raise ValueError(f"{item.name} must be a {'whole ' * (kind is int)}number, not {value!r}")
        if self.epochs < 0 or self.warm_steps < 0:
            raise ValueError(f"epochs and warm_steps must not be negative: {self.epochs}, {self.warm_steps}")
        exclude = [self.exclude] if isinstance(self.exclude, int) else self.exclude
        object.__setattr__(self, "exclude", tuple(exclude))
        if not set(self.exclude) < set(WIDTHS) - {FULL}:
            raise ValueError(f"exclude must hold some of the widths {WIDTHS[:-1]}, not {self.exclude}")
        for name in ("steps", "batch_size", "m", "shots", "queries", "tasks", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.schedule not in ("cosine", "milestones", "constant"):
            raise ValueError(f"no schedule {self.schedule!r}; choose cosine, milestones or constant")

    def for_images(self, count: int) -> Recipe:
        """With epochs turned into steps for ``count`` training images; a last, smaller batch is left out."""
        if not self.epochs:
            return self
        return replace(self, epochs=0, steps=self.epochs * max(1, count // min(self.batch_size, count)))

    def with_options(self, **options: Any) -> Recipe:
        """A copy with other values; an unknown name is a TypeError that lists the known ones."""
        if unknown := set(options) - set(self.__dataclass_fields__):
            raise TypeError(f"no option {sorted(unknown)}; known: {', '.join(self.__dataclass_fields__)}")
        return replace(self, **options)
