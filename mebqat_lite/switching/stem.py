"""Networks in two parts, whose full-precision stem is run once for all pairs of a step."""

from __future__ import annotations

from torch import Tensor, nn

from mebqat_lite.switching.layers import QuantizedLayer
from mebqat_lite.switching.state import has_norm_sets


class StemAndBody(nn.Module):
    """Base class of networks in two parts, whose forward pass is ``body(stem(x))``.

    A subclass makes ``stem`` and ``body``. Training and measuring then run a full-precision stem once for all pairs
    that see the same images. Only subclasses that keep this ``forward`` are treated so, because other modules may have
    attributes of these names, too.
    """

    stem: nn.Module
    body: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (batch, classes) of images (batch, channels, height, width)."""
        return self.body(self.stem(x))


def has_stem(model: nn.Module) -> bool:
    """Whether ``model.body(model.stem(x))`` is what the model does, with a stem that is the same at every bitwidth."""
    if not isinstance(model, StemAndBody) or type(model).forward is not StemAndBody.forward:
        return False
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    watched = any(hooks) or "forward" in vars(model)
    return not watched and is_shareable(model.stem)


def is_shareable(stem: object) -> bool:
    """Whether a stem computes the same at every bitwidth: it has no quantized layers and no norm sets."""
    if not isinstance(stem, nn.Module):
        return True
    return not has_norm_sets(stem) and not any(isinstance(m, QuantizedLayer) for m in stem.modules())
