"""Faster passes for the same gradients: mixed precision, compiled, all tasks in one, or shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mebqat_lite.bits import Pair
from mebqat_lite.loop import AUTOMATIC, Loop, Passes, TrainingError, count_forwards
from mebqat_lite.scale.parallel import Processes
from mebqat_lite.scale.vectorized import faster, query_losses, refusal, uses
from mebqat_lite.switching.state import has_stem
from mebqat_lite.tensors import place

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Fast(Passes):
    """Faster passes, as in ``fit(model, data, passes=Fast(amp=True))``; a warm-up has them too.

    Roundings may fall another way than in plain passes: a checkpoint is continued only with the same settings.

    Args:
        amp: automatic mixed precision: forward passes in bfloat16 where PyTorch deems it safe. Activations then have
            8 significant bits at most. Offered, not measured on a GPU yet.
        compiled: compile the forward passes with `torch.compile`, once for each pair that is visited, which takes
            seconds each. Offered, not measured on a GPU yet.
        vectorized: adapt all tasks of a FOMAML step in one pass (`scale.vectorized`). By default what is measured to be
            faster on CUDA, and one task after the other on the CPU.
        fabric: a launched ``lightning_fabric.Fabric``. Its processes, which all call `fit` alike, share each batch, to
            the same gradients (`scale.parallel`); the first one logs and writes. Methods for new classes refuse.

    Raises:
        ValueError: settings that do not go together. `fit` raises it for ``vectorized`` where that cannot be
            (`scale.vectorized.refusal`).
    """

    def __init__(
        self, amp: bool = False, compiled: bool = False, vectorized: bool | None = None, fabric: Fabric | None = None
    ) -> None:
        self.amp, self.compiled, self.asked, self.fabric = amp, compiled, vectorized, fabric
        self.vectorized = vectorized
        self.processes = Processes(fabric)
        self.rank = self.processes.rank
        if compiled and self.processes.count > 1:
            raise ValueError("compile does not go with several devices: batch norm adds over them within each pass")

    @property
    def settings(self) -> dict[str, Any]:
        """What is not plain, by name."""
        ways = {"amp": self.amp, "compile": self.compiled, "vectorized": bool(self.vectorized)}
        several = {"devices": self.processes.count} if self.processes.count > 1 else {}
        return {name: on for name, on in ways.items() if on} | several

    def adopt(self, settings: dict[str, Any]) -> None:
        """Vectorize where nothing was asked for and the run did before: it is not measured again."""
        if self.vectorized is None:
            self.vectorized = settings.get("vectorized", False)

    def start(self, model: nn.Module, device: str | torch.device | None) -> None:
        """Bring the model to its device, in all processes with the values of the first."""
        own = device if self.fabric is None or device is not None else self.fabric.device
        super().start(model, own)
        self.processes.copy(model)

    def share(self, source: object) -> None:
        """Let a source of batches give this process its part of each."""
        self.processes.cut(source)

    def begin(self, loop: Loop) -> None:
        """Compile, count passes, and join the batch norms of all processes."""
        self.vectorized, self.decided = self.asked, False
        super().begin(loop)
        self.parts = compile_forwards(loop.model) if self.compiled else []
        if self.parts:  # within a compiled part the count would be a constant, and each pass a new one
            self.counters[0].remove()
            self.counters[0] = count_forwards(self.parts[-1], loop.run)
        self.processes.join(loop.model, loop.learner.frozen)

    def end(self, loop: Loop) -> None:
        """Undo `begin`."""
        super().end(loop)
        self.processes.leave(loop.model, loop.learner.frozen)
        for part in self.parts:
            del part.forward

    def backpropagate(self, loop: Loop) -> list[float]:
        """Add up the gradients of all processes; returns each task's mean loss."""
        with self.processes.naming_errors(TrainingError):
            if not self.decided:
                self.vectorized, self.decided = self._decide(loop), True
            losses = self._together(loop) if self.vectorized else super().backpropagate(loop)
            self.processes.add_gradients(loop.parameters.values())
        return losses

    def losses(self, loop: Loop, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """The learner's ``(bits, loss)``, in mixed precision if asked for, each as this process's part of the mean.

        `backward` must stay outside of autocast, which keeps no cast weights: in some versions those of a teacher would
        have no gradient in the next pass. That a learner goes backward through a shared stem in here gives the same
        gradients as outside.
        """
        kind, found = place(loop.model)[0].type, super().losses(loop, task, pairs)
        while True:
            with torch.autocast(kind, torch.bfloat16, enabled=self.amp, cache_enabled=False):
                pair = next(found, None)
            if pair is None:
                return
            yield pair[0], self.processes.weigh(pair[1])

    def value(self, loss: Tensor) -> float:
        """The loss of the whole batch: not finite in one process, it is so in all."""
        return self.processes.total(loss)

    def _decide(self, loop: Loop) -> bool:
        """Whether steps are vectorized: as asked for, else as measured; by itself never on the CPU."""
        together = " and ".join(name for name in ("amp", "compile") if name in self.settings)
        asked = self.vectorized
        if asked is False or (asked is None and (together or place(loop.model)[0].type != "cuda")):
            return False
        state, forwards = loop.sampler.state_dict(), loop.run.costs.forwards
        episodes, pairs = drawn_tasks(loop)
        loop.sampler.load_state_dict(state)  # the next step draws the same again
        if asked is None:
            found = faster(loop.model, loop.learner, episodes, pairs)
            loop.run.costs.forwards = forwards  # measuring is no training
            return found
        reason = f"vectorized tasks do not go with {together}" if together else ""
        if reason := reason or refusal(loop.model, loop.learner, pairs):
            raise ValueError(reason)
        return True

    def _together(self, loop: Loop) -> list[float]:
        """Go backward through the losses of all tasks in one pass, with the counts of one task after the other."""
        costs, before = loop.run.costs, loop.run.costs.forwards
        episodes, pairs = drawn_tasks(loop)
        losses = query_losses(loop.model, loop.learner, episodes, pairs)  # type: ignore[arg-type]
        costs.forwards += (costs.forwards - before) * (len(pairs) - 1)  # a pass of all was counted once
        values = [loop.finite(value, bits) for value, bits in zip(losses.tolist(), pairs, strict=True)]
        losses.sum().backward()
        loop.gradients.uses |= uses(loop.model, pairs)  # type: ignore[arg-type]  # backward has counted one each
        costs.backprops += len(pairs)
        return values

    # What only one of several processes does, and what all of them have to agree on.

    def first(self, work: Callable[[], Any]) -> None:
        """Let the first process do something, as writing a file."""
        self.processes.first(work)

    def gather(self, value: Tensor) -> list[Tensor]:
        """The values of all processes, on the CPU."""
        return self.processes.gather(value)

    def agree(self, value: bool, problem: str) -> bool:
        """``value``, if all processes have the same; otherwise ``problem`` is a ValueError."""
        return self.processes.agree(value, problem)


AUTOMATIC["cuda"] = Fast


def drawn_tasks(loop: Loop) -> tuple[list[Any], list[Pair]]:
    """What the next step learns: each task once for each of its pairs, and these pairs."""
    drawn = [(index, pair) for index, pairs in enumerate(loop.sampler.draw()) for pair in pairs]
    return [loop.source.task(loop.run.costs.steps, index) for index, _ in drawn], [pair for _, pair in drawn]


def compile_forwards(model: nn.Module) -> list[nn.Module]:
    """Compile the parts of a model that a learner calls, in place; ``del part.forward`` undoes it.

    Only ``forward`` is replaced: classes, names, and the hooks of the parts themselves stay as they are.
    """
    limits = torch._dynamo.config  # by default the ninth pair, and every one after it, would not be compiled
    limits.cache_size_limit, limits.accumulated_cache_size_limit = 1024, 4096
    called = (model.stem, model.body) if has_stem(model) else (model,)
    parts = [part for part in called if isinstance(part, nn.Module)]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=False)
    return parts
