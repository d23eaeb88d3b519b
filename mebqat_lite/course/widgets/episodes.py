"""Lesson 05: an episode seen by a prototypical network or by FOMAML, adapted and asked for real at every move."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import torch
from torch import Tensor, nn

from mebqat_lite import datasets, paths
from mebqat_lite.bits import FP
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.datasets.base import Data
from mebqat_lite.datasets.episodes import Episode, Episodes
from mebqat_lite.learners import Learner, Predictor, ProtoNet, put_weights, run_adapted, support_stats
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.switching.state import at
from mebqat_lite.tensors import evaluating

SHIPPED = {"ProtoNet": "glyphs-pn", "FOMAML": "glyphs-fomaml"}
LEARNERS: dict[str, Learner] = {"ProtoNet": ProtoNet(), "FOMAML": FOMAML()}
POLICIES = ("support", "batch")
ASKED = ("all together", "class by class", "one by one")
WAYS, QUERIES, MOST_STEPS, MOST_SHOTS = 5, 4, 7, 3
SEED = 5  # of the episodes shown


@dataclass(frozen=True)
class EpisodeResult:
    """An episode, the answers to its queries, and what the picture beside them is made of."""

    learner: str
    norm_stats: str
    asked: str
    episode: Episode
    answers: Tensor  # (N, Q)
    points: Tensor  # ProtoNet: (N + N Q, 2), prototypes, then queries in the plane of most variance; else empty
    explained: float  # share of the embeddings' variance in that plane, in percent
    accuracy: Mapping[str, list[float]]  # FOMAML: of support and query, in percent, over inner steps; else empty
    steps: int  # inner steps behind the answers

    @property
    def correct(self) -> int:
        """How many queries are answered with their class."""
        return int((self.answers == torch.arange(len(self.answers))[:, None]).sum())


@dataclass(frozen=True)
class Trajectory:
    """FOMAML on one support: the network after 0, 1, ... inner steps, and accuracy in percent there."""

    stages: list[nn.Module]
    accuracy: Mapping[str, list[float]]  # of the support, and of all queries asked together


def compute(
    model: nn.Module,
    episode: Episode,
    learner: str,
    norm_stats: str,
    asked: str = ASKED[0],
    steps: int = 5,
    known: Trajectory | None = None,
) -> EpisodeResult:
    """Adapt ``model`` to the support of an episode at full precision and answer its queries.

    Args:
        model: an embedding for ``ProtoNet``; with a classifier of N outputs for ``FOMAML``.
        episode: support (N, K, channels, height, width) and query (N, Q, ...).
        learner: a key of `LEARNERS`.
        norm_stats: ``support`` or ``batch``.
        asked: which queries share a batch, one of `ASKED`. All together, they come in order of their class.
        steps: inner steps of FOMAML.
        known: what `trajectory` gave for the same model, episode and statistics, so as not to adapt again.
    """
    if learner == "ProtoNet":
        predict = LEARNERS[learner].adapt(model, episode.support, FP, norm_stats)  # type: ignore[attr-defined]
        points, explained = plane(*embedded(model, episode, norm_stats))
        curves: Mapping[str, list[float]] = {}
    else:
        known = known or trajectory(model, episode, norm_stats)
        predict = _predictor(known.stages[steps], episode.support, norm_stats)
        curves, points, explained = known.accuracy, torch.empty(0, 2), 0.0
    answers = ask(predict, episode.query, asked)
    return EpisodeResult(learner, norm_stats, asked, episode, answers, points, explained, curves, steps)


def ask(predict: Predictor, query: Tensor, asked: str) -> Tensor:
    """The answers, (N, Q), to the queries, (N, Q, ...), in batches of all, of a class, or of one."""
    size = {"all together": query.shape[0] * query.shape[1], "class by class": query.shape[1], "one by one": 1}[asked]
    batches = query.flatten(0, 1).split(size)
    return torch.cat([predict(batch).argmax(1) for batch in batches]).view(query.shape[:2])


def embedded(model: nn.Module, episode: Episode, norm_stats: str) -> tuple[Tensor, Tensor]:
    """Prototypes (N, features) and embeddings of all queries (N Q, features), asked together."""
    known, query = episode.support.flatten(0, 1), episode.query.flatten(0, 1)
    run = functools.partial(run_adapted, model, bits=FP, norm_stats=norm_stats)
    if norm_stats == "batch":
        out, asked = run(torch.cat([known, query])).split([len(known), len(query)])
    else:
        stats = support_stats(model, known, FP)
        out, asked = run(known, stats=stats), run(query, stats=stats)
    return out.unflatten(0, episode.support.shape[:2]).mean(1), asked


def plane(prototypes: Tensor, queries: Tensor) -> tuple[Tensor, float]:
    """The points, (N + M, 2), in the plane in which they vary most, and its share of their variance in percent."""
    points = torch.cat([prototypes, queries])
    _, spread, axes = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # else the signs would be arbitrary
    share = 100 * float(spread[:2].square().sum() / spread.square().sum())
    return (points - points.mean(0)) @ axes[:2].T, share


def adapted(model: nn.Module, support: Tensor, steps: int) -> list[nn.Module]:
    """Copies of ``model`` after 0 .. ``steps`` inner steps on ``support``, (N, K, ...), on its own statistics."""
    learner, stages = FOMAML(), [model]
    for _ in range(steps):
        moved = copy.deepcopy(stages[-1])
        with torch.enable_grad(), evaluating(moved), at(moved, FP, "batch"):
            put_weights(moved, learner.inner_loop(moved, support, 1))
        stages.append(moved)
    return stages


def _predictor(model: nn.Module, support: Tensor, norm_stats: str) -> Predictor:
    """An adapted network as a function from images to logits."""
    stats = support_stats(model, support.flatten(0, 1), FP) if norm_stats == "support" else {}
    return functools.partial(run_adapted, model, bits=FP, norm_stats=norm_stats, stats=stats)


def trajectory(model: nn.Module, episode: Episode, norm_stats: str) -> Trajectory:
    """Adapt ``model`` to the support of an episode, and measure it after every inner step."""
    labels = torch.arange(len(episode.support))[:, None]
    stages = adapted(model, episode.support, MOST_STEPS)
    found: dict[str, list[float]] = {"support": [], "query": []}
    for stage in stages:
        predict = _predictor(stage, episode.support, norm_stats)
        for name, answers in zip(found, _of_both(predict, episode, norm_stats), strict=True):
            found[name].append(100 * float((answers == labels).double().mean()))
    return Trajectory(stages, found)


def _of_both(predict: Predictor, episode: Episode, norm_stats: str) -> list[Tensor]:
    """The answers to the support, (N, K), and to all queries, (N, Q); in one pass where they do not see one another."""
    if norm_stats == "batch":
        return [ask(predict, images, ASKED[0]) for images in episode]
    sizes = [images.shape[1] for images in episode]
    return list(ask(predict, torch.cat(list(episode), 1), ASKED[0]).split(sizes, 1))


# --- the picture -----------------------------------------------------------------------------------------------

STYLES = (
    Style(svg.BLUE, shape="circle", size=4.5),
    Style(svg.VERMILION, shape="square", size=4.5),
    Style(svg.GREEN, shape="triangle", size=4.5),
    Style(svg.PURPLE, shape="diamond", size=4.5),
    Style(svg.BLACK, shape="star", size=4.5),
)
RIGHT, WRONG = Style(svg.LIGHT, width=1), Style(svg.VERMILION, width=3)
SUPPORT, QUERY = Style(svg.ORANGE, "6 3", "square"), Style(svg.BLUE, "", "circle")
MISSED = Style(svg.DARK, "2 2", width=1)
HERE, AS_ASKED = Style(svg.BLACK, "5 4", width=1.4), Style(svg.BLACK, shape="diamond", size=7)
SIDE, AREA = 40, (508.0, 50.0, 268.0, 250.0)


def picture(result: EpisodeResult, number: int = 0) -> str:
    """Support and query with the answers, and beside them the embeddings or the accuracy over steps, as SVG."""
    total, shots = result.answers.numel(), result.episode.support.shape[1]
    how = f", {result.steps} inner steps" if result.accuracy else ""
    title = (
        f"{result.learner} on episode {number}, {shots} shot, {result.norm_stats} statistics, "
        f"asked {result.asked}{how}: {result.correct} of {total} queries right"
    )
    right = _steps(result) if result.accuracy else _scatter(result)
    return svg.figure(800, 352, title, _rows(result), right)


def _rows(result: EpisodeResult) -> str:
    """A row for each class: its marker, its support, its queries."""
    shots = result.episode.support.shape[1]
    start = 56 + (SIDE + 6) * MOST_SHOTS + 22
    parts = [
        svg.text(12, 38, "class"),
        svg.text(56, 38, f"support ({shots} shot)"),
        svg.text(start, 38, "query, answer below; crossed: wrong"),
    ]
    for n, (support, query) in enumerate(zip(result.episode.support, result.episode.query, strict=True)):
        y = 50 + 60 * n
        parts += [svg.text(14, y + 25, str(n + 1), size=14), svg.marker(36, y + 20, STYLES[n])]
        parts += [_image(56 + (SIDE + 6) * k, y, image) for k, image in enumerate(support)]
        for k, image in enumerate(query):
            answer = int(result.answers[n, k])
            parts.append(_image(start + 58 * k, y, image) + _answer(start + 58 * k, y, answer, n))
    return "".join(parts)


def _image(x: float, y: float, image: Tensor) -> str:
    frame = svg.tag("rect", x=x, y=y, width=SIDE, height=SIDE, **RIGHT.paint)
    return svg.gray_image(x, y, SIDE, image.mean(0).tolist()) + frame  # (channels, height, width) -> rows


def _answer(x: float, y: float, answer: int, true: int) -> str:
    """The answer under an image; a wrong one is framed and crossed."""
    words = svg.text(x + 14, y + SIDE + 14, str(answer + 1), "middle", 11.5)
    parts = [words, svg.marker(x + 28, y + SIDE + 10, STYLES[answer])]
    if answer != true:
        parts.append(svg.tag("rect", x=x, y=y, width=SIDE, height=SIDE, **WRONG.paint))
        ends = ((x + 33, y - 5, x + 46, y + 8), (x + 46, y - 5, x + 33, y + 8))
        parts += [svg.segment(*end, WRONG) for end in ends]
    return "".join(parts)


def _scatter(result: EpisodeResult) -> str:
    """Prototypes, large and hollow, and queries; a line from each wrongly answered query to the answer's prototype."""
    reach = 1.12 * float(result.points.abs().max())
    plot = Plot(AREA, (-reach, reach), (-reach, reach))
    plot.axes("first principal component", "second principal component", [(0, "0")], [(0, "0")])
    ways, count = result.answers.shape
    centres, queries = result.points[:ways].tolist(), result.points[ways:].tolist()
    for i, point in enumerate(queries):
        true, answer = i // count, int(result.answers.flatten()[i])
        if answer != true:
            plot.parts.append(svg.segment(*plot.at(*point), *plot.at(*centres[answer]), MISSED))
        plot.parts.append(svg.marker(*plot.at(*point), STYLES[true]))
    for style, centre in zip(STYLES, centres, strict=False):
        ring = Style(style.colour, shape=style.shape, size=11)
        plot.parts.append(svg.marker(*plot.at(*centre), ring, hollow=True))
    head = [
        svg.text(AREA[0] - 44, 20, "embeddings, asked together; large: prototypes, small: queries"),
        svg.text(AREA[0] - 44, 38, f"this plane holds {result.explained:.0f} % of their variance", size=11.5),
    ]
    return "".join(head + plot.parts)


def _steps(result: EpisodeResult) -> str:
    """Accuracy over inner steps, and where the answers on the left stand."""
    plot = Plot(AREA, (-0.3, MOST_STEPS + 0.3), (0, 104))
    ticks = [(step, str(step)) for step in range(MOST_STEPS + 1)]
    plot.axes("inner steps", "accuracy (%)", ticks, [(y, str(y)) for y in range(0, 101, 20)])
    plot.line([result.steps] * 2, plot.y_range, HERE)
    for name, style in (("support", SUPPORT), ("query", QUERY)):
        plot.line(range(MOST_STEPS + 1), result.accuracy[name], style)
    asked = plot.at(result.steps, 100 * result.correct / result.answers.numel())
    plot.parts.append(svg.marker(*asked, AS_ASKED, hollow=True))
    left, top = AREA[0], 14
    plot.parts.append(svg.legend(left, top, [("support", SUPPORT), ("all queries together", QUERY)], 100, 2))
    plot.parts.append(svg.marker(left + 113, top + 19, AS_ASKED, hollow=True))
    plot.parts.append(svg.text(left + 131, top + 23, "the answers on the left", size=11.5))
    return "".join(plot.parts)


def describe(result: EpisodeResult) -> str:
    """The numbers of a result, as HTML."""
    total = result.answers.numel()
    who = {
        "all together": f"all {total} queries in one batch",
        "class by class": f"{QUERIES} queries of one class in a batch",
        "one by one": "each query in a batch of its own",
    }[result.asked]
    leak = (
        "a query is normalized with its neighbours: try the three ways to ask"
        if result.norm_stats == "batch"
        else "a query is normalized with the support alone: the three ways to ask give the same answers"
    )
    share, chance = 100 * result.correct / total, 100 / len(result.answers)
    return card(
        f"<b>{result.learner}</b>: {result.correct} of {total} queries right ({share:.0f} %; chance {chance:.0f} %), "
        "at full precision, characters of the test scripts",
        f"asked: {who}; statistics: <b>{result.norm_stats}</b>: {leak}",
    )


# --- the widget ------------------------------------------------------------------------------------------------


class EpisodeViewer(Live):
    """The widget for the networks of the two learners and the data that they are tested on."""

    def __init__(self, models: Mapping[str, nn.Module], data: Data) -> None:
        self.models, self.data = dict(models), data
        self.kept: tuple[tuple[int, int, str], Trajectory] | None = None  # of the episode shown last
        super().__init__(_controls(list(self.models)), self._render)

    def _render(self, learner: str, norm_stats: str, asked: str, number: int, shots: int, steps: int) -> str:
        self.controls["steps"].disabled = learner == "ProtoNet"
        episode = Episodes(self.data.test, WAYS, shots, QUERIES, SEED)[number]
        key = (number, shots, norm_stats)
        if learner == "FOMAML" and (self.kept is None or self.kept[0] != key):
            self.kept = key, trajectory(self.models[learner], episode, norm_stats)
        known = self.kept[1] if learner == "FOMAML" and self.kept else None
        result = compute(self.models[learner], episode, learner, norm_stats, asked, steps, known)
        return picture(result, number) + describe(result)


def _controls(learners: list[str]) -> dict[str, ipywidgets.Widget]:
    slider = ipywidgets.IntSlider
    return {
        "learner": buttons("learner", learners, learners[-1]),
        "norm_stats": buttons("statistics", POLICIES, "batch"),
        "asked": buttons("queries asked", ASKED, ASKED[0]),
        "number": labelled("episode", slider(0, 0, 19)),
        "shots": labelled("support images a class", slider(1, 1, MOST_SHOTS)),
        "steps": labelled("inner steps (FOMAML)", slider(5, 0, MOST_STEPS)),
    }


def episode_viewer() -> EpisodeViewer:
    """The widget with the shipped networks on the test scripts of the glyphs."""
    files = {title: paths.shipped("checkpoints", f"{name}.safetensors") for title, name in SHIPPED.items()}
    return EpisodeViewer({title: load_model(path)[0] for title, path in files.items()}, datasets.glyphs())
