"""Image files of all kinds, and what is said of files that are left out of a folder."""

import os
import socket
import warnings

import numpy as np
import pytest
import torch
from pictures import HEIGHT, PARTS, WIDTH, chw, make, picture, sizes
from PIL import Image

from mebqat_lite.datasets import DataError, class_folders, folder
from mebqat_lite.datasets.folder import read

pytestmark = pytest.mark.usefixtures("home")


def first(data):
    return torch.cat([getattr(data, part).images for part in PARTS])


# ---------------------------------------------------------------- kinds of pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_of_16_bits_is_scaled(tmp_path, suffix):
    values = np.array([[0, 1, 128, 129, 257], [1000, 32767, 32768, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    pixels, grey = read(str(tmp_path / f"a{suffix}"))
    assert grey and pixels[:, :, 0].tolist() == [[0, 0, 0, 1, 1], [4, 127, 128, 254, 255]]  # round(value / 257)
    assert (pixels == pixels[:, :, :1]).all()


def test_grey_of_16_bits_is_resized_and_turned_as_that_of_8_bits_is(tmp_path):
    values, exif = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "b.png", exif=exif)
    for size, shape in ((None, (7, 9, 3)), (4, (4, 4, 3))):
        eight, sixteen = (read(str(tmp_path / name), size)[0] for name in ("a.png", "b.png"))
        assert eight.shape == shape and (eight == sixteen).all()


def test_a_folder_of_16_bits_is_grey(tmp_path):
    make(tmp_path, {"a": 10, "b": 10}, "L")
    Image.fromarray(np.full((HEIGHT, WIDTH), 0xABAB, np.uint16)).save(tmp_path / "a" / "3.png")
    images = first(folder(tmp_path))
    assert images.shape == (20, 1, HEIGHT, WIDTH) and (images == 0xAB).flatten(1).all(1).sum() == 1


def test_more_bits_than_16_are_refused(tmp_path):
    for name, values in (("i.tif", np.full((3, 3), 70000, np.int32)), ("f.tif", np.full((3, 3), 0.5, np.float32))):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} \(its pixels have more than 16 bits"):
            read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("mode", "suffix", "options"), [("P", ".png", {}), ("P", ".gif", {}), ("RGBA", ".png", {}), ("CMYK", ".tif", {})]
)
def test_colours_are_those_that_are_stored(tmp_path, mode, suffix, options):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    image = Image.fromarray(colours).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.array([[0, 128], [255, 0]], np.uint8)))  # transparency is ignored
    image.save(tmp_path / f"a{suffix}", **options)
    pixels, grey = read(str(tmp_path / f"a{suffix}"))
    assert not grey and pixels.tolist() == colours.tolist()


def test_a_transparent_colour_of_a_palette_is_the_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.save(tmp_path / "a.png", transparency=0)
    assert read(str(tmp_path / "a.png"))[0].tolist() == [[[200, 10, 20], [1, 2, 3]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA", "1"])
@pytest.mark.parametrize("turn", [3, 6, 8])
def test_every_mode_is_turned_upright(tmp_path, mode, turn):
    exif, image = Image.Exif(), picture(0).convert(mode)
    exif[0x0112] = turn
    image.save(tmp_path / "a.png", exif=exif)
    how = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}[turn]
    wanted = chw(image.convert("RGB").transpose(how)).permute(1, 2, 0)
    assert read(str(tmp_path / "a.png"))[0].tolist() == wanted.tolist()


# ---------------------------------------------------------------- files that are left out


def said(load, *arguments):
    """What `load` returns, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = load(*arguments)
    return data, [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    ("counts", "extra", "count", "place"),
    [
        ({"a": 10, "b": 10}, ["9.png"], 1, "9.png"),
        ({"a": 10, "b": 10}, ["x.jpg", "y.PNG"], 2, "x.jpg"),
        ({"train/a": 12, "train/b": 12}, ["c/0.png", "c/1.png", "d/2.png"], 3, "c/0.png"),
        ({"train/a": 12, "train/b": 12, "val/a": 2}, ["train-old/a/0.png"], 1, "train-old/a/0.png"),
    ],
)
@pytest.mark.parametrize("load", [folder, class_folders])
def test_images_outside_of_the_class_folders_are_counted(tmp_path, counts, extra, count, place, load):
    make(tmp_path, {**counts, **({"c": 1} if load is class_folders and "a" in counts else {})})
    if load is class_folders and "train/a" in counts:
        make(tmp_path, {"train/e": 1})
    for number, name in enumerate(extra):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(100 + number).save(tmp_path / name)
    data, [text] = said(load, tmp_path)
    assert f"{count} files are left out, because they are in no class folder" in text
    assert text.endswith(f"the first is {tmp_path / place}")
    assert sum(sizes(data)) == sum(counts.values()) + (load is class_folders)


@pytest.mark.parametrize("load", [folder, class_folders])
def test_files_that_are_no_images_are_counted(tmp_path, load):
    make(tmp_path, {"a": 10, "b": 10, "c": 10})
    for name in ("a/notes.txt", "b/photo.heic", "list.csv", "a/.hidden.txt", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    data, [text] = said(load, tmp_path)
    assert "3 files are left out, because they are no images, which are regular files named *.bmp *.gif" in text
    assert text.endswith(f"the first is {tmp_path / 'a' / 'notes.txt'}") and sum(sizes(data)) == 30


def test_nothing_is_said_of_a_folder_that_is_read_whole(tmp_path):
    make(tmp_path, {"a": 10, "b": 10, "b/more": 2})
    assert said(folder, tmp_path)[1] == []


def pipe(path):
    os.mkfifo(path)


def address(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


def dead_link(path):
    path.symlink_to("nowhere.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("put", [pipe, address, dead_link])
def test_what_is_no_regular_file_is_left_out_and_hangs_nothing(tmp_path, monkeypatch, put):
    make(tmp_path, {"a": 10, "b": 10})
    monkeypatch.chdir(tmp_path)  # an address may have about 100 characters
    put(tmp_path.__class__("a", "x.png"))
    data, [text] = said(folder, tmp_path)
    assert "1 files are left out, because they are no images" in text and sum(sizes(data)) == 20


def test_a_device_is_left_out(tmp_path):
    make(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "b" / "x.png").symlink_to("/dev/zero")
    data, [text] = said(folder, tmp_path)
    assert text.endswith(str(tmp_path / "b" / "x.png")) and sum(sizes(data)) == 20


def test_links_to_folders_are_followed_once(tmp_path):
    make(tmp_path / "other", {"more": 4})
    make(tmp_path / "pets", {"a": 10, "b": 10})
    (tmp_path / "pets" / "a" / "linked").symlink_to(tmp_path / "other" / "more")
    (tmp_path / "pets" / "b" / "loop").symlink_to(tmp_path / "pets" / "b")
    data, texts = said(folder, tmp_path / "pets")
    assert sum(sizes(data)) == 24 and texts == []


@pytest.mark.parametrize("place", ["a", "b/more"])
@pytest.mark.parametrize("load", [folder, class_folders])
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, place, load):
    make(tmp_path, {"a": 10, "b": 10, "c": 10, "b/more": 1})
    scan = os.scandir

    def scandir(path="."):
        if os.fspath(path) == str(tmp_path / place):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=rf"the folder {tmp_path / place} cannot be read \(Permission denied\)"):
        load(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_broken_images_are_counted(tmp_path, count):
    make(tmp_path, {"a": 10, "b": 10})
    for number in range(count):
        (tmp_path / "b" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=f"cannot read the image {tmp_path / 'b' / '0.png'} ") as error:
        folder(tmp_path)
    assert (f"{count - 1} more of 20 images cannot be read either" in str(error.value)) == (count > 1)


@pytest.mark.parametrize("size", [0, -1, 8.0, "8", True, 10**22])
@pytest.mark.parametrize("load", [folder, class_folders])
def test_a_size_that_cannot_be_is_blamed_and_no_image(tmp_path, size, load):
    make(tmp_path, {"a": 10, "b": 10, "c": 10})
    with pytest.raises(DataError, match=f"size must be a whole number of pixels from 1 to 32,768, not {size!r}"):
        load(tmp_path, size=size)
