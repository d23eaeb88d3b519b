"""Decoded images are kept: read once, and again after a change of the folder."""

import json
import os
import shutil

import pytest
import torch
from pictures import HEIGHT, PARTS, WIDTH, make, no_decoding, picture, sizes
from PIL import Image
from safetensors import safe_open

from mebqat_lite.datasets import DataError, folder

pytestmark = pytest.mark.usefixtures("home")


def test_images_are_decoded_once(tmp_path, home, monkeypatch):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    first = folder(tmp_path / "pets")
    monkeypatch.setattr(Image, "open", no_decoding)
    again = folder(tmp_path / "pets")
    assert again.classes == first.classes
    assert all(
        torch.equal(*pair) for part in PARTS for pair in zip(getattr(first, part), getattr(again, part), strict=True)
    )
    shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere" / "pets")  # keeps the times
    folder(tmp_path / "elsewhere" / "pets", seed=3)
    (kept,) = (home / "cache").iterdir()
    assert kept.name.startswith("pets-") and kept.suffix == ".safetensors"
    with safe_open(kept, framework="pt") as file:
        assert json.loads(file.metadata()["mebqat_lite"])["classes"] == ["cat", "dog"]
        images, labels = file.get_tensor("train.images"), file.get_tensor("train.labels")
    assert (images.dtype, images.shape) == (torch.uint8, (20, 3, HEIGHT, WIDTH))
    assert (labels.dtype, labels.shape) == (torch.int64, (20,))


def change_time(place):
    os.utime(place / "cat" / "3.png", (1, 1))


def change_size(place):
    stat = (place / "cat" / "3.png").stat()
    picture(99, "L").save(place / "cat" / "3.png")
    os.utime(place / "cat" / "3.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rename(place):
    (place / "cat" / "9.png").rename(place / "cat" / "last.png")  # the order stays


def move_class(place):
    (place / "cat" / "9.png").rename(place / "dog" / "-first.png")


def remove(place):
    (place / "cat" / "3.png").unlink()


@pytest.mark.parametrize("change", [change_time, change_size, rename, move_class, remove])
def test_a_changed_folder_is_decoded_again(tmp_path, monkeypatch, change):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    folder(tmp_path / "pets")
    change(tmp_path / "pets")
    monkeypatch.setattr(Image, "open", no_decoding)
    with pytest.raises(DataError, match="was opened"):
        folder(tmp_path / "pets")


def test_another_size_is_kept_apart(tmp_path):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    shapes = [folder(tmp_path / "pets", size=size).train.images.shape[2:] for size in (None, 4, None, 4)]
    assert shapes == [(HEIGHT, WIDTH), (4, 4)] * 2


def test_a_damaged_cache_is_made_anew(tmp_path, home):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    first = folder(tmp_path / "pets")
    (kept,) = (home / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(folder(tmp_path / "pets").train.images, first.train.images)
    assert kept.read_bytes() == whole


def test_reading_that_is_stopped_leaves_nothing(tmp_path, home, monkeypatch):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    opened, real = [], Image.open

    def stop(path):
        opened.append(path)
        if len(opened) == 12:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(Image, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        folder(tmp_path / "pets")
    assert not list(home.glob("**/*.safetensors"))


def test_without_a_place_for_the_cache_it_warns_and_works(tmp_path, home):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    home.mkdir()
    (home / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be written"):
        data = folder(tmp_path / "pets")
    assert sizes(data) == [14, 3, 3]
