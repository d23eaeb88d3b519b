"""Where files lie: what the package ships, what it downloads, what a run writes.

No function here makes a folder; whoever writes into one does (``path.mkdir(parents=True, exist_ok=True)``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The repository this package is imported from, or None when it was installed from a wheel."""
    root = PACKAGE.parent
    is_checkout = (root / "pyproject.toml").is_file() and not (PACKAGE / "_data").is_dir()
    return root if is_checkout else None


def shipped(*parts: str) -> Path:
    """A file or folder that comes with the package, as in ``shipped("checkpoints", "digits.safetensors")``.

    A wheel carries the checkout's folder ``data`` as ``mebqat_lite/_data``. The file need not exist.
    """
    root = checkout()
    folder = PACKAGE / "_data" if root is None else root / "data"
    return folder.joinpath(*parts)


def downloads() -> Path:
    """Where downloads go: ``$MEBQAT_DATA``, else ``data`` in a checkout, else the user's cache folder."""
    if chosen := os.environ.get("MEBQAT_DATA"):
        return Path(chosen).expanduser()
    root = checkout()
    return _user_cache() / "mebqat_lite" if root is None else root / "data"


def results() -> Path:
    """Where runs write: the folder ``results`` in the current working directory."""
    return Path.cwd() / "results"


def _user_cache() -> Path:
    """The folder for caches that this platform's conventions name."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
