"""Start the processes of `mebqat-lite train --devices 2`, and let one of them speak for all."""

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
    """What starts a process for each device, unless torchrun did, and connects them; None for one device.

    Its ``launch()`` does: new processes run this command line again. GPUs if there are any, else the CPU.

    Args:
        devices: on each machine.
        nodes: machines. The command is to be given on each, with ``MASTER_ADDR`` and ``MASTER_PORT`` (of the first)
            and ``NODE_RANK`` (0, 1, ...) in its environment, or by torchrun, which sets them.
        words: what a command was called with, which has to be this process's own command line.
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
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    fabric: Fabric = fabric_class(accelerator=kind, devices=devices, num_nodes=nodes, strategy="ddp")
    return fabric


def _fabric_class() -> Any:
    """``Fabric``, by itself or, as conda-forge has it, a part of ``lightning``."""
    for package in ("lightning_fabric", "lightning.fabric"):
        try:
            found = importlib.import_module(package).Fabric
        except ImportError:
            continue
        logging.getLogger(package).setLevel(logging.WARNING)  # not how processes find one another
        return found
    raise RuntimeError('--devices needs Lightning Fabric: pip install "mebqat_lite[fabric]"')


def as_one(fabric: Fabric | None, work: Callable[[], int]) -> int:
    """Run a command's work in each process. An error of the input or of the training, which all have, is reported by
    the first alone; any other, as a `parallel.ProcessError`, by the process that has it.
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
            dist.destroy_process_group()  # its threads must not outlive Python
