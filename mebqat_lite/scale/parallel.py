"""Several processes train one network: each learns its part of every batch, and their gradients are added up.

Lightning Fabric starts the processes (its ``ddp`` strategy, or torchrun does) and gives each its device. PyTorch's DDP
wrapper is left out: a step goes backward several times, at bitwidths that change and that leave out other parameters
each time. So gradients are added once a step, after all its tasks. All processes draw the same pairs, because their
samplers have the same seed, and batch norm takes its statistics over all of them: gradients are those of one process
with the whole batch, up to rounding. (Sums of few-bit products are often equal, and which of them max pooling takes
for the largest is then a matter of the last digit: from there on two runs differ.) Two things are not the same:
dropout, whose masks each process draws by itself, and the authors' form of LSQ (``lsq_shared``), which counts the
images of a process's own part in the scale of its gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mebqat_lite.datasets.batches import Batches
from mebqat_lite.switching.state import setting_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Norm = Callable[[Tensor, nn.Module, bool], Tensor]


class ProcessError(RuntimeError):
    """What one of several processes ran into, and the others did not."""


class Processes:
    """The processes of one run, and which of them this one is. Of one alone, nothing here changes anything.

    Args:
        fabric: launched; None is one process.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self.rank, self.count = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.device = torch.device("cpu") if fabric is None else fabric.device
        self.sizes = [1] * self.count  # images of a batch, by process
        if self.count > 1 and not dist.is_initialized():
            raise ValueError("call fabric.launch() before fit(..., fabric=fabric)")

    @property
    def share(self) -> float:
        """This process's part of a batch."""
        return self.sizes[self.rank] / sum(self.sizes)

    def cut(self, source: object) -> None:
        """Let a source of batches give this process its part of each; the first parts have an image more if need be.

        Raises:
            ValueError: a source of episodes, or fewer images than processes.
        """
        if self.count == 1:
            return
        if not isinstance(source, Batches):
            raise ValueError(
                "several devices share batches of images, and an episode cannot be cut: all of its support makes a "
                "prototype or an inner step; train on one device, and several networks side by side by compare --jobs"
            )
        if source.size < self.count:
            raise ValueError(f"a batch of {source.size} is too small for {self.count} devices: raise batch_size")
        source.part = self.rank, self.count
        self.sizes = [len(part) for part in torch.arange(source.size).tensor_split(self.count)]

    def copy(self, model: nn.Module) -> None:
        """Give ``model`` the values that it has in process 0."""
        if self.count > 1:
            self._each([*model.parameters(), *model.buffers()], lambda bucket: dist.broadcast(bucket, 0))

    def join(self, *networks: nn.Module | None) -> None:
        """Let batch norms that go by their batch go by that of all processes, until `leave`."""
        if self.count > 1:
            self._give(networks, self.norm)

    def leave(self, *networks: nn.Module | None) -> None:
        """Undo `join`."""
        self._give(networks, None)

    def _give(self, networks: Iterable[nn.Module | None], norm: Norm | None) -> None:
        for network in networks:
            if network is not None:
                setting_of(network).norm = norm

    def weigh(self, loss: Tensor) -> Tensor:
        """The mean loss of a part as its part of the whole batch's mean."""
        return loss if self.count == 1 else loss * self.share

    def total(self, loss: Tensor) -> float:
        """The sum of the processes' losses: not finite in one of them, it is so in all."""
        if self.count > 1:
            loss = loss.detach().clone()
            dist.all_reduce(loss)
        return loss.item()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the processes' gradients; a parameter that no task used still has none."""
        if self.count > 1:
            self._each([p.grad for p in parameters if p.grad is not None], dist.all_reduce)

    def _each(self, tensors: Sequence[Tensor], work: Callable[[Tensor], Any]) -> None:
        """Let ``work`` change tensors in place, those of one type as one flat tensor: one message, not hundreds."""
        with torch.no_grad():
            for dtype in dict.fromkeys(t.dtype for t in tensors):
                alike = [t for t in tensors if t.dtype == dtype]
                bucket = torch.cat([t.reshape(-1) for t in alike])
                work(bucket)
                for tensor, part in zip(alike, bucket.split([t.numel() for t in alike]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def gather(self, value: Tensor) -> list[Tensor]:
        """The values of all processes, of one shape, on the CPU."""
        if self.count == 1:
            return [value]
        values = [torch.empty_like(value, device=self.device) for _ in range(self.count)]
        dist.all_gather(values, value.to(self.device))
        return [v.cpu() for v in values]

    def agree(self, value: bool, problem: str) -> bool:
        """``value``, if it is that of all processes; else ``problem`` is a ValueError in all."""
        if self.count > 1 and len({int(v) for v in self.gather(torch.tensor(int(value)))}) > 1:
            raise ValueError(problem)
        return value

    def first(self, work: Callable[[], Any]) -> None:
        """Let process 0 do something, as writing a file, while the others wait; if it fails, it fails in all."""
        if self.count == 1:
            work()
            return
        problem: Exception | None = None
        if self.rank == 0:
            try:
                work()
            except Exception as error:
                problem = error
        said = [None if problem is None else str(problem)]
        dist.broadcast_object_list(said, 0, device=self.device)
        if problem is not None:
            raise problem
        if said[0] is not None:
            raise OSError(said[0])

    @contextlib.contextmanager
    def naming_errors(self, common: type[Exception]) -> Iterator[None]:
        """Inside the block an error, if it is not one that all processes have in common, names its process."""
        try:
            yield
        except common:
            raise
        except Exception as error:
            if self.count == 1:
                raise
            raise ProcessError(f"rank {self.rank} of {self.count}: {type(error).__name__}: {error}") from error

    def norm(self, x: Tensor, layer: Any, track: bool) -> Tensor:
        """Batch norm of ``x``, this process's part of (batch, channels, ...), on statistics of the whole batch.

        ``layer``: whose gain, shift and (with ``track``) running statistics.
        """
        count = x.numel() // x.shape[1] * sum(self.sizes) // self.sizes[self.rank]
        mean, var = self._statistics(x.detach())
        if track and layer.running_mean is not None:
            layer.num_batches_tracked.add_(1)
            factor = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), factor)
            layer.running_var.lerp_((var * (count / (count - 1))).to(layer.running_var.dtype), factor)
        return _Norm.apply(x, layer.weight, layer.bias, mean, var, layer.eps, count)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over all processes, each (channels,), from those of the parts (Chan et al., 1979)."""
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), _dims(x), correction=0)
        own = torch.stack([mean, var])  # (2, channels)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        means, variances = torch.stack(parts, 1)  # each (processes, channels)
        shares = own.new_tensor(self.sizes)[:, None] / sum(self.sizes)
        mean = (shares * means).sum(0)
        return mean, (shares * (variances + (means - mean).square())).sum(0)


def _dims(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [d for d in range(x.dim()) if d != 1]


class _Norm(Function):
    """gain (x - mean) / sqrt(var + eps) + shift, where mean and var are of ``count`` values a channel in all processes.

    With u = (x - mean) / sqrt(var + eps), dx = gain / sqrt(var + eps) (g - sum(g) / count - u sum(g u) / count): the
    sums go over all processes (Ioffe and Szegedy, 2015, section 3). Gradients of gain and shift are this process's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float, count: int
    ) -> Tensor:
        ctx.save_for_backward(x, gain, mean, var)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, var, gain, shift, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, var = ctx.saved_tensors
        wide = [1, -1] + [1] * (x.dim() - 2)  # of (channels,), beside x
        scale, dims, grad = (var + ctx.eps).rsqrt(), _dims(x), grad.to(mean.dtype)
        unit = (x - mean.view(wide)).mul_(scale.view(wide))
        own = torch.stack([grad.sum(dims), (grad * unit).sum(dims)])  # (2, channels): of shift and gain
        sums = own.clone()
        dist.all_reduce(sums)
        sums /= ctx.count
        grad_x = (grad - sums[0].view(wide)).sub_(unit.mul_(sums[1].view(wide)))
        grad_x.mul_((scale if gain is None else scale * gain).view(wide))
        affine = (None, None) if gain is None else (own[1].to(gain.dtype), own[0].to(gain.dtype))
        return grad_x.to(x.dtype), *affine, None, None, None, None
