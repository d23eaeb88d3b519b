"""The training checkpoint: everything that the rest of a run depends on; a file of another run is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mebqat_lite import checkpoint
from mebqat_lite.checkpoint import CheckpointError
from mebqat_lite.costs import Costs
from mebqat_lite.methods import Recipe
from mebqat_lite.state import plan_of

if TYPE_CHECKING:
    from mebqat_lite.train import Loop

Meta = dict[str, Any]
Speed = dict[str, bool | int | None]  # what makes a run faster: amp, compile, vectorized, and how many devices


def save(loop: Loop) -> None:
    """Write everything that the rest of the run depends on to ``loop.path``: all processes call it, one writes."""
    random = _random_states(loop)
    loop.processes.first(lambda: _write(loop, random))


def _write(loop: Loop, random: dict[str, Tensor]) -> None:
    assert loop.path is not None
    tensors = {f"model/{name}": t for name, t in loop.model.state_dict().items()}
    if loop.learner.frozen is not None:
        tensors |= {f"teacher/{name}": t for name, t in loop.learner.frozen.state_dict().items()}
    for name, parameter in loop.parameters.items():
        tensors |= {f"optimizer/{name}/{key}": t for key, t in loop.optimizer.state[parameter].items()}
    meta = {"kind": "training", "sampler": loop.sampler.state_dict(), "run": asdict(loop.run)}
    meta |= {"quantizer": plan_of(loop.model).quantizer, "data": loop.fingerprint, "speed": loop.speed}
    checkpoint.write(loop.path, tensors | random, meta)


def _random_states(loop: Loop) -> dict[str, Tensor]:
    """``random/cpu`` and ``random/cuda`` of the first process, ``random/cpu/1`` of the second, and so on."""
    kinds = {"cpu": torch.get_rng_state} | ({"cuda": torch.cuda.get_rng_state} if torch.cuda.is_available() else {})
    gathered = {kind: loop.processes.gather(state()) for kind, state in kinds.items()}
    return {_random_name(kind, rank): state for kind, states in gathered.items() for rank, state in enumerate(states)}


def _random_name(kind: str, rank: int) -> str:
    return f"random/{kind}" + (f"/{rank}" if rank else "")


def load(loop: Loop) -> None:
    """Continue from the checkpoint at ``loop.path``.

    Raises:
        CheckpointError: it is damaged, of another run, or of one with other speed-ups or another number of devices.
    """
    assert loop.path is not None
    name = Path(loop.path).name
    tensors, meta = checkpoint.read(loop.path, "training")
    _refuse_another_run(loop, meta, name)
    _refuse_another_speed(loop, meta, name)
    checkpoint.load_tensors(loop.model, _part(tensors, "model/"), name)
    if loop.learner.frozen is not None:
        checkpoint.load_tensors(loop.learner.frozen, _part(tensors, "teacher/"), name)
    _load_optimizer(loop, _part(tensors, "optimizer/"))
    torch.set_rng_state(tensors[_random_name("cpu", loop.processes.rank)])
    if (cuda := _random_name("cuda", loop.processes.rank)) in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[cuda])
    loop.sampler.load_state_dict(meta["sampler"])
    run = meta["run"]
    loop.run.costs, loop.run.losses, loop.run.seconds = Costs(**run["costs"]), run["losses"], run["seconds"]


def _refuse_another_run(loop: Loop, meta: Meta, name: str) -> None:
    """A checkpoint of another quantizer, other images, another method or recipe is a CheckpointError."""
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


def _refuse_another_speed(loop: Loop, meta: Meta, name: str) -> None:
    """What only makes a run faster must be as it was: roundings would fall another way."""
    speed: Speed = dict.fromkeys(loop.speed, False) | {"devices": 1} | meta.get("speed", {})
    if loop.speed["vectorized"] is None:
        loop.speed["vectorized"] = speed["vectorized"]  # not measured again
    if speed != loop.speed:
        devices = speed["devices"] != loop.speed["devices"]
        raise CheckpointError(
            f"{name} was trained with {_words(speed, devices)}, this run is with {_words(loop.speed, devices)}: "
            "take the same, give another path, or delete it"
        )


def _load_optimizer(loop: Loop, slots: Mapping[str, Tensor]) -> None:
    """Put back the moments, ``<parameter>/<slot>``, in the memory layout of their parameters."""
    for key, value in slots.items():
        owner, _, slot = key.rpartition("/")
        parameter = loop.parameters[owner]
        like = torch.empty_like(parameter if value.shape == parameter.shape and value.dim() else value)
        loop.optimizer.state[parameter][slot] = like.copy_(value)


def _words(speed: Speed, devices: bool) -> str:
    """``amp and compile``, ``amp``, ``none of amp, compile, vectorized``; with ``devices`` how many, too."""
    ways = {name: on for name, on in speed.items() if name != "devices"}
    words = " and ".join(name for name, on in ways.items() if on) or f"none of {', '.join(ways)}"
    return f"{words} on {speed['devices']} device{'s' * (speed['devices'] != 1)}" if devices else words


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _difference(there: Recipe, here: Recipe) -> str:
    """In which options two recipes differ."""
    pairs = ((f.name, getattr(there, f.name), getattr(here, f.name)) for f in dataclasses.fields(Recipe))
    return ", ".join(f"{name} {old!r} there, {new!r} here" for name, old, new in pairs if old != new) or "same recipe"
