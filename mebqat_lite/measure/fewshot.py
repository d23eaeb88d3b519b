"""Measure few-shot learners: all bitwidths see the same episodes, so that their differences can be paired."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mebqat_lite.datasets.episodes import Episode, Episodes
from mebqat_lite.learners import Learner, ProtoNet, prototype_logits
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.measure.evaluate import BATCH, frame_of
from mebqat_lite.measure.intervals import interval
from mebqat_lite.switching.state import MapOrBits, at, frozen_weights, pairs_of, parse_settings
from mebqat_lite.tensors import as_float, evaluating, place

if TYPE_CHECKING:
    import pandas as pd

EPISODES = 600  # the usual number of test episodes in few-shot learning
EVALUATION_SEED = 2022  # all networks are measured on the episodes of this seed
STORED = ("running", "recalibrated")  # norm policies whose statistics do not depend on the episode
POLICIES = ("support", "batch", *STORED)


def episode_scores(
    model: nn.Module,
    learner: Learner,
    episodes: Episodes,
    bits: str | Iterable[MapOrBits],
    *,
    count: int = EPISODES,
    norm_stats: str = "support",
    progress: bool = False,
) -> Tensor:
    """Measure the accuracy on each episode, at each pair.

    Args:
        model: a quantized, meta-trained model.
        learner: how the model learns the classes of an episode: a `ProtoNet` or a `FOMAML`.
        episodes: the episodes; every pair is measured on the same ones.
        bits: the pairs, or maps of layers to pairs.
        count: how many episodes are measured, from number 0 on.
        norm_stats: the norm policy: ``support`` (statistics of the support set), ``batch`` (statistics of each batch,
            so that the queries of an episode influence one another), ``recalibrated`` (stored for each pair) or
            ``running``.
        progress: whether to show a progress bar.

    Returns:
        The accuracies in percent, (pairs, count), float64.

    Raises:
        TypeError: the learner does not learn new classes.
        ValueError: the norm policy is unknown, ``count`` is below 1, or the classifier of the network does not have as
            many outputs as an episode has classes.
    """
    if not isinstance(learner, ProtoNet | FOMAML):
        raise TypeError(f"{type(learner).__name__} learns no new classes; take ProtoNet or FOMAML")
    if norm_stats not in POLICIES:
        raise ValueError(f"no norm policy {norm_stats!r} for episodes; choose one of {', '.join(POLICIES)}")
    if count < 1:
        raise ValueError(f"accuracy is measured on at least 1 episode, not {count}")
    pairs = parse_settings(bits)
    bar = functools.partial(tqdm, disable=not progress, leave=False, delay=2)
    if isinstance(learner, ProtoNet) and norm_stats in STORED:
        outs = bar(embeddings(model, episodes, pairs, norm_stats))
        index = _indices(episodes, count)
        return torch.stack([_hits(*_parts(index, out, episodes.shots)) for out in outs])
    _check_head(model, learner, episodes)
    scores = torch.empty(len(pairs), count, dtype=torch.float64)
    for number in bar(range(count), desc="episodes"):
        scores[:, number] = _scores_of(model, learner, episodes[number], pairs, norm_stats)
    return scores


def episode_grid(
    model: nn.Module,
    learner: Learner,
    episodes: Episodes,
    bits: str | Iterable[MapOrBits] | None = None,
    *,
    count: int = EPISODES,
    norm_stats: str = "support",
    progress: bool = False,
) -> pd.DataFrame:
    """Measure the mean accuracy over episodes, as a frame like that of `evaluate.grid`.

    Its intervals are over the episodes. By default all candidate pairs of the model's quantizer are measured. The
    arguments are those of `episode_scores`.
    """
    pairs = pairs_of(model) if bits is None else parse_settings(bits)
    scores = episode_scores(model, learner, episodes, pairs, count=count, norm_stats=norm_stats, progress=progress)
    return frame_of(pairs, scores.T.tolist(), norm_stats)


def paired_difference(ours: Tensor, other: Tensor) -> dict[str, float]:
    """Compute the mean of ``ours - other`` and its interval; both are scores, (count,), on the same episodes."""
    return interval((ours - other).tolist())


def enrolment(
    model: nn.Module,
    episodes: Episodes,
    bits: str | Iterable[MapOrBits],
    *,
    count: int = EPISODES,
    norm_stats: str = "recalibrated",
    progress: bool = False,
) -> pd.DataFrame:
    """Measure cross-bitwidth enrolment, where prototypes are made at one pair and queries are classified at another.

    For example, a server makes the prototypes at full precision, and a device classifies queries at two bits.

    Returns:
        A frame of accuracies in percent over ``count`` episodes, with a row for each pair of the prototypes and a
        column for each pair of the queries.

    Raises:
        ValueError: ``norm_stats`` is not a policy of stored statistics.
    """
    import pandas as pd

    if norm_stats not in STORED:
        raise ValueError(f"enrolment needs stored statistics, {' or '.join(STORED)}, not {norm_stats!r}")
    pairs, shots = parse_settings(bits), episodes.shots
    index = _indices(episodes, count)
    bar = tqdm(embeddings(model, episodes, pairs, norm_stats), disable=not progress, leave=False, delay=2)
    parts = [_parts(index, out, shots) for out in bar]
    rows = [[float(_hits(enrolled, asked).mean()) for _, asked in parts] for enrolled, _ in parts]
    names = [str(pair) for pair in pairs]
    return pd.DataFrame(rows, pd.Index(names, name="support"), pd.Index(names, name="query"))


def embeddings(
    model: nn.Module, episodes: Episodes, pairs: Sequence[MapOrBits], norm_stats: str = "recalibrated"
) -> Iterator[Tensor]:
    """Yield the embeddings of all images of the split, (images, features), for one pair after the other.

    Under stored statistics an embedding does not depend on the episode. So each image goes through the network once
    per pair, however many episodes it is part of.
    """
    device, dtype = place(model)
    for pair in pairs:
        with evaluating(model), frozen_weights(model), at(model, pair, norm_stats):
            parts = [
                model(as_float(images).to(device, dtype, copy=True)) for images in episodes.split.images.split(BATCH)
            ]
        yield torch.cat(parts).cpu()


def scores_of(out: Tensor, episodes: Episodes, count: int = EPISODES) -> Tensor:
    """Compute the accuracy of a prototypical network on each episode, in percent, (count,), float64.

    Args:
        out: the embeddings of all images of the episodes' split at one pair, (images, features), from `embeddings`.
        episodes: the episodes.
        count: how many of them are measured, from number 0 on.
    """
    return _hits(*_parts(_indices(episodes, count), out, episodes.shots))


def _indices(episodes: Episodes, count: int) -> Tensor:
    """Draw the places of the images of all episodes, (count, N, K + Q)."""
    return torch.stack([episodes.index(number) for number in range(count)])


def _parts(index: Tensor, out: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Return the prototypes, (count, N, features), and the queries, (count, N, Q, features), of all episodes."""
    chosen = out[index]  # (count, N, K + Q, features)
    return chosen[:, :, :shots].mean(2), chosen[:, :, shots:]


def _hits(prototypes: Tensor, queries: Tensor) -> Tensor:
    """Compute the accuracy in percent of each episode, (count,), from what `_parts` returns."""
    ways, asked = queries.shape[1:3]
    labels = torch.arange(ways).repeat_interleave(asked)
    answers = [prototype_logits(q.flatten(0, 1), p).argmax(1) for p, q in zip(prototypes, queries, strict=True)]
    return 100 * (torch.stack(answers) == labels).double().mean(1)


def _scores_of(model: nn.Module, learner: Any, episode: Episode, pairs: Sequence[MapOrBits], norm_stats: str) -> Tensor:
    """Let the learner adapt to one episode at each pair, and return its accuracies in percent, (pairs,)."""
    device, dtype = place(model)
    support, query = episode.support.to(device, dtype), episode.query.to(device, dtype)
    labels = episode.labels.to(device)
    found = []
    for pair in pairs:
        answers = learner.adapt(model, support, pair, norm_stats)(query.flatten(0, 1)).argmax(1)
        found.append(100 * float((answers == labels).double().mean()))
    return torch.tensor(found, dtype=torch.float64)


def _check_head(model: nn.Module, learner: Any, episodes: Episodes) -> None:
    """Refuse episodes with another number of classes than the classifier of the network has outputs."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if isinstance(learner, FOMAML) and linear and linear[-1].out_features != episodes.ways:
        raise ValueError(
            f"this network's classifier has {linear[-1].out_features} outputs, and the episodes {episodes.ways} ways: "
            f"ask for {linear[-1].out_features} ways, or take a prototypical network, which has no classifier"
        )
