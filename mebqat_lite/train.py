"""`fit`: every method is one call, and one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from mebqat_lite import methods, resume
from mebqat_lite.datasets.base import Data
from mebqat_lite.loop import AUTOMATIC, Loop, Passes, Run
from mebqat_lite.optim import learning_rate
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import forget_stats
from mebqat_lite.switching.state import NotQuantizedError, plan_of, set_norm_stats, setting_of
from mebqat_lite.tensors import best_device

Log = Callable[[dict[str, Any]], None]
FAST = ("amp", "compiled", "vectorized", "fabric")  # what `fit` leaves to ``passes``


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
    passes: Passes | None = None,
    **options: Any,
) -> Run:
    """Train ``model`` in place with a method of `methods.METHODS`; it ends in evaluation mode.

    Norm statistics that were recalibrated for the weights before are dropped.

    >>> model = mq.quantize(mq.models.digit_net(), "dorefa", sample=data.train.images)
    >>> run = mq.fit(model, data, "mebqat", steps=500, lr=1e-3)
    >>> run.costs.backprops
    2000

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
        passes: how forward and backward passes are made. By default plainly, on CUDA faster where that is measured to
            pay; ``scale.speed.Fast(amp=True)`` and the like ask for a way.

    Returns:
        What the run cost and the loss of each step, a warm-up's costs included.

    Raises:
        ValueError: an unknown method or teacher, or what the method cannot draw or do.
        TypeError: an unknown option.
        CheckpointError: the file at ``path`` is of another run.
        TrainingError: the loss is not finite. That step changes neither weights nor norm statistics.
    """
    chosen, passes = methods.get(method), passes or _automatic(device)
    recipe = _recipe(recipe, options).for_images(len(data.train.labels))
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, not {save_every}")
    passes.start(model, device)
    _make_trainable(model, data, recipe)
    _refuse_early(model, data, chosen, recipe, passes)
    forget_stats(model)
    before, how = Run(chosen.base, recipe), {"save_every": save_every, "progress": progress, "log": log}
    if recipe.warm_steps and chosen.trains:
        before = _warm_up(model, data, chosen.base, recipe, path, device=device, passes=passes, **how)
    loop = Loop(model, data.train, method, recipe, passes)
    try:
        resume.from_checkpoint(loop, path)
        left, silent = range(loop.run.costs.steps, recipe.steps), not progress or passes.rank > 0
        for _ in tqdm(left, desc=chosen.title, disable=silent, leave=False, delay=1):
            loop.step()
            if log is not None and passes.rank == 0:  # before the checkpoint: a step that is saved has been logged
                log(_last_step(before, loop.run))
            if path is not None and (loop.run.costs.steps % save_every == 0 or loop.run.costs.steps == recipe.steps):
                resume.save(loop, path)
    finally:
        loop.close()
    model.eval()
    chosen.finish(model, data)
    set_norm_stats(model, chosen.norm_stats)
    loop.run.costs, loop.run.seconds = before.costs + loop.run.costs, before.seconds + loop.run.seconds
    return loop.run


def _automatic(device: str | torch.device | None) -> Passes:
    """The passes of a run that asks for none, by the kind of its device."""
    kind = torch.device(best_device() if device is None else device).type
    return AUTOMATIC.get(kind, Passes)()


def _recipe(recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe with single values changed; what makes passes faster is no part of it."""
    if moved := [name for name in FAST if name in options]:
        asked = ", ".join(f"{name}={options[name]!r}" for name in moved)
        raise TypeError(f"fit takes {', '.join(moved)} as passes=Fast({asked}); Fast is in mebqat_lite.scale.speed")
    return (recipe or Recipe()).with_options(**options)


def _make_trainable(model: nn.Module, data: Data, recipe: Recipe) -> None:
    """Quantize a float model; refuse a packed one, which has no weights to train."""
    try:
        quantizer = setting_of(model).quantizer
    except NotQuantizedError:
        quantize(model, recipe.quantizer, sample=methods.calibration(data))
        return
    if quantizer is not None and quantizer.predicts_only:
        raise ValueError("a packed network is for prediction: train the checkpoint that it was made from")


def _refuse_early(model: nn.Module, data: Data, chosen: methods.Method, recipe: Recipe, passes: Passes) -> None:
    """Let sampler, learner and source refuse what they cannot do, before any work is done."""
    chosen.sampler(model, recipe)
    chosen.learner(recipe, methods.teacher_of(chosen, recipe, warm=recipe.warm_steps > 0))
    passes.share(chosen.source(data.train, recipe))


def _warm_up(model: nn.Module, data: Data, base: str, recipe: Recipe, path: str | Path | None, **how: Any) -> Run:
    """Train ``recipe.warm_steps`` at full precision, then set the learned steps anew, from the trained weights."""
    fp = recipe.with_options(steps=recipe.warm_steps, warm_steps=0, bits=(), teacher="")
    run = fit(model, data, base, fp, path=None if path is None else f"{path}.fp", **how)
    methods.set_steps(model, plan_of(model).quantizer, data, base)
    return run


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
