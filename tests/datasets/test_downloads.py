"""CIFAR-10 and SVHN from made files, and downloads that break. Nothing is downloaded."""

import hashlib
import io
import socket
import tarfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from pictures import chw, content, sizes
from PIL import Image

import mebqat_lite.datasets.downloads as downloads
from mebqat_lite import cli, models
from mebqat_lite.datasets import DataError, cifar10, load, svhn
from mebqat_lite.tensors import as_float

URLOPEN = urllib.request.urlopen

pytestmark = pytest.mark.usefixtures("home")


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
