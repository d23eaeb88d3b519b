"""Train one network in several processes: each learns a part of every batch, and their gradients are added up.

Lightning Fabric starts the processes with its strategy ``ddp``, unless torchrun does, and gives each one its device.
PyTorch's DDP wrapper is not used, because a step has several backward passes, and the bitwidth of each pass decides
which parameters get a gradient. Instead, gradients are added once per step, after all its tasks.

All processes draw the same pairs, because their samplers have the same seed, and batch norm takes its statistics over
all processes. The gradients are therefore those of one process with the whole batch, up to rounding. In the long run
two trainings may still differ: sums of few-bit products are often equal, and then the last digit decides which of them
max pooling takes as the largest.

Two things are not the same as in one process. Each process draws its own masks for dropout. And the authors' form of
LSQ (``lsq_shared``) scales its gradients by the number of images, but a process only counts those of its own part.
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
    """An error that occurred in one of several processes, but not in the others."""


class Processes:
    """The processes of one run, and what this one does together with the others.

    If there is only one process, no method changes anything.

    Args:
        fabric: a launched Fabric, or None for a single process.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self.rank, self.count = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        self.device = torch.device("cpu") if fabric is None else fabric.device
        self.sizes = [1] * self.count  # how many images of a batch each process learns
        if self.count > 1 and not dist.is_initialized():
            raise ValueError("call fabric.launch() before fit(..., fabric=fabric)")

    @property
    def share(self) -> float:
        """The fraction of a batch that this process learns."""
        return self.sizes[self.rank] / sum(self.sizes)

    def cut(self, source: object) -> None:
        """Make a source of batches return only this process's part of each batch.

        If a batch cannot be divided evenly, the first parts have one image more.

        Raises:
            ValueError: the source returns episodes, or a batch has fewer images than there are processes.
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
        """Give the parameters and buffers of ``model`` the values that they have in process 0."""
        if self.count > 1:
            self._each([*model.parameters(), *model.buffers()], lambda bucket: dist.broadcast(bucket, 0))

    def join(self, *networks: nn.Module | None) -> None:
        """Make batch norm take its batch statistics over all processes, until `leave` is called."""
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
        """Scale the mean loss of this part, so that the sum over all processes is the mean of the whole batch."""
        return loss if self.count == 1 else loss * self.share

    def total(self, loss: Tensor) -> float:
        """Add up the losses of all processes, so that all of them notice if one loss is not finite."""
        if self.count > 1:
            loss = loss.detach().clone()
            dist.all_reduce(loss)
        return loss.item()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes; the gradient of a parameter that no task used stays None."""
        if self.count > 1:
            self._each([p.grad for p in parameters if p.grad is not None], dist.all_reduce)

    def _each(self, tensors: Sequence[Tensor], work: Callable[[Tensor], Any]) -> None:
        """Let ``work`` change tensors in place.

        All tensors of a type become one flat tensor, so that the processes exchange one message and not hundreds.
        """
        with torch.no_grad():
            for dtype in dict.fromkeys(t.dtype for t in tensors):
                alike = [t for t in tensors if t.dtype == dtype]
                bucket = torch.cat([t.reshape(-1) for t in alike])
                work(bucket)
                for tensor, part in zip(alike, bucket.split([t.numel() for t in alike]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def gather(self, value: Tensor) -> list[Tensor]:
        """Collect the values of all processes on the CPU; they must have the same shape."""
        if self.count == 1:
            return [value]
        values = [torch.empty_like(value, device=self.device) for _ in range(self.count)]
        dist.all_gather(values, value.to(self.device))
        return [v.cpu() for v in values]

    def agree(self, value: bool, problem: str) -> bool:
        """Return ``value`` if it is the same in all processes; otherwise raise a ValueError that says ``problem``."""
        if self.count > 1 and len({int(v) for v in self.gather(torch.tensor(int(value)))}) > 1:
            raise ValueError(problem)
        return value

    def first(self, work: Callable[[], Any]) -> None:
        """Call ``work`` in process 0, for example to write a file, while the others wait.

        Raises:
            OSError: ``work`` failed in process 0, which itself raises the original error.
        """
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
        """Inside the block, turn an error into a `ProcessError` that names this process.

        Errors of the type ``common`` occur in all processes alike and stay as they are.
        """
        try:
            yield
        except common:
            raise
        except Exception as error:
            if self.count == 1:
                raise
            raise ProcessError(f"rank {self.rank} of {self.count}: {type(error).__name__}: {error}") from error

    def norm(self, x: Tensor, layer: Any, track: bool) -> Tensor:
        """Normalize ``x``, this process's part of (batch, channels, ...), by the statistics of the whole batch.

        Gain and shift are those of the batch norm ``layer``. With ``track`` its running statistics are updated too.
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
        """Compute mean and variance over all processes, each (channels,), from those of the parts.

        The formula is that of Chan, Golub and LeVeque (1979).
        """
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), _dims(x), correction=0)
        own = torch.stack([mean, var])  # (2, channels)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        means, variances = torch.stack(parts, 1)  # each (processes, channels)
        shares = own.new_tensor(self.sizes)[:, None] / sum(self.sizes)
        mean = (shares * means).sum(0)
        return mean, (shares * (variances + (means - mean).square())).sum(0)


def _dims(x: Tensor) -> list[int]:
    """List all dimensions of ``x`` except for the channels, which are dimension 1."""
    return [d for d in range(x.dim()) if d != 1]


class _Norm(Function):
    """Batch norm with given statistics: gain (x - mean) / sqrt(var + eps) + shift.

    ``mean`` and ``var`` are taken over the ``count`` values that a channel has in all processes. With the output's
    gradient g and u = (x - mean) / sqrt(var + eps), the gradient of x is
    gain / sqrt(var + eps) (g - sum(g) / count - u sum(g u) / count), where the sums go over all processes (Ioffe and
    Szegedy, 2015, section 3). The gradients of gain and shift are sums over this process only; `add_gradients` adds
    them up.
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
        wide = [1, -1] + [1] * (x.dim() - 2)  # the shape in which (channels,) broadcasts against x
        scale, dims, grad = (var + ctx.eps).rsqrt(), _dims(x), grad.to(mean.dtype)
        unit = (x - mean.view(wide)).mul_(scale.view(wide))
        own = torch.stack([grad.sum(dims), (grad * unit).sum(dims)])  # (2, channels): gradients of shift and gain
        sums = own.clone()
        dist.all_reduce(sums)
        sums /= ctx.count
        grad_x = (grad - sums[0].view(wide)).sub_(unit.mul_(sums[1].view(wide)))
        grad_x.mul_((scale if gain is None else scale * gain).view(wide))
        affine = (None, None) if gain is None else (own[1].to(gain.dtype), own[0].to(gain.dtype))
        return grad_x.to(x.dtype), *affine, None, None, None, None
