"""A photograph to paint: a network learns the colour of each pixel from its coordinates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mebqat_lite.datasets.base import Data, DataError, Split

SIDE = 64  # pixels
PHOTOS = ("flower", "china")


def paint(photo: str = "flower", seed: int = 0) -> Data:
    """Load a photograph of 64 x 64 pixels as a task: coordinates are the ``images``, and colours are the ``labels``.

    Coordinates (x, y) are float32, (4096, 2), from -1 to 1, and colours (red, green, blue) are float32, (4096, 3), in
    [0, 1]. Train, val and test are the same pixels, because the task is to reproduce this very picture, as when a
    network is the compressed form of an image (COIN, Dupont et al., 2021). The depth of the network was chosen on the
    other photograph, ``china``. The training pixels are in an order chosen by ``seed``; the others come row by row, as
    `picture` expects them.

    The picture is the middle square of a photograph that comes with scikit-learn, averaged over areas. Both photographs
    have the licence CC BY 2.0: ``china`` is by danielbuechele, ``flower`` by vultilion, both on Flickr (the file
    ``datasets/images/README.txt`` of scikit-learn links them).

    Raises:
        DataError: there is no such photograph.
    """
    from sklearn.datasets import load_sample_image

    if photo not in PHOTOS:
        raise DataError(f"no photograph {photo!r}; choose {' or '.join(PHOTOS)}")
    whole = torch.from_numpy(load_sample_image(f"{photo}.jpg").copy()).permute(2, 0, 1)  # (3, height, width), bytes
    side = min(whole.shape[1:])
    top, left = ((length - side) // 2 for length in whole.shape[1:])
    square = whole[:, top : top + side, left : left + side].to(torch.float32) / 255
    colours = F.adaptive_avg_pool2d(square, SIDE).flatten(1).T.contiguous()  # (4096, 3)
    axis = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1  # the middles of the pixels
    coordinates = torch.cartesian_prod(axis, axis).flip(1)  # (4096, 2): x changes first
    pixels = Split(coordinates, colours)
    order = torch.randperm(len(colours), generator=torch.Generator().manual_seed(seed))
    name = "paint" if photo == PHOTOS[0] else f"paint,photo={photo}"
    return Data(name, pixels.select(order), pixels, pixels, ("red", "green", "blue"))


def picture(colours: Tensor) -> Tensor:
    """Arrange the colours of all pixels, (4096, 3) and row by row, as a picture, (64, 64, 3), with values in [0, 1]."""
    return colours.detach().clamp(0, 1).unflatten(0, (SIDE, SIDE))
