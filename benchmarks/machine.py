"""What the numbers belong to."""

from __future__ import annotations

import os
import platform

import torch


def machine() -> str:
    """Versions, threads, cores and kind of processor, in a line."""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"torch {torch.__version__}, {threads} threads, {cores} cores, {platform.machine()}"
