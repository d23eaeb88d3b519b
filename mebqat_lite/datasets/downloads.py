"""CIFAR-10 and SVHN, which are downloaded once, checked, and kept as bytes."""

from __future__ import annotations

import os
import tarfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from mebqat_lite import paths
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.datasets.cache import Parts, cached
from mebqat_lite.datasets.splits import complete

VALIDATION = 5000  # validation images, taken from the training set
PARTIAL = 206  # the HTTP status "partial content": the server continues where it was asked to
TIMEOUT = 15.0  # seconds to wait for the server
INSTEAD = 'take the digits, which need no download: data="digits"'


class Remote(NamedTuple):
    """A file to download, with its address, name and MD5 checksum."""

    url: str
    name: str
    md5: str


# The archive with plain bytes. The usual one for Python would have to be unpickled, which can run foreign code.
CIFAR10 = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)


def cifar10(seed: int = 0) -> Data:
    """Load CIFAR-10 (Krizhevsky, 2009): 45,000 training, 5,000 validation and 10,000 test images of 10 classes.

    Images are uint8, (count, 3, 32, 32). ``seed`` chooses the validation images, stratified, from the training set. The
    first call downloads 170 MB into `paths.downloads`; later calls read the decoded images from the cache.

    Raises:
        DataError: the file is not there and cannot be downloaded; the message says where to put it.
    """
    parts = cached("cifar10", CIFAR10.md5[:16], _read_cifar10)
    return complete("cifar10", parts.splits, parts.classes, seed, VALIDATION)


def _read_cifar10() -> Parts:
    (archive,) = fetch("cifar10", [CIFAR10])
    with tarfile.open(archive) as tar:
        content = {Path(member.name).name: file.read() for member in tar if (file := tar.extractfile(member))}
    train = b"".join(content[f"data_batch_{number}.bin"] for number in range(1, 6))
    splits = {"train": _records(train), "test": _records(content["test_batch.bin"])}
    return Parts(splits, tuple(content["batches.meta.txt"].decode().split()))


def _records(content: bytes) -> Split:
    """Read records of one byte for the label and 3 x 32 x 32 bytes for the pixels: (channels, height, width)."""
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32).copy())
    images = records[:, 1:].reshape(-1, 3, 32, 32)  # (count, 3072) -> (count, channels, height, width)
    return Split(images, records[:, 0].long())


def svhn(seed: int = 0, size: int = 40) -> Data:
    """Load the cropped digits of SVHN (Netzer et al., 2011): 68,257 training, 5,000 validation, 26,032 test images.

    Images are uint8, (count, 3, size, size). The *extra* set of SVHN is not used. The first call downloads 246 MB; the
    cached images take 477 MB.

    Args:
        seed: chooses the validation images, stratified, from the training set.
        size: height and width in pixels. The originals have 32 and are resized to the 40 that CNN-8 expects, bilinear
            with the same result as torchvision's ``Resize(40)``.

    Raises:
        DataError: a file is not there and cannot be downloaded; the message says where to put it.
    """
    first, second = _svhn_files()
    parts = cached(f"svhn{size}", first.md5[:8] + second.md5[:8], lambda: _read_svhn(size))
    return complete("svhn", parts.splits, parts.classes, seed, VALIDATION)


def _svhn_files() -> list[Remote]:
    from torchvision.datasets import SVHN

    return [Remote(*SVHN.split_list[part]) for part in ("train", "test")]


def _read_svhn(size: int) -> Parts:
    from torchvision.datasets import SVHN

    place = fetch("svhn", _svhn_files())[0].parent
    splits = {}
    for part in ("train", "test"):
        whole = SVHN(place, part)  # (count, 3, 32, 32)
        splits[part] = Split(resize(torch.from_numpy(whole.data), size), torch.from_numpy(whole.labels))
    return Parts(splits, tuple("0123456789"))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images, (count, channels, height, width), to (count, channels, size, size), with Pillow's result."""
    images = images.contiguous()
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def fetch(dataset: str, files: Sequence[Remote], instead: str = INSTEAD) -> list[Path]:
    """Download ``files`` into the folder for downloads, unless they are there, and return their paths.

    A file gets its name only when it is complete and its checksum is right; an interrupted download is continued.

    Raises:
        DataError: a file cannot be downloaded; the message says where to put it, and what to do ``instead``.
    """
    from torchvision.datasets.utils import check_integrity

    place = paths.downloads()
    missing = [file for file in files if not check_integrity(place / file.name, file.md5)]
    try:
        for file in missing:
            _download(file, place)
    except (OSError, HTTPException, RuntimeError) as error:
        raise DataError(_not_there(dataset, missing, place, error, instead)) from None
    return [place / file.name for file in files]


def _download(file: Remote, place: Path) -> None:
    """Download a file as ``NAME.part``, check it, and rename it; a later call continues an unfinished part."""
    from torchvision.datasets.utils import check_integrity

    place.mkdir(parents=True, exist_ok=True)
    part = place / f"{file.name}.part"
    if not check_integrity(part, file.md5):  # the last call may have stopped just before the rename
        _receive(file.url, part)
        if not check_integrity(part, file.md5):
            part.unlink()
            raise RuntimeError(f"the checksum of what {file.url} sent differs")
    os.replace(part, place / file.name)


def _receive(url: str, part: Path) -> None:
    """Download the missing rest of ``part``, or all of it if the server cannot continue a download."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        start = start if answer.status == PARTIAL else 0
        total = start + (answer.length or 0)
        bar = tqdm(desc=part.stem, total=total or None, initial=start, unit="B", unit_scale=True, leave=False)
        with part.open("ab" if start else "wb") as out, bar:
            while chunk := answer.read(2**16):
                out.write(chunk)
                bar.update(len(chunk))
    if (size := part.stat().st_size) < total:
        raise ConnectionError(f"it broke off at {size:,} of {total:,} bytes; another try continues there")


def _not_there(dataset: str, files: Sequence[Remote], place: Path, error: Exception, instead: str) -> str:
    there = [file.name for file in files if (place / file.name).exists()]
    damaged = f" ({', '.join(there)} there is not whole: its checksum differs)" if there else ""
    sources = ", ".join(f"{file.name} (from {file.url})" for file in files)
    return (
        f"{dataset} cannot be downloaded ({getattr(error, 'reason', error)}). Put {sources} into the folder {place}"
        f"{damaged} and try again, or {instead}"
    )
