"""Save a training run and continue it: a checkpoint holds everything that the rest of the run depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mebqat_lite import checkpoint, files
from mebqat_lite.files import CheckpointError
from mebqat_lite.loop import Costs, Loop, Passes
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import plan_of

Meta = dict[str, Any]


def save(loop: Loop, path: str | Path) -> None:
    """Write the state of the run to ``path``; all processes must call this, and the first one writes."""
    loop.check()  # the checkpoint of before is better than one of a run that has diverged
    random = _random_states(loop)
    loop.passes.first(lambda: _write(loop, path, random))


def _write(loop: Loop, path: str | Path, random: dict[str, Tensor]) -> None:
    tensors = {f"model/{name}": t for name, t in loop.model.state_dict().items()}
    if loop.learner.frozen is not None:
        tensors |= {f"teacher/{name}": t for name, t in loop.learner.frozen.state_dict().items()}
    for name, parameter in loop.parameters.items():
        tensors |= {f"optimizer/{name}/{key}": t for key, t in loop.optimizer.state[parameter].items()}
    meta = {"kind": "training", "sampler": loop.sampler.state_dict(), "run": asdict(loop.run)}
    meta |= {"quantizer": plan_of(loop.model).quantizer, "data": loop.fingerprint, "speed": loop.passes.settings}
    files.write(path, tensors | random, meta)


def _random_states(loop: Loop) -> dict[str, Tensor]:
    """Collect the state of the random generators of every process.

    The names are ``random/cpu`` and ``random/cuda`` for the first process, ``random/cpu/1`` for the second, and so on.
    """
    kinds = {"cpu": torch.get_rng_state} | ({"cuda": torch.cuda.get_rng_state} if torch.cuda.is_available() else {})
    gathered = {kind: loop.passes.gather(state()) for kind, state in kinds.items()}
    return {_random_name(kind, rank): state for kind, states in gathered.items() for rank, state in enumerate(states)}


def _random_name(kind: str, rank: int) -> str:
    return f"random/{kind}" + (f"/{rank}" if rank else "")


def alone(path: str | Path | None, passes: Passes) -> ExitStack:
    """Hold ``path`` for the first process of a run until the returned context ends, see `files.locked`.

    Raises:
        OSError: another run writes the file, or something lies there that a checkpoint does not replace.
    """
    held = ExitStack()
    if path is not None:
        passes.first(lambda: files.check_output(path, "training"))
        passes.first(lambda: held.enter_context(files.locked(path)))
    return held


def from_checkpoint(loop: Loop, path: str | Path | None) -> None:
    """Continue from the checkpoint at ``path``, if there is one.

    Raises:
        CheckpointError: the file is damaged, belongs to another run, or to a run with other ``passes``.
        ValueError: there are several processes, and only some of them find the file.
    """
    found = path is not None and Path(path).exists()
    if loop.passes.agree(found, f"{path} must be where all processes read it: some find it and some do not"):
        with files.understood(str(path)):
            _load(loop, Path(str(path)))


def _load(loop: Loop, path: Path) -> None:
    tensors, meta = files.read(path, "training")
    _refuse_another_run(loop, meta, path.name)
    _refuse_other_passes(loop, meta, path.name)
    loop.model.load_state_dict(checkpoint.as_state(loop.model, _part(tensors, "model/")))
    if (teacher := loop.learner.frozen) is not None:
        teacher.load_state_dict(checkpoint.as_state(teacher, _part(tensors, "teacher/")))
    _load_optimizer(loop, _part(tensors, "optimizer/"))
    torch.set_rng_state(tensors[_random_name("cpu", loop.passes.rank)])
    if (cuda := _random_name("cuda", loop.passes.rank)) in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[cuda])
    loop.sampler.load_state_dict(meta["sampler"])
    run = meta["run"]
    loop.run.costs, loop.run.losses, loop.run.seconds = Costs(**run["costs"]), run["losses"], run["seconds"]


def _refuse_another_run(loop: Loop, meta: Meta, name: str) -> None:
    """Raise a CheckpointError if the checkpoint has another quantizer, other images, another method or recipe."""
    recipe, quantizer = Recipe(**meta["run"]["recipe"]), plan_of(loop.model).quantizer
    if meta["quantizer"] != quantizer:
        raise CheckpointError(f"{name} is of a {meta['quantizer']} network, this one is {quantizer}")
    if meta["data"] != loop.fingerprint:
        raise CheckpointError(f"{name} was trained on other images: give another path, or delete it")
    if (meta["run"]["method"], recipe) != (loop.run.method, loop.recipe):
        raise CheckpointError(
            f"{name} belongs to another run ({meta['run']['method']}, {_difference(recipe, loop.recipe)}): "
            "give another path, or delete it to start again"
        )


def _refuse_other_passes(loop: Loop, meta: Meta, name: str) -> None:
    """Raise a CheckpointError if the passes were made in another way, such as in mixed precision.

    They would round differently, so the continued run would not be the same run.
    """
    kept = meta.get("speed", {})
    there = {
        key: value for key, value in kept.items() if value and (key, value) != ("devices", 1)
    }  # older files also list what is off
    loop.passes.adopt(there)
    if there != loop.passes.settings:
        raise CheckpointError(
            f"{name} was trained with {_words(there)}, this run is with {_words(loop.passes.settings)}: "
            "take the same, give another path, or delete it"
        )


def _load_optimizer(loop: Loop, slots: Mapping[str, Tensor]) -> None:
    """Restore the optimizer's moments, named ``<parameter>/<slot>``, in the memory layout of their parameters."""
    for key, value in slots.items():
        owner, _, slot = key.rpartition("/")
        parameter = loop.parameters[owner]
        like = torch.empty_like(parameter if value.shape == parameter.shape and value.dim() else value)
        loop.optimizer.state[parameter][slot] = like.copy_(value)


def _words(settings: Mapping[str, Any]) -> str:
    """Describe the settings of the passes in words: ``amp and compile``, ``2 devices`` or ``plain passes``."""
    return " and ".join(k if v is True else f"{v} {k}" for k, v in settings.items()) or "plain passes"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _difference(there: Recipe, here: Recipe) -> str:
    """Say in which options two recipes differ."""
    pairs = ((f.name, getattr(there, f.name), getattr(here, f.name)) for f in dataclasses.fields(Recipe))
    return ", ".join(f"{name} {old!r} there, {new!r} here" for name, old, new in pairs if old != new) or "same recipe"
