"""Glyph classes: its numbers, that its file is what its script makes, and that no image is nearly in two parts."""

import hashlib
import importlib
import subprocess
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mebqat_lite import datasets, paths
from mebqat_lite.datasets.base import DataError
from mebqat_lite.datasets.glyphs import script

ROOT = paths.checkout()

module = importlib.import_module("mebqat_lite.datasets.glyph_classes")  # the package gives the function this name
FOLDER = ROOT / "data"
EACH = {"train": 12, "val": 100, "test": 100}  # images of a class


@pytest.fixture(scope="module")
def data():
    return module.glyph_classes()


@pytest.fixture(scope="module")
def maker():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # it imports the other script
        return importlib.import_module("make_glyph_classes")


@pytest.fixture(scope="module")
def stored():
    with np.load(paths.shipped("glyph_classes.npz"), allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def glyphs():
    with np.load(paths.shipped("glyphs.npz"), allow_pickle=False) as file:
        return dict(file)


def unpacked(rows, side=14):
    """Bytes of four pixels, (..., side * side / 4), as levels from 0 to 3, (count, side, side), bit by bit."""
    bits = np.unpackbits(rows, axis=-1).reshape(-1, side, side, 2)
    return 2 * bits[..., 0] + bits[..., 1]


def test_every_part_has_the_same_classes_equally_often(data):
    assert data.name == "glyph_classes" and len(set(data.classes)) == 32
    assert set(Counter(map(script, data.classes)).values()) == {2} and len(set(map(script, data.classes))) == 16
    for part, each in EACH.items():
        images, labels = getattr(data, part)
        assert images.dtype == torch.uint8 and images.shape == (32 * each, 1, 14, 14)
        assert labels.dtype == torch.int64 and Counter(labels.tolist()) == dict.fromkeys(range(32), each)
        assert images.unique().tolist() == [0, 85, 170, 255] and images.float().mean() < 64  # white on black


def test_it_is_known_by_name_and_the_same_for_every_seed(data):
    other = datasets.load("glyph_classes", seed=7)
    assert other.classes == data.classes and set(data.classes) < set(datasets.glyphs().classes)
    for part in EACH:
        assert all(map(torch.equal, getattr(data, part), getattr(other, part)))


def test_the_first_images_are_of_all_classes_for_they_calibrate(data):
    assert len(data.train.labels[:128].unique()) >= 30


def test_labels_belong_to_their_images(data, stored):
    for part in EACH:
        images, labels = getattr(data, part)
        for label in (0, 13, 31):
            wanted = {(85 * image).tobytes() for image in unpacked(stored[part][label])}
            assert {image.tobytes() for image in images[labels == label].numpy()} == wanted


def test_the_file_is_small_and_frozen():
    file = paths.shipped("glyph_classes.npz").read_bytes()
    assert hashlib.sha256(file).hexdigest() == module.SHA256 and len(file) <= 130_000


def test_training_images_are_the_first_ones_of_the_glyphs_at_half_the_side(stored, glyphs):
    for name, rows in zip(stored["name"], stored["train"], strict=True):
        whole = unpacked(glyphs["images"][glyphs["name"] == name], 28)[:12]
        means = functional.avg_pool2d(torch.from_numpy(whole)[:, None].float(), 2)[:, 0]
        assert np.array_equal(unpacked(rows), (means + 0.5).floor().numpy())


def test_four_pixels_become_the_nearest_level_of_their_mean(maker):
    images = np.zeros((1, 28, 28), np.uint8)
    images[0, 0, :2] = 1  # a mean of 0.5
    images[0, 2, 2] = 1  # 0.25
    images[0, :2, 26:] = 3  # 3
    images[0, 26, 26:], images[0, 27, 27] = 3, 1  # 1.75
    small = maker.reduced(images)
    assert small.dtype == np.uint8 and small.shape == (1, 14, 14) and small.sum() == 1 + 0 + 3 + 2
    assert (small[0, 0, 0], small[0, 1, 1], small[0, 0, 13], small[0, 13, 13]) == (1, 0, 3, 2)


def test_the_classes_are_those_of_the_rule(maker, stored, glyphs):
    assert glyphs["name"][maker.chosen(glyphs["name"])].tolist() == stored["name"].tolist()
    assert maker.chosen(np.array(["a/1", "a/2", "b/1", "b/2"])).tolist() == [0, 1, 2, 3]


def test_likeness_is_a_cosine_at_the_best_shift_by_a_pixel(maker):
    images = np.zeros((4, 14, 14), np.uint8)
    images[0, 5, 5:7] = 3, 1
    images[1, 6, 4:6] = 3, 1  # the same, a pixel lower and to the left
    images[2, 5, 7] = 2  # two pixels from the 3: only the 1 can be shifted there
    images[3, 5, 5:7] = 1, 3
    one, far, turned = 1, 1 / 10**0.5, 9 / 10  # at a shift by one, only the 3 of both overlap
    assert maker.likeness(images[:1], images) == pytest.approx(np.array([[one, one, far, turned]]), abs=1e-6)


def test_a_shift_does_not_wrap_round_the_border(maker):
    images = np.zeros((2, 14, 14), np.uint8)
    images[0, 0, 3] = images[1, 13, 3] = 3
    assert maker.likeness(images[:1], images).tolist() == [[1, 0]]


def test_no_image_is_nearly_in_two_parts(maker, stored):
    """Of no two classes either, where a near duplicate would be a wrong label; the margin there is larger."""
    own = np.arange(32)
    for one, other in combinations(EACH, 2):
        like = maker.likeness(unpacked(stored[one]), unpacked(stored[other]))
        by_class = like.reshape(32, EACH[one], 32, EACH[other])
        assert 0.9 < by_class[own, :, own].max() < 0.92 == maker.ALIKE
        by_class[own, :, own] = 0
        assert by_class.max() < 0.905


def test_no_image_is_there_twice(stored):
    images = np.concatenate([unpacked(stored[part]) for part in EACH])
    assert len({image.tobytes() for image in images}) == len(images) == 32 * 212


@pytest.mark.parametrize("name", ["hebrew/U+05D0", "ogham/U+1692", "latin/U+0281"])
def test_the_script_makes_a_class_again(maker, stored, glyphs, name):
    [index], [whole] = np.flatnonzero(stored["name"] == name), np.flatnonzero(glyphs["name"] == name)
    code, faces = int(name.split("U+")[1], 16), int(glyphs["faces"][whole])
    train = unpacked(stored["train"][index])
    for part, images in maker.parts(code, faces, train).items():
        assert np.array_equal(maker.packed(images), stored[part][index]), part


def test_an_image_that_is_nearly_a_training_image_is_drawn_again(maker, monkeypatch):
    monkeypatch.setattr(maker, "HELD_OUT", 3)
    images = maker.hands(ord("\u05d0"), 1, maker.SEEDS["val"])
    drawn = np.concatenate([maker.reduced(next(images)[None]) for _ in range(5)])
    near = drawn[[0, 3]].copy()
    near[:, 0, 0] ^= 1  # one grey level of one pixel
    made = maker.parts(ord("\u05d0"), 1, np.roll(near, 1, 2))
    assert np.array_equal(made["val"], drawn[[1, 2, 4]]) and len(made["test"]) == 3
    assert not np.array_equal(made["test"], made["val"])


@pytest.mark.parametrize("state", ["missing", "damaged", "another file"])
def test_a_missing_or_damaged_file_is_said_clearly(state, tmp_path, monkeypatch):
    path = tmp_path / "glyph_classes.npz"
    if state == "damaged":
        whole = bytearray(paths.shipped("glyph_classes.npz").read_bytes())
        whole[1000] ^= 1
        path.write_bytes(whole)
    if state == "another file":
        path.write_bytes(paths.shipped("glyphs.npz").read_bytes())
    monkeypatch.setattr(paths, "shipped", lambda *parts: tmp_path.joinpath(*parts))
    said = "cannot be read" if state == "missing" else "checksum"
    with pytest.raises(DataError, match=rf"glyph_classes\.npz.*{said}.*checkout data/glyph_classes\.npz"):
        module.glyph_classes()


def test_the_script_says_what_it_can_do():
    command = [sys.executable, FOLDER / "make_glyph_classes.py", "--help"]
    assert "--check" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
