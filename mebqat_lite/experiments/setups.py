"""Named set-ups, which say what all methods of a comparison share: the paper's own, and quick ones for this package."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite import methods, models
from mebqat_lite.datasets.base import Data, DataError
from mebqat_lite.measure.fewshot import EPISODES
from mebqat_lite.recipe import Recipe
from mebqat_lite.tensors import as_float, evaluating


@dataclass(frozen=True)
class Setup:
    """The data, network, recipe and norm policy of a run, or of all methods in a comparison."""

    data: str = "digits"
    model: str = "digit_net"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the model
    recipe: Recipe = field(default_factory=lambda: Recipe(warm_steps=300))
    norm_stats: str = "recalibrated"
    episodes: int = EPISODES  # how many episodes a few-shot method is measured on
    method: str = "mebqat"  # what it trains by default; budgets count the back-propagations of this method's steps

    def with_options(self, **options: Any) -> Setup:
        """Return a copy with other values in the recipe; an unknown name is a TypeError that lists the known ones."""
        return replace(self, recipe=self.recipe.with_options(**options))

    def build(self, data: Data) -> nn.Module:
        """Build the network with the outputs, channels and image size of ``data``, unless ``options`` say otherwise.

        Raises:
            ValueError: the model is unknown, or cannot take images of this size.
        """
        if self.model not in models.MODELS:
            return models.build(self.model)  # raises an error that lists the known models
        found = {"classes": len(data.classes), "outputs": len(data.classes)}
        if len(shape := data.train.images.shape[1:]) == 3:
            found |= {"in_channels": shape[0], "image_size": shape[1]}
        known = inspect.signature(models.MODELS[self.model]).parameters
        net = models.build(self.model, **{**{k: v for k, v in found.items() if k in known}, **self.options})
        with on_images(f"the model {self.model}", data.train.images), torch.no_grad(), evaluating(net):
            net(as_float(data.train.images[:1]))
        return net


# Youn et al., ECCV 2022, section 4.1: AdamW and batches of 256. Milestones are fractions of the epochs. With sat, no
# low pair is visited in every step.
_CIFAR = Recipe(epochs=400, batch_size=256, lr=1e-3, schedule="milestones", pad=4, flip=True)
_SVHN = Recipe(epochs=100, batch_size=256, lr=1e-3, schedule="milestones", milestones=(0.5, 0.75, 0.9))
_MOBILE = Recipe(epochs=600, batch_size=256, lr=5e-2, pad=4, flip=True, quantizer="sat", sandwich=False)

# The same paper, section 4.2: lsq and Adam. All pairs are drawn uniformly, and no pair is visited in every step. The
# learning rate of PN is halved every 4,000 steps.
_PN = Recipe(
    steps=20_000, lr=1e-3, weight_decay=0.0, schedule="milestones", milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5
).with_options(quantizer="lsq", sandwich=False, teacher="labels", queries=15)
_MAML = Recipe(steps=75 * 800, lr=1e-4, weight_decay=0.0, schedule="constant", quantizer="lsq", sandwich=False)
_EMBED: dict[str, Any] = {"channels": 64, "classes": None}

# The network and the widths of Double Rounding (Huang et al., 2025), whose ResNet-20 reaches 92.25, 92.32, 92.09 and
# 90.19 % on CIFAR-10 at 8, 6, 4 and 2 bits. The rest is this package's: MEBQAT in turn visits FP and all pairs of these
# widths and 32, with AdamW. One run takes 4.8 hours on two cores (benchmarks/PLAN.md); it has not been made yet.
_RESNET20 = Recipe(epochs=200, batch_size=256, pad=4, flip=True, quantizer="double_rounding", exclude=(1, 3, 5, 7, 16))

# Quick set-ups for two cores. They take MEBQAT in turn, and count its steps of one back-propagation.
_IN_TURN: dict[str, Any] = {"method": "mebqat_in_turn"}
_DIGITS = Recipe(warm_steps=300, steps=1200)
_PAINT = Recipe(warm_steps=400, steps=1600, batch_size=1024)
_GLYPH_CLASSES = Recipe(warm_steps=300, steps=1200, batch_size=32, lr=3e-2, pad=1)
_GLYPHS_PN = Recipe(
    warm_steps=1200, steps=1600, ways=20, queries=5, lr=5e-3, weight_decay=0.0, quantizer="lsq", schedule="cosine"
)
_GLYPHS_MAML = Recipe(warm_steps=600, steps=400, lr=3e-3, weight_decay=0.0, quantizer="lsq")

SETUPS: dict[str, Setup] = {
    "digits": Setup(recipe=_DIGITS, **_IN_TURN),
    "digits-wide": Setup(model="digit_net_wide"),
    "paint": Setup("paint", "coordinate_net", {}, _PAINT, **_IN_TURN),
    "glyph-classes": Setup("glyph_classes", "digit_net", {"widths": (8, 16, 16, 16)}, _GLYPH_CLASSES, **_IN_TURN),
    "cifar10-preact_resnet20": Setup("cifar10", "preact_resnet20", {"width": 5}, _CIFAR),
    "cifar10-mobilenet_v2": Setup("cifar10", "mobilenet_v2", {}, _MOBILE),
    "cifar10-resnet20": Setup("cifar10", "resnet20", {}, _RESNET20, **_IN_TURN),
    "svhn-cnn8": Setup("svhn", "cnn8", {}, _SVHN),
    "glyphs-pn": Setup("glyphs", "conv4", {"channels": 32, "classes": None}, _GLYPHS_PN, method="mebqat_pn_in_turn"),
    "glyphs-maml": Setup(
        "glyphs", "conv4", {"channels": 32, "classes": 5}, _GLYPHS_MAML, "support", episodes=200, method="mebqat_maml"
    ),
    "omniglot-pn": Setup("omniglot", "conv4", _EMBED, _PN.with_options(ways=60, queries=5), method="mebqat_pn"),
    "omniglot-maml": Setup(
        "omniglot",
        "conv4",
        {"channels": 64, "classes": 5},
        _MAML.with_options(tasks=16),
        norm_stats="support",
        method="mebqat_maml",
    ),
    "miniimagenet-pn": Setup(
        "miniimagenet:data/miniimagenet", "conv4", _EMBED, _PN.with_options(ways=30), method="mebqat_pn"
    ),
    "miniimagenet-maml": Setup(
        "miniimagenet:data/miniimagenet",
        "conv4",
        {"channels": 32, "classes": 5},
        _MAML.with_options(inner_lr=0.01, test_steps=10),
        norm_stats="support",
        method="mebqat_maml",
    ),
}


@contextlib.contextmanager
def on_images(what: str, images: Tensor) -> Iterator[None]:
    """Add the shape of the images to an error that PyTorch raises in the block, because ``what`` cannot take them."""
    try:
        yield
    except RuntimeError as error:
        shape = " x ".join(map(str, images.shape[1:])) + " (channels x height x width)" * (images.dim() == 4)
        raise ValueError(f"{what} cannot take images of {shape}: {error}") from error


def check_classes(method: str, data: Data) -> None:
    """Raise a DataError if a method for fixed classes would be tested on classes that it is not trained on.

    The same if a method for new classes would be trained on labels that are values.
    """
    if methods.get(method).learns_new_classes:
        data.train.of_classes(method)
        return
    unseen = set(data.test.labels.unique().tolist()) - set(data.train.labels.unique().tolist())
    if unseen and not data.train.has_values:
        raise DataError(
            f"{method} learns fixed classes, and {len(unseen)} classes of {data.name} are only in its test part: take "
            "a method for new classes, such as mebqat_pn, or other data"
        )


def get(name: str) -> Setup:
    """Return a set-up by name; an unknown name is a ValueError that lists the known ones."""
    if name not in SETUPS:
        raise ValueError(f"no set-up {name!r}; known: {', '.join(SETUPS)}")
    return SETUPS[name]
