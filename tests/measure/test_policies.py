"""Calibration images that are given are used."""

import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.datasets.base import Split

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SPLIT = Split(IMAGES, torch.arange(40) % 10)


def net():
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "dorefa", sample=IMAGES)


@pytest.mark.parametrize("own", ["running", "batch"])
def test_grid_uses_the_statistics_that_it_measures(own):
    model = net()
    mq.set_norm_stats(model, own)
    found = mq.grid(model, SPLIT, "W2A2,W4A4", calibration=IMAGES)
    wanted = mq.grid(net(), SPLIT, "W2A2,W4A4", norm_stats="recalibrated", calibration=IMAGES)
    assert found.attrs["norm_stats"] == "recalibrated" and found["mean"].tolist() == wanted["mean"].tolist()
    assert mq.grid(model, SPLIT, "W2A2", norm_stats=own, calibration=IMAGES).attrs["norm_stats"] == own
    assert mq.grid(model, SPLIT, "W2A2").attrs["norm_stats"] == own


def test_sensitivity_too():
    wanted = mq.sensitivity(net(), SPLIT, "W1A1", norm_stats="recalibrated", calibration=IMAGES)
    assert mq.sensitivity(net(), SPLIT, "W1A1", calibration=IMAGES).equals(wanted)
