"""What the groups of commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from mebqat_lite.recipe import MOST

# What `add_subparsers` returns. argparse has no public name for it, and only mypy can read what is in brackets.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


LEAST = {"seed": 0, "variant": 0, "warm_steps": 0, "retries": 0}  # least values; of all others 1

OUTPUTS = {"folder": "--out", "out": "--out", "ship": "--ship", "json": "--json", "save": "--save"}


def check_values(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if a value on the command line is empty, or a number or a path that its option cannot take."""
    for name, value in vars(arguments).items():
        option, least = f"--{name.replace('_', '-')}", LEAST.get(name, 1)
        if value == "":
            raise ValueError(f"{option} is empty: give it a value, or leave it out")
        if isinstance(value, int) and not isinstance(value, bool):
            if value < least:
                raise ValueError(f"{option} must be at least {least}, not {value}")
            if value > MOST:
                raise ValueError(f"{option} must be at most {MOST:,}, not {value}")
    _check_outputs({name: path for name in OUTPUTS if (path := getattr(arguments, name, None)) is not None})


def _check_outputs(paths: dict[str, Path]) -> None:
    """Raise a ValueError if two outputs are one, or if a file is where a folder is needed."""
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ValueError(f"{' and '.join(OUTPUTS[name] for name in paths)} are the same: give different names")
    for name, path in paths.items():
        if (path.parent / "metrics.jsonl").is_file():
            raise ValueError(f"{OUTPUTS[name]} {path} is in the folder of a run: give a name outside of it")
        folders = [path, *path.parents] if name in ("folder", "ship") else path.parents
        if wrong := [str(place) for place in folders if place.exists() and not place.is_dir()]:
            raise ValueError(f"{OUTPUTS[name]} {path}: {wrong[0]} is a file, and a folder is needed there")


def layer_map(text: str) -> dict[str, str]:
    """Read a map of layers to pairs: ``*=W8A8,body.0.0=W2A2``, or the name of a file that ``allocate`` wrote.

    Raises:
        ValueError: it is neither, or names a layer twice.
    """
    if (path := Path(text)).is_file():
        return _stored_map(path)
    parts = [part.split("=") for part in text.split(",")]
    if not all(len(part) == 2 for part in parts):
        raise ValueError(f"--layers takes LAYER=PAIR,LAYER=PAIR (* for the rest), or a file of allocate, not {text!r}")
    layers = {part[0]: part[1] for part in parts}
    if len(layers) < len(parts):
        raise ValueError(f"--layers takes each layer once (* for the rest), not {text!r}")
    return layers


def _stored_map(path: Path) -> dict[str, str]:
    """Read a map from a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # also of bytes that are no text
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(pair, str) for pair in found.values()):
        raise ValueError(f"--layers {path}: this file holds no map of layers to pairs; mebqat-lite allocate writes one")
    return found


def print_written(files: Iterable[Path]) -> None:
    """Say which files a command has written."""
    print("Written:", ", ".join(str(file) for file in files))
