"""Subsets of the parts of a dataset."""

import numpy as np
import pytest
import torch
from pictures import numbered

from mebqat_lite import datasets
from mebqat_lite.datasets import DataError, subset

pytestmark = pytest.mark.usefixtures("home")


def test_a_subset_is_stratified(monkeypatch):
    data = numbered([50, 100, 50])
    part = subset(data, 40, seed=1)
    assert part.train.labels.bincount().tolist() == [10, 20, 10]
    index = part.train.images.flatten().long()
    assert len(index.unique()) == 40 and torch.equal(data.train.labels[index], part.train.labels)
    assert part.train.images.dtype == torch.uint8
    assert part.val is data.val and part.test is data.test and part.classes == data.classes
    assert torch.equal(subset(data, 40, 1).train.images, part.train.images)
    assert not torch.equal(subset(data, 40, 2).train.images, part.train.images)


def test_a_subset_of_all_is_all():
    data = numbered([5, 5])
    assert subset(data, 10) is data


@pytest.mark.parametrize("count", [0, -1, 1, 9, 11])
def test_an_impossible_subset_says_what_is_possible(count):
    with pytest.raises(DataError, match="10 training images of made: choose from 2 to 8"):
        subset(numbered([5, 5]), count)
    for possible in (2, 8):
        assert len(subset(numbered([5, 5]), possible).train.labels) == possible


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def counts(split):
    return np.bincount(split.labels.numpy(), minlength=10)


@pytest.mark.parametrize(("option", "part"), [("count", "train"), ("val", "val"), ("test", "test")])
def test_a_subset_of_one_part_is_stratified_and_the_others_are_whole(option, part):
    whole, data = datasets.load("digits", 3), datasets.load(f"digits,{option}=60", 3)
    assert data.name == f"digits,{option}=60" and len(data.classes) == 10
    mine = getattr(data, part)
    assert mine.images.shape == (60, 1, 8, 8)
    assert np.abs(counts(mine) - 60 * counts(getattr(whole, part)) / len(getattr(whole, part).labels)).max() < 1
    there = {(image.numpy().tobytes(), int(label)) for image, label in zip(*getattr(whole, part), strict=True)}
    chosen = [(image.numpy().tobytes(), int(label)) for image, label in zip(*mine, strict=True)]
    assert set(chosen) <= there and len(set(chosen)) > 55
    for other in {"train", "val", "test"} - {part}:
        assert equal(getattr(data, other), getattr(whole, other))


def test_the_seed_chooses_the_subset():
    name = "digits,val=50,test=40"
    one, again, other = (datasets.load(name, seed) for seed in (0, 0, 1))
    assert equal(one.val, again.val) and equal(one.test, again.test)
    assert not equal(one.val, other.val) and not equal(one.test, other.test)
    same_split = [datasets.subset(datasets.digits(0), 50, seed, "val").val for seed in (0, 1)]
    assert equal(same_split[0], one.val) and not equal(*same_split)


def test_all_parts_may_be_subsets_together():
    data, whole = datasets.load("digits,count=100,val=30,test=20", 2), datasets.digits(2)
    assert [len(split.labels) for split in (data.train, data.val, data.test)] == [100, 30, 20]
    assert data.name == "digits,count=100,val=30,test=20"
    assert equal(data.val, datasets.load("digits,val=30", 2).val)
    assert equal(datasets.load("digits,val=257", 2).val, whole.val)  # all of them


@pytest.mark.parametrize(
    ("option", "part", "total"), [("count", "training", 1000), ("val", "validation", 257), ("test", "test", 540)]
)
@pytest.mark.parametrize("extra", [1, -1, -9])
def test_a_subset_that_cannot_be_names_the_part(option, part, total, extra):
    """Too many, or so many that a stratified choice is none: fewer left over than classes."""
    count = total + extra
    with pytest.raises(datasets.DataError, match=f"^no stratified subset of {count} of the {total} {part} images"):
        datasets.load(f"digits,{option}={count}")


@pytest.mark.parametrize("count", [0, 9])
def test_a_subset_without_an_example_of_each_class_is_refused(count):
    with pytest.raises(datasets.DataError, match=f"of {count} of the 540 test images of digits: choose from 10 to 530"):
        datasets.load(f"digits,test={count}")


def test_an_unknown_part_lists_what_there_is():
    with pytest.raises(ValueError, match=r"^digits has no option valid; known: .*count, test, val"):
        datasets.load("digits,valid=30")
