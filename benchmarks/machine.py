"""Describe the machine that measured numbers belong to."""

from __future__ import annotations

import os
import platform

import torch


def machine() -> str:
    """Return a line with the version of PyTorch, its threads, the cores and the kind of processor."""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"torch {torch.__version__}, {threads} threads, {cores} cores, {platform.machine()}"
