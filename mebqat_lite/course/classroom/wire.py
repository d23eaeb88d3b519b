"""Values as bytes between the two processes, without pickle: JSON, and safetensors for the tensors in it."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

SPECIAL = {"Ellipsis": ..., "NotImplemented": NotImplemented}
LIMIT = 64 * 2**20  # bytes of a message


class WireError(ValueError):
    """Bytes that are no message, or a message that is too large."""


def foreign(name: str) -> Any:
    """Stands for a value of a type that does not travel; ``type(value).__name__`` is the name of that type."""
    return type(name, (), {"__repr__": lambda self: f"<{name}>"})()


def encode(value: Any) -> bytes:
    """A message from numbers, text, None, lists, tuples, dictionaries with text keys, and tensors, in any nesting.

    A NumPy array of numbers arrives as a tensor.
    """
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_plain(value, tensors)).encode()
    except RecursionError:
        raise WireError("a value that holds itself, or is nested too deeply") from None
    blob = save({name: t.detach().contiguous() for name, t in tensors.items()}) if tensors else b""
    message = struct.pack(">I", len(text)) + text + blob
    if len(message) > LIMIT:
        raise WireError(f"a value of {len(message) >> 20} MiB is too large")
    return message


def decode(message: bytes) -> Any:
    """The value of a message; tuples stay tuples."""
    try:
        (size,) = struct.unpack(">I", message[:4])
        tensors = load(message[4 + size :]) if len(message) > 4 + size else {}
        return _value(json.loads(message[4 : 4 + size]), tensors)
    except Exception as error:  # whoever wrote the bytes may have meant to stop us, in whatever way
        raise WireError(f"no message: {type(error).__name__}: {_printable(str(error))}") from None


def _printable(text: str) -> str:
    """Text that can be written to a file: halves of surrogate pairs cannot."""
    return text.encode(errors="replace").decode()


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON that stands for a value; tensors are put aside."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, np.integer, np.floating)):
        number = value.item() if isinstance(value, np.generic) else value
        if isinstance(number, int) and abs(number) >= 2**1000:  # neither a float nor, beyond some digits, JSON
            raise WireError("a number that is too large")
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, Tensor) and value.is_meta:
        raise WireError("a tensor without values, on the device meta")
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex():
        name = str(len(tensors))
        tensors[name] = value.cpu().clone()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__ if type(value) is tuple else "list": [_plain(item, tensors) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, _plain(item, tensors)] for key, item in value.items()]}
    special = [name for name, known in SPECIAL.items() if value is known]
    return {"special": special[0]} if special else {"foreign": type(value).__name__}


def _value(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plain, str):
        return _printable(plain)
    if not isinstance(plain, dict):
        return plain
    [(kind, content)] = plain.items()
    if kind in ("list", "tuple"):
        items = [_value(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {_printable(key): _value(item, tensors) for key, item in content}
    if kind == "tensor":
        return tensors[content]
    if kind == "special":
        return SPECIAL[content]
    return float(content) if kind == "float" else foreign(_printable(content))


def framed(value: Any) -> bytes:
    """A message with its length before it."""
    message = encode(value)
    return struct.pack(">Q", len(message)) + message


def send(stream: BinaryIO, value: Any) -> None:
    """Write a message with its length before it."""
    stream.write(framed(value))
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read a message; EOFError at the end of the stream."""
    (size,) = struct.unpack(">Q", _exactly(stream, 8))
    if size > LIMIT:
        raise WireError(f"a message of {size} bytes")
    return decode(_exactly(stream, size))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError("the other process is gone")
    return found
