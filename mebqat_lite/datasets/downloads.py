"""CIFAR-10 and SVHN: downloaded once, checked, and kept as bytes."""

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

VALIDATION = 5000  # images, of the training set
PARTIAL = 206  # the HTTP status of an answer that begins where it was asked to
TIMEOUT = 15.0  # seconds without an answer until a download is given up
INSTEAD = 'take the digits, which need no download: data="digits"'


class Remote(NamedTuple):
    """A file to download: address, name, MD5 checksum."""

    url: str
    name: str
    md5: str


# The binary form: labels and pixels as plain bytes. (The usual Python form would have to be unpickled.)
CIFAR10 = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)


def cifar10(seed: int = 0) -> Data:
    """CIFAR-10 (Krizhevsky 2009): 45,000 / 5,000 / 10,000 images of 10 classes, uint8, (count, 3, 32, 32).

    ``seed`` chooses the validation images, stratified, from the training set; the test set is the authors'. The first
    call downloads 170 MB into `paths.downloads`; afterwards the file kept by `cache.cached` is enough.

    Raises:
        DataError: the file is not there and cannot be downloaded; says which file to put where.
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
    """Records of a label and 3 x 32 x 32 pixels, a byte each: red, green, blue; rows from the top."""
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32).copy())
    images = records[:, 1:].reshape(-1, 3, 32, 32)  # (count, 3072) -> (count, channels, height, width)
    return Split(images, records[:, 0].long())


def svhn(seed: int = 0, size: int = 40) -> Data:
    """SVHN (Netzer et al. 2011), the cropped digits: 68,257 / 5,000 / 26,032 images, uint8, (count, 3, size, size).

    ``seed`` chooses the validation images, stratified, from the training set; the test set is the authors', their
    *extra* set is not used. The first call downloads 246 MB; what is kept takes 477 MB.

    Args:
        seed: chooses the validation images.
        size: height and width. The originals' 32 are resized to the 40 that CNN-8 expects: bilinear, as Pillow and so
            torchvision's ``Resize(40)`` do.

    Raises:
        DataError: a file is not there and cannot be downloaded; says which files to put where.
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
        whole = SVHN(place, part)  # the class of a digit is the digit; (count, 3, 32, 32)
        splits[part] = Split(resize(torch.from_numpy(whole.data), size), torch.from_numpy(whole.labels))
    return Parts(splits, tuple("0123456789"))


def resize(images: Tensor, size: int) -> Tensor:
    """Bytes, (count, channels, height, width), as (count, channels, size, size): bilinear, the bytes Pillow makes."""
    images = images.contiguous()
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def fetch(dataset: str, files: Sequence[Remote], instead: str = INSTEAD) -> list[Path]:
    """The files in the folder for downloads, downloaded unless they are there with their checksum.

    A file comes into the folder under its name when it is whole; a download that broke off is continued. Where it
    fails, the message says which files to put where, and what to do ``instead``.
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
    """Download into ``NAME.part``, which a later call continues; check, then rename."""
    from torchvision.datasets.utils import check_integrity

    place.mkdir(parents=True, exist_ok=True)
    part = place / f"{file.name}.part"
    if not check_integrity(part, file.md5):  # it may be whole, if the last call was stopped just then
        _receive(file.url, part)
        if not check_integrity(part, file.md5):
            part.unlink()
            raise RuntimeError(f"the checksum of what {file.url} sent differs")
    os.replace(part, place / file.name)


def _receive(url: str, part: Path) -> None:
    """Add to ``part`` what is missing of it; from the start where the server sends files only whole."""
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
