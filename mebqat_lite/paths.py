"""The folders of the package: for files that it ships, for downloads, and for the results of runs.

The functions only return paths. The code that writes a file makes its folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """Find the repository that this package is imported from, or None if it was installed from a wheel."""
    root = PACKAGE.parent
    is_checkout = (root / "pyproject.toml").is_file() and not (PACKAGE / "_data").is_dir()
    return root if is_checkout else None


def shipped(*parts: str) -> Path:
    """The path of a file that comes with the package, as in ``shipped("checkpoints", "digits.safetensors")``.

    The files are in the folder ``data`` of a checkout, and in ``mebqat_lite/_data`` of an installed wheel. The
    function does not check that the file exists.
    """
    root = checkout()
    folder = PACKAGE / "_data" if root is None else root / "data"
    return folder.joinpath(*parts)


def downloads() -> Path:
    """The folder for downloads: ``$MEBQAT_DATA`` if set, else ``data`` in a checkout, else the user's cache folder."""
    if chosen := os.environ.get("MEBQAT_DATA"):
        return Path(chosen).expanduser()
    root = checkout()
    return _user_cache() / "mebqat_lite" if root is None else root / "data"


def results() -> Path:
    """The folder that runs write to: ``results`` in the current working directory."""
    return Path.cwd() / "results"


def _user_cache() -> Path:
    """The platform's usual folder for caches."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
