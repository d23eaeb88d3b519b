"""Checkpoints: one safetensors file with its JSON in the metadata, written atomically, never unpickled."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mebqat_lite import models
from mebqat_lite.bits import parse_all
from mebqat_lite.convert import quantize
from mebqat_lite.norms import give_norm_sets
from mebqat_lite.quantizers import Site
from mebqat_lite.state import Plan, norm_layers, plan_of, setting_of
from mebqat_lite.tensors import place

FORMAT = "mebqat_lite"
VERSION = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint of this package, or not a whole one."""


def write(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write tensors and JSON to one file; a reader sees the old file or the new one, never a part."""
    path = Path(path)
    versions = {"torch": torch.__version__, "mebqat_lite": importlib.metadata.version("mebqat_lite")}
    meta = {"format": FORMAT, "version": VERSION, "versions": versions, **meta}
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace(path, save(flat, metadata={FORMAT: json.dumps(meta)}))
    return path


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def replace(path: Path, content: bytes) -> None:
    """Atomically put ``content`` at ``path``: a file beside it, flushed to disk, then renamed."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def read(path: str | Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the JSON of a checkpoint of one of ``kinds`` (``model``, ``training``, ``packed``).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, foreign, of a newer version or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path.name} in {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        hint = ": ONNX Runtime runs ONNX files, see onnx_run" if path.suffix == ".onnx" else f" ({error})"
        raise CheckpointError(f"{path.name} is damaged or no safetensors file{hint}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} was not written by mebqat_lite; load it as a float state dict")
    if not {"version", "kind"} <= set(meta):
        raise CheckpointError(f"{path.name} lacks its version or kind: it is damaged")
    if meta["version"] > VERSION:
        raise CheckpointError(
            f"{path.name} has format version {meta['version']}, this package reads up to {VERSION}: update it"
        )
    if meta["kind"] not in kinds:
        raise CheckpointError(f"{path.name} is a {meta['kind']} checkpoint, not a {kinds[0]} one")
    return tensors, meta


def describe(model: nn.Module) -> dict[str, Any]:
    """What is needed to build an equal, quantized model again, as JSON."""
    norms = list(norm_layers(model).values())
    return {
        "spec": getattr(model, "spec", None),
        "plan": asdict(plan_of(model)),
        "norm_sets": list(norms[0].sets) if norms else [],
        "norm_stats": setting_of(model).norm_stats,
        "dtype": str(place(model)[1]).removeprefix("torch."),
        "channels_last": any(is_channels_last(p) for p in model.parameters()),
    }


def save_model(model: nn.Module, path: str | Path, **extra: Any) -> Path:
    """Save a quantized model. What is in ``extra`` (JSON) comes back as ``meta["extra"]``."""
    if (quantizer := setting_of(model).quantizer) is not None and quantizer.predicts_only:
        raise ValueError("a packed network has no float weights to save: keep its file, or save_packed")
    meta = {"kind": "model", "model": describe(model), "extra": extra}
    return write(path, model.state_dict(), meta)


def load_model(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model, in evaluation mode, and its ``extra``.

    Args:
        path: a file of `save_model`.
        model: an instance of the architecture, needed only where it is not one of this package's.
    """
    tensors, meta = read(path, "model")
    model = blank(meta["model"], Path(path).name, model)
    load_tensors(model, tensors, Path(path).name)
    return model.eval(), meta["extra"]


def blank(described: dict[str, Any], name: str, model: nn.Module | None = None) -> nn.Module:
    """A quantized model as the described one, in ``model`` if it is given, before the tensors of the file ``name``."""
    if model is None:
        if described["spec"] is None:
            raise CheckpointError(f"{name} holds a model of your own: pass model= to load into")
        model = models.build(described["spec"]["name"], **described["spec"]["options"])
    return rebuild(model, described, name)


def rebuild(model: nn.Module, described: dict[str, Any], name: str) -> nn.Module:
    """Quantize ``model`` as the described one was, without a sample."""
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
    """Whether a weight is laid out channels-last: kernels, and so the last digit, depend on it."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return last and not weight.is_contiguous()


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Copy a checkpoint's tensors into a model; one that does not fit is a CheckpointError."""
    try:
        with torch.no_grad():
            model.load_state_dict(tensors)
    except RuntimeError as error:
        raise misfit(name, error) from error


def misfit(name: str, error: RuntimeError) -> CheckpointError:
    """What to say of a file whose tensors `load_state_dict` refused."""
    first, *more = str(error).splitlines()[1:] or [str(error)]
    others = f" (and {len(more)} more)" if more else ""
    return CheckpointError(f"{name} does not fit this model: {first.strip()}{others}")
