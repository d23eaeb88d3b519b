"""What the groups of commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

# What `add_subparsers` returns. argparse has no public name for it, and only mypy can read what is in brackets.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


LEAST = {"seed": 0, "variant": 0, "warm_steps": 0, "retries": 0}  # the least value of these options; of others it is 1
MOST = 2**31 - 1


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if a whole number on the command line is smaller or larger than its option allows."""
    for name, value in vars(arguments).items():
        if isinstance(value, int) and not isinstance(value, bool):
            option, least = f"--{name.replace('_', '-')}", LEAST.get(name, 1)
            if value < least:
                raise ValueError(f"{option} must be at least {least}, not {value}")
            if value > MOST:
                raise ValueError(f"{option} must be at most {MOST:,}, not {value}")


def print_written(files: Iterable[Path]) -> None:
    """Say which files a command has written."""
    print("Written:", ", ".join(str(file) for file in files))
