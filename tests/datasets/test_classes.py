"""Folders whose parts hold different classes, for methods that learn new ones."""

import inspect
import shutil

import numpy as np
import pytest
import torch
from pictures import PARTS, check_disjoint, check_equal, names, no_decoding, paint, sizes
from PIL import Image

from mebqat_lite.datasets import DataError, folder
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.classes import class_folders, convert
from mebqat_lite.datasets.miniimagenet import miniimagenet
from mebqat_lite.datasets.omniglot import alphabets, omniglot

pytestmark = pytest.mark.usefixtures("home")


def pets(root, places, count=3, mode="RGB"):
    for number, place in enumerate(places):
        for index in range(count):
            paint(root / place / f"{index}.png", 100 * number + index, mode)


TEN = [f"pet{number}" for number in range(10)]


def test_classes_are_divided_by_the_seed(tmp_path):
    pets(tmp_path / "pets", TEN)
    by_seed = [class_folders(tmp_path / "pets", seed=seed) for seed in range(4)]
    for data in by_seed:
        check_disjoint(data)
        assert data.name == "pets" and data.classes == tuple(TEN) and sizes(data) == [18, 6, 6]
    check_equal(by_seed[2], class_folders(tmp_path / "pets", seed=2))
    assert len({frozenset(names(data, "test")) for data in by_seed}) > 1


def test_parts_of_different_classes_are_taken(tmp_path):
    pets(tmp_path, ["train/a", "train/b", "valid/c", "test/d", "test/e"])
    for seed in range(2):
        data = class_folders(tmp_path, seed=seed)
        check_disjoint(data)
        assert [names(data, part) for part in PARTS] == [{"a", "b"}, {"c"}, {"d", "e"}]
    shutil.rmtree(tmp_path / "valid")
    assert sizes(class_folders(tmp_path)) == [6, 0, 6]


def test_parts_that_share_classes_are_put_together_and_divided(tmp_path):
    pets(tmp_path, [f"{part}/{name}" for part in ("train", "test") for name in "abcde"])
    data = class_folders(tmp_path)
    check_disjoint(data)
    assert data.classes == tuple("abcde") and sizes(data) == [18, 6, 6]


@pytest.mark.parametrize("places", [["a", "b"], ["train/a", "test/b"], ["train/a", "test/a", "test/b"], ["test/a"]])
def test_the_whole_is_for_evaluation(tmp_path, places):
    pets(tmp_path, places)
    data = class_folders(tmp_path, whole=True, size=5, channels=1)
    assert data.classes == tuple(sorted({place[-1] for place in places}))
    assert sizes(data) == [0, 0, 3 * len(places)] and len(names(data, "test")) == len(data.classes)
    assert data.train.images.shape == (0, 1, 5, 5) and data.train.labels.dtype == torch.int64


def test_whole_and_parts_and_supervised_are_kept_apart(tmp_path):
    pets(tmp_path, ["train/a", "train/b", "val/c", "test/d"])
    assert sizes(class_folders(tmp_path)) == [6, 3, 3]
    assert sizes(class_folders(tmp_path, whole=True)) == [0, 0, 12]
    assert sizes(class_folders(tmp_path)) == [6, 3, 3]


def test_images_are_kept_once_for_both_uses(tmp_path, home, monkeypatch):
    pets(tmp_path, TEN, count=12)
    data = class_folders(tmp_path)
    monkeypatch.setattr(Image, "open", no_decoding)
    check_equal(class_folders(tmp_path), data)
    assert class_folders(tmp_path, channels=1).train.images.shape[1] == 1
    assert folder(tmp_path).classes == data.classes
    assert len(list((home / "cache").iterdir())) == 1


def test_grey_is_pillows_and_bright_images_are_inverted(tmp_path):
    pets(tmp_path, ["a", "b", "c"])
    files = list(tmp_path.rglob("*.png"))
    grey = {(255 - np.asarray(Image.open(path).convert("L"))).tobytes(): path.parent.name for path in files}
    data = class_folders(tmp_path, channels=1, whole=True)
    assert {image.numpy().tobytes(): data.classes[label] for image, label in zip(*data.test, strict=True)} == grey
    as_is = class_folders(tmp_path, channels=1, whole=True, invert=False)
    assert torch.equal(255 - as_is.test.images, data.test.images)
    coloured = class_folders(tmp_path, whole=True)
    assert coloured.test.images.shape[1] == 3 and coloured.test.images.min() >= 100, "colours stay as they are"
    negative = class_folders(tmp_path, whole=True, invert=True)
    assert torch.equal(255 - coloured.test.images, negative.test.images)


def test_grey_images_become_three_channels(tmp_path):
    pets(tmp_path, ["a", "b", "c"], mode="L")
    one, three = (class_folders(tmp_path, channels=c, whole=True).test.images for c in (None, 3))
    assert one.shape[1] == 1 and torch.equal(three, one.expand(-1, 3, -1, -1))


def test_dark_images_stay(tmp_path):
    dark = {"train": even(10), "test": even(20)}
    assert torch.equal(convert(dark, 1)["test"].images, dark["test"].images)
    mixed = {"train": even(200), "test": even(20)}  # bright or dark is decided for all parts as one
    images = [split.images.unique().tolist() for split in convert(mixed, 1).values()]
    assert images == [[200], [20]]


def even(value):
    return Split(torch.full((2, 1, 3, 3), value, dtype=torch.uint8), torch.arange(2))


def test_class_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        class_folders(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images"):
        class_folders(tmp_path)
    pets(tmp_path / "two", ["a", "b"])
    with pytest.raises(DataError, match=r"two has 2 classes, too few .*whole=True"):
        class_folders(tmp_path / "two")
    pets(tmp_path / "test only", ["test/a", "test/b"])
    with pytest.raises(DataError, match=r"has test, but no train.*whole=True"):
        class_folders(tmp_path / "test only")
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        class_folders(tmp_path / "two", whole=True, channels=2)
    (tmp_path / "two" / "c").mkdir()
    with pytest.raises(DataError, match=r"no images for \['c'\]"):
        class_folders(tmp_path / "two")


@pytest.mark.parametrize("make", [omniglot, alphabets, miniimagenet, class_folders])
def test_all_take_a_seed_and_a_size_by_name(make):
    assert {"seed", "size"} <= set(inspect.signature(make).parameters)
