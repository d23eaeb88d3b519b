"""A stem is run once for all pairs only where that is what the model does."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.switching.stem import StemAndBody, has_stem

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = Data("noise", Split(IMAGES, torch.arange(24) % 3), None, None, tuple("abc"))


def block(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


class Headed(nn.Module):
    """Parts of the same names, and one more."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = block(1, 4), block(4, 4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


class Skipping(StemAndBody):
    """A subclass whose forward pass is another one."""

    def __init__(self):
        super().__init__()
        self.stem = block(1, 4)
        self.body = nn.Sequential(block(4, 4), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        return 2 * self.body(self.stem(x).flip(2))


class Plain(Skipping):
    forward = StemAndBody.forward


def quantized(kind):
    torch.manual_seed(0)
    return mq.quantize(kind(), "lsq", sample=IMAGES)


@pytest.mark.parametrize("kind", [Headed, Skipping])
def test_parts_of_these_names_are_not_run_instead_of_the_model(kind):
    model = quantized(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert not has_stem(model)
    mq.fit(model, DATA, "mebqat", steps=2, batch_size=12, progress=False, device="cpu")
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name]) and ".quant." not in name}
    assert not still  # the head too
    with torch.no_grad(), mq.at(model, "W2A2", "batch"):
        right = 100 * float((model(IMAGES).argmax(1) == DATA.train.labels).float().mean())
    assert mq.accuracy(model, DATA.train, "W2A2", "batch") == pytest.approx(right)
    assert mq.grid(model, DATA.train, "W2A2,FP", norm_stats="batch")["mean"].iloc[0] == pytest.approx(right)


def test_a_model_that_somebody_watches_is_called_as_a_whole():
    model = quantized(Plain)
    assert has_stem(model)
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    assert not has_stem(model)
    mq.accuracy(model, DATA.train, "W2A2", "batch")
    assert seen
    hook.remove()
    assert has_stem(model)
    model.forward = model.forward
    assert not has_stem(model)
