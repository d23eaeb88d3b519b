"""What the groups of commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

# What `add_subparsers` returns. argparse has no public name for it, and only mypy can read what is in brackets.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def print_written(files: Iterable[Path]) -> None:
    """Say which files a command has written."""
    print("Written:", ", ".join(str(file) for file in files))
