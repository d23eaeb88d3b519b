"""One image alone is classified as among others, under stored statistics."""

import pytest
import torch
from torch import nn
from uneven import F64, MAPS, images, net

import mebqat_lite as mq
from mebqat_lite.bits import FP
from mebqat_lite.measure.evaluate import agreement
from mebqat_lite.models import GlobalMean
from mebqat_lite.switching.state import setting_of


def brightness():
    """White images are class 1, black ones class 0, by a mean that batch norm has put between them."""
    layers = [nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), GlobalMean(), nn.Linear(1, 2)]
    model = nn.Sequential(*layers).to(F64).eval()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[3].weight.copy_(torch.tensor([[0.0], [1.0]])), model[3].bias.zero_()
    return model


@pytest.mark.filterwarnings("ignore:quantize found no layer")
def test_stored_statistics_classify_an_image_alone_as_among_others_and_those_of_the_batch_do_not():
    """Alone, an even image has no variance: its norm gives 0, and white becomes black: 3 of 8 images change."""
    x = torch.zeros(8, 1, 4, 4, dtype=F64)
    x[:3] = 1
    model = mq.quantize(brightness(), sample=x)
    mq.recalibrate(model, x, "FP")
    with torch.no_grad(), mq.at(model, "FP", "recalibrated"):
        assert model(x).argmax(1).tolist() == [1] * 3 + [0] * 5
    assert agreement(model, x, "FP") == 100
    assert agreement(model, x, "FP", "batch") == 100 * 5 / 8


@pytest.mark.parametrize("bits", ["W2A2", MAPS["digit_net"]], ids=str)
def test_agreement_leaves_the_model_as_it_was(bits):
    model, x = net().train(), images(30, seed=4)
    mq.recalibrate(model, images(60), bits)
    assert agreement(model, x, bits) == 100 and agreement(model, x, bits, "batch") < 100
    setting = setting_of(model)
    assert (model.training, setting.bits, setting.norm_stats, setting.keep_weights) == (True, FP, "running", False)
