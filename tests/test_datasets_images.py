"""Image folders, CIFAR-10 and SVHN from made files, subsets and augmentation. Nothing is downloaded."""

import hashlib
import io
import json
import os
import shutil
import socket
import tarfile
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from safetensors import safe_open

import mebqat_lite.datasets.downloads as downloads
from mebqat_lite import cli, datasets, fit, grid, models, quantize
from mebqat_lite.datasets import Augment, DataError, cifar10, digits, folder, load, subset, svhn
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe
from mebqat_lite.tensors import as_float, image_batches

HEIGHT, WIDTH = 5, 6
PARTS = ("train", "val", "test")
URLOPEN = urllib.request.urlopen


pytestmark = pytest.mark.usefixtures("home")


def picture(number, mode="RGB", size=(WIDTH, HEIGHT)):
    """A noise image; no two numbers share one."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def make(root, counts, mode="RGB", suffix=".png"):
    """Write images 0, 1, ... to class folders, ``{"train/cat": 5}``; returns {bytes: (part or "", class)}."""
    origin, number = {}, 0
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for index in range(count):
            image = picture(number, mode)
            image.save(root / place / f"{index}{suffix}")
            part, _, name = place.rpartition("/")
            origin[content(chw(image))] = (part, name)
            number += 1
    return origin


def chw(image):
    """(channels, height, width), uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def content(image):
    return image.numpy().tobytes()


def by_content(data):
    """{bytes: (part, class)} of everything in a dataset."""
    return {
        content(image): (part, data.classes[label])
        for part in PARTS
        for image, label in zip(*getattr(data, part), strict=True)
    }


def sizes(data):
    return [len(getattr(data, part).labels) for part in PARTS]


def no_decoding(*args, **kwargs):
    raise AssertionError("an image file was opened")


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


# ---------------------------------------------------------------- the cache


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


# ---------------------------------------------------------------- what cannot be used


def spoil(path):
    path.write_bytes(path.read_bytes()[:60])


def deepen(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 1000, np.uint16)).save(path)


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


@pytest.mark.parametrize(("damage", "reason"), [(spoil, ""), (deepen, "more than 8 bits")])
def test_an_image_that_cannot_be_read_is_named(tmp_path, home, damage, reason):
    make(tmp_path, {"a": 10, "b": 10})
    damage(tmp_path / "b" / "7.png")
    with pytest.raises(DataError) as error:
        folder(tmp_path)
    assert str(tmp_path / "b" / "7.png") in str(error.value) and reason in str(error.value)
    assert "remove it" in str(error.value)


# ---------------------------------------------------------------- by name


def test_a_folder_by_name(tmp_path, monkeypatch):
    make(tmp_path / "my, pets=2", {"cat": 20, "dog": 20})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = folder(tmp_path / "my, pets=2", seed=3)
    for name in (f"folder:{tmp_path / 'my, pets=2'}", "folder:~/my, pets=2"):
        assert torch.equal(load(name, 3).val.images, wanted.val.images)
    monkeypatch.chdir(tmp_path / "my, pets=2")
    assert torch.equal(load("folder:.", 3).val.images, wanted.val.images)


def test_options_by_name(tmp_path):
    make(tmp_path / "pets", {"cat": 20, "dog": 20})
    data = load(f"folder:{tmp_path / 'pets'},size=4,count=10", 3)
    wanted = subset(folder(tmp_path / "pets", 3, size=4), 10, 3)
    assert data.train.images.shape == (10, 3, 4, 4) and torch.equal(data.train.images, wanted.train.images)
    assert sizes(load("digits,count=100")) == [100, 257, 540]


@pytest.mark.parametrize("name", ["folder", "folder:", "cifar", "digits:x", ",count=3"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match="known: digits, cifar10, svhn, glyphs, omniglot, folder:PATH"):
        load(name)


def test_an_unknown_option_lists_the_known():
    with pytest.raises(ValueError, match="svhn has no option height; known: count, size"):
        load("svhn,height=3")


def test_the_command_line_names_the_cure(tmp_path, capsys):
    assert cli.main(["train", "--data", f"folder:{tmp_path / 'nothing'}"]) == 2
    assert capsys.readouterr().err.startswith("mebqat-lite: there is no folder")


# ---------------------------------------------------------------- bytes and floats


def test_bytes_become_floats_from_0_to_1():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(every), torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8)), "the images themselves stay"
    for dtype in (torch.float32, torch.float64, torch.float16):
        floats = torch.rand(3, 2, dtype=dtype)
        assert as_float(floats) is floats


def test_a_batch_is_float_and_a_selection_is_stored_as_it_was():
    split = Split(torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8), torch.arange(9))
    index = torch.tensor([4, 4, 0])
    batch, part = split.take(index), split.select(index)
    assert torch.equal(batch.images, split.images[[4, 4, 0]].float() / 255) and batch.labels.tolist() == [4, 4, 0]
    assert torch.equal(part.images, split.images[[4, 4, 0]]) and part.images.dtype == torch.uint8


def test_the_training_loop_draws_float_batches():
    train = Split(torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 10)
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=as_float(train.images))
    loop = Loop(model, train, "fp", Recipe(steps=2, batch_size=16))
    batch = loop.source.task(0)
    assert batch.images.dtype == torch.float32 and 0.9 < batch.images.max() <= 1
    assert loop.source.split.images.dtype == torch.uint8
    loop.step()


NOISE = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
BYTES = Split(torch.from_numpy(NOISE), torch.arange(60) % 10)
FLOATS = Split(BYTES.images.float() / 255, BYTES.labels)


@pytest.mark.parametrize(
    "form", [lambda s: s.images, tuple, lambda s: zip(s.images.split(20), s.labels.split(20), strict=True)]
)
def test_calibration_reads_bytes_as_floats(form):
    for images, wanted in zip(image_batches(form(BYTES), 20), image_batches(form(FLOATS), 20), strict=True):
        assert torch.equal(images, wanted) and images.dtype == torch.float32


def test_bytes_and_floats_train_and_measure_alike():
    frames, losses = [], []
    for split in (BYTES, FLOATS):
        torch.manual_seed(0)
        model = models.digit_net(widths=(4, 4, 4, 4))
        data = Data("made", split, split, split, tuple("0123456789"))
        options = {
            "steps": 4,
            "warm_steps": 0,
            "batch_size": 16,
            "quantizer": "lsq",
            "progress": False,
            "device": "cpu",
        }
        losses.append(fit(model, data, "mebqat", **options).losses)
        frames.append(grid(model, split, "W2A2,FP", norm_stats="recalibrated", calibration=split.images))
    assert losses[0] == losses[1] and frames[0].equals(frames[1])


def test_the_digits_are_floats_as_ever():
    data = digits()
    assert data.train.images.dtype == torch.float32 and sizes(data) == [1000, 257, 540]
    assert torch.equal(data.train.take(torch.arange(9)).images, data.train.images[:9])
    assert models.digit_net()(data.test.images).shape == (540, 10)


# ---------------------------------------------------------------- CIFAR-10 and SVHN

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar_archive(monkeypatch):
    """A small archive in the form of the real one; returns its bytes, the labels and the pixels."""
    random = np.random.default_rng(0)
    labels = (np.arange(120) % 10).astype(np.uint8)
    pixels = random.integers(0, 256, (120, 3, 32, 32), np.uint8)
    records = [bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True)]
    files = {f"data_batch_{i + 1}.bin": b"".join(records[20 * i : 20 * i + 20]) for i in range(5)}
    files |= {"test_batch.bin": b"".join(records[100:]), "readme.html": b"<html>"}
    files |= {"batches.meta.txt": "\n".join([*CLASSES, "", ""]).encode()}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, text in reversed(files.items()):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    md5 = hashlib.md5(whole.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(downloads, "CIFAR10", downloads.CIFAR10._replace(md5=md5))
    monkeypatch.setattr(downloads, "VALIDATION", 20)
    return whole.getvalue(), torch.from_numpy(labels), torch.from_numpy(pixels)


def put(home, name, text):
    home.mkdir(exist_ok=True)
    (home / name).write_bytes(text)


def test_cifar10_from_a_file(home, cifar_archive):
    archive, labels, pixels = cifar_archive
    put(home, "cifar-10-binary.tar.gz", archive)
    data = cifar10(seed=1)
    assert data.classes == tuple(CLASSES) and data.name == "cifar10" and sizes(data) == [80, 20, 20]
    assert torch.equal(data.test.images, pixels[100:]) and torch.equal(data.test.labels, labels[100:].long())
    assert data.val.labels.bincount().tolist() == [2] * 10
    rest = {content(image): int(label) for image, label in zip(pixels[:100], labels[:100], strict=True)}
    drawn = [(content(i), int(label)) for s in (data.train, data.val) for i, label in zip(*s, strict=True)]
    assert dict(drawn) == rest and len(drawn) == 100
    assert torch.equal(downloads._read_cifar10().splits["train"].images, pixels[:100]), "in the order of the batches"
    other = cifar10(seed=2)
    assert not torch.equal(other.val.images, data.val.images) and torch.equal(other.test.images, data.test.images)


def test_what_is_kept_is_enough(home, cifar_archive):
    put(home, "cifar-10-binary.tar.gz", cifar_archive[0])
    first = load("cifar10", 1)
    (home / "cifar-10-binary.tar.gz").unlink()
    assert torch.equal(load("cifar10", 1).train.images, first.train.images)
    assert [path.name for path in home.iterdir()] == ["cache"]


class Response(io.BytesIO):
    """What urlopen returns: the body ends when it ends, whatever length was promised."""

    def __init__(self, body, length, status):
        super().__init__(body)
        self.length, self.status = length, status


def serve(monkeypatch, whole, *ends, ranges=True):
    """Answer each download with ``whole``, from where it asks if ``ranges``, cut off at the next of ``ends``."""
    ends, asked = list(ends), []

    def urlopen(request, timeout):
        start = int(request.get_header("Range", "bytes=0-")[6:-1]) if ranges else 0
        asked.append(start)
        end = ends.pop(0) if ends else len(whole)
        return Response(whole[start:end], len(whole) - start, 206 if start else 200)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_is_continued_or_else_started_again(home, monkeypatch, cifar_archive, ranges):
    archive, _, pixels = cifar_archive
    half = len(archive) // 2
    asked = serve(monkeypatch, archive, half, half + 9 if ranges else 7, ranges=ranges)
    for _ in range(2):
        with pytest.raises(DataError, match=f"cannot be downloaded .it broke off at .* of {len(archive):,} bytes"):
            cifar10()
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["cifar-10-binary.tar.gz.part"]
    assert torch.equal(cifar10().test.images, pixels[100:])
    assert asked == ([0, half, half + 9] if ranges else [0, 0, 0])
    assert sorted(path.name for path in home.iterdir()) == ["cache", "cifar-10-binary.tar.gz"]


def test_a_part_that_became_another_file_is_not_kept(home, monkeypatch, cifar_archive):
    archive, _, pixels = cifar_archive
    put(home, "cifar-10-binary.tar.gz.part", b"not its beginning")
    serve(monkeypatch, archive)
    with pytest.raises(DataError, match=r"the checksum of what https://www\.cs\.toronto\.edu\S* sent differs"):
        cifar10()
    assert torch.equal(cifar10().test.images, pixels[100:]), "begun anew"


def test_a_part_that_is_whole_is_taken(home, cifar_archive):
    archive, _, pixels = cifar_archive
    put(home, "cifar-10-binary.tar.gz.part", archive)  # no network is needed
    assert torch.equal(cifar10().test.images, pixels[100:])


def test_a_file_that_is_not_whole_is_downloaded_again(home, monkeypatch, cifar_archive):
    archive, _, pixels = cifar_archive
    put(home, "cifar-10-binary.tar.gz", archive[:-9])
    serve(monkeypatch, archive)
    assert torch.equal(cifar10().test.images, pixels[100:])
    assert (home / "cifar-10-binary.tar.gz").read_bytes() == archive


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", ["cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]),
        ("svhn", ["train_32x32.mat", "test_32x32.mat"]),
    ],
)
def test_without_network_one_message_says_what_to_do(home, capsys, name, files):
    started = time.perf_counter()
    assert cli.main(["train", "--data", name]) == 2
    assert time.perf_counter() - started < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in [f"{name} cannot be downloaded", *files, str(home), 'data="digits"'])
    assert "Name or service not known" in line and "Traceback" not in line
    with pytest.raises(DataError) as error:
        load(name)
    shown = error.value.__cause__ or (None if error.value.__suppress_context__ else error.value.__context__)
    assert shown is None, "urllib's own traceback would be shown"


def test_without_network_a_damaged_file_is_mentioned(home):
    put(home, "cifar-10-binary.tar.gz", b"half")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz there is not whole"):
        cifar10()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)  # a real connection, to this machine
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = downloads.Remote(f"http://127.0.0.1:{silent.getsockname()[1]}/file", "file", "0")
        started = time.perf_counter()
        with pytest.raises(DataError, match=r"cannot be downloaded \(timed out\)"):
            downloads.fetch("made", [file])
    assert time.perf_counter() - started < 5
    assert socket.getdefaulttimeout() is None and not list(tmp_path.iterdir())


@pytest.fixture
def svhn_files(home, monkeypatch):
    """Small files in the form of the real ones: X is (32, 32, 3, count), y is (count, 1), 10 stands for 0."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    home.mkdir()
    made, known = {}, {}
    for number, (part, count) in enumerate({"train": 100, "test": 30}.items()):
        images = np.random.default_rng(number).integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = np.arange(count) % 10
        place = home / f"{part}_32x32.mat"
        savemat(place, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        md5 = hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()
        known[part] = [f"http://nowhere/{place.name}", place.name, md5]
        made[part] = (images, labels)
    monkeypatch.setattr(SVHN, "split_list", known)
    monkeypatch.setattr(downloads, "VALIDATION", 20)
    return made


def test_svhn_from_files(home, svhn_files):
    images, labels = svhn_files["test"]
    data = svhn()
    assert data.classes == tuple("0123456789") and sizes(data) == [80, 20, 30]
    assert data.test.labels.tolist() == labels.tolist() and data.val.labels.bincount().tolist() == [2] * 10
    assert data.test.images.shape == (30, 3, 40, 40) and data.test.images.dtype == torch.uint8
    pillow = [chw(Image.fromarray(image).resize((40, 40), Image.Resampling.BILINEAR)) for image in images]
    off = (data.test.images.int() - torch.stack(pillow).int()).abs().float()
    assert off.max() <= 1 and off.mean() < 0.3  # equal where both round between the passes
    assert models.cnn8().eval()(as_float(data.test.images[:2])).shape == (2, 10)
    plain = svhn(size=32)
    assert torch.equal(plain.test.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (home / name).unlink()
    assert torch.equal(svhn().test.images, data.test.images)


def test_only_the_missing_file_is_asked_for(home, svhn_files):
    (home / "test_32x32.mat").unlink()
    with pytest.raises(DataError) as error:
        svhn()
    assert "test_32x32.mat" in str(error.value) and "train_32x32.mat" not in str(error.value)


# ---------------------------------------------------------------- subsets


def numbered(counts):
    """A dataset whose images tell their index."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    other = Split(torch.zeros(4, 1, 1, 1), torch.zeros(4))
    return Data("made", Split(images, labels), other, other, tuple("abcdef"[: len(counts)]))


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


# ---------------------------------------------------------------- augmentation


def candidates(image, pad, flip):
    """Every crop of one padded image, (channels, height, width), by torchvision: {bytes: (dy, dx, flipped)}."""
    padded, (height, width) = TF.pad(image, [pad]), image.shape[1:]
    crops = {(dy, dx): TF.crop(padded, dy, dx, height, width) for dy in range(2 * pad + 1) for dx in range(2 * pad + 1)}
    made = {(*key, False): crop for key, crop in crops.items()}
    if flip:
        made |= {(*key, True): TF.hflip(crop) for key, crop in crops.items()}
    return {content(crop.contiguous()): key for key, crop in made.items()}


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_crop_of_its_own_image_is_equally_likely(flip, dtype):
    pad, repeats = 2, 600
    images = torch.arange(1, 1 + 4 * 2 * 5 * 6).view(4, 2, 5, 6).to(dtype)  # all pixels differ
    known = [candidates(image, pad, flip) for image in images]
    choices = 25 * (2 if flip else 1)
    assert all(len(crops) == choices for crops in known)
    batch = images.repeat(repeats, 1, 1, 1)
    made = Augment(pad, flip)(batch, torch.Generator().manual_seed(0))
    assert made.dtype == dtype and made.shape == batch.shape
    drawn = [known[index % 4][content(image)] for index, image in enumerate(made)]  # KeyError: not its own crop
    expected = len(drawn) / choices
    counts = Counter(drawn)
    assert len(counts) == choices
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2 < choices - 1 + 5 * (2 * (choices - 1)) ** 0.5
    neighbours = Counter(zip(drawn[::2], drawn[1::2], strict=True))  # each image draws its own
    assert max(neighbours.values()) < 0.02 * len(drawn)


def test_augmentation_is_the_generators_alone():
    images = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    first, again, other = (Augment()(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, before)
    floats = Augment()(as_float(images), torch.Generator().manual_seed(1))
    assert torch.equal(as_float(first), floats)
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(Augment()(images, generator), Augment()(images, generator))


def test_no_padding_and_no_flip_change_nothing():
    images = torch.rand(7, 3, 8, 8)
    assert torch.equal(Augment(pad=0, flip=False)(images, torch.Generator()), images)


def test_channels_last_changes_nothing_but_the_layout():
    images = torch.rand(32, 3, 8, 9)
    made = [
        Augment()(batch, torch.Generator().manual_seed(0))
        for batch in (images, images.contiguous(memory_format=torch.channels_last))
    ]
    assert torch.equal(*made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_augmentation_is_the_same_on_the_gpu():
    images = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    made = [Augment()(batch, torch.Generator().manual_seed(1)).cpu() for batch in (images, images.cuda())]
    assert torch.equal(*made)


def test_exports():
    assert set(datasets.DATASETS) == {"digits", "cifar10", "svhn", "glyphs", "omniglot"}
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "made: 2 classes; train 10, val 4, test 4" in repr(numbered([5, 5]))
