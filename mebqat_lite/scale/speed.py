"""Make the passes of a training step faster: mixed precision, compiled, all tasks in one, or in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mebqat_lite.bits import Pair
from mebqat_lite.loop import AUTOMATIC, Loop, Passes, TrainingError, count_forwards
from mebqat_lite.scale.parallel import Processes
from mebqat_lite.scale.vectorized import faster, query_losses, refusal, uses
from mebqat_lite.switching.stem import has_stem
from mebqat_lite.tensors import place

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Fast(Passes):
    """Make passes faster, as in ``fit(model, data, passes=Fast(amp=True))``; they also serve a warm-up.

    Their results may be rounded differently from those of plain passes. So a checkpoint is continued only with the
    settings with which it was begun.

    Args:
        amp: whether to use automatic mixed precision, where forward passes run in bfloat16 if PyTorch considers it
            safe. Activations then have at most 8 significant bits. On an H100 it made no step of networks of
            ResNet-20's size faster (benchmarks/README.md).
        compiled: whether to compile the forward passes with `torch.compile`, once for each pair that is visited. Each
            time this takes seconds. On an H100 some steps became faster and others slower.
        vectorized: whether to adapt all tasks of a FOMAML step in one pass (`scale.vectorized`). By default this is
            done where it is measured to be faster on CUDA, and never on the CPU.
        fabric: a launched ``lightning_fabric.Fabric``. All its processes call `fit` with the same arguments and share
            each batch, which gives the same gradients (`scale.parallel`). Only the first one logs and writes files.
            Methods that learn new classes cannot run in several processes.

    Raises:
        ValueError: the settings cannot be combined. If the tasks cannot be ``vectorized`` (`scale.vectorized.refusal`),
            it is `fit` that raises the error.
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
        """Name the settings that differ from plain passes."""
        ways = {"amp": self.amp, "compile": self.compiled, "vectorized": bool(self.vectorized)}
        several = {"devices": self.processes.count} if self.processes.count > 1 else {}
        return {name: on for name, on in ways.items() if on} | several

    def adopt(self, settings: dict[str, Any]) -> None:
        """Vectorize as the checkpoint's run did, if nothing else was asked for, instead of measuring again."""
        if self.vectorized is None:
            self.vectorized = settings.get("vectorized", False)

    def start(self, model: nn.Module, device: str | torch.device | None) -> None:
        """Move the model to its device, and give it the values of the first process in all processes."""
        own = device if self.fabric is None or device is not None else self.fabric.device
        super().start(model, own)
        self.processes.copy(model)

    def share(self, source: object) -> None:
        """Make a source of batches return only this process's part of each batch."""
        self.processes.cut(source)

    def begin(self, loop: Loop) -> None:
        """Compile the forward passes, count passes from here on, and join the batch norms of all processes."""
        self.vectorized, self.decided = self.asked, False
        super().begin(loop)
        self.parts = compile_forwards(loop.model) if self.compiled else []
        if self.parts:  # inside a compiled part the count would be a constant, and each pass would compile again
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
        """Add up the gradients of all tasks in all processes, and return the mean loss of each task."""
        with self.processes.naming_errors(TrainingError):
            if not self.decided:
                self.vectorized, self.decided = self._decide(loop), True
            losses = self._together(loop) if self.vectorized else super().backpropagate(loop)
            self.processes.add_gradients(loop.parameters.values())
        return losses

    def losses(self, loop: Loop, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield the learner's ``(bits, loss)``, in mixed precision if asked for, scaled to this process's part.

        `backward` must be called outside of autocast. The cache of autocast is off, because in some versions weights
        that it keeps from a teacher's pass would have no gradient in the next pass. A learner with a shared stem goes
        backward through it in here, and this gives the same gradients as outside.
        """
        kind, found = place(loop.model)[0].type, super().losses(loop, task, pairs)
        while True:
            with torch.autocast(kind, torch.bfloat16, enabled=self.amp, cache_enabled=False):
                pair = next(found, None)
            if pair is None:
                return
            yield pair[0], self.processes.weigh(pair[1])

    def value(self, loss: Tensor) -> float:
        """Return the loss of the whole batch, so that all processes notice if it is not finite in one."""
        return self.processes.total(loss)

    def _decide(self, loop: Loop) -> bool:
        """Decide whether steps are vectorized: as asked for, else as measured on CUDA, and not on the CPU."""
        together = " and ".join(name for name in ("amp", "compile") if name in self.settings)
        asked = self.vectorized
        if asked is False or (asked is None and (together or place(loop.model)[0].type != "cuda")):
            return False
        state, forwards = loop.sampler.state_dict(), loop.run.costs.forwards
        episodes, pairs = drawn_tasks(loop)
        loop.sampler.load_state_dict(state)  # the next step draws the same again
        if asked is None:
            found = faster(loop.model, loop.learner, episodes, pairs)
            loop.run.costs.forwards = forwards  # passes that only measure do not count as training
            return found
        reason = f"vectorized tasks do not go with {together}" if together else ""
        if reason := reason or refusal(loop.model, loop.learner, pairs):
            raise ValueError(reason)
        return True

    def _together(self, loop: Loop) -> list[float]:
        """Go backward through the losses of all tasks in one pass, and count it like one task after the other."""
        costs, before = loop.run.costs, loop.run.costs.forwards
        episodes, pairs = drawn_tasks(loop)
        losses = query_losses(loop.model, loop.learner, episodes, pairs)  # type: ignore[arg-type]
        costs.forwards += (costs.forwards - before) * (len(pairs) - 1)  # each pass over all tasks was counted once
        values = [loop.finite(value, bits) for value, bits in zip(losses.tolist(), pairs, strict=True)]
        losses.sum().backward()
        loop.gradients.uses |= uses(loop.model, pairs)  # type: ignore[arg-type]  # backward counted one use each
        costs.backprops += len(pairs)
        return values

    # What several processes do together: one of them works for all, or they compare values.

    def first(self, work: Callable[[], Any]) -> None:
        """Call ``work`` in the first process only, for example to write a file."""
        self.processes.first(work)

    def gather(self, value: Tensor) -> list[Tensor]:
        """Collect the values of all processes on the CPU."""
        return self.processes.gather(value)

    def agree(self, value: bool, problem: str) -> bool:
        """Return ``value`` if it is the same in all processes; otherwise raise a ValueError that says ``problem``."""
        return self.processes.agree(value, problem)


AUTOMATIC["cuda"] = Fast


def drawn_tasks(loop: Loop) -> tuple[list[Any], list[Pair]]:
    """Draw the tasks and the pairs of the next step; a task is listed once for each of its pairs."""
    drawn = [(index, pair) for index, pairs in enumerate(loop.sampler.draw()) for pair in pairs]
    return [loop.source.task(loop.run.costs.steps, index) for index, _ in drawn], [pair for _, pair in drawn]


def compile_forwards(model: nn.Module) -> list[nn.Module]:
    """Compile the parts of a model that a learner calls, in place, and return these parts.

    Only ``forward`` is replaced; the classes, the names and the hooks of the parts stay as they are. For each part,
    ``del part.forward`` undoes it.
    """
    limits = torch._dynamo.config  # by default only the first eight pairs would be compiled
    limits.cache_size_limit, limits.accumulated_cache_size_limit = 1024, 4096
    called = (model.stem, model.body) if has_stem(model) else (model,)
    parts = [part for part in called if isinstance(part, nn.Module)]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=False)
    return parts
