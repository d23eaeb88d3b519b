"""Prototypical networks: a class is the mean of its support."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners.adapting import run_adapted, support_stats
from mebqat_lite.learners.base import Predictor
from mebqat_lite.learners.supervised import Supervised
from mebqat_lite.switching.state import MapOrBits


class ProtoNet(Supervised):
    """Prototypical networks (Snell et al., 2017): the network is an embedding, a class the mean of its support.

    logits(x) = -|f_wa(x) - c_n|^2, c_n = mean_k f_wa(x_nk). MEBQAT-PN (ECCV 2022, algorithm 3) learns one episode at
    several pairs; the teacher is the paper's labels or, beyond it, the query logits of a higher pair (`methods`).
    """

    def read(self, task: Episode) -> tuple[Tensor, Tensor]:
        """Support and query in one batch, (N K + N Q, channels, height, width), and the labels of the query."""
        return torch.cat([task.support.flatten(0, 1), task.query.flatten(0, 1)]), task.labels

    def score(self, out: Tensor, task: Episode) -> Tensor:
        """Logits of the query, (N Q, N), from the embeddings of support and query, (N K + N Q, features)."""
        ways, shots = task.support.shape[:2]
        support, query = out[: ways * shots], out[ways * shots :]
        return prototype_logits(query, support.unflatten(0, (ways, shots)).mean(1))

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Learn the classes of ``support``, (N, K, channels, height, width), at ``bits``: their prototypes.

        Under ``batch`` statistics prototypes are made again with each batch of queries, which then depend on one
        another (the paper's transductive evaluation).
        """
        ways, shots = support.shape[:2]
        known, run = support.flatten(0, 1), functools.partial(run_adapted, model, bits=bits, norm_stats=norm_stats)
        stats = support_stats(model, known, bits) if norm_stats == "support" else {}
        if norm_stats == "batch":
            both = Episode(support, support)
            return lambda images: self.score(run(torch.cat([known, images])), both)
        prototypes = run(known, stats=stats).unflatten(0, (ways, shots)).mean(1)  # (N, features)
        return lambda images: prototype_logits(run(images, stats=stats), prototypes)


def prototype_logits(query: Tensor, prototypes: Tensor) -> Tensor:
    """-|q - c|^2, (queries, N), of ``query`` (queries, features) and ``prototypes`` (N, features)."""
    squares = query.square().sum(1, keepdim=True) + prototypes.square().sum(1)  # (queries, N)
    return 2 * query @ prototypes.T - squares
