"""What a method costs, counted: passes by the training loop, bytes from the tensors that are stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn


@dataclass
class Costs:
    """Work done by the training loop. ``forwards`` counts teachers too."""

    steps: int = 0
    forwards: int = 0
    backprops: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def stored_bytes(model: nn.Module, statistics: bool = True) -> int:
    """Bytes of all parameters and buffers; ``statistics=False`` leaves out recalibrated norm statistics."""
    state = model.state_dict()
    return sum(
        t.numel() * t.element_size()
        for name, t in state.items()
        if statistics or not name.rpartition(".")[2].startswith("stats_")
    )


def saving(cost: float, baseline: float) -> float:
    """How much less ``cost`` is than ``baseline``, in percent."""
    return 100 * (1 - cost / baseline)
