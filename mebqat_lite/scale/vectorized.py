"""Adapt all tasks of a FOMAML step in one pass: bits are tensors, so one `torch.vmap` covers different bitwidths.

The losses and gradients are those of one task after the other (`maml.FOMAML.losses`), added up in another order. A
single small task is too little work for a GPU, where one pass over all tasks may be faster (`faster` measures it). On
a CPU it is slower. It works for LSQ with a step per bitwidth, in first order, on batch statistics; `refusal` names the
cases where tasks must be learned one after the other.
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
from mebqat_lite.quantizers import LSQ, TINY, Params, Site, integer_range
from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import has_norm_sets, norm_layers, quantized_layers, setting_of
from mebqat_lite.tensors import place


class _TensorStepClip(Function):
    """The function `quantizers.step_clip` (LSQ, Esser et al., 2020, equations 1 to 3), with tensors as limits.

    ``step``, ``low``, ``high`` and ``grad_scale`` are scalars of one task, and under vmap each task has its own.
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
        grad_step = (grad * out - grad_x * x).sum() * (grad_scale / step)  # as in quantizers._StepClip
        return grad_x, grad_step.reshape(step.shape), None, None, None


class _Widths(NamedTuple):
    """The weight bits or the activation bits of all tasks, as tensors (tasks,), which are scalars inside vmap."""

    choice: Tensor  # index of the task's step among the steps in use; without meaning where ``full``
    low: Tensor  # lowest code, see quantizers.integer_range
    high: Tensor  # highest code
    full: Tensor  # whether the bits are 32, so that nothing is quantized


class _TensorLSQ(LSQ):
    """LSQ at the bits in ``now``, whatever bits a layer asks for. The layers use it for one pass."""

    clips_at_zero = False  # every ReLU must run: a task may be at FP, and under vmap nothing can branch on bits

    def __init__(self, pairs: Sequence[Bits]) -> None:
        super().__init__()
        self.asked = {"w": [b.w for b in pairs], "a": [b.a for b in pairs]}
        self.in_use = {kind: sorted(set(bits) - {FULL}) for kind, bits in self.asked.items()}  # bits that have a step
        self.now: dict[str, _Widths] = {}

    def tables(self, like: Tensor) -> dict[str, _Widths]:
        """Make the widths of weights, of unsigned and of signed activations, with the device and type of ``like``."""
        return {name: self._table(name[0], name != "a", like) for name in ("w", "a", "a signed")}

    def _table(self, kind: str, signed: bool, like: Tensor) -> _Widths:
        known = self.in_use[kind]
        choice = [known.index(bits) if bits < FULL else 0 for bits in self.asked[kind]]
        ranges = [integer_range(bits if bits < FULL else 2, signed) for bits in self.asked[kind]]
        low, high = (like.new_tensor(side) for side in zip(*ranges, strict=True))
        full = torch.tensor([bits == FULL for bits in self.asked[kind]], device=like.device)
        return _Widths(torch.tensor(choice, device=like.device), low, high, full)

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Return LSQ's weights, or ``w`` itself for a task at 32 bits."""
        return self._clip(w, "w", self.now["w"], params, w.numel())

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Return LSQ's activations, (batch, ...), or ``x`` itself for a task at 32 bits.

        The N in the gradient scale 1 / sqrt(N p) is the number of features of one sample.
        """
        now = self.now["a signed" if site.signed else "a"]
        return self._clip(x, "a", now, params, math.prod(x.shape[1:]))

    def _clip(self, x: Tensor, kind: str, now: _Widths, params: Params, count: int) -> Tensor:
        if not self.in_use[kind]:  # all tasks are at 32 bits
            return x
        steps = torch.stack([params[f"{kind}{bits}"] for bits in self.in_use[kind]]).abs().clamp_min(TINY)
        step = steps.index_select(0, now.choice.reshape(1)).reshape(())  # vmap does not support steps[choice]
        scale = (count * now.high).sqrt().reciprocal()  # 1 / sqrt(N p)
        return torch.where(now.full, x, _TensorStepClip.apply(x, step, now.low, now.high, scale))


def query_losses(model: nn.Module, learner: FOMAML, episodes: Sequence[Episode], pairs: Sequence[Bits]) -> Tensor:
    """Adapt to each episode at its own pair, all in one vmap, and return the query losses, (tasks,).

    The gradient of their sum is the sum of the gradients that `FOMAML.losses` gives task by task: first order, at the
    adapted weights (MEBQAT-MAML, ECCV 2022, algorithm 2). A quantizer step that no task uses gets no gradient. `uses`
    counts how many tasks contribute to the gradient of each parameter.

    Raises:
        ValueError: `refusal` has a reason, the quantizer does not define some bits, episodes differ in shape, or there
            are not as many episodes as pairs.
    """
    _check(model, learner, episodes, pairs)
    quantizer, counts = _TensorLSQ(pairs), uses(model, pairs)
    # Without unused steps. Not channels-last, because cuDNN's batch norm cannot copy such activations under vmap.
    order = torch.contiguous_format
    start = {n: p.clone(memory_format=order) for n, p in adaptable(model).items() if counts[p]}  # type: ignore[index]

    def support_loss(fast: dict[str, Tensor], task: Episode) -> Tensor:
        logits = functional_call(model, fast, (task.support.flatten(0, 1),))  # (N K, N)
        return F.cross_entropy(logits, Episode(task.support, task.support).labels)

    def query_loss(task: Episode, widths: dict[str, _Widths]) -> Tensor:
        quantizer.now, fast = widths, start
        for _ in range(learner.inner_steps):
            with torch.no_grad():  # first order: the outer backward takes inner gradients for constants
                grads = grad(support_loss)(fast, task)
            fast = {name: updated(name, value, grads[name], learner.inner_lr) for name, value in fast.items()}
        logits = functional_call(model, fast, (task.query.flatten(0, 1),))  # (N Q, N)
        return F.cross_entropy(logits, task.labels)

    tasks = Episode(torch.stack([e.support for e in episodes]), torch.stack([e.query for e in episodes]))
    with _lent(model, quantizer):
        return vmap(query_loss)(tasks, quantizer.tables(tasks.support))


def uses(model: nn.Module, pairs: Sequence[Bits]) -> dict[nn.Parameter, int]:
    """Count how many tasks use each parameter that learns, so that `optim.GradientMean` can average its gradient.

    A step of LSQ is used by the tasks of its bitwidth. An activation step is used by none if another layer, the leader,
    quantizes the input of this layer. All other parameters are used by all tasks.
    """
    counts = {p: len(pairs) for p in model.parameters() if p.requires_grad}
    for layer in quantized_layers(model).values():
        for name, step in layer.quant.items():
            if step in counts:
                leads = name[0] == "w" or layer.leader is layer
                counts[step] = leads * sum(f"{name[0]}{getattr(pair, name[0])}" == name for pair in pairs)
    return counts


def refusal(model: nn.Module, learner: Learner, pairs: Sequence[Pair]) -> str:
    """Say why these tasks cannot be vectorized; the answer is an empty string if they can."""
    layers, norms, setting = quantized_layers(model).values(), norm_layers(model).values(), setting_of(model)
    amp = torch.is_autocast_enabled(place(model)[0].type)  # under vmap the inner backward would mix two types
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
    """Tell whether a layer's quantizer is LSQ itself, with a trained step for each bitwidth, and no variant of it."""
    return type(layer.quantizer) is LSQ


def _check(model: nn.Module, learner: Learner, episodes: Sequence[Episode], pairs: Sequence[Pair]) -> None:
    if reason := refusal(model, learner, pairs):
        raise ValueError(reason)
    if not pairs or len(episodes) != len(pairs):
        raise ValueError(f"each task needs an episode and a pair: got {len(episodes)} and {len(pairs)}")
    if len({(episode.support.shape, episode.query.shape) for episode in episodes}) > 1:
        raise ValueError("vectorized tasks must all have the same ways, shots, queries and image size")
    for pair in pairs:
        if isinstance(pair, Bits):
            setting_of(model).quantizer.check(pair)


@contextlib.contextmanager
def _lent(model: nn.Module, quantizer: _TensorLSQ) -> Iterator[None]:
    """Inside the block, let all layers use ``quantizer``, and batch norm use the batch without tracking statistics."""
    setting, layers = setting_of(model), list(quantized_layers(model).values())
    before, own = dict(vars(setting)), [layer.quantizer for layer in layers]
    try:
        setting.bits, setting.per_layer = Bits(2, 2), {}  # any pair below 32 makes each layer call its quantizer
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
    """Measure whether these tasks give their gradients faster vectorized than serially, on the model's device.

    Both ways run in turns, once to warm up and then ``repeats`` times, and their median times are compared. The model,
    its gradients and the random state do not change, but hooks on forward passes are called.

    Returns:
        Whether vectorized tasks are faster; False if `refusal` has a reason or there is not enough memory.
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
    """Compute all gradients and drop them; unlike `backward`, this changes no ``grad`` and calls none of its hooks."""
    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def _seconds(device: torch.device, work: Callable[..., None], *arguments: Any) -> float:
    """Measure the wall-clock seconds of ``work``.

    A GPU works in the background while Python goes on, so it is waited for before and after.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    work(*arguments)
    wait(device)
    return time.perf_counter() - start
