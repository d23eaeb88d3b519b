"""FOMAML's tasks in one pass: bits as tensors, so that one `torch.vmap` adapts tasks of different bitwidths.

The same losses and gradients as one task after the other (`maml.FOMAML.losses`), in another order of addition. On a
GPU small tasks are too little work each, and a pass over all of them may be faster (`faster` measures it); on a CPU it
is slower. For LSQ with a step per bitwidth, first order and batch statistics; `refusal` names what is left to serial
tasks.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, grad, vmap

from mebqat_lite.bits import FULL, Bits, Pair
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners import Learner
from mebqat_lite.learners.maml import FOMAML, adaptable, updated
from mebqat_lite.quantizers import LSQ, Params, Site, integer_range
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import has_norm_sets, norm_layers, quantized_layers, setting_of
from mebqat_lite.tensors import place


class _TensorStepClip(Function):
    """`quantizers.step_clip` (LSQ, Esser et al., 2020, equations 1 to 3) where the clip is tensors too.

    ``step``, ``low``, ``high`` and ``grad_scale`` are scalars of one task: under vmap each task has its own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: Tensor, high: Tensor, grad_scale: Tensor) -> Tensor:
        return x.div(step).clamp(low, high).round().mul(step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, low, high, grad_scale, out = ctx.saved_tensors
        grad_x = torch.where((x > low * step) & (x < high * step), grad, 0)
        grad_step = ((grad * out).sum() - (grad_x * x).sum()) * (grad_scale / step)  # as in quantizers._StepClip
        return grad_x, grad_step.reshape(step.shape), None, None, None


class _Widths(NamedTuple):
    """One kind of bits of all tasks, each (tasks,); inside vmap of one task, each a scalar."""

    choice: Tensor  # which of the steps in use; any where ``full``
    low: Tensor  # codes: quantizers.integer_range
    high: Tensor
    full: Tensor  # 32 bits: not quantized


class _TensorLSQ(LSQ):
    """LSQ at the bits of ``now``, whatever bits a layer asks for; lent to the layers for one pass."""

    clips_at_zero = False  # a ReLU has to work: there may be FP among the tasks, and nothing branches on bits in here

    def __init__(self, pairs: Sequence[Bits]) -> None:
        super().__init__()
        self.asked = {"w": [b.w for b in pairs], "a": [b.a for b in pairs]}
        self.in_use = {kind: sorted(set(bits) - {FULL}) for kind, bits in self.asked.items()}  # steps in use
        self.now: dict[str, _Widths] = {}

    def tables(self, like: Tensor) -> dict[str, _Widths]:
        """The widths of weights, and of unsigned and signed activations, where and of the type that ``like`` is."""
        return {name: self._table(name[0], name != "a", like) for name in ("w", "a", "a signed")}

    def _table(self, kind: str, signed: bool, like: Tensor) -> _Widths:
        known = self.in_use[kind]
        choice = [known.index(bits) if bits < FULL else 0 for bits in self.asked[kind]]
        ranges = [integer_range(bits if bits < FULL else 2, signed) for bits in self.asked[kind]]
        low, high = (like.new_tensor(side) for side in zip(*ranges, strict=True))
        full = torch.tensor([bits == FULL for bits in self.asked[kind]], device=like.device)
        return _Widths(torch.tensor(choice, device=like.device), low, high, full)

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """LSQ's weights, or ``w`` of a task at 32 bits."""
        return self._clip(w, "w", self.now["w"], params, w.numel())

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """LSQ's activations, (batch, ...), or ``x`` of a task at 32 bits; N counts the features of one sample."""
        now = self.now["a signed" if site.signed else "a"]
        return self._clip(x, "a", now, params, math.prod(x.shape[1:]))

    def _clip(self, x: Tensor, kind: str, now: _Widths, params: Params, count: int) -> Tensor:
        if not self.in_use[kind]:  # no task quantizes it
            return x
        steps = torch.stack([params[f"{kind}{bits}"] for bits in self.in_use[kind]])
        step = steps.index_select(0, now.choice.reshape(1)).reshape(())  # steps[choice] would call item()
        scale = (count * now.high).sqrt().reciprocal()  # 1 / sqrt(N p)
        return torch.where(now.full, x, _TensorStepClip.apply(x, step, now.low, now.high, scale))


def query_losses(model: nn.Module, learner: FOMAML, episodes: Sequence[Episode], pairs: Sequence[Bits]) -> Tensor:
    """The query losses, (tasks,), each of the weights that one episode adapts at its pair; all tasks in one vmap.

    The gradient of their sum is the sum of the gradients that `FOMAML.losses` gives task by task: first order, at the
    adapted weights (MEBQAT-MAML, ECCV 2022, algorithm 2). A step that no task uses gets none. `uses` says how many
    tasks have a part in each sum.

    Raises:
        ValueError: what `refusal` names, bits that the quantizer does not define, episodes of different shapes.
    """
    _check(model, learner, episodes, pairs)
    quantizer, counts = _TensorLSQ(pairs), uses(model, pairs)
    start = {n: p for n, p in adaptable(model).items() if counts[p]}  # type: ignore[index]  # others have no part

    def support_loss(fast: dict[str, Tensor], task: Episode) -> Tensor:
        logits = functional_call(model, fast, (task.support.flatten(0, 1),))  # (N K, N)
        return F.cross_entropy(logits, Episode(task.support, task.support).labels)

    def query_loss(task: Episode, widths: dict[str, _Widths]) -> Tensor:
        quantizer.now, fast = widths, start
        for _ in range(learner.inner_steps):
            with torch.no_grad():  # to the outer backward inner gradients are constants
                grads = grad(support_loss)(fast, task)
            fast = {name: updated(name, value, grads[name], learner.inner_lr) for name, value in fast.items()}
        logits = functional_call(model, fast, (task.query.flatten(0, 1),))  # (N Q, N)
        return F.cross_entropy(logits, task.labels)

    tasks = Episode(torch.stack([e.support for e in episodes]), torch.stack([e.query for e in episodes]))
    with _lent(model, quantizer):
        return vmap(query_loss)(tasks, quantizer.tables(tasks.support))


def uses(model: nn.Module, pairs: Sequence[Bits]) -> dict[nn.Parameter, int]:
    """How many tasks use each parameter that learns, for the mean of its gradients (`optim.GradientMean`).

    A step of LSQ: the tasks of its bitwidth, and none if the layer's input is quantized by its leader's. All else: all.
    """
    counts = {p: len(pairs) for p in model.parameters() if p.requires_grad}
    for layer in quantized_layers(model).values():
        for name, step in layer.quant.items():
            if step in counts:
                leads = name[0] == "w" or layer.leader is layer
                counts[step] = leads * sum(f"{name[0]}{getattr(pair, name[0])}" == name for pair in pairs)
    return counts


def refusal(model: nn.Module, learner: Learner, pairs: Sequence[Pair]) -> str:
    """Why these tasks cannot be vectorized, or an empty string."""
    layers, norms, setting = quantized_layers(model).values(), norm_layers(model).values(), setting_of(model)
    amp = torch.is_autocast_enabled(place(model)[0].type)  # its inner backward meets two types under vmap
    reasons = {
        "another learner than FOMAML": not isinstance(learner, FOMAML),
        "second order": getattr(learner, "second_order", False),
        "a teacher": getattr(learner, "teacher", "labels") != "labels",
        "a map of pairs per layer": not all(isinstance(pair, Bits) for pair in pairs),
        "another quantizer than lsq": not all(_is_plain(layer) for layer in layers),
        "norm sets per pair": has_norm_sets(model),
        "stored norm statistics": setting.norm_stats != "batch" and not all(norm.training for norm in norms),
        "mixed precision": amp,
        "dropout": any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in model.modules()),
    }
    found = ", ".join(reason for reason, holds in reasons.items() if holds)
    return found and f"{found}: not vectorized; serial tasks (FOMAML.losses of one task after the other) do it"


def _is_plain(layer: QuantizedLayer) -> bool:
    """Whether a layer's quantizer is LSQ with a trained step for each bitwidth."""
    return type(layer.quantizer) is LSQ


def _check(model: nn.Module, learner: Learner, episodes: Sequence[Episode], pairs: Sequence[Pair]) -> None:
    if reason := refusal(model, learner, pairs):
        raise ValueError(reason)
    if not pairs or len(episodes) != len(pairs):
        raise ValueError(f"each task needs an episode and a pair: got {len(episodes)} and {len(pairs)}")
    if len({(episode.support.shape, episode.query.shape) for episode in episodes}) > 1:
        raise ValueError("vectorized tasks must all have the same ways, shots, queries and image size")
    quantizer = LSQ()
    for width in {width for pair in pairs if isinstance(pair, Bits) for width in (pair.w, pair.a)} - {FULL}:
        quantizer.check(width)


@contextlib.contextmanager
def _lent(model: nn.Module, quantizer: _TensorLSQ) -> Iterator[None]:
    """Inside the block all layers quantize by ``quantizer``, on batch statistics; afterwards all is as before."""
    setting, layers = setting_of(model), list(quantized_layers(model).values())
    before, own = dict(vars(setting)), [layer.quantizer for layer in layers]
    try:
        setting.bits, setting.per_layer = Bits(2, 2), {}  # any pair below 32: at it each layer asks its quantizer
        setting.track_running = setting.keep_weights = False
        for layer in layers:
            layer.quantizer = quantizer
        yield
    finally:
        vars(setting).update(before)
        for layer, quantizer_before in zip(layers, own, strict=True):
            layer.quantizer = quantizer_before


def faster(
    model: nn.Module, learner: Learner, episodes: Sequence[Episode], pairs: Sequence[Pair], repeats: int = 5
) -> bool:
    """Whether the gradients of these tasks come faster vectorized than serially, measured where the model is.

    The median of ``repeats`` of each in turn, after one to warm up. False where `refusal` has a reason or memory does
    not suffice. Model, gradients, their hooks and random state are left as they were; hooks on forward passes run.
    """
    if refusal(model, learner, pairs):
        return False
    device = place(model)[0]
    seconds: list[list[float]] = [[], []]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    ways = (_serial_gradients, _vectorized_gradients)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for _ in range(1 + repeats):
                for way, times in zip(ways, seconds, strict=True):
                    times.append(_seconds(device, way, model, learner, episodes, pairs))
    except torch.OutOfMemoryError:
        return False
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    serial, vectorized = (statistics.median(times[1:]) for times in seconds)
    return vectorized < serial


def _serial_gradients(model: nn.Module, learner: FOMAML, episodes: Sequence[Episode], pairs: Sequence[Bits]) -> None:
    for episode, pair in zip(episodes, pairs, strict=True):
        for _, loss in learner.losses(model, episode, [pair]):
            _gradients(model, loss)


def _vectorized_gradients(
    model: nn.Module, learner: FOMAML, episodes: Sequence[Episode], pairs: Sequence[Bits]
) -> None:
    _gradients(model, query_losses(model, learner, episodes, pairs).sum())


def _gradients(model: nn.Module, loss: Tensor) -> None:
    """Compute all gradients and drop them: unlike `backward` this touches no ``grad`` and calls no hook of it."""
    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def _seconds(device: torch.device, work: Callable[..., None], *arguments: Any) -> float:
    """Wall-clock seconds of ``work``; a GPU, which works while Python goes on, is waited for before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    work(*arguments)
    wait(device)
    return time.perf_counter() - start
