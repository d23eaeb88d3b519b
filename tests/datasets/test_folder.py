"""Folders of images: which files are read, how they are divided, and what cannot be used."""

from collections import Counter

import numpy as np
import pytest
import torch
from pictures import HEIGHT, PARTS, WIDTH, chw, content, make, picture, sizes
from PIL import Image

from mebqat_lite.datasets import DataError, folder

pytestmark = pytest.mark.usefixtures("home")


def by_content(data):
    """{bytes: (part, class)} of everything in a dataset."""
    return {
        content(image): (part, data.classes[label])
        for part in PARTS
        for image, label in zip(*getattr(data, part), strict=True)
    }


# ---------------------------------------------------------------- folders


def test_a_folder_of_classes_is_split(tmp_path):
    origin = make(tmp_path / "pets", {"cat": 20, "dog": 40, "emu": 20})
    data = folder(tmp_path / "pets")
    assert data.classes == ("cat", "dog", "emu") and data.name == "pets"
    assert sizes(data) == [56, 12, 12]
    found = by_content(data)
    assert {key: name for key, (_, name) in found.items()} == {key: name for key, (_, name) in origin.items()}
    for part, counts in zip(PARTS, ([14, 28, 14], [3, 6, 3], [3, 6, 3]), strict=True):
        split = getattr(data, part)
        assert split.labels.bincount().tolist() == counts
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.shape[1:] == (3, HEIGHT, WIDTH)


def test_the_seed_chooses_the_split(tmp_path):
    make(tmp_path, {"cat": 20, "dog": 20})
    first, again, other = folder(tmp_path, 1), folder(tmp_path, 1), folder(tmp_path, 2)
    assert all(torch.equal(getattr(first, part).images, getattr(again, part).images) for part in PARTS)
    for part in PARTS:
        chosen = [{content(image) for image in getattr(data, part).images} for data in (first, other)]
        assert chosen[0] != chosen[1], part


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_parts_stay_as_they_are(tmp_path, val):
    origin = make(tmp_path, {f"{part}/{name}": 12 for part in ("train", val, "test") for name in ("b", "a")})
    data, other = folder(tmp_path, 0), folder(tmp_path, 1)
    names = {val: "val"}
    assert by_content(data) == {key: (names.get(part, part), name) for key, (part, name) in origin.items()}
    for part in PARTS:
        split = getattr(data, part)
        assert torch.equal(split.images, getattr(other, part).images)
        for half in split.labels.split(12):  # shuffled: a batch of one class would spoil its statistics
            assert len(half.unique()) == 2, part


def test_validation_is_split_from_train_beside_a_test_part(tmp_path):
    origin = make(tmp_path, {"train/a": 20, "train/b": 40, "test/a": 3, "test/b": 4})
    data, other = folder(tmp_path, 0), folder(tmp_path, 1)
    assert sizes(data) == [54, 6, 7]
    assert data.val.labels.bincount().tolist() == [2, 4]
    assert torch.equal(data.test.images, other.test.images) and not torch.equal(data.val.images, other.val.images)
    source = {key: part for key, (part, _) in by_content(data).items()}
    assert {key for key, part in source.items() if part == "test"} == {k for k, (p, _) in origin.items() if p == "test"}


def test_a_test_part_is_split_from_train_beside_validation(tmp_path):
    make(tmp_path, {"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 3})
    assert sizes(folder(tmp_path)) == [34, 6, 6]


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, {"bus": 10, "train": 10})
    assert folder(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", ".PNG"), ("L", ".png"), ("L", ".bmp"), ("1", ".png")])
def test_pixels_are_those_of_the_files(tmp_path, mode, suffix):
    make(tmp_path, {"a": 10, "b": 10}, mode, suffix)
    data = folder(tmp_path)
    mine = {content(image) for part in PARTS for image in getattr(data, part).images}
    kept = "RGB" if mode == "RGB" else "L"
    assert mine == {content(chw(picture(number, mode).convert(kept))) for number in range(20)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_one_coloured_file_makes_all_rgb(tmp_path, mode):
    make(tmp_path, {"a": 10, "b": 10}, "L")
    picture(0).convert(mode).save(tmp_path / "b" / "5.png")
    images = torch.cat([getattr(folder(tmp_path), part).images for part in PARTS])
    assert images.shape[1] == 3
    grey = [bool((image == image[:1]).all()) for image in images]
    assert Counter(grey) == {True: 19, False: 1}


def test_jpeg_is_read(tmp_path):
    make(tmp_path, {"a": 10, "b": 10}, suffix=".jpg")
    with Image.open(tmp_path / "a" / "3.jpg") as image:
        wanted = content(chw(image))
    assert by_content(folder(tmp_path))[wanted][1] == "a"


def test_photographs_are_turned_upright(tmp_path):
    make(tmp_path, {"a": 10, "b": 10})
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    picture(99, size=(HEIGHT, WIDTH)).save(tmp_path / "a" / "3.png", exif=exif)
    wanted = picture(99, size=(HEIGHT, WIDTH)).transpose(Image.Transpose.ROTATE_270)
    assert content(chw(wanted)) in by_content(folder(tmp_path))


def test_hidden_files_are_left_out_and_folders_below_a_class_are_not(tmp_path):
    make(tmp_path, {"a": 10, "b": 9, ".thumbnails": 3, "__MACOSX": 2, "b/more": 1, "b/.trash": 1})
    (tmp_path / "a" / "._0.png").write_bytes(b"no image")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    data = folder(tmp_path)
    assert data.classes == ("a", "b") and sum(sizes(data)) == 20


def test_sizes_that_differ_name_two_files(tmp_path):
    make(tmp_path, {"a": 10, "b": 10})
    picture(0, size=(9, 7)).save(tmp_path / "b" / "4.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path)
    for part in (str(tmp_path / "a" / "0.png"), str(tmp_path / "b" / "4.png"), "7 and 9", "size="):
        assert part in str(error.value)


def test_resizing(tmp_path):
    for index in range(20):
        place = tmp_path / "ab"[index % 2]
        place.mkdir(exist_ok=True)
        Image.new("RGB", (4 + index, 30 - index), (10 * index, 0, 200)).save(place / f"{index}.png")
    small, large = folder(tmp_path, size=8), folder(tmp_path, size=16)
    assert small.train.images.shape[1:] == (3, 8, 8) and large.train.images.shape[1:] == (3, 16, 16)
    shades = {tuple(image.flatten(1).unique(dim=1).flatten().tolist()) for image in small.train.images}
    assert len(shades) == 14 and all(len(shade) == 3 and shade[1:] == (0, 200) for shade in shades)


# ---------------------------------------------------------------- what cannot be used


def spoil(path):
    path.write_bytes(path.read_bytes()[:60])


def deepen(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(path, format="TIFF")


WRONG = {  # what is there, what the message says
    "empty": ({}, ["no images", "expected <folder>/<class>/<image>", ".png"]),
    "no classes": ({".": 3}, ["no images", "expected"]),
    "empty classes": ({"a": 0, "b": 0}, ["no images"]),
    "one class": ({"cat": 5}, ["two or more classes", "cat"]),
    "one class of parts": ({"train/cat": 5, "test/cat": 5}, ["two or more classes", "cat"]),
    "a folder too deep": ({"all/train/a": 5, "all/train/b": 5}, ["two or more classes", "all"]),
    "an empty class": ({"a": 9, "b": 0}, ["no images to train on for ['b']"]),
    "no train": ({"val/a": 5, "test/a": 5}, ["test and val, but no train"]),
    "an empty part": ({"train/a": 9, "train/b": 9, "test/a": 0}, ["test has no images"]),
    "an unknown class": ({"train/a": 9, "train/b": 9, "test/c": 1}, ["test has classes that train has not: ['c']"]),
    "two validations": ({"train/a": 9, "train/b": 9, "val/a": 1, "valid/a": 1}, ["both the val part"]),
    "too few": ({"a": 10, "b": 2}, ["too few images", "2 of 'b'", "12 or more", "train, val and test"]),
    "one of a class": ({"a": 99, "b": 1}, ["too few images", "1 of 'b'"]),
    "too few beside test": ({"train/a": 5, "train/b": 4, "test/a": 1}, ["too few", "as val", "4 of 'b'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_cannot_be_used(tmp_path, case):
    counts, words = WRONG[case]
    (tmp_path / "pets").mkdir()
    make(tmp_path / "pets", {k: v for k, v in counts.items() if k != "."})
    for number in range(counts.get(".", 0)):
        picture(number).save(tmp_path / "pets" / f"{number}.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path / "pets")
    assert all(word in str(error.value) for word in [*words, "pets"]), error.value
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*pets: expected"):
        folder(tmp_path / "pets")


@pytest.mark.parametrize(("damage", "reason"), [(spoil, ""), (deepen, "more than 16 bits")])
def test_an_image_that_cannot_be_read_is_named(tmp_path, home, damage, reason):
    make(tmp_path, {"a": 10, "b": 10})
    damage(tmp_path / "b" / "7.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path)
    assert str(tmp_path / "b" / "7.png") in str(error.value) and reason in str(error.value)
    assert "remove it" in str(error.value)
