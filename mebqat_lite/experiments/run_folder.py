"""Write what a training run leaves in its folder: how it was called, on what machine, each step, and what it cost.

The files are ``recipe.json``, ``environment.json``, ``metrics.jsonl`` and ``result.json``, and TensorBoard's events if
TensorBoard is installed. However often a run is stopped and continued, ``metrics.jsonl`` has each step once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from mebqat_lite import paths
from mebqat_lite.files import replace, write_json
from mebqat_lite.loop import Run
from mebqat_lite.tensors import best_device
from mebqat_lite.version import __version__

RECORD = {"step": int, "loss": float, "lr": (int, float)}  # what a step's record needs to have, and of which type
SESSION = {"first_step": int}
PACKAGES = ("torch", "torchvision", "numpy")


class RunFolder:
    """The folder of one run; `log` is what `fit` calls.

    Nothing is written before the first step of a session, so that a run that is refused leaves no trace.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], tensorboard: bool | None = None) -> None:
        """``tensorboard``: None writes events if TensorBoard is installed; True raises an error if it is not."""
        self.folder, self.recipe = folder, recipe
        self.writer = None if tensorboard is False else summary_writer(insist=tensorboard is True)
        self.file: TextIO | None = None
        self.board: Any = None

    def log(self, record: dict[str, Any]) -> None:
        """Append the record of a step; the operating system has it when this returns."""
        if self.file is None:
            self.file = self._begin(record["step"])
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self._draw(record)

    def _begin(self, step: int) -> TextIO:
        """Start a session whose first step is ``step``, and drop what earlier sessions wrote from that step on."""
        metrics = self.folder / "metrics.jsonl"
        kept = [record for record in read_metrics(metrics) if record["step"] < step]
        sessions = [s for s in read_sessions(self.folder / "environment.json") if s["first_step"] < step]
        (self.folder / "result.json").unlink(missing_ok=True)
        write_json(self.folder / "recipe.json", self.recipe)
        now = {"first_step": step, **environment()}
        write_json(self.folder / "environment.json", {**now, "sessions_before": sessions})
        replace(metrics, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._open_board(kept)
        return metrics.open("a", encoding="utf-8")

    def _open_board(self, kept: list[dict[str, Any]]) -> None:
        """Write TensorBoard's events anew, because a killed session may have left too many or too few of them."""
        for events in self.folder.glob("events.out.tfevents.*"):
            events.unlink()
        if self.writer is not None:
            self.board = self.writer(log_dir=str(self.folder))
        for record in kept:
            self._draw(record)

    def _draw(self, record: dict[str, Any]) -> None:
        if self.board is not None:
            for name in ("loss", "lr"):
                self.board.add_scalar(name, record[name], record["step"])

    def finish(self, run: Run) -> Path:
        """Write ``result.json``, which says what the whole run cost."""
        result = {"method": run.method, "costs": asdict(run.costs), "seconds": run.seconds, "loss": run.losses[-1]}
        return write_json(self.folder / "result.json", {**result, "recipe": asdict(run.recipe)})

    def close(self) -> None:
        """Close the files."""
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of ``metrics.jsonl``, without a last line that was cut off; no file means no records.

    Raises:
        ValueError: another line is no record of a step.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [
        _checked(f"{path} is damaged, line {number} is no record of a step", line, RECORD)
        for number, line in enumerate(lines, 1)
        if line.endswith(b"\n")
    ]


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """Read the sessions of a run from ``environment.json``, in their order."""
    if not path.is_file():
        return []
    last = _checked(f"{path} is damaged", path.read_bytes(), SESSION | {"sessions_before": list})
    before = last.pop("sessions_before")
    return [*(_checked(f"{path} is damaged", json.dumps(session), SESSION) for session in before), last]


def _checked(problem: str, text: str | bytes, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON object that has at least the ``wanted`` names, with values of these types."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in wanted.items()):
            return found
    raise ValueError(f"{problem}: delete the file, or give another --out")


def summary_writer(insist: bool = False) -> Any:
    """Return TensorBoard's writer class; if TensorBoard is missing, return None, or ``insist`` and raise an error."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if insist:
            raise RuntimeError(f'--tensorboard needs TensorBoard: pip install "mebqat_lite[logs]" ({error})') from error
        return None
    return SummaryWriter


def environment() -> dict[str, Any]:
    """Describe what the last digits of a run depend on besides its recipe: versions, machine, threads and commit."""
    device = best_device()
    return {
        "python": platform.python_version(),
        "mebqat_lite": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "git": revision(paths.checkout()),
    }


def revision(root: Path | None) -> dict[str, Any] | None:
    """Return the commit of a checkout and whether files differ from it; None without a checkout, git or a commit."""
    if root is None or (found := _git(root, "rev-parse", "--show-toplevel", "HEAD")) is None:
        return None
    top, commit = found.splitlines()
    if Path(top).resolve() != root.resolve():  # an unpacked copy that lies in another repository
        return None
    changes = _git(root, "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    """Return what a git command prints, or None if it fails."""
    command = ["git", "-C", str(root), "--no-optional-locks", *words]  # no lock, because others may be working there
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
