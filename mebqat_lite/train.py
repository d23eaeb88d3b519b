"""The one training loop. Every method is one call of `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite import checkpoint, methods, resume
from mebqat_lite.bits import Pair
from mebqat_lite.convert import quantize
from mebqat_lite.costs import Costs
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.methods import Recipe
from mebqat_lite.models import channels_last
from mebqat_lite.norms import forget_stats
from mebqat_lite.optim import GradientMean, groups, keep_steps_positive, learning_rate
from mebqat_lite.parallel import Processes
from mebqat_lite.state import NotQuantizedError, has_stem, plan_of, set_norm_stats, setting_of
from mebqat_lite.tensors import best_device, keep_memory, place
from mebqat_lite.vectorized import faster, query_losses, refusal, uses

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Run:
    """What a training run leaves besides the model: its counted costs, losses a step, and seconds."""

    method: str
    recipe: Recipe
    costs: Costs = field(default_factory=Costs)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


Log = Callable[[dict[str, Any]], None]


def fit(
    model: nn.Module,
    data: Data,
    method: str = "mebqat",
    recipe: Recipe | None = None,
    *,
    path: str | Path | None = None,
    save_every: int = 50,
    progress: bool = True,
    device: str | torch.device | None = None,
    log: Log | None = None,
    amp: bool = False,
    compiled: bool = False,
    vectorized: bool | None = None,
    fabric: Fabric | None = None,
    **options: Any,
) -> Run:
    """Train ``model`` in place with a method of `methods.METHODS`; it ends in evaluation mode.

    Norm statistics that were recalibrated for the weights before are dropped.

    Args:
        model: quantized, or a float model, which is then quantized with ``recipe.quantizer``.
        data: trained on ``data.train`` only.
        method: name of the method.
        recipe: what may vary; single values as ``options`` (``steps=500, lr=1e-3``).
        path: a training checkpoint. If it exists the run continues from it, to the identical result (on one
            machine, with the same versions and threads).
        save_every: steps between checkpoints.
        progress: show a progress bar.
        device: where to train; by default CUDA if there is one, else the CPU.
        log: called after each step with its number (a warm-up's steps count), loss and learning rate, and the seconds
            and back-propagations so far. Steps after the last checkpoint come again when a run is continued.
        amp: automatic mixed precision: forward passes in bfloat16 where PyTorch deems it safe. Activations then have
            8 significant bits at most. Offered, not measured on a GPU yet.
        compiled: compile the forward passes with `torch.compile`, once for each pair that is visited: seconds each.
            Roundings may fall another way. Offered, not measured on a GPU yet.
        vectorized: adapt all tasks of a FOMAML step in one pass (`mebqat_lite.vectorized`). By default what is measured
            to be faster on CUDA, and serial tasks on the CPU. Roundings may fall another way.
        fabric: a launched ``lightning_fabric.Fabric``. Its processes, which all call `fit` alike, share each batch, to
            the same gradients (`mebqat_lite.parallel`); the first one logs and writes. Methods for new classes refuse.

    Raises:
        ValueError: ``vectorized`` where it cannot be (`mebqat_lite.vectorized.refusal`).
        TrainingError: the loss is not finite. That step changes neither weights nor norm statistics.
    """
    chosen = methods.get(method)
    recipe = (recipe or Recipe()).with_options(**options).for_images(len(data.train.labels))
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, not {save_every}")
    processes = Processes(fabric)
    if compiled and processes.count > 1:
        raise ValueError("compile does not go with several devices: batch norm adds over them within each pass")
    if device is None:
        device = best_device() if fabric is None else fabric.device
    processes.copy(model.to(device))
    try:
        quantizer = setting_of(model).quantizer
        if quantizer is not None and quantizer.predicts_only:
            raise ValueError("a packed network is for prediction: train the checkpoint that it was made from")
    except NotQuantizedError:
        quantize(model, recipe.quantizer, sample=methods.calibration(data))
    chosen.sampler(model, recipe)  # refuses what it cannot draw, and the next line an unknown teacher, before all work
    chosen.learner(recipe, methods.teacher_of(chosen, recipe, warm=recipe.warm_steps > 0))
    processes.cut(chosen.source(data.train, recipe))
    forget_stats(model)
    before = Run(chosen.base, recipe)
    if recipe.warm_steps and chosen.trains:
        how: dict[str, Any] = {"save_every": save_every, "progress": progress, "device": device}
        how |= {"log": log, "amp": amp, "compiled": compiled, "vectorized": vectorized, "fabric": fabric}
        before = _warm_up(model, data, chosen.base, recipe, path, **how)
    ways: dict[str, Any] = {"amp": amp, "compiled": compiled, "vectorized": vectorized, "processes": processes}
    loop = Loop(model, data.train, method, recipe, path, **ways)
    steps, speaks = range(loop.run.costs.steps, recipe.steps), processes.rank == 0
    try:
        for _ in tqdm(steps, desc=chosen.title, disable=not (progress and speaks), leave=False, delay=1):
            with processes.naming_errors(TrainingError):
                loop.step()
            if log is not None and speaks:  # before the checkpoint: a step that is saved has been logged
                log(_last_step(before, loop.run))
            if path is not None and (loop.run.costs.steps % save_every == 0 or loop.run.costs.steps == recipe.steps):
                resume.save(loop)
    finally:
        loop.close()
    model.eval()
    chosen.finish(model, data)
    set_norm_stats(model, chosen.norm_stats)
    loop.run.costs, loop.run.seconds = before.costs + loop.run.costs, before.seconds + loop.run.seconds
    return loop.run


def _last_step(before: Run, run: Run) -> dict[str, Any]:
    """What `fit` logs of the last step of ``run``, which comes after a warm-up or nothing."""
    costs = before.costs + run.costs
    return {
        "step": costs.steps,
        "method": run.method,
        "loss": run.losses[-1],
        "lr": learning_rate(run.recipe, run.costs.steps - 1),
        "seconds": before.seconds + run.seconds,
        "backprops": costs.backprops,
    }


def _warm_up(model: nn.Module, data: Data, base: str, recipe: Recipe, path: str | Path | None, **how: Any) -> Run:
    """Train ``recipe.warm_steps`` at full precision, then set the learned steps anew, from the trained weights."""
    fp = recipe.with_options(steps=recipe.warm_steps, warm_steps=0, bits=(), teacher="")
    run = fit(model, data, base, fp, path=None if path is None else f"{path}.fp", **how)
    methods.set_steps(model, plan_of(model).quantizer, data, base)
    return run


class Loop:
    """The state of one run: model, sampler, learner, optimizer, and where they stand."""

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        method: str,
        recipe: Recipe,
        path: str | Path | None = None,
        *,
        amp: bool = False,
        compiled: bool = False,
        vectorized: bool | None = None,
        processes: Processes | None = None,
    ) -> None:
        keep_memory()
        chosen = methods.get(method)
        self.model, self.recipe, self.path = channels_last(model).train(), recipe, path
        device = next(model.parameters()).device
        self.source = chosen.source(Split(train.images.to(device), train.labels.to(device)), recipe)
        self.processes = processes or Processes()
        self.processes.cut(self.source)
        teacher = methods.teacher_of(chosen, recipe, warm=recipe.warm_steps > 0)
        self.sampler, self.learner = chosen.sampler(model, recipe), chosen.learner(recipe, teacher)
        chosen.prepare(model, self.sampler)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.gradients = GradientMean(self.parameters.values())
        self.optimizer = torch.optim.AdamW(groups(model), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.run = Run(method, recipe)
        self.speed: resume.Speed = {"amp": amp, "compile": compiled, "vectorized": vectorized}
        self.speed["devices"] = self.processes.count
        torch.manual_seed(recipe.seed + self.processes.rank)  # dropout
        self.optimizer.zero_grad(set_to_none=True)  # gradients from before the run do not count
        self.buffers = list(model.buffers())
        self.learner.begin(model)
        self.fingerprint = "" if path is None else checkpoint.checksum(train)
        found = path is not None and Path(path).exists()
        if self.processes.agree(found, f"{path} must be where all processes read it: some find it and some do not"):
            resume.load(self)
        self.speed["vectorized"] = self.decide_vectorized()  # before passes are counted or compiled
        self.compiled = compile_forwards(model) if compiled else []
        counted = [self.compiled[-1] if self.compiled else _last_layer(model)]
        counted += [_last_layer(self.learner.frozen)] if self.learner.frozen else []
        self.processes.join(model, self.learner.frozen)
        self.counters = [_count_forwards(module, self.run.costs) for module in counted]

    def step(self) -> None:
        """One step: the losses of all tasks at their pairs, the mean gradient, one update."""
        started, costs = time.perf_counter(), self.run.costs
        before = [buffer.clone() for buffer in self.buffers]
        try:
            if self.speed["vectorized"]:
                losses = self.backpropagate_together(*self.tasks())
            else:
                losses = [
                    self.backpropagate(self.source.task(costs.steps, index), pairs)
                    for index, pairs in enumerate(self.sampler.draw())
                ]
        except TrainingError:
            torch._foreach_copy_(self.buffers, before)
            raise
        self.processes.add_gradients(self.parameters.values())
        self.gradients.average()
        nn.utils.clip_grad_value_(self.parameters.values(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(self.recipe, costs.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # a parameter that no task uses gets no update, no decay
        keep_steps_positive(self.model)
        costs.steps += 1
        self.run.losses.append(sum(losses) / len(losses))
        self.run.seconds += time.perf_counter() - started

    def backpropagate(self, task: Any, pairs: Sequence[Pair]) -> float:
        """Back-propagate the loss of each pair on a batch or an episode; returns their mean."""
        losses = []
        for bits, loss in self.in_precision(self.learner.losses(self.model, task, pairs)):
            loss = self.processes.weigh(loss)
            value = self.finite(self.processes.total(loss), bits)
            loss.backward()
            self.run.costs.backprops += 1
            losses.append(value)
        return sum(losses) / len(losses)

    def finite(self, value: float, bits: Pair) -> float:
        """The loss at ``bits``, or a TrainingError if it is none."""
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.run.costs.steps}, {bits}: lower lr "
                f"(now {self.recipe.lr:g}) or look for bad values in the images"
            )
        return value

    def tasks(self) -> tuple[list[Any], list[Pair]]:
        """What the next step learns: each task once for each of its pairs, and these pairs."""
        drawn = [(index, pair) for index, pairs in enumerate(self.sampler.draw()) for pair in pairs]
        return [self.source.task(self.run.costs.steps, index) for index, _ in drawn], [pair for _, pair in drawn]

    def decide_vectorized(self) -> bool:
        """Whether steps are vectorized: as asked for or as the checkpoint was, else as measured; the CPU never is."""
        asked = self.speed["vectorized"]
        together = " and ".join(name for name in ("amp", "compile") if self.speed[name])
        if asked is False or (asked is None and (together or place(self.model)[0].type != "cuda")):
            return False
        state = self.sampler.state_dict()
        episodes, pairs = self.tasks()
        self.sampler.load_state_dict(state)  # the next step draws the same again
        if asked is None:
            return faster(self.model, self.learner, episodes, pairs)
        reason = f"vectorized tasks do not go with {together}" if together else ""
        if reason := reason or refusal(self.model, self.learner, pairs):
            raise ValueError(reason)
        return True

    def backpropagate_together(self, episodes: list[Any], pairs: list[Pair]) -> list[float]:
        """Back-propagate the losses of all tasks in one pass, with the counts that one after the other has."""
        costs, before = self.run.costs, self.run.costs.forwards
        losses = query_losses(self.model, self.learner, episodes, pairs)  # type: ignore[arg-type]
        costs.forwards += (costs.forwards - before) * (len(pairs) - 1)  # a pass of all was counted once
        values = [self.finite(value, bits) for value, bits in zip(losses.tolist(), pairs, strict=True)]
        losses.sum().backward()
        self.gradients.uses |= uses(self.model, pairs)  # type: ignore[arg-type]  # backward has counted one each
        costs.backprops += len(pairs)
        return values

    def in_precision(self, losses: Iterator[tuple[Pair, Tensor]]) -> Iterator[tuple[Pair, Tensor]]:
        """The losses as they come, computed in mixed precision if the run is to; `backward` must stay outside.

        Autocast keeps no cast weights: in some versions those of a teacher would have no gradient in the next pass.
        That a learner goes backward through a shared stem in here gives the same gradients as outside.
        """
        kind, amp = next(iter(self.parameters.values())).device.type, bool(self.speed["amp"])
        while True:
            with torch.autocast(kind, torch.bfloat16, enabled=amp, cache_enabled=False):
                found = next(losses, None)
            if found is None:
                return
            yield found

    def close(self) -> None:
        """Remove the hooks and what was compiled."""
        self.processes.leave(self.model, self.learner.frozen)
        self.gradients.close()
        for counter in self.counters:
            counter.remove()
        for module in self.compiled:
            del module.forward


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


def _last_layer(model: nn.Module) -> nn.Module:
    """The layer by which passes are counted: the last one as executed."""
    return model.get_submodule(plan_of(model).sites[-1].name)


def _count_forwards(module: nn.Module, costs: Costs) -> torch.utils.hooks.RemovableHandle:
    """Count each pass of a module. (Within a compiled one the count would be a constant, and each pass a new one.)"""

    def count(*_: object) -> None:
        costs.forwards += 1

    return module.register_forward_hook(count)
