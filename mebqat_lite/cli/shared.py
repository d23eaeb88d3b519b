"""What the groups of commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from mebqat_lite.recipe import MOST

# What `add_subparsers` returns. argparse has no public name for it, and only mypy can read what is in brackets.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


LEAST = {"seed": 0, "variant": 0, "warm_steps": 0, "retries": 0}  # least values; of all others 1


def check_values(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if a value on the command line is empty, or a whole number that its option does not allow."""
    for name, value in vars(arguments).items():
        option, least = f"--{name.replace('_', '-')}", LEAST.get(name, 1)
        if value == "":
            raise ValueError(f"{option} is empty: give it a value, or leave it out")
        if isinstance(value, int) and not isinstance(value, bool):
            if value < least:
                raise ValueError(f"{option} must be at least {least}, not {value}")
            if value > MOST:
                raise ValueError(f"{option} must be at most {MOST:,}, not {value}")


def print_written(files: Iterable[Path]) -> None:
    """Say which files a command has written."""
    print("Written:", ", ".join(str(file) for file in files))
