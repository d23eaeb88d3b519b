"""Write and read files: tensors with JSON in one safetensors file, or JSON alone; atomically, and without pickle."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mebqat_lite.version import __version__

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None  # Windows has none
FORMAT = "mebqat_lite"
VERSION = 2  # files of version 1 have no checksum
SEAL = ', "sha2-256": "'  # begins the last entry of the JSON: the checksum of the JSON before it and of the tensors


class CheckpointError(ValueError):
    """A file is not a checkpoint of this package, is damaged, or does not fit."""


def write(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write tensors, and ``meta`` as JSON, to one file.

    The write is atomic: another process sees the whole old file or the whole new one. A checksum over the tensors
    (names, types, shapes and bytes) and over the JSON is written with them, and `read` compares it. ``meta["kind"]``
    says what the file is; files of other kinds are not replaced, see `check_output`.
    """
    path = Path(path)
    versions = {"torch": torch.__version__, "mebqat_lite": __version__}
    meta = {"format": FORMAT, "version": VERSION, "versions": versions, **meta}
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    sealed = f'{text[:-1]}{SEAL}{_seal(text, flat)}"}}'
    replace(path, save(flat, metadata={FORMAT: sealed}), meta["kind"])
    return path


def checksum(tensors: Iterable[Tensor], before: str = "") -> str:
    """Compute the SHA-256 checksum of a text and the bytes of several tensors, as a hexadecimal string."""
    digest = hashlib.sha256(before.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the checksum of a file: of its JSON, and of the names, types, shapes and bytes of its tensors."""
    listed = sorted(tensors.items())
    return checksum([t for _, t in listed], text + "".join(f"\n{name} {t.dtype} {[*t.shape]}" for name, t in listed))


def replace(path: Path, content: bytes, kind: str = "") -> None:
    """Write ``content`` to ``path`` atomically: write a temporary file beside it, flush it to disk, and rename it.

    ``kind`` is that of a checkpoint; names that `check_output` refuses are refused here.
    """
    check_output(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
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


def check_output(path: str | Path, kind: str = "") -> None:
    """Refuse a name that `replace` would refuse, so that no work is spent on what cannot be written.

    Only regular files are replaced, and a checkpoint of this package only by one of its own kind.

    Args:
        path: the file to be written.
        kind: the kind of checkpoint to be written, such as ``model``; empty for any other file.

    Raises:
        FileExistsError: there is a link, a folder, a device, or a checkpoint of another kind.
    """
    path = Path(path)
    if path.is_symlink():
        there = f"a link to {path.readlink()}"
    elif path.exists() and not path.is_file():
        there = "a folder" if path.is_dir() else "a device, a pipe or a socket"
    elif (found := _kind(path)) not in ("", kind):
        there = f"a {found} checkpoint"
    else:
        return
    raise FileExistsError(f"{path} is {there}, which is not overwritten: give the name of another file")


def _kind(path: Path) -> str:
    """The kind of the checkpoint at ``path``; empty if there is none of this package."""
    no_checkpoint = (SafetensorError, ValueError, OSError, LookupError, TypeError, RecursionError)
    with contextlib.suppress(*no_checkpoint), safe_open(path, framework="pt") as file:
        return str(json.loads(file.metadata()[FORMAT])["kind"])
    return ""


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold a file or a folder that is to be written, so that no other run writes it until the block ends.

    The lock is on a hidden file, ``.NAME.lock`` beside a file or ``.lock`` in a folder, which names the owner and is
    removed at the end. The operating system frees the lock whenever the process ends, so what a killed run leaves
    stops nobody. Nothing is held where the system has no such locks (``flock``): on Windows and on some network drives.

    Raises:
        BlockingIOError: another run holds it; the message names that run.
    """
    if fcntl is None:
        yield
        return
    path = Path(path)
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        if not _take(file.fileno(), lock):
            file.seek(0)
            raise BlockingIOError(
                f"another run writes {path} ({file.read()}): wait until it has ended, or give another name"
            )
        lock.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _take(handle: int, lock: Path) -> bool:
    """Lock an open file; False if another run holds it, or has just ended and removed it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(lock))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # the file system has no locks
        return True


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
    path.open("rb").close()  # the error of a file that may not be read says so
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (``file`` is not a mapping)
        meta = json.loads(text)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        hint = ": ONNX Runtime runs ONNX files, see onnx_run" if path.suffix == ".onnx" else f" ({error})"
        raise CheckpointError(f"{path.name} is damaged or no safetensors file{hint}") from error
    before, seal, found = text.rpartition(SEAL)
    if seal and found != _seal(before + "}", tensors) + '"}':
        raise CheckpointError(f"{path.name} is damaged: its checksum is not that of its content; restore or replace it")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        other = "load it as a float state dict, or replace it if it is damaged"
        raise CheckpointError(f"{path.name} was not written by mebqat_lite; {other}")
    version, kind = meta.get("version"), meta.get("kind")
    if not isinstance(version, int) or kind is None or (version == VERSION and not seal):
        raise CheckpointError(f"{path.name} lacks its version, kind or checksum: it is damaged")
    if version > VERSION:
        raise CheckpointError(
            f"{path.name} has format version {version}, this package reads up to {VERSION}: update it"
        )
    if kind not in kinds:
        raise CheckpointError(f"{path.name} is a {kind} checkpoint, not a {kinds[0]} one")
    if not seal:
        warnings.warn(f"{path.name} has no checksum that would show damage: load it and save it anew", stacklevel=2)
    return tensors, {key: value for key, value in meta.items() if key not in ("format", "version", "sha2-256")}


@contextlib.contextmanager
def understood(path: str | Path) -> Iterator[None]:
    """Make a CheckpointError, which names the file, of every error that unexpected content leads to in the block."""
    name = Path(path).name
    try:
        yield
    except CheckpointError:
        raise
    except RuntimeError as error:  # what `load_state_dict` raises has a line for each tensor
        first, *more = str(error).splitlines()[1:] or [str(error)]
        others = f" (and {len(more)} more)" if more else ""
        raise CheckpointError(f"{name} does not fit this model: {first.strip()}{others}") from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{name} is damaged, or does not fit: {why}") from error


def write_json(path: str | Path, results: Mapping[str, Any], indent: int | None = 1) -> Path:
    """Write ``results`` as JSON, atomically; ``indent=None`` writes a single line.

    NaN, for example the confidence interval of a single value, and infinity become null.
    """
    path = Path(path)
    replace(path, (json.dumps(plain(results), indent=indent) + "\n").encode())
    return path


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: keys as text, tuples as lists, and null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
