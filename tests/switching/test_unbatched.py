"""A single sample without a batch dimension is quantized, and teaches the steps, as a batch of one."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.state import quantized_layers

NETS = {  # a network, and the shape of one sample
    "conv2d": (lambda: [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2)], (2, 8, 8)),
    "conv1d": (lambda: [nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 2)], (2, 12)),
    "conv3d": (
        lambda: [nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Conv3d(3, 4, 2), nn.ReLU(), nn.Conv3d(4, 2, 2)],
        (1, 5, 5, 5),
    ),
    "linear": (lambda: [nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)], (6,)),
}


def built(name, quantizer):
    torch.manual_seed(0)
    build, shape = NETS[name]
    sample = torch.randn(16, *shape, dtype=torch.float64)
    return mq.quantize(nn.Sequential(*build()).double(), quantizer, sample=sample), sample[3]


def taught(model, x):
    """The output, and the gradients, at W4A4."""
    model.zero_grad()
    with mq.at(model, "W4A4"):
        out = model(x)
    out.square().sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_shared", "sat"])
@pytest.mark.parametrize("name", NETS)
def test_a_sample_alone_is_a_batch_of_one(name, quantizer):
    model, x = built(name, quantizer)
    (out, grads), (batched, expected) = taught(model, x), taught(model, x[None])
    torch.testing.assert_close(out, batched[0], rtol=1e-12, atol=1e-12)
    assert set(grads) == set(expected) and any(".quant.a" in name and grad.any() for name, grad in grads.items())
    for parameter, grad in grads.items():
        torch.testing.assert_close(grad, expected[parameter], rtol=1e-10, atol=1e-12)


def test_tokens_of_a_batch_count_as_features_of_one_sample():
    """A linear layer on (batch, tokens, features): N is tokens x features, so four times the tokens halve the scale."""
    model, _ = built("linear", "lsq")
    [layer] = quantized_layers(model).values()
    x, found = torch.rand(2, 4, 7, dtype=torch.float64), []
    for batch in (x, x.reshape(8, 7)):
        layer.quant["a4"].grad = None
        layer.quantizer.activation(batch, 4, layer.quant, layer.site).sum().backward()
        found.append(float(layer.quant["a4"].grad))
    assert found[0] == pytest.approx(found[1] / 2, rel=1e-12)


def test_layers_that_share_one_unbatched_input_quantize_it_once_for_both():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(self.left(x) + self.right(x))

    torch.manual_seed(0)
    sample = torch.rand(8, 1, 6, 6, dtype=torch.float64)
    model = mq.quantize(Fork().double(), "lsq", sample=sample)
    assert model.right.leader is model.left
    (out, grads), (batched, expected) = taught(model, sample[0]), taught(model, sample[:1])
    torch.testing.assert_close(out, batched[0], rtol=1e-12, atol=1e-12)
    assert set(grads) == set(expected) and "right.quant.a4" not in grads
    torch.testing.assert_close(grads["left.quant.a4"], expected["left.quant.a4"], rtol=1e-10, atol=1e-12)
