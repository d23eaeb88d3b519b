"""Datasets: the digits' splits, and what all datasets promise."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mebqat_lite import datasets
from mebqat_lite.datasets.base import Split

PARTS = {"train": 1000, "val": 257, "test": 540}


@pytest.fixture(scope="module")
def data():
    return datasets.digits()


@pytest.fixture(scope="module")
def numbers():
    """Which of scikit-learn's images each distinct image is; a few are there more than once."""
    raw = load_digits().images.astype(np.float32) / 16
    found = {}
    for number, image in enumerate(raw):
        found.setdefault(image.tobytes(), []).append(number)
    return found


def test_sizes_shapes_and_ranges(data):
    for part, count in PARTS.items():
        images, labels = getattr(data, part)
        assert images.shape == (count, 1, 8, 8) and images.dtype == torch.float32
        assert labels.shape == (count,) and labels.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1 and len(images.unique()) == 17
        assert set(labels.tolist()) == set(range(10))
    assert data.name == "digits" and data.classes == tuple("0123456789")


@pytest.mark.parametrize("seed", [0, 3])
def test_parts_are_disjoint_and_together_everything(seed, numbers):
    data, target = datasets.digits(seed), load_digits().target
    used = []
    for part in PARTS:
        for image, label in zip(*getattr(data, part), strict=True):
            candidates = numbers[image.numpy().tobytes()]
            assert int(label) in {int(target[i]) for i in candidates}
            used.append(candidates)
    assert sorted(i for group in {tuple(c) for c in used} for i in group) == list(range(1797))
    assert all(used.count(group) == len(group) for group in used if len(group) > 1) and len(used) == 1797


def test_parts_are_stratified(data):
    everything = np.bincount(load_digits().target)
    for part, count in PARTS.items():
        here = np.bincount(getattr(data, part).labels.numpy(), minlength=10)
        assert np.abs(here - everything * count / 1797).max() <= 1.5, part


def test_the_seed_alone_chooses_the_split(data):
    np.random.seed(5)  # noqa: NPY002 (the global state that must not matter)
    again, other = datasets.digits(0), datasets.digits(1)
    for part in PARTS:
        for mine, same, different in zip(*(getattr(d, part) for d in (data, again, other)), strict=True):
            assert torch.equal(mine, same) and not torch.equal(mine, different)


def test_load_by_name(data):
    assert torch.equal(datasets.load("digits", 0).test.images, data.test.images)
    assert torch.equal(datasets.load("digits", seed=2).test.images, datasets.digits(2).test.images)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="no dataset 'mnist'; known: digits"):
        datasets.load("mnist")


def test_take_keeps_images_and_labels_together():
    split = Split(torch.arange(5.0).reshape(5, 1, 1, 1), torch.arange(5) * 10)
    taken = split.take(torch.tensor([3, 0, 3]))
    assert isinstance(taken, Split)
    assert taken.images.flatten().tolist() == [3, 0, 3] and taken.labels.tolist() == [30, 0, 30]


def test_repr_says_what_is_in_it(data):
    assert repr(data) == "Data(digits: 10 classes; train 1000, val 257, test 540)"
