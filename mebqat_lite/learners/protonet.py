"""Prototypical networks: a class is represented by the mean embedding of its support images."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners.adapting import run_adapted, support_stats
from mebqat_lite.learners.base import Predictor
from mebqat_lite.learners.supervised import Supervised
from mebqat_lite.quantizers import wide
from mebqat_lite.switching.state import MapOrBits


class ProtoNet(Supervised):
    """Prototypical networks (Snell et al., 2017): classify a query image by the nearest prototype.

    The network is an embedding f_wa. The prototype of class n is c_n = mean_k f_wa(x_nk) over its K support images,
    and ``logit_n(x) = -|f_wa(x) - c_n|^2``. MEBQAT-PN (ECCV 2022, algorithm 3) learns one episode at several pairs. In
    the paper only the labels teach; other teachers, as in `Supervised`, add the query logits of a higher pair.
    """

    def read(self, task: Episode) -> tuple[Tensor, Tensor]:
        """Return support and query as one batch, (N K + N Q, channels, height, width), and query labels, (N Q,)."""
        return torch.cat([task.support.flatten(0, 1), task.query.flatten(0, 1)]), task.labels

    def score(self, out: Tensor, task: Episode) -> Tensor:
        """Compute the logits of the query, (N Q, N), from all embeddings ``out``, (N K + N Q, features)."""
        ways, shots = task.support.shape[:2]
        support, query = wide(out[: ways * shots]), out[ways * shots :]
        return prototype_logits(query, support.unflatten(0, (ways, shots)).mean(1))

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Compute the prototypes of the classes of ``support``, (N, K, channels, height, width), at ``bits``.

        Returns a function from images, (batch, channels, height, width), to logits, (batch, N). Under the norm policy
        ``batch`` it runs support and query images together and computes the prototypes anew, so the logits of an
        image depend on the other images in the batch (the paper's transductive evaluation).
        """
        ways, shots = support.shape[:2]
        known, run = support.flatten(0, 1), functools.partial(run_adapted, model, bits=bits, norm_stats=norm_stats)
        stats = support_stats(model, known, bits) if norm_stats == "support" else {}
        if norm_stats == "batch":
            both = Episode(support, support)
            return lambda images: self.score(run(torch.cat([known, images])), both)
        prototypes = wide(run(known, stats=stats)).unflatten(0, (ways, shots)).mean(1)  # (N, features)
        return lambda images: prototype_logits(run(images, stats=stats), prototypes)


def prototype_logits(query: Tensor, prototypes: Tensor) -> Tensor:
    """Compute logits ``-|q - c|^2`` (queries, N) from queries q (queries, features) and prototypes c (N, features).

    They are float32 for narrower types, also within autocast.
    """
    with torch.autocast(query.device.type, enabled=False):  # in bfloat16 the difference below would be rounding error
        query, prototypes = wide(query), wide(prototypes)
        squares = query.square().sum(1, keepdim=True) + prototypes.square().sum(1)  # (queries, N)
        return 2 * query @ prototypes.T - squares
