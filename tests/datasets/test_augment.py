"""Augmentation: every crop and flip equally likely, and of the generator alone."""

from collections import Counter

import pytest
import torch
import torchvision.transforms.functional as TF
from pictures import content

from mebqat_lite.datasets import Augment
from mebqat_lite.tensors import as_float

pytestmark = pytest.mark.usefixtures("home")


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
