"""Modules that ask for the version of a state dict find it in files of this package, too."""

import pytest
import torch
import torchvision
from shared import IMAGES, Auxiliary, made
from torch import nn

from mebqat_lite import at, load_model, load_packed, quantize, recalibrate, save_model, save_packed


class Asks(Auxiliary):
    """A network that reads no state dict without its version."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError(f"no version 2: {metadata}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Migrates(Auxiliary):
    """A network that halves a weight of older state dicts."""

    _version = 3

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version", 1) < 3:
            state[f"{prefix}last.bias"] = state[f"{prefix}last.bias"] / 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def mnasnet():
    return torchvision.models.mnasnet0_5(num_classes=4)


def googlenet():
    return torchvision.models.googlenet(num_classes=4, init_weights=False)


SLOW = pytest.mark.slow
BUILDS = [Asks, Migrates, lambda: nn.Sequential(Asks()), mnasnet, pytest.param(googlenet, marks=SLOW)]


@pytest.mark.parametrize("build", BUILDS)
def test_a_file_is_read_as_the_version_of_its_classes(build, tmp_path):
    images = IMAGES if build not in (mnasnet, googlenet) else torch.rand(4, 3, 64, 64)
    model = made(build) if images is IMAGES else quantize(build().eval(), "lsq", sample=images)
    recalibrate(model, images, "W3A3")
    with torch.no_grad(), at(model, "W3A3", "recalibrated"):
        wanted = model(images)
    save_model(model, tmp_path / "m")
    again, _ = load_model(tmp_path / "m", build())
    save_packed(model, tmp_path / "p", "W3A3")
    packed, _ = load_packed(tmp_path / "p", build())
    with torch.no_grad(), at(again, "W3A3", "recalibrated"):
        assert torch.equal(again(images), wanted) and torch.equal(packed(images), wanted)
