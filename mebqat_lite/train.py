"""`fit` trains a model with any method: all of them share one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from mebqat_lite import methods, resume
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.datasets.base import Data
from mebqat_lite.loop import AUTOMATIC, Loop, Passes, Run
from mebqat_lite.optim import learning_rate
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Sampled
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import forget_stats
from mebqat_lite.switching.state import (
    NotQuantizedError,
    has_norm_sets,
    quantized_layers,
    set_norm_stats,
    setting_of,
)
from mebqat_lite.tensors import best_device, place

Log = Callable[[dict[str, Any]], None]
FAST = ("amp", "compiled", "vectorized", "fabric")  # options of `scale.speed.Fast`, which `fit` takes as ``passes``


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
    """Train ``model`` in place with a method of `methods.METHODS`.

    Afterwards the model is in evaluation mode, under the norm policy of the method. Recalibrated statistics are
    dropped, because they belong to the old weights.

    >>> run = mq.fit(model, data, "mebqat", steps=5, lr=1e-3)
    >>> run.costs.backprops  # 4 pairs in each step
    20

    Args:
        model: a quantized model, or a float model, which is then quantized with ``recipe.quantizer``.
        data: the dataset; only ``data.train`` is used.
        method: the name of the method.
        recipe: the options of the run. Single options may also be given by name, as in ``steps=500, lr=1e-3``.
        path: the file of a training checkpoint. If it exists, the run continues from it. The result is identical to
            that of an uninterrupted run on the same machine, with the same versions and number of threads; on a GPU,
            which adds up in no fixed order, nearly so. The file is locked until the run ends (`files.locked`), so that
            no second run writes it.
        save_every: steps between two checkpoints.
        progress: whether to show a progress bar.
        device: where to train; by default CUDA if it is available, else the CPU. The model stays there.
        log: a function that is called after each step with a dictionary: the step's number (steps of a warm-up count),
            its loss and learning rate, and the seconds and backward passes so far. A continued run logs the steps
            after its checkpoint again.
        passes: how to make the forward and backward passes. The default is one after the other on the CPU, and faster
            on CUDA if that pays in a measurement. ``scale.speed.Fast(amp=True)`` asks for mixed precision, for example.

    Returns:
        The costs and the losses of the run; the costs include those of a warm-up.

    Raises:
        ValueError: the method or teacher is unknown, the method cannot work with this model, data or recipe, or it
            does not use an option that was given by name.
        TypeError: an option is unknown.
        CheckpointError: the file at ``path`` belongs to another run.
        OSError: another run writes ``path``, or something lies there that is no training checkpoint.
        TrainingError: a loss is not finite; the step at fault changes neither weights nor norm statistics. Or a weight
            or a norm statistic is not finite at the end of the run.
    """
    chosen, passes = methods.get(method), passes or _automatic(device)
    recipe = _recipe(recipe, options)
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise ValueError("training needs gradients: call fit outside of torch.no_grad() and torch.inference_mode()")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of this model is trained: set requires_grad of some of them")
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, not {save_every}")
    passes.start(model, device)
    _make_trainable(model, data, recipe)
    _refuse_unread(model, data, method, recipe, options)
    recipe = recipe.for_images(len(data.train.labels))
    _refuse_early(model, data, chosen, recipe, passes)
    forget_stats(model)
    before, how = Run(chosen.base, recipe), {"save_every": save_every, "progress": progress, "log": log}
    with resume.alone(path, passes) as held:
        if recipe.warm_steps and chosen.trains:
            before = _warm_up(model, data, chosen.base, recipe, path, device=device, passes=passes, **how)
        loop = Loop(model, data.train, method, recipe, passes)
        held.callback(loop.close)
        resume.from_checkpoint(loop, path)
        left, silent = range(loop.run.costs.steps, recipe.steps), not progress or passes.rank > 0
        for _ in tqdm(left, desc=chosen.title, disable=silent, leave=False, delay=1):
            loop.step()
            if log is not None and passes.rank == 0:  # before saving, so that every saved step is logged
                log(_last_step(before, loop.run))
            if path is not None and (loop.run.costs.steps % save_every == 0 or loop.run.costs.steps == recipe.steps):
                resume.save(loop, path)
    loop.check()
    model.eval()
    chosen.finish(model, data)
    set_norm_stats(model, chosen.norm_stats)
    loop.run.costs, loop.run.seconds = before.costs + loop.run.costs, before.seconds + loop.run.seconds
    return loop.run


def _automatic(device: str | torch.device | None) -> Passes:
    """Choose the passes of a run by the kind of its device."""
    kind = torch.device(best_device() if device is None else device).type
    return AUTOMATIC.get(kind, Passes)()


def _recipe(recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
    """Change single options of the recipe; options of `scale.speed.Fast` are a TypeError that says where they go."""
    if moved := [name for name in FAST if name in options]:
        asked = ", ".join(f"{name}={options[name]!r}" for name in moved)
        raise TypeError(f"fit takes {', '.join(moved)} as passes=Fast({asked}); Fast is in mebqat_lite.scale.speed")
    return (recipe or Recipe()).with_options(**options)


def _make_trainable(model: nn.Module, data: Data, recipe: Recipe) -> None:
    """Quantize a float model.

    Raises:
        ValueError: the model is packed, so that it has no weights to train, or its weights are of a narrow type, in
            which small updates are lost.
    """
    if (dtype := place(model)[1]).itemsize < 4:
        cure = "train model.float(), and ask for mixed precision by passes=Fast(amp=True)"
        raise ValueError(f"updates are smaller than the steps between the numbers of {dtype}: {cure}")
    try:
        quantizer = setting_of(model).quantizer
    except NotQuantizedError:
        quantize(model, recipe.quantizer, sample=methods.calibration(data))
        return
    if quantizer.predicts_only:
        raise ValueError("a packed network is for prediction: train the checkpoint that it was made from")


def _refuse_unread(model: nn.Module, data: Data, method: str, recipe: Recipe, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a single option was given that the method does not read."""
    given = {name for name in options if getattr(recipe, name) != getattr(Recipe(), name)}
    if unread := given - methods.reads(methods.get(method), model, data.train, recipe):
        raise ValueError(f"{method} does not use {', '.join(sorted(unread))} with this recipe: leave it out")


def _refuse_early(model: nn.Module, data: Data, chosen: methods.Method, recipe: Recipe, passes: Passes) -> None:
    """Build sampler, learner and source once, so that they raise their errors before any work is done."""
    data.train.check()
    sampler, _, source = methods.parts(chosen, model, data.train, recipe)
    if isinstance(sampler, Sampled) and has_norm_sets(model):
        raise ValueError(f"{chosen.title} visits pairs for which this model has no norm sets: quantize it again first")
    _refuse_untrainable(model, sampler)
    if chosen.trains and recipe.teacher == "next" and all(len(task) == 1 for task in sampler.draw()):
        raise ValueError(
            f"teacher=next is the next higher pair of a step, but {chosen.title} visits one pair in a step"
        )
    passes.share(source)


def _refuse_untrainable(model: nn.Module, sampler: methods.Sampler) -> None:
    """Raise a ValueError if a quantized pair would give the weights no gradient: such a network would not learn."""
    pairs = [pair for task in sampler.draw() for pair in task if isinstance(pair, Bits) and pair.w < FULL]
    layers = [layer for layer in quantized_layers(model).values() if layer.site.role == "body"]
    own = [layer for layer in layers if "weight" in layer._parameters and not layer.quantizer.leaves_weights]
    for layer in [layer for layer in own if layer.weight.requires_grad][:1] if pairs else []:
        layer.quantizer.check(pairs[0])
        weight = layer.quantizer.weight(layer.weight, pairs[0].w, layer.quant, layer.site)
        loss = (weight * layer.weight.detach()).sum()  # any loss that depends on all weights
        [found] = torch.autograd.grad(loss, [layer.weight], allow_unused=True) if loss.requires_grad else [None]
        if found is None or not found.any():
            raise ValueError(
                f"the quantizer {layer.quantizer} gives weights no gradient, so that nothing would be trained at "
                f"{pairs[0]}: quantize with one that is trained, such as dorefa, sat or lsq"
            )


def _warm_up(model: nn.Module, data: Data, base: str, recipe: Recipe, path: str | Path | None, **how: Any) -> Run:
    """Train ``recipe.warm_steps`` at full precision; learned steps then start from the trained weights."""
    fp = recipe.with_options(steps=recipe.warm_steps, warm_steps=0, bits=(), teacher="")
    return fit(model, data, base, fp, path=None if path is None else f"{path}.fp", **how)


def _last_step(before: Run, run: Run) -> dict[str, Any]:
    """Make the dictionary that `fit` logs for the last step of ``run``; ``before`` is the warm-up, if any."""
    costs = before.costs + run.costs
    return {
        "step": costs.steps,
        "method": run.method,
        "loss": run.losses[-1],
        "lr": learning_rate(run.recipe, run.costs.steps - 1),
        "seconds": before.seconds + run.seconds,
        "backprops": costs.backprops,
    }
