"""The handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels, which need no download."""

from __future__ import annotations

import numpy as np
import torch

from mebqat_lite.datasets.base import Data, Split

TEST, VALIDATION = 540, 257  # the remaining 1,000 train


def digits(seed: int = 0) -> Data:
    """Load the digits: 1,000 training, 257 validation and 540 test images, a stratified split chosen by ``seed``.

    Images are float32, (count, 1, 8, 8), in [0, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    labels = raw.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, random_state=seed, stratify=labels)
    train, val = train_test_split(rest, test_size=VALIDATION, random_state=seed, stratify=labels[rest])
    images = torch.from_numpy(raw.images.astype(np.float32) / 16)[:, None]  # (1797, 1, 8, 8)
    whole = Split(images, torch.from_numpy(labels))
    first, second, third = (whole.take(torch.from_numpy(index)) for index in (train, val, test))
    return Data("digits", first, second, third, tuple("0123456789"))
