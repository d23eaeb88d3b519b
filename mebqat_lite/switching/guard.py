"""Refuse forward passes at other bits than the caller intended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import torch

TAKING = threading.Lock()  # one thread at a time enters `state.at`


def is_repeated() -> bool:
    """Whether the present forward pass is repeated by gradient checkpointing, while backward runs."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Guard:
    """Who uses a quantized model, and at which bits its last forward passes ran.

    A model has one setting, so two threads or asyncio tasks cannot use it at two bitwidths at once. And gradient
    checkpointing repeats forward passes while it goes backward, when the bits may be others than before.
    """

    def __init__(self) -> None:
        self.user: tuple[int, int] | None = None  # the thread and the asyncio task that are inside `state.at`
        self.outside: Any = None  # how passes ran before that user came
        self.ran: list[Any] = []  # the last one or two ways in which passes with gradients ran, since one was repeated
        self.bare: list[Any] = []  # the same without gradients: reentrant checkpointing makes its first pass so

    def check_pass(self, way: Any, is_replica: bool) -> None:
        """Check a forward pass that runs in this ``way``, its bits and norm policy; each layer calls this.

        ``is_replica`` tells that the layer is a copy that `nn.DataParallel` runs in a thread of its own.

        Raises:
            RuntimeError: another thread or asyncio task has switched the model, or a pass is repeated in another way.
        """
        if torch.compiler.is_compiling():
            return
        if is_repeated():
            self._check_repeated(way)
            return
        if self.user is not None and not is_replica:
            self.check_user()
        if torch.is_grad_enabled():
            self.ran = self.ran if way in self.ran else [*self.ran[-1:], way]
        else:
            self.bare = self.bare if way in self.bare else [*self.bare[-1:], way]

    def _check_repeated(self, way: Any) -> None:
        ran = self.ran or self.bare or [way]
        self.ran, self.bare = [], [way]
        if ran != [way]:
            raise RuntimeError(
                f"gradient checkpointing would repeat at {_words(way)} what ran at {' and '.join(map(_words, ran))}: "
                "call backward for each pair inside `with at(model, bits):`, take use_reentrant=False, and make passes "
                "that need no gradient under torch.no_grad()"
            )

    def check_user(self) -> None:
        """Raise a RuntimeError if another thread or asyncio task is inside `state.at`."""
        thread, task = self.user or (threading.get_ident(), 0)
        if thread != threading.get_ident() or (task and task != _task()):
            raise RuntimeError(
                "another thread or asyncio task has switched this model: give each a copy of its own, by copy.deepcopy"
            )

    def take(self, way: Any) -> tuple[int, int] | None:
        """Let this thread and task be the user, if no other is; return the user of before.

        ``way`` is how passes run before this user switches the model.
        """
        with TAKING:
            self.check_user()
            before, self.user = self.user, (threading.get_ident(), _task())
            self.outside = way if before is None else self.outside
        return before

    def __reduce__(self) -> tuple[type[Guard], tuple]:
        """Copy nothing, because nobody uses the copied model yet."""
        return Guard, ()


def _words(way: Any) -> str:
    bits, per_layer, norm_stats = way
    return ", ".join([f"{bits} ({norm_stats})", *(f"{layer} at {own}" for layer, own in per_layer.items())])


def _task() -> int:
    """Identify the asyncio task that runs in this thread, if any."""
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no event loop runs in this thread
        return 0
