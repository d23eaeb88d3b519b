"""Images stored as bytes are floats from 0 to 1 to everything that reads them; and memory that is kept."""

import ctypes

import numpy as np
import pytest
import torch
from pictures import sizes

from mebqat_lite import fit, grid, models, quantize, tensors
from mebqat_lite.datasets import digits
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe
from mebqat_lite.tensors import as_float, image_batches

pytestmark = pytest.mark.usefixtures("home")


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


# ---------------------------------------------------------------- memory


def test_keep_memory_says_whether_it_could_and_memory_is_there_as_before():
    done = tensors.keep_memory()
    assert isinstance(done, bool) and tensors.keep_memory() is done
    for size in (1, 1 << 10, 1 << 22, 1):  # also far above what the system is usually asked for directly
        block = torch.arange(size)
        assert int(block.sum()) == size * (size - 1) // 2


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_keep_memory_is_no_error_where_the_c_library_is_another(error, monkeypatch):
    def absent(_name):
        raise error("no such thing")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert tensors.keep_memory() is False
