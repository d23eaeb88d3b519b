"""Omniglot, miniImageNet and folders whose parts hold different classes, from made files. Nothing is downloaded."""

import hashlib
import importlib
import inspect
import io
import os
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mebqat_lite.datasets import DataError, folder
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.classes import class_folders, convert, shuffled
from mebqat_lite.datasets.miniimagenet import miniimagenet
from mebqat_lite.datasets.omniglot import alphabets, omniglot

room = importlib.import_module("mebqat_lite.datasets.omniglot")  # whose name in the package is the function's
PARTS = ("train", "val", "test")


pytestmark = pytest.mark.usefixtures("home")


def no_decoding(*args, **kwargs):
    raise AssertionError("an image file was opened")


def drawing(number, side=28):
    """Black strokes on white, as Omniglot's files; no two numbers share one, and none is like itself turned."""
    white = np.random.default_rng(number).random((side, side)) > 0.2
    return Image.fromarray(white)  # mode 1


def draw(root, characters, count=3, side=28):
    """Write ``count`` drawings to every folder; returns {bytes, white on black: the folder's two last names}."""
    origin, number = {}, 0
    for character in characters:
        (root / character).mkdir(parents=True)
        for index in range(count):
            image = drawing(number, side)
            image.save(root / character / f"{index:02}.png")
            pixels = 255 - np.asarray(image.convert("L"))
            origin[pixels.tobytes()] = "/".join(character.split("/")[-2:])
            number += 1
    return origin


def paint(place, number, mode="RGB", side=6):
    """A photograph that is brighter than 0.5 on average."""
    place.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(100, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    image.save(place)
    return np.asarray(image)


def names(data, part):
    return {data.classes[label] for label in getattr(data, part).labels.unique().tolist()}


def counts(data):
    return [len(names(data, part)) for part in PARTS]


def sizes(data):
    return [len(getattr(data, part).labels) for part in PARTS]


def upright(found):
    return {name for name in found if "/rot" not in name}


def check_disjoint(data):
    found = [names(data, part) for part in PARTS]
    assert sum(map(len, found)) == len(set.union(*found)) == len(data.classes) == len(set(data.classes))
    for part in PARTS:
        images, labels = getattr(data, part)
        assert images.dtype == torch.uint8 and images.dim() == 4 and labels.dtype == torch.int64
        assert len(images) == len(labels)


def check_equal(first, other):
    assert first.classes == other.classes
    for part in PARTS:
        pairs = zip(getattr(first, part), getattr(other, part), strict=True)
        assert all(torch.equal(mine, yours) for mine, yours in pairs), part


LETTERS = [f"{alphabet}/character{number:02}" for alphabet in ("Greek", "Korean", "Latin") for number in (1, 2, 3)]


# ---------------------------------------------------------------- alphabets


def test_named_alphabets_are_the_parts(tmp_path):
    origin = draw(tmp_path / "letters", LETTERS)
    data = alphabets(tmp_path / "letters", test=("Korean",), val="Latin", rotations=False)
    check_disjoint(data)
    assert data.name == "letters" and data.classes == tuple(LETTERS) and sizes(data) == [9, 9, 9]
    for part, alphabet in zip(PARTS, ("Greek", "Latin", "Korean"), strict=True):
        images, labels = getattr(data, part)
        assert images.shape == (9, 1, 28, 28)
        for image, label in zip(images, labels, strict=True):  # each under its own name, white on black
            assert origin[image.numpy().tobytes()] == data.classes[label] and data.classes[label].startswith(alphabet)


def test_rotations_are_classes_in_the_part_of_the_upright_ones(tmp_path):
    origin = draw(tmp_path, LETTERS)
    data = alphabets(tmp_path, test="Korean+Latin", val=())
    check_disjoint(data)
    assert len(data.classes) == 36 and counts(data) == [12, 0, 24] and sizes(data) == [36, 0, 72]
    for part in PARTS:
        for image, label in zip(*getattr(data, part), strict=True):
            k, character = divmod(int(label), len(LETTERS))
            expected = data.classes[character] + ("" if k == 0 else f"/rot{90 * k:03}")
            assert data.classes[label] == expected
            turned_back = np.rot90(image[0].numpy(), -k)
            assert origin[turned_back.tobytes()] == data.classes[character]
            assert k == 0 or image.numpy().tobytes() not in origin


@pytest.mark.parametrize("above", ["", "images_background", "all/images_background"])
def test_alphabets_are_found_wherever_they_lie(tmp_path, above):
    draw(tmp_path / above, LETTERS)
    (tmp_path / "__MACOSX" / "Greek" / "character01").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "Greek" / "character01" / "00.png").write_bytes(b"no image")
    assert alphabets(tmp_path, rotations=False).classes == tuple(LETTERS)


def test_copies_are_taken_once_and_other_drawings_as_well(tmp_path):
    draw(tmp_path / "small1", LETTERS)
    shutil.copytree(tmp_path / "small1" / "Greek", tmp_path / "small2" / "Greek")
    drawing(99).save(tmp_path / "small2" / "Greek" / "character02" / "01.png")
    draw(tmp_path / "small2", ["Tagalog/character01"])
    data = alphabets(tmp_path, test="Greek", val="Latin", rotations=False)
    assert data.classes == (*LETTERS, "Tagalog/character01")
    assert data.test.labels.bincount().tolist() == [3, 4, 3]


def test_alphabets_that_are_not_named_are_drawn_by_the_seed(tmp_path):
    draw(tmp_path, [f"A{index:02}/{letter}" for index in range(14) for letter in "ab"], count=1)
    by_seed = [alphabets(tmp_path, seed=seed, rotations=False) for seed in range(6)]
    for data in by_seed:
        check_disjoint(data)
        assert [len({name[:3] for name in names(data, part)}) for part in PARTS] == [10, 2, 2]
    check_equal(by_seed[3], alphabets(tmp_path, seed=3, rotations=False))
    assert len({frozenset(names(data, "test")) for data in by_seed}) > 1
    named = alphabets(tmp_path, test=["A03"], seed=1, rotations=False)
    assert names(named, "test") == {"A03/a", "A03/b"} and counts(named) == [22, 4, 2]


def test_strokes_survive_the_resize(tmp_path):
    pixels = np.full((105, 105), 255, np.uint8)
    pixels[20:90, 50:53] = 0  # a stroke as wide as Omniglot's
    for name in ("A/1", "B/1", "C/1"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(pixels > 0).save(tmp_path / name / "1.png")
    (image,) = alphabets(tmp_path, rotations=False).train.images
    assert image.shape == (1, 28, 28)
    assert (image[0, 7:22].amax(1) > 150).all() and image[0, :4].max() == image[0, :, :10].max() == 0
    assert alphabets(tmp_path, size=14).train.images.shape[2:] == (14, 14)


def test_white_strokes_on_black_and_colours_are_taken_too(tmp_path):
    black = np.zeros((28, 28, 3), np.uint8)
    black[5:9, 3] = (255, 255, 255)
    for name in ("A/1", "B/1", "C/1"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(black).save(tmp_path / name / "1.png")
    (image,) = alphabets(tmp_path, rotations=False).train.images
    assert np.array_equal(image[0].numpy(), black[..., 0])


def test_drawings_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    draw(tmp_path, LETTERS)
    first = alphabets(tmp_path, test="Greek", val="Latin")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", no_decoding)
        check_equal(first, alphabets(tmp_path, test="Greek", val="Latin"))
        alphabets(tmp_path, seed=4, rotations=False)  # another split of the same images
    drawing(99).save(tmp_path / "Latin" / "character02" / "01.png")
    os.utime(tmp_path / "Latin" / "character02" / "01.png", (1, 1))
    changed = alphabets(tmp_path, test="Greek", val="Latin")
    assert torch.equal(changed.test.images, first.test.images)
    assert (changed.val.images != first.val.images).flatten(1).any(1).sum() == 4  # and its rotations


def test_an_unknown_alphabet_lists_the_known(tmp_path):
    draw(tmp_path, LETTERS)
    with pytest.raises(DataError, match="no alphabet Klingon; known: Greek, Korean, Latin"):
        alphabets(tmp_path, test=("Korean", "Klingon"))
    with pytest.raises(DataError, match="Korean cannot be in both test and val"):
        alphabets(tmp_path, test="Korean", val="Korean")
    for given in ({"test": "Greek+Korean+Latin"}, {"test": "Greek+Korean"}, {"test": "Greek", "val": "Korean+Latin"}):
        with pytest.raises(DataError, match=r"3 alphabets .*none is left to train on"):
            alphabets(tmp_path, **given)


def test_folders_without_alphabets_say_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nothing: expected <folder>/<alphabet>/<character>/<image>"):
        alphabets(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images"):
        alphabets(tmp_path)
    draw(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"00\.png is in no alphabet, expected"):
        alphabets(tmp_path)


# ---------------------------------------------------------------- Omniglot

BACKGROUND = [f"{alphabet}/character{number:02}" for alphabet in ("Arcadian", "Braille") for number in (1, 2, 3)]
EVALUATION = [f"Manipuri/character{number:02}" for number in (1, 2, 3, 4)]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Small archives in the form of the real ones: {name: bytes}; 6 / 1 / 3 characters are the standard split."""
    from torchvision.datasets import Omniglot

    made = {}
    for name, characters in {"images_background": BACKGROUND, "images_evaluation": EVALUATION}.items():
        draw(tmp_path / "source" / name, characters, side=105)
        shutil.make_archive(str(tmp_path / name), "zip", tmp_path / "source", name)
        made[f"{name}.zip"] = (tmp_path / f"{name}.zip").read_bytes()
    known = {name[:-4]: hashlib.md5(whole, usedforsecurity=False).hexdigest() for name, whole in made.items()}
    monkeypatch.setattr(Omniglot, "zips_md5", known)
    monkeypatch.setattr(room, "STANDARD", {"train": 6, "val": 1, "test": 3})
    return made


def serve(monkeypatch, files):
    """Answer downloads from ``files``; returns the addresses asked for."""
    asked = []

    class Response(io.BytesIO):
        status = 200

    def urlopen(request, timeout):
        asked.append(request.full_url)
        response = Response(files[request.full_url.rpartition("/")[2]])
        response.length = len(response.getvalue())
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_omniglot_is_downloaded_checked_and_kept(home, monkeypatch, archives):
    asked = serve(monkeypatch, archives)
    data = omniglot()
    prefix = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    assert asked == [f"{prefix}/images_background.zip", f"{prefix}/images_evaluation.zip"]
    check_disjoint(data)
    assert data.name == "omniglot" and counts(data) == [24, 4, 12] and sizes(data) == [72, 12, 36]
    assert data.classes[:10] == (*BACKGROUND, *EVALUATION) and data.train.images.shape == (72, 1, 28, 28)
    assert data.train.images.float().mean() < 127  # inverted
    assert sorted(path.name for path in home.iterdir()) == ["cache", *sorted(archives)]
    for name in archives:
        (home / name).unlink()
    monkeypatch.setattr(Image, "open", no_decoding)
    check_equal(omniglot(), data)
    flat = omniglot(rotations=False)
    for part in PARTS:
        assert names(flat, part) == upright(names(data, part))


def test_the_seed_chooses_the_characters(monkeypatch, archives):
    serve(monkeypatch, archives)
    check_equal(omniglot(2), omniglot(2))
    assert len({frozenset(names(omniglot(seed), "test")) for seed in range(5)}) > 1


def test_the_standard_split_is_that_of_the_protocol():
    assert room.STANDARD == {"train": 1100, "val": 100, "test": 423}
    chosen = shuffled(room.STANDARD, 0)
    assert [len(chosen[part]) for part in PARTS] == [1100, 100, 423]
    assert sorted(label for labels in chosen.values() for label in labels) == list(range(1623))


def test_an_unpacked_omniglot(tmp_path, monkeypatch, archives):
    serve(monkeypatch, archives)
    check_equal(omniglot(1, path=tmp_path / "source"), omniglot(1))
    with pytest.raises(DataError, match=r"has 4 characters, all of Omniglot has 10: unpack .*alphabets\(path\)"):
        omniglot(path=tmp_path / "source" / "images_evaluation")


def test_without_network_the_message_offers_the_glyphs(home):
    with pytest.raises(DataError) as error:
        omniglot()
    words = ["omniglot cannot be downloaded", "images_background.zip", "images_evaluation.zip", str(home), '"glyphs"']
    assert all(word in str(error.value) for word in words) and "digits" not in str(error.value)
    assert "\n" not in str(error.value)


def test_another_file_of_that_name_is_not_taken(home, monkeypatch, archives):
    serve(monkeypatch, dict.fromkeys(archives, b"something else"))
    with pytest.raises(DataError, match="checksum"):
        omniglot()
    assert not list(home.iterdir())


@pytest.mark.parametrize("name", ["../escaped.png", "a/../../escaped.png", "/nowhere/escaped.png"])
def test_an_archive_writes_nowhere_else(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        bad.writestr("Greek/character01/1.png", b"")
        bad.writestr(name, b"")
    (tmp_path / "place").mkdir()
    with pytest.raises(DataError, match="outside of its folder"):
        room.unpack(tmp_path / "bad.zip", tmp_path / "place")
    assert not list((tmp_path / "place").iterdir()) and not (tmp_path / "escaped.png").exists()


# ---------------------------------------------------------------- miniImageNet

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


# ---------------------------------------------------------------- class folders


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
