"""One model has one setting: what holds several is refused, and what was quantized in parts becomes one."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.state import setting_of, settings_in

X = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


class Both(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_an_ensemble_of_quantized_models_is_refused_by_name():
    both = Both(mq.quantize(net(), "dorefa", sample=X), mq.quantize(net(1), "dorefa", sample=X))
    for ask in (lambda: mq.set_bits(both, "W1A1"), lambda: setting_of(both), lambda: mq.at(both, "W2A2").__enter__()):
        with pytest.raises(ValueError, match=r"this Both holds several quantized models \(left, right\): switch each"):
            ask()
    listed = nn.ModuleList([both.left, nn.Sequential(both.right)])
    with pytest.raises(ValueError, match=r"holds several quantized models \(0, 1\.0\)"):
        setting_of(listed)
    with mq.at(both.left, "W1A1"), mq.at(both.right, "W2A2"):
        assert torch.equal(both(X), both.left(X) + both.right(X))


def test_one_model_twice_is_one():
    model = mq.quantize(net(), "dorefa", sample=X)
    with mq.at(Both(model, model), "W2A2"), torch.no_grad():
        assert setting_of(model).bits == mq.Bits(2, 2)


def test_what_was_quantized_in_parts_is_quantized_as_a_whole():
    both = Both(mq.quantize(net(), "dorefa", sample=X), mq.quantize(net(1), "dorefa", sample=X))
    mq.quantize(both, "lsq", sample=X)
    assert not settings_in(both.left) or setting_of(both.left) is setting_of(both)
    with mq.at(both, "W2A2"):
        assert setting_of(both.right).bits == mq.Bits(2, 2) and both.left[2].quantized_weight(2).unique().numel() <= 4
    mq.restore_float(both)
    assert not any(hasattr(module, name) for module in both.modules() for name in ("plan", "setting"))


def test_an_attribute_of_that_name_is_no_setting():
    model = net()
    model.setting = "my own"
    assert settings_in(model) == {}
    with pytest.raises(mq.NotQuantizedError):
        setting_of(model)
