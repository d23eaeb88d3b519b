"""Write and read files: tensors with JSON in one safetensors file, or JSON alone; atomically, and without pickle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "mebqat_lite"
VERSION = 1


class CheckpointError(ValueError):
    """A file is not a checkpoint of this package, is damaged, or does not fit."""


def write(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write tensors, and ``meta`` as JSON, to one file.

    The write is atomic: another process sees the whole old file or the whole new one.
    """
    path = Path(path)
    versions = {"torch": torch.__version__, "mebqat_lite": importlib.metadata.version("mebqat_lite")}
    meta = {"format": FORMAT, "version": VERSION, "versions": versions, **meta}
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace(path, save(flat, metadata={FORMAT: json.dumps(meta)}))
    return path


def checksum(tensors: Iterable[Tensor]) -> str:
    """Compute the SHA-256 checksum of the bytes of several tensors, as a hexadecimal string."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def replace(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: write a temporary file beside it, flush it to disk, and rename it."""
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
        CheckpointError: the file is damaged, was written by another program or by a newer version of this package,
            or is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path.name} in {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (``file`` is not a mapping)
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


def write_json(path: str | Path, results: Mapping[str, Any], indent: int | None = 1) -> Path:
    """Write ``results`` as JSON, atomically; ``indent=None`` writes a single line.

    NaN, for example the confidence interval of a single value, and infinity become null.
    """
    path = Path(path)
    replace(path, (json.dumps(_plain(results), indent=indent) + "\n").encode())
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
