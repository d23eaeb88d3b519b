"""Describe the machine and the images that measured numbers belong to."""

from __future__ import annotations

import os
import platform

import torch


def machine() -> str:
    """Return a line with the version of PyTorch, its threads, the cores, the kind of processor, and the GPU if any."""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"torch {torch.__version__}, {threads} threads, {cores} cores, {platform.machine()}{gpu}"


def images(data: str) -> str:
    """Say what the images of a training are; ``data`` is a name that `mebqat_lite.datasets.load` takes."""
    if data.startswith("folder:"):
        return "a JPEG copy, which must not stand beside published figures"
    return "the binary CIFAR-10" if data == "cifar10" else data
