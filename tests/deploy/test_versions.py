"""Files of modules that ask for the version of a state dict, compute their weights, or keep what they computed."""

import pytest
import torch
import torchvision
from shared import IMAGES, SHAPE, Auxiliary, made
from torch import nn

from mebqat_lite import at, load_model, load_packed, quantize, recalibrate, save_model, save_packed
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement


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


class Keeps(Auxiliary):
    """A network that keeps features of its last pass, in an attribute and in a list."""

    def forward(self, x):
        self.kept = self.first(x)
        self.more = {"all": [self.kept.relu()]}
        return super().forward(x)


def normed(how):
    """A network with a layer whose weights are computed from a length and a direction."""

    def build():
        model = Auxiliary()
        how(model.two)
        return model

    return build


BUILDS = [Keeps, normed(torch.nn.utils.weight_norm), normed(torch.nn.utils.parametrizations.weight_norm)]


@SLOW  # an export takes a second or two
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("build", BUILDS)
def test_tensors_that_a_network_computed_are_no_obstacle(build, tmp_path):
    model = made(build)
    with at(model, "W3A3", "recalibrated"):
        wanted = model(IMAGES)  # with gradients, as after training
    save_packed(model, tmp_path / "p", "W3A3", calibration=IMAGES)
    assert torch.equal(load_packed(tmp_path / "p", build())[0](IMAGES), wanted)
    with at(model, "W3A3", "recalibrated"):
        model(IMAGES)
    done = export_onnx(model, tmp_path / "net.onnx", "W3A3", SHAPE)
    assert agreement(done.path, model, IMAGES, "W3A3").largest_difference < 1e-5
    assert "two" not in {stored.layer for stored in done.layers} or build is Keeps
