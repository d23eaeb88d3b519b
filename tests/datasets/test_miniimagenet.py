"""miniImageNet from made photographs and split files."""

import shutil

import numpy as np
import pytest
from pictures import PARTS, check_disjoint, check_equal, no_decoding, paint, sizes
from PIL import Image

from mebqat_lite.datasets import DataError
from mebqat_lite.datasets.miniimagenet import miniimagenet

pytestmark = pytest.mark.usefixtures("home")


SPLIT = {"train": ["n01", "n02", "n03"], "val": ["n04"], "test": ["n05", "n06"]}


def photographs(root, in_folders=False, mode="RGB"):
    """Split files and 4 photographs a class; returns {bytes: (part, class)}."""
    origin, number = {}, 0
    for part, labels in SPLIT.items():
        lines = ["filename,label"]
        for label in labels:
            for index in range(4):
                name = f"{index}.png" if in_folders else f"{label}{index}.png"
                place = root / "images" / (label if in_folders else "") / name
                pixels = paint(place, number, mode)
                pixels = np.stack([pixels] * 3, -1) if mode == "L" else pixels
                origin[pixels.transpose(2, 0, 1).tobytes()] = (part, label)
                lines.append(f"{name},{label}")
                number += 1
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return origin


@pytest.mark.parametrize(("in_folders", "mode"), [(False, "RGB"), (True, "RGB"), (False, "L")])
def test_miniimagenet_follows_its_split_files(tmp_path, in_folders, mode):
    origin = photographs(tmp_path, in_folders, mode)
    paint(tmp_path / "images" / "unlisted.png", 99)
    data = miniimagenet(tmp_path, size=6)
    check_disjoint(data)
    assert data.classes == ("n01", "n02", "n03", "n04", "n05", "n06") and sizes(data) == [12, 4, 8]
    for part in PARTS:
        for image, label in zip(*getattr(data, part), strict=True):
            assert origin[image.numpy().tobytes()] == (part, data.classes[label])
    check_equal(miniimagenet(tmp_path, seed=7, size=6), data)
    assert miniimagenet(tmp_path).val.images.shape == (4, 3, 84, 84)


def test_miniimagenet_is_read_once_and_again_with_another_split(tmp_path, monkeypatch):
    photographs(tmp_path)
    first = miniimagenet(tmp_path, size=6)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", no_decoding)
        check_equal(miniimagenet(tmp_path, size=6), first)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("n010.png,n01", "n010.png,n02"))  # the images are as before
    assert miniimagenet(tmp_path, size=6).train.labels.bincount().tolist() == [3, 5, 4]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root), ["there is no folder"]),
        (lambda root: (root / "val.csv").unlink(), ["there is no val.csv", "put it there"]),
        (
            lambda root: (root / "val.csv").write_text("name,class\na,b\n"),
            ["val.csv has the columns", "filename,label"],
        ),
        (lambda root: (root / "val.csv").write_text("filename,label\n"), ["val.csv lists no images"]),
        (lambda root: (root / "images" / "n052.png").unlink(), ["n052.png not found", "test.csv"]),
        (lambda root: shutil.rmtree(root / "images"), ["n010.png and 11 more not found", "train.csv"]),
        (lambda root: shutil.copy(root / "train.csv", root / "test.csv"), ["train.csv and test.csv", "class n01"]),
    ],
)
def test_what_miniimagenet_lacks_is_named(tmp_path, damage, words):
    photographs(tmp_path / "mini")
    damage(tmp_path / "mini")
    with pytest.raises(DataError) as error:
        miniimagenet(tmp_path / "mini")
    source = ["no official download", "https://github.com/twitter-research/meta-learning-lstm"]
    assert all(word in str(error.value) for word in [*words, *source]), error.value


def test_an_image_of_another_class_is_not_taken_for_a_missing_one(tmp_path):
    photographs(tmp_path, in_folders=True)
    (tmp_path / "images" / "n05" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png not found, which test\.csv lists"):
        miniimagenet(tmp_path)
