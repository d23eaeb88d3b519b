"""A cache of decoded images, so that image files are read only once.

Each dataset is one safetensors file in the folder ``cache`` of `paths.downloads`, which may be deleted at any time. Its
tensors are ``<part>.images``, (count, channels, height, width), uint8, and ``<part>.labels``, (count,), int64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mebqat_lite import files, paths
from mebqat_lite.datasets.base import Split
from mebqat_lite.files import CheckpointError

KIND = "images"


class Parts(NamedTuple):
    """Splits by name (``train``, perhaps ``val`` and ``test``), and the names of the classes in the order of labels."""

    splits: dict[str, Split]
    classes: tuple[str, ...]


def cached(name: str, key: str, decode: Callable[[], Parts]) -> Parts:
    """Return the images that are cached under ``name`` and ``key``; otherwise call ``decode`` and cache its result.

    If the cache cannot be written, there is only a warning.
    """
    path = paths.downloads() / "cache" / f"{name}-{key}.safetensors"
    try:
        return _load(path)
    except (FileNotFoundError, CheckpointError):  # not there, or damaged
        parts = decode()
    try:
        _save(path, parts)
    except OSError as error:
        warnings.warn(
            f"{path.name} is not kept, {path.parent} cannot be written: {error.strerror or error}", stacklevel=2
        )
    return parts


def _save(path: Path, parts: Parts) -> None:
    tensors = {f"{part}.{name}": t for part, split in parts.splits.items() for name, t in split._asdict().items()}
    files.write(path, tensors, {"kind": KIND, "classes": parts.classes})


def _load(path: Path) -> Parts:
    """Map a cached file into memory; a CheckpointError if it is damaged."""
    tensors, meta = files.read(path, KIND)
    with files.understood(path):
        names = [name.removesuffix(".labels") for name in tensors if name.endswith(".labels")]
        splits = {name: Split(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in names}
        return Parts(splits, tuple(meta["classes"]))
