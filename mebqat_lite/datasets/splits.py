"""Stratified splits, in which every class has the same share of each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mebqat_lite.datasets.base import Data, DataError, Split

PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
TEST, VALIDATION, VALIDATION_BESIDE_TEST = 0.15, 0.15, 0.10  # shares of the images


def divide(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` examples at random, with the same share of every class.

    labels: (images,). Returns the indices of the other examples, (images - count,), and of the chosen ones, (count,),
    both shuffled.

    Raises:
        ValueError: a class has a single example, or would have none among the chosen ones.
    """
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    rest, chosen = train_test_split(index, test_size=count, random_state=seed, stratify=labels.numpy())
    if len(labels[chosen].unique()) < len(labels.unique()):
        raise ValueError("a class without an example")
    return torch.from_numpy(rest), torch.from_numpy(chosen)


def complete(
    name: str, parts: Mapping[str, Split], classes: Sequence[str], seed: int, validation: int | None = None
) -> Data:
    """Make a dataset from ``parts``, which must contain ``train``; missing parts are split from it by ``seed``.

    A missing test part gets 15 % of the images. A missing validation part gets ``validation`` images; by default these
    are 15 %, or 10 % if the test part was given.

    Raises:
        DataError: a class has too few images to have one in each part; 12 are always enough.
    """
    train, given = parts["train"], dict(parts)
    left = torch.arange(len(train.labels))  # the images that stay in train
    share = VALIDATION_BESIDE_TEST if "test" in parts else VALIDATION
    counts = {"test": round(TEST * len(left)), "val": validation or round(share * len(left))}
    for part, count in counts.items():
        if part not in given:
            try:
                rest, chosen = divide(train.labels[left], count, seed)
            except ValueError:
                raise DataError(_too_few(name, part, count, train.labels, classes)) from None
            given[part], left = train.select(left[chosen]), left[rest]
    if len(left) < len(train.labels):
        given["train"] = train.select(left)
    return Data(name, given["train"], given["val"], given["test"], tuple(classes))


def _too_few(name: str, part: str, count: int, labels: Tensor, classes: Sequence[str]) -> str:
    sizes = labels.bincount(minlength=len(classes))
    smallest = int(sizes.argmin())
    return (
        f"{name} has too few images to set {count} of {len(labels)} apart as {part} for {len(classes)} classes "
        f"(fewest: {int(sizes[smallest])} of {classes[smallest]!r}): have 12 or more in each class, or give folders "
        "train, val and test"
    )


def subset(data: Data, count: int, seed: int = 0, part: str = "train") -> Data:
    """Return ``data`` with only ``count`` images of one part, a stratified choice by ``seed``.

    Raises:
        DataError: the part has too few images for such a choice, or labels that are values.
    """
    images: Split = getattr(data, part).of_classes("a stratified subset")
    total, classes = len(images.labels), len(images.labels.unique())
    if count == total:
        return data
    try:
        _, chosen = divide(images.labels, count, seed)
    except ValueError:
        raise DataError(
            f"no stratified subset of {count} of the {total} {PART_NAMES[part]} images of {data.name}: choose from "
            f"{classes} to {total - classes}, and enough for one of each class (the smallest has "
            f"{int(images.labels.unique(return_counts=True)[1].min())})"
        ) from None
    option = "count" if part == "train" else part
    parts = {name: getattr(data, name) for name in PART_NAMES} | {part: images.select(chosen)}
    return Data(f"{data.name},{option}={count}", parts["train"], parts["val"], parts["test"], data.classes)
