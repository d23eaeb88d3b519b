"""Folders of alphabets and Omniglot, from made drawings. Nothing is downloaded."""

import hashlib
import importlib
import io
import os
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from pictures import PARTS, check_disjoint, check_equal, names, no_decoding, sizes
from PIL import Image

from mebqat_lite.datasets import DataError
from mebqat_lite.datasets.classes import shuffled
from mebqat_lite.datasets.omniglot import alphabets, omniglot

room = importlib.import_module("mebqat_lite.datasets.omniglot")  # whose name in the package is the function's

pytestmark = pytest.mark.usefixtures("home")


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


def counts(data):
    return [len(names(data, part)) for part in PARTS]


def upright(found):
    return {name for name in found if "/rot" not in name}


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
