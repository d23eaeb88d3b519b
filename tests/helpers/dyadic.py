"""A network whose numbers are fractions of a power of two, and images for it."""

import torch
from torch import nn

from mebqat_lite.switching.convert import quantize

SHAPE = (2, 6, 6)


def images(count=12, shape=SHAPE):
    """Multiples of 1/16: sums of few of them, times other small fractions of two, are exact in float32."""
    return torch.randint(0, 17, (count, *shape), generator=torch.Generator().manual_seed(1)) / 16


class Net(nn.Module):
    """Biases, a chain of convolutions, a tensor that two layers read, a linear layer that is quantized; no norms."""

    def __init__(self, signed=False):
        super().__init__()
        self.first, self.chain = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)
        self.one, self.other = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, bias=False)
        self.hidden, self.last = nn.Linear(24, 10), nn.Linear(10, 5)
        self.act = nn.Identity() if signed else nn.ReLU()

    def forward(self, x):
        x = self.act(self.chain(self.act(self.first(x))))
        x = self.act(self.other(x) + self.one(x)).flatten(1)
        return self.last(self.act(self.hidden(x)))


def dyadic(quantizer="lsq", signed=False):
    """A `Net` whose numbers are all fractions of a power of two: PyTorch and ONNX Runtime have nothing to round but
    what they quantize, and must agree to the last digit, ties included.
    """
    torch.manual_seed(0)
    net = quantize(Net(signed), quantizer, sample=images()).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".quant." in name:  # a step, or a clip: 255 steps, which 15 and 3 divide
                parameter.fill_(255 / 64 if "alpha" in name else 0.125)
            elif name.endswith("bias"):
                parameter.copy_((parameter * 2**9).round() / 2**9)
            else:
                parameter.copy_((parameter * 16).round() / 16)
    return net
