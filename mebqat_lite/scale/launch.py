"""Start the processes of ``mebqat-lite train --devices 2``, and report an error that all of them have only once."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mebqat_lite.loop import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_for(devices: int = 1, nodes: int = 1, words: Sequence[str] | None = None) -> Fabric | None:
    """Make the Fabric that runs a process on each device, or return None for a single device.

    Its ``launch()`` starts the other processes, which run this command line again, and connects them. Where torchrun
    has started them already, it only connects them. They use the GPUs if there are any, else the CPU.

    Args:
        devices: how many devices each machine has.
        nodes: how many machines there are. The command must be given on each of them, either by torchrun, or with
            ``MASTER_ADDR`` and ``MASTER_PORT`` (those of the first machine) and ``NODE_RANK`` (0, 1, ...) in its
            environment.
        words: the arguments of the command. They must be those of this process, because new processes repeat its
            command line.

    Raises:
        ValueError: a number is below 1, there are fewer GPUs (or without any, fewer cores) than ``devices``, torchrun
            started several processes for one, or the command line was given as ``words``, which cannot be repeated.
        RuntimeError: Lightning Fabric is not installed.
    """
    if devices < 1 or nodes < 1:
        raise ValueError(f"--devices and --nodes must be at least 1, not {devices} and {nodes}")
    if devices * nodes == 1:
        if "TORCHELASTIC_RUN_ID" in os.environ and (started := os.environ["WORLD_SIZE"]) != "1":
            raise ValueError(f"torchrun started {started} processes: give --devices, and --nodes for several machines")
        return None
    if words is not None and list(words) != sys.argv[1:]:
        raise ValueError("several devices need a command line of its own: mebqat-lite train --devices 2 ...")
    fabric_class = _fabric_class()
    if 0 < torch.cuda.device_count() < devices:
        raise ValueError(f"there are {torch.cuda.device_count()} GPUs, not {devices}: give --devices so many")
    cores = os.cpu_count() or 1
    if not torch.cuda.is_available() and devices > cores:
        raise ValueError(f"this machine has {cores} cores, not {devices}: give --devices at most so many")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    fabric: Fabric = fabric_class(accelerator=kind, devices=devices, num_nodes=nodes, strategy="ddp")
    return fabric


def _fabric_class() -> Any:
    """Import ``Fabric`` from its own package or from ``lightning``, which contains it on conda-forge."""
    for package in ("lightning_fabric", "lightning.fabric"):
        try:
            found = importlib.import_module(package).Fabric
        except ImportError:
            continue
        logging.getLogger(package).setLevel(logging.WARNING)  # hides how the processes find one another
        return found
    raise RuntimeError('--devices needs Lightning Fabric: pip install "mebqat_lite[fabric]"')


def as_one(fabric: Fabric | None, work: Callable[[], int]) -> int:
    """Run the work of a command in each process, and return its exit code.

    Errors of the input or of the training occur in all processes alike, so only the first process raises them. Other
    errors, such as a `parallel.ProcessError`, are raised by the process in which they occur.
    """
    if fabric is None:
        return work()
    try:
        return work()
    except (ValueError, TypeError, OSError, TrainingError):
        if fabric.global_rank == 0:
            raise
        return 0
    except KeyboardInterrupt:
        if fabric.global_rank == 0:
            raise
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # ends its threads, which must not run on when Python exits
