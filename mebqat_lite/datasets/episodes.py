"""Episodes: N-way K-shot tasks, each of which depends on the seed and its number alone."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.tensors import as_float


class Episode(NamedTuple):
    """A few-shot task: N classes with K support images each to learn from, and Q query images each to classify.

    support: (N, K, channels, height, width); query: (N, Q, channels, height, width); both float. The label of an image
    is its first index.
    """

    support: Tensor
    query: Tensor

    @property
    def labels(self) -> Tensor:
        """The labels of the query images, (N Q,), class by class as in ``query.flatten(0, 1)``."""
        ways, queries = self.query.shape[:2]
        return torch.arange(ways, device=self.query.device).repeat_interleave(queries)


class Episodes:
    """The random episodes of a split, by number.

    In an episode the classes differ, support and query have no image in common, and all choices are equally likely.

    Args:
        split: images and labels. The images are not touched before an episode is asked for.
        ways: classes per episode (N).
        shots: support images per class (K).
        queries: query images per class (Q).
        seed: chooses the sequence of episodes.
        tasks: episodes per training step.

    Raises:
        ValueError: one of the numbers is too small.
        DataError: the split has labels that are values, fewer classes than ``ways``, or a class of fewer images than
            ``shots + queries``.
    """

    def __init__(self, split: Split, ways: int, shots: int, queries: int, seed: int = 0, tasks: int = 1) -> None:
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries), ("tasks", tasks)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 + (name == "ways"):
                raise ValueError(f"{name} must be a whole number of at least {1 + (name == 'ways')}, not {value!r}")
        split.of_classes("an episode")
        self.split, self.ways, self.shots, self.queries = split, ways, shots, queries
        self.seed, self.tasks = seed, tasks
        self.members = _by_class(split.labels)  # (classes, images of the largest), -1 where there are fewer
        self._check()

    def _check(self) -> None:
        counts, need = (self.members >= 0).sum(1), self.shots + self.queries
        if len(counts) < self.ways:
            raise DataError(f"{self.ways} ways need as many classes, and there are {len(counts)}: ask for fewer ways")
        if counts.min() < need:
            raise DataError(
                f"{self.shots} shots and {self.queries} queries need {need} images of each class, and "
                f"{int((counts < need).sum())} of {len(counts)} classes have fewer (the smallest {counts.min()}): "
                "ask for fewer, or remove these classes"
            )

    def index(self, number: int) -> Tensor:
        """Choose the images of an episode, (N, K + Q) indices; the first K in each row are the support.

        Every image gets a random key, and the K + Q images of a class with the smallest keys are chosen.
        """
        generator = np.random.default_rng((self.seed, number))
        classes = generator.choice(len(self.members), self.ways, replace=False)  # (N,)
        members = self.members[classes]  # (N, images)
        keys = generator.random(members.shape)
        keys[members < 0] = 2  # the filling: larger than every key
        chosen = keys.argsort(1)[:, : self.shots + self.queries]  # (N, K + Q)
        return torch.from_numpy(np.take_along_axis(members, chosen, 1))

    def __getitem__(self, number: int) -> Episode:
        """Return an episode with its images, on the device of the split."""
        images = as_float(self.split.images[self.index(number).to(self.split.labels.device)])  # (N, K + Q, C, H, W)
        return Episode(images[:, : self.shots], images[:, self.shots :])

    def task(self, step: int, index: int = 0) -> Episode:
        """Return the episode of task ``index`` of a training step."""
        return self[step * self.tasks + index]

    def fingerprint(self, count: int) -> str:
        """Compute a checksum over the pixels of the split and the image indices of the first ``count`` episodes."""
        checksum = hashlib.sha256(np.ascontiguousarray(self.split.images.cpu().numpy()).tobytes())
        for number in range(count):
            checksum.update(self.index(number).numpy().astype("<i8").tobytes())
        return checksum.hexdigest()[:16]


def _by_class(labels: Tensor) -> np.ndarray:
    """List the image indices of each class: (classes, images of the largest class), filled up with -1."""
    values = labels.cpu().numpy()
    groups = np.split(np.argsort(values, kind="stable"), np.cumsum(np.unique(values, return_counts=True)[1])[:-1])
    if not len(values):
        raise DataError("there are no images to make episodes of: this part of the data is empty")
    members = np.full((len(groups), max(map(len, groups))), -1)
    for row, group in zip(members, groups, strict=True):
        row[: len(group)] = group
    return members
