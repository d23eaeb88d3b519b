"""The recipe: all options of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mebqat_lite.bits import WIDTHS, BitsLike, parse_all

FROM_ZERO = ("epochs", "warm_steps", "pad", "seed", "test_steps")  # whole numbers that may be 0; others are at least 1
MOST = 2**31 - 1  # the largest whole number


@dataclass(frozen=True)
class Recipe:
    """The options of a training run, with defaults that suit the digits.

    Raises:
        ValueError: an option has the wrong type or is out of its range.
    """

    steps: int = 300
    epochs: int = 0  # passes over the training images; if not 0, they replace ``steps``
    warm_steps: int = 0  # full-precision training steps before the ``steps`` of the method
    batch_size: int = 128
    lr: float = 1e-2
    weight_decay: float = 0.01
    schedule: str = "cosine"  # or "milestones" or "constant"
    milestones: tuple[float, ...] = (0.375, 0.625, 0.875)  # fractions of the steps where ``gamma`` multiplies ``lr``
    gamma: float = 0.1
    clip: float = 10.0  # each element of the gradient is clipped to [-clip, clip]
    pad: int = 0  # augmentation: random crops after padding each side with this many black pixels
    flip: bool = False  # augmentation: random horizontal flips
    seed: int = 0
    bits: Sequence[BitsLike] = ()  # the pairs of a method that visits listed pairs; exactly one for qat
    per_layer: bool = False  # whether a method that samples draws a separate pair for each layer
    sandwich: bool = True  # sampling also visits the lowest pair in each step; few-shot: FP too (not in the paper)
    exclude: Sequence[int] = ()  # widths that are never sampled, such as (3, 5, 7), to test on
    m: int = 4  # pairs that a method that samples visits in each step
    teacher: str = ""  # of the quantized pairs: labels, fp, next or start; "" means the method's own
    quantizer: str = "dorefa"  # used if the model is not quantized yet
    ways: int = 5  # few-shot learning: classes per episode (N)
    shots: int = 1  # support images per class (K)
    queries: int = 15  # query images per class (Q)
    tasks: int = 4  # episodes per step of MAML, each at one pair
    inner_steps: int = 5  # SGD steps on the support set
    inner_lr: float = 0.1  # learning rate of the inner steps
    test_steps: int = 0  # inner steps in evaluation; 0 means as many as in training
    second_order: bool = False  # full MAML instead of first-order MAML (FOMAML); full precision only

    def __post_init__(self) -> None:
        for name in ("milestones", "exclude"):  # JSON gives a list; a single value is one of them
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (tuple, list, set)) else (value,))
        object.__setattr__(self, "bits", tuple(str(pair) for pair in parse_all(self.bits)) if self.bits else ())
        for item in fields(self):
            kind, value = type(item.default), getattr(self, item.name)
            if kind is bool and not isinstance(value, bool):
                raise ValueError(f"{item.name} must be True or False, not {value!r}")
            if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, kind))):
                raise ValueError(f"{item.name} must be a {'whole ' * (kind is int)}number, not {value!r}")
            least = int(kind is int and item.name not in FROM_ZERO)
            if kind in (int, float) and not value >= least:  # NaN is not either
                raise ValueError(f"{item.name} must be at least {least}, not {value}")
            if kind is int and value > MOST:
                raise ValueError(f"{item.name} must be at most {MOST:,}, not {value}")
        if not self.clip > 0:
            raise ValueError(f"clip must be greater than 0, not {self.clip}: nothing would be trained")
        if not all(isinstance(share, float) and 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones are fractions of the steps, as (0.5, 0.75), not {self.milestones}")
        if not all(width in WIDTHS[:-1] for width in self.exclude) or set(self.exclude) == set(WIDTHS[:-1]):
            raise ValueError(f"exclude must hold some of the widths {WIDTHS[:-1]}, not {self.exclude}")
        if self.schedule not in ("cosine", "milestones", "constant"):
            raise ValueError(f"no schedule {self.schedule!r}; choose cosine, milestones or constant")

    def for_images(self, count: int) -> Recipe:
        """Return a recipe that counts in steps instead of epochs, for ``count`` training images.

        The last batch of an epoch is left out if it is smaller than the others.
        """
        if not self.epochs:
            return self
        return replace(self, epochs=0, steps=self.epochs * max(1, count // min(self.batch_size, count)))

    def with_options(self, **options: Any) -> Recipe:
        """Return a copy with some options changed; ``steps`` also replace ``epochs``, if there were any.

        Raises:
            TypeError: a name is unknown; the error lists the known ones.
            ValueError: both ``steps`` and ``epochs`` are given, or a value is out of its range.
        """
        if unknown := set(options) - set(self.__dataclass_fields__):
            raise TypeError(f"no option {sorted(unknown)}; known: {', '.join(self.__dataclass_fields__)}")
        if "steps" in options and options.setdefault("epochs", 0):
            raise ValueError("give steps or epochs, not both")
        return replace(self, **options)
