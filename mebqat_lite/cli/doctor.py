"""Is this machine ready for the lessons? A line for each thing they need, with the cure where it is missing.

A check is a function that returns what it found, or raises; ``checks`` turns both into a ``Check``. Heavy
libraries are imported inside the checks, because a broken one is what this module has to report.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mebqat_lite import paths
from mebqat_lite.cli.shared import Commands

GIGABYTE = 1e9
OLDEST_PYTHON = (3, 11)
WIDGET_MANAGER = Path("@jupyter-widgets", "jupyterlab-manager")  # draws ipywidgets in JupyterLab


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``detail`` is what was found, ``cure`` what to do (empty when ``ok``)."""

    name: str
    ok: bool
    detail: str
    cure: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"[OK] {self.name}: {self.detail}"
        return f"[FAIL] {self.name}: {self.detail} -> {self.cure}"


class Problem(Exception):
    """Something a check looked for and did not find; its text says what."""


def add_doctor(commands: Commands) -> None:
    """Define ``mebqat-lite doctor``, which has no options."""
    command = commands.add_parser("doctor", help="check this installation, with a cure for what fails")
    command.set_defaults(run=lambda arguments: main())


def main() -> int:
    """Print a line for each check; 1 if one failed, else 0."""
    outcomes = checks()
    for check in outcomes:
        print(check)
    return 0 if all(check.ok for check in outcomes) else 1


def checks() -> list[Check]:
    """Run every check. None raises: an error, expected or not, is a failed check with the error's text."""
    return [attempt(name, look, cure) for name, look, cure in CHECKS]


def attempt(name: str, look: Callable[[], str], cure: str) -> Check:
    """Call ``look``, which returns what it found or raises, and describe the outcome."""
    try:
        return Check(name, True, tidy(look()))
    except Problem as problem:
        return Check(name, False, tidy(str(problem)), cure)
    except Exception as error:
        return Check(name, False, tidy(f"{type(error).__name__}: {error}"), cure)


def tidy(text: str) -> str:
    """``text`` on one line, this machine's folders in it shortened as ``shown`` does."""
    text = " ".join(text.split())
    try:
        folders = [Path.cwd(), paths.PACKAGE.parent, Path.home()]
        known = {f"{folder}{os.sep}": shown(folder) for folder in folders if folder != Path(folder.anchor)}
    except (OSError, RuntimeError):  # the current folder is gone, or there is no home
        return text
    for folder, short in known.items():
        text = text.replace(folder, f"{short}/")
    return text


def shown(path: Path) -> str:
    """A path to print: from the current folder if it lies below, or both in the checkout; else from ``~``."""
    path, here, root = path.absolute(), Path.cwd(), paths.checkout()
    base = root if root is not None and here.is_relative_to(root) else here
    if path.is_relative_to(base):
        return Path(os.path.relpath(path)).as_posix()
    if path.is_relative_to(Path.home()):
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    return str(path)


# ---------------------------------------------------------------- the checks


def python_version() -> str:
    """Python is recent enough."""
    if sys.version_info < OLDEST_PYTHON:
        raise Problem(f"{platform.python_version()} is too old")
    return platform.python_version()


def torch_pair() -> str:
    """PyTorch and torchvision are builds of one release: only then are torchvision's operators registered."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(2, 1)  # (2, 4): one box twice, as x1 y1 x2 y2
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    if kept.tolist() != [0]:
        raise Problem(f"torchvision.ops.nms kept {kept.tolist()} of two equal boxes, not [0]")
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def device() -> str:
    """The best device here can compute: a GPU too old for this PyTorch is listed, and fails when used."""
    import torch

    name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    total = float(torch.ones(3, device=name).sum())
    if total != 3:
        raise Problem(f"1 + 1 + 1 is {total} on {name}")
    return f"{name}, CPU threads {torch.get_num_threads()}"


def jupyterlab() -> str:
    """JupyterLab, the widgets, and the extension that draws them in JupyterLab's page."""
    versions = [f"{name} {_installed(name)}" for name in ("jupyterlab", "ipywidgets", "jupyterlab_widgets")]
    if not any((folder / WIDGET_MANAGER).is_dir() for folder in _labextensions()):
        raise Problem("JupyterLab's extension folder for widgets is missing: widgets would stay blank")
    return ", ".join(versions)


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise Problem(f"{package} is not installed") from None


def _labextensions() -> list[Path]:
    """Where JupyterLab looks for extensions: this environment's folder, then the user's and the system's."""
    from jupyter_core.paths import jupyter_path

    return [Path(sys.prefix, "share", "jupyter", "labextensions"), *map(Path, jupyter_path("labextensions"))]


def digits() -> str:
    """scikit-learn's handwritten digits load: the data of the first lessons, no download needed."""
    from sklearn.datasets import load_digits

    images = load_digits().images  # (images, height, width)
    if images.shape != (1797, 8, 8):
        raise Problem(f"the digits have the shape {images.shape}, not (1797, 8, 8)")
    return "1797 images of 8 x 8"


def data_folder() -> str:
    """What the package ships is there, and the folder for downloads can be written."""
    if not paths.shipped("README.md").is_file():
        raise Problem(f"the shipped folder {shown(paths.shipped())} is missing or empty")
    checkpoints = len(list(paths.shipped("checkpoints").glob("*.safetensors")))
    _try_writing(paths.downloads())
    where = f"shipped files in {shown(paths.shipped())}, downloads to {shown(paths.downloads())}"
    return f"{where}, checkpoints: {checkpoints}"


def disk() -> str:
    """Room for a data set and for the results of a few runs."""
    for folder in (paths.downloads(), paths.results()):
        free = shutil.disk_usage(_existing(folder)).free
        if free < GIGABYTE:
            raise Problem(f"{free / GIGABYTE:.1f} GB free for {shown(folder)}")
    return "at least 1 GB free for downloads and results"


def _try_writing(folder: Path) -> None:
    """Make a temporary file in ``folder``, or where it would be made, and leave nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        raise Problem(f"{shown(folder)} cannot be written ({error.strerror})") from None


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


LAB = 'pip install "mebqat_lite[lab]"'
CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("Python", python_version, "install Python 3.11 or newer"),
    ("PyTorch", torch_pair, "pip install --upgrade torch torchvision (both at once)"),
    ("device", device, "to compute on the CPU, set CUDA_VISIBLE_DEVICES to -1"),
    ("JupyterLab", jupyterlab, LAB),
    ("digits", digits, "pip install --upgrade scikit-learn"),
    ("data", data_folder, "reinstall mebqat_lite, or set MEBQAT_DATA to a folder that you can write"),
    ("disk", disk, "free 1 GB, or set MEBQAT_DATA to a folder on a larger disk"),
)
