"""Glyphs: its numbers, that its file is what its script makes, and that no class is another one."""

import hashlib
import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from mebqat_lite import paths
from mebqat_lite.datasets.base import DataError

ROOT = paths.checkout()

module = importlib.import_module("mebqat_lite.datasets.glyphs")  # the package may give the function this name
SCRIPT = ROOT / "data" / "make_glyphs.py"
PARTS = ("train", "val", "test")
# Ink over the length of the centre line, in pixels, mean and middle 90 %: 2,720 Omniglot images (136 characters of the
# small background set 1), inverted, resized to 28 x 28 by Pillow's LANCZOS; see `stroke_widths`. Their mean ink: 0.080.
OMNIGLOT_WIDTH, OMNIGLOT_RANGE, OMNIGLOT_INK = 1.62, (1.43, 1.85), 0.080


@pytest.fixture(scope="module")
def data():
    return module.glyphs()


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_glyphs", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def stored():
    with np.load(paths.shipped("glyphs.npz"), allow_pickle=False) as file:
        return dict(file)


def code_of(name):
    return int(name.split("U+")[1], 16)


def scripts(data, part):
    return {module.script(data.classes[label]) for label in getattr(data, part).labels.unique().tolist()}


def test_the_first_images_are_of_all_scripts_for_they_calibrate(data):
    first = {module.script(data.classes[label]) for label in data.train.labels[:512].tolist()}
    assert len(first & scripts(data, "train")) >= 6  # Coptic has 5 of 717 classes


def stroke_widths(maker, images):
    """Ink over the pixels of the thinned image (grey of at least 0.34) of each image, (count, 28, 28) in [0, 1]."""
    lengths = np.array([maker.thin(np.pad(image >= 0.34, 2)).sum() for image in images])
    return images.sum((1, 2)) / lengths


def test_sizes_shapes_and_ranges(data):
    assert data.name == "glyphs" and len(data.classes) >= 900 and len(set(data.classes)) == len(data.classes)
    assert len({module.script(name) for name in data.classes}) >= 15
    for part in PARTS:
        images, labels = getattr(data, part)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert images.shape == (len(labels), 1, 28, 28)
        assert images.unique().tolist() == [0, 85, 170, 255]
        assert images.float().mean() < 128  # white on black
        assert set(Counter(labels.tolist()).values()) == {20}
        assert len(labels.unique()) >= 100


def test_the_split_is_by_script_and_the_same_for_every_seed(data):
    labels = [set(getattr(data, part).labels.tolist()) for part in PARTS]
    assert sum(map(len, labels)) == len(set.union(*labels)) == len(data.classes)
    by_part = [scripts(data, part) for part in PARTS]
    assert sum(map(len, by_part)) == len(set.union(*by_part)) and min(map(len, by_part)) >= 4
    other = module.glyphs(seed=7)
    assert all(torch.equal(getattr(data, part).images, getattr(other, part).images) for part in PARTS)


def test_the_file_is_small_and_frozen(data):
    file = paths.shipped("glyphs.npz").read_bytes()
    about = json.loads(paths.shipped("glyphs.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(file).hexdigest() == module.SHA256 == about["sha256"]
    assert len(file) == about["bytes"] <= 2_500_000
    counted = Counter(map(module.script, data.classes))
    for part in PARTS:
        assert about["scripts"][part] == {script: counted[script] for script in scripts(data, part)}
        assert about["classes"][part] == len(getattr(data, part).labels) // 20
    assert "Bitstream Vera" in paths.shipped("glyphs-LICENSE.txt").read_text(encoding="utf-8")
    assert paths.shipped("glyphs.png").stat().st_size <= 300_000


def test_the_script_makes_the_file_again(maker, stored):
    chosen = np.linspace(0, len(stored["name"]) - 1, 12).astype(int)
    assert set(stored["part"][chosen]) == set(PARTS)
    for index in chosen:
        made = maker.instances(code_of(stored["name"][index]), int(stored["faces"][index]))
        assert np.array_equal(maker.packed(made), stored["images"][index]), stored["name"][index]
        assert np.array_equal(maker.unpacked(stored["images"][index]), made)


def test_the_archive_holds_no_time_of_day(maker, stored):
    few = {name: array[:3] for name, array in stored.items()}
    file = maker.npz(few)
    assert b"\x00\x00\x21\x00" in file[:20]  # 1 January 1980, as a zip file writes it
    assert maker.npz(few) == file


def test_the_candidates_hold_every_class_in_its_part(maker, stored):
    known = {f"{script}/U+{code:04X}": part for part, script, code in maker.candidates()}
    assert [known[name] for name in stored["name"]] == stored["part"].tolist()


def test_no_image_is_there_twice(data):
    images = torch.cat([getattr(data, part).images for part in PARTS]).flatten(1).numpy()
    assert len({image.tobytes() for image in images}) == len(images) == 20 * len(data.classes)


@pytest.mark.slow
def test_no_two_classes_are_near_duplicates(maker, stored):
    """All of validation and test, where nothing may leak, and every tenth class of train; the script compares all."""
    part = stored["part"]
    index = np.concatenate([np.flatnonzero(part != "train"), np.flatnonzero(part == "train")[::10]])
    images = np.stack([maker.plain(code_of(name)) for name in stored["name"][index]])
    far = maker.apart(images, images)
    np.fill_diagonal(far, np.inf)
    assert far.min() >= maker.NEAR


def test_near_duplicates_are_found(maker):
    latin, greek, cyrillic, beta = (maker.plain(ord(char)) for char in "\u0041\u0391\u0410\u0392")
    far = maker.apart(np.stack([latin, greek, cyrillic, beta]), np.stack([latin, beta]))
    assert (far[:3, 0] < maker.NEAR).all() and (far[:3, 1] >= maker.NEAR).all() and far[3, 1] == 0
    assert maker.distinct(maker.apart(np.stack([latin, greek, beta]), np.stack([latin, greek, beta]))) == [0, 2]
    wide = maker.plain(ord("\u041d")), maker.plain(ord("\u043d"))  # Cyrillic EN, capital and small
    assert maker.apart(wide[0][None], wide[1][None]) < maker.NEAR


def test_instances_vary_and_yet_are_of_their_class(data):
    """One example of each of 20 classes, nearest neighbour in pixels: above chance, far from solved."""
    by_class = data.val.images[data.val.labels.argsort(stable=True)]
    images = by_class.reshape(-1, 20, 28 * 28).float() / 255
    assert torch.stack([torch.pdist(instances).min() for instances in images]).min() > 1
    draw, right = torch.Generator().manual_seed(0), []
    for _ in range(100):
        classes = torch.randperm(len(images), generator=draw)[:20]
        support, query = torch.randperm(20, generator=draw)[:2]
        nearest = torch.cdist(images[classes, query], images[classes, support]).argmin(1)
        right.append((nearest == torch.arange(20)).float().mean())
    assert 0.10 < torch.stack(right).mean() < 0.35  # Omniglot: 0.22


def test_strokes_are_as_thin_as_omniglots(maker, data):
    for part in PARTS:
        images = getattr(data, part).images[:: 97 if part == "train" else 23, 0].numpy() / 255
        widths = stroke_widths(maker, images)
        assert abs(widths.mean() - OMNIGLOT_WIDTH) < 0.1
        low, high = OMNIGLOT_RANGE
        assert low - 0.2 < np.quantile(widths, 0.1) and np.quantile(widths, 0.9) < high + 0.2
        assert abs(images.mean() - OMNIGLOT_INK) < 0.02


def test_thinning_keeps_one_pixel_of_a_bar_and_a_dot(maker):
    shape = np.zeros((20, 30), bool)
    shape[4:9, 3:25] = True
    shape[14:16, 14:16] = True  # 2 x 2, which the algorithm alone removes
    line = maker.thin(shape)
    assert not line[~shape].any() and line[14:16].sum() == 1
    assert line[4:9].sum(0).max() == 1 and line[4:9].sum() > 14


def test_a_hole_is_not_filled(maker):
    square = np.array([[0, 0], [90, 0], [90, 90], [0, 90]])
    hole = 30 + square[::-1] / 3
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, 0)], 1) for ring in (square, hole)])
    filled = maker.fill(edges)
    assert filled[5, 5] and not filled[42, 42] and not filled[0].any()
    assert filled.sum() == pytest.approx(maker.RASTER**2 * 8 / 9, rel=0.02)


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_missing_or_damaged_file_is_said_clearly(state, tmp_path, monkeypatch):
    path = tmp_path / "glyphs.npz"
    if state == "damaged":
        whole = bytearray(paths.shipped("glyphs.npz").read_bytes())
        whole[1000] ^= 1
        path.write_bytes(whole)
    monkeypatch.setattr(paths, "shipped", lambda *parts: tmp_path.joinpath(*parts))
    said = "checksum" if state == "damaged" else "cannot be read"
    with pytest.raises(DataError, match=rf"glyphs\.npz.*{said}.*install mebqat_lite again"):
        module.glyphs()


def test_the_script_says_what_it_can_do():
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "--check" in run.stdout
