"""Save and load quantized models, each as one safetensors file with JSON in its metadata."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import models
from mebqat_lite.bits import parse_all
from mebqat_lite.files import CheckpointError, read, understood, write
from mebqat_lite.quantizers import Site
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import give_norm_sets
from mebqat_lite.switching.state import Plan, norm_layers, plan_of, setting_of, unwrapped
from mebqat_lite.tensors import place


def describe(model: nn.Module) -> dict[str, Any]:
    """Describe a quantized model, in JSON, so that `blank` can build an equal one again."""
    norms, spec = list(norm_layers(model).values()), getattr(model, "spec", None)
    return {
        "spec": spec if isinstance(spec, models.Spec) else None,
        "plan": _described(plan_of(model)),
        "norm_sets": list(norms[0].sets) if norms else [],
        "norm_stats": setting_of(model).norm_stats,
        "dtype": str(place(model)[1]).removeprefix("torch."),
        "channels_last": any(is_channels_last(p) for p in model.parameters()),
    }


def _described(plan: Plan) -> dict[str, Any]:
    """Describe a plan in JSON, without what is the same in nearly all plans."""
    found = asdict(plan)
    for site in found["sites"]:
        if site["normed"]:
            del site["normed"]
    return {name: value for name, value in found.items() if value or name != "bypassed"}


def save_model(model: nn.Module, path: str | Path, **extra: Any) -> Path:
    """Save a quantized model to ``path``, and return the path.

    Of a model in a data-parallel, averaging or compiling wrapper, the model inside is saved.

    `load_model` returns the keyword arguments ``extra``, which must be JSON, together with the model.

    >>> path = mq.save_model(model, folder / "digits.safetensors", dataset="digits")
    >>> path.name
    'digits.safetensors'

    Raises:
        ValueError: the network is packed, so that it has no float weights, or a part of it is compiled.
    """
    model = as_saved(model)
    if setting_of(model).quantizer.predicts_only:
        raise ValueError("a packed network has no float weights to save: keep its file, or save_packed")
    measured_with = setting_of(model).measured_with
    measured_with.warn_if_changed(model, measured_with.then)
    meta = {"kind": "model", "model": describe(model), "extra": extra}
    return write(path, model.state_dict(), meta)


def as_saved(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers; a ValueError if a part of it is compiled, which changes names."""
    model = unwrapped(model)
    if parts := [name for name, _ in model.named_modules() if name.endswith("._orig_mod")]:
        part = parts[0].removesuffix("._orig_mod")
        raise ValueError(f"{part} went through torch.compile, which changes names: call {part}.compile() instead")
    return model


def load_model(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model, in evaluation mode, and the ``extra`` that was saved with it.

    >>> path = mq.save_model(model, folder / "digits.safetensors", dataset="digits")
    >>> loaded, extra = mq.load_model(path)
    >>> extra
    {'dataset': 'digits'}

    Args:
        path: a file that `save_model` wrote.
        model: an instance of the same architecture; needed only if the architecture is not in `models`. If it is
            compiled or in another wrapper, the network inside is loaded and returned.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, is not a saved model, or does not fit ``model``.
    """
    tensors, meta = read(path, "model")
    with understood(path):
        model = blank(meta["model"], Path(path).name, model)
        model.load_state_dict(as_state(model, tensors))
        return model.eval(), meta["extra"]


def blank(described: dict[str, Any], name: str, model: nn.Module | None = None) -> nn.Module:
    """Build a quantized model from its description, or turn ``model`` into it; the weights are still to be loaded.

    ``name`` is the name of the file, for error messages.
    """
    if model is None:
        if (spec := described["spec"]) is None:
            raise CheckpointError(f"{name} holds a model of your own: pass model= to load into")
        # Older files leave out the options that had their defaults. Of these defaults, only this one has changed.
        old = {"widths": [16, 32, 32, 32]} if spec["name"] == "digit_net" else {}
        model = models.build(spec["name"], **old | spec["options"])
    return rebuild(model, described, name)


def rebuild(model: nn.Module, described: dict[str, Any], name: str) -> nn.Module:
    """Quantize ``model`` as the described model was, with the stored plan instead of a sample."""
    model = unwrapped(model)
    plan = Plan(**{**described["plan"], "sites": [Site(**site) for site in described["plan"]["sites"]]})
    if missing := {site.name for site in plan.sites} - {name for name, _ in model.named_modules()}:
        raise CheckpointError(f"{name} does not fit this model, which has no {', '.join(sorted(missing))}")
    quantize(model, plan.quantizer, plan=plan)
    if described["norm_sets"]:
        give_norm_sets(model, parse_all(described["norm_sets"]))
    setting_of(model).norm_stats = described["norm_stats"]
    model.to(getattr(torch, described["dtype"]))
    return models.channels_last(model) if described["channels_last"] else model


def is_channels_last(weight: Tensor) -> bool:
    """Whether a weight is stored in channels-last order, and only in that.

    The order is saved because PyTorch chooses its kernels by it, and other kernels round differently.
    """
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return last and not weight.is_contiguous()


def as_state(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make a state dict of the tensors of a file, with the versions of its classes, which some of them ask for."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return state
