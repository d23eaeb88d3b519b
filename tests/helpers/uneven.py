"""Networks in float64 with gains and shifts so uneven that half of what a ReLU sees is below zero."""

import copy
import functools

import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.models import _conv

F64 = torch.float64


def images(count, channels=1, side=8, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cnn8_like():
    """Kinds of layers as in CNN-8, in its order, dropout included, small; here every convolution has a norm."""
    stem = _conv(3, 4, padding=0, pool=True)  # 8 -> 6 -> 3
    head = [nn.Dropout(0.5), _conv(4, 6, padding=0), nn.Flatten(), nn.Linear(6, 10)]
    return nn.Sequential(stem, _conv(4, 4), _conv(4, 4), *head)


FLOAT_NETS = {
    "digit_net": lambda: mq.models.digit_net(widths=(4, 8, 8, 8)),
    "resnet": lambda: mq.models.preact_resnet20(width=0.25),
    "cnn8_like": cnn8_like,
}
MAPS = {  # one reader, of two where there are two, keeps its activations
    "digit_net": {"*": "W2A2", "body.1.0": "W2A32"},
    "resnet": {"*": "W2A2", "body.3.skip.0": "W2A32"},
    "cnn8_like": {"*": "W2A2", "2.0": "W2A32"},
}
SOURCES = {name: images(8, 1 if name == "digit_net" else 3) for name in FLOAT_NETS}


def net(name="digit_net", quantizer="dorefa"):
    """In float64, with gains and shifts so uneven that half of what a ReLU sees is below zero."""
    return copy.deepcopy(built(name, quantizer))


@functools.cache
def built(name, quantizer):
    torch.manual_seed(0)
    model = FLOAT_NETS[name]().to(F64)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.3)
    return mq.quantize(model.eval(), quantizer, sample=SOURCES[name])


TRAIN = Split(images(64, seed=1).float(), torch.arange(64) % 10)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("0123456789"))


def trained(quantizer, method="qat", **options):
    """A small float32 net before and after two steps."""
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=TRAIN.images)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"steps": 2, "batch_size": 32, "progress": False, "device": "cpu", **options}
    mq.fit(model, DATA, method, **options)
    return model, before


def learned(model, before):
    """Names of the quantizer's parameters that moved."""
    named = [(name, p) for name, p in model.named_parameters() if ".quant." in name]
    return {name for name, p in named if not torch.equal(p, before[name])}
