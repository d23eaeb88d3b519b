"""A frozen benchmark: few-shot networks at every bitwidth, on episodes that never change, so that others can compare.

The episodes of each set are determined by a seed. A checksum covers which images they hold and the pixels of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mebqat_lite import datasets
from mebqat_lite.bits import Bits, candidates
from mebqat_lite.checkpoint import load_model
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.files import replace, write_json
from mebqat_lite.learners import ProtoNet
from mebqat_lite.measure import plots
from mebqat_lite.measure.costs import bit_operations
from mebqat_lite.measure.fewshot import EPISODES, EVALUATION_SEED, enrolment, episode_scores
from mebqat_lite.measure.intervals import interval
from mebqat_lite.measure.results import Cell, table
from mebqat_lite.measure.saved import give_statistics
from mebqat_lite.measure.saved import learns_new_classes as is_few_shot
from mebqat_lite.methods import METHODS
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import pairs_of
from mebqat_lite.tensors import as_float

SHOWN = ("W2A2", "W3A3", "W4A4", "W8A8", "W2A8", "W8A2", "FP")  # the pairs that the text shows
ENROLLED = ("W2A2", "W3A3", "W4A4", "W8A8", "FP")  # the pairs of the enrolment matrix
ODD = {3, 5, 7}  # widths that some networks are never trained at


@dataclass(frozen=True)
class Frozen:
    """A set of episodes that never change: the dataset they are made from, and the size of an episode."""

    data: str
    ways: int
    shots: int
    queries: int

    def episodes(self, part: str) -> Episodes:
        """Make the episodes of one part of the data: ``train``, ``val`` or ``test``."""
        split = getattr(datasets.load(self.data), part)
        return Episodes(split, self.ways, self.shots, self.queries, EVALUATION_SEED)


SETS = {
    "glyphs-20way": Frozen("glyphs", 20, 1, 5),
    "glyphs-5way": Frozen("glyphs", 5, 1, 15),
    "omniglot-20way": Frozen("omniglot", 20, 1, 5),
    "omniglot-5way": Frozen("omniglot", 5, 1, 15),
}
# Checksums of the first 600 episodes of test classes. A test makes sure that the embedded data still gives them.
CHECKSUMS = {"glyphs-20way": "51b684c8990fbb9c", "glyphs-5way": "cd2a2489014cca8d"}

Scores = dict[str, dict[str, dict[int, Tensor]]]  # scores[row][pair][seed], each (episodes,)


def sheet(
    checkpoints: Iterable[str | Path],
    name: str = "glyphs-20way",
    *,
    part: str = "test",
    bits: Sequence[str] | None = None,
    count: int = EPISODES,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure checkpoints on a frozen set of episodes; those of one method that differ only in the seed share a row.

    Prototypical networks are measured under ``recalibrated`` statistics, and those of MAML under ``support``. The
    ``regret`` of a row is how much it loses compared with networks trained for one pair (``pn_qat``, ``fomaml_qat``),
    if there are any.

    Args:
        checkpoints: files, or folders of files, of which networks that do not learn new classes are skipped.
        name: the set, one of `SETS`.
        part: the part of the data. Make choices on ``val``, and look at ``test`` only once.
        bits: the pairs; by default all 73 that need no 1-bit values. A pair that the quantizer of a network does not
            define is left out of its row.
        count: the number of episodes.
        progress: whether to show progress bars.

    Returns:
        The sheet, which `text` formats and `write` saves.

    Raises:
        ValueError: the set is unknown, a file is no few-shot network, or there is none in the folders.
    """
    if name not in SETS:
        raise ValueError(f"no frozen set {name!r}; there are {', '.join(SETS)}")
    episodes, pairs = SETS[name].episodes(part), list(bits or map(str, candidates(one_bit=False)))
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    found: dict[str, Any] = {"enrolment": {}, "bitops": {}, "norm_stats": {}}
    named = [Path(path) for path in checkpoints]
    for path in _files(named):
        model, extra = load_model(path)
        if is_few_shot(extra):
            row = extra.get("variant") or extra["method"]
            _measure(row, model, extra, episodes, pairs, count, scores, found, progress)
        elif path in named:
            raise ValueError(f"{path.name} is no few-shot checkpoint: leave it out")
    if not scores:
        raise ValueError("no few-shot checkpoint among these: give files, or folders of files, that train wrote")
    checksum = episodes.fingerprint(count)
    return {
        "set": {"name": name, "part": part, "episodes": count, "checksum": checksum, **asdict(SETS[name])},
        "accuracy": {row: {pair: _cell(runs) for pair, runs in by.items()} for row, by in scores.items()},
        "means": {row: _means(by, pairs) for row, by in scores.items()},
        "regret": _regrets(scores),
        **found,
    }


def _files(checkpoints: Iterable[str | Path]) -> list[Path]:
    """List the files, where each folder is replaced by the sorted checkpoints in it."""
    found: list[Path] = []
    for path in map(Path, checkpoints):
        found += sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return found


def _measure(
    row: str,
    model: torch.nn.Module,
    extra: Mapping[str, Any],
    episodes: Episodes,
    pairs: Sequence[str],
    count: int,
    scores: Scores,
    found: dict[str, Any],
    progress: bool,
) -> None:
    """Add the scores of one checkpoint to its row; a network trained for one pair is measured only there."""
    method = METHODS[extra["method"]]
    recipe = Recipe(**extra["setup"]["recipe"])
    learner = method.learner(recipe, method.teacher)
    defined = {str(pair) for pair in pairs_of(model)}
    served = [pair for pair in pairs if pair in defined]
    mine = [extra["bits"]] if extra.get("bits") else [str(pair) for pair in recipe.bits or served]
    stored = isinstance(learner, ProtoNet)
    norm_stats = found["norm_stats"][row] = "recalibrated" if stored else "support"
    if stored:
        give_statistics(model, extra, sorted({*mine, *ENROLLED} if len(mine) > 1 else mine))
    found_scores = episode_scores(model, learner, episodes, mine, count=count, norm_stats=norm_stats, progress=progress)
    for pair, values in zip(mine, found_scores, strict=True):
        scores[row][pair][extra["seed"]] = values
    if stored and len(mine) > 1 and row not in found["enrolment"]:  # only for the first seed
        matrix = enrolment(model, episodes, ENROLLED, count=count)
        found["enrolment"][row] = {str(enrolled): dict(asked) for enrolled, asked in matrix.iterrows()}
    image = as_float(episodes.split.images[0])
    found["bitops"].update({pair: bit_operations(model, image, pair) for pair in mine if pair not in found["bitops"]})


def _cell(runs: Mapping[int, Tensor]) -> Cell:
    """Compute mean and interval over the seeds, and also the interval over episodes of the seeds' mean."""
    over_seeds = interval([float(values.mean()) for values in runs.values()])
    over_episodes = interval(torch.stack(list(runs.values())).mean(0).tolist())
    return {**over_seeds, "ci95_episodes": over_episodes["ci95"]}


def _means(by: Mapping[str, Mapping[int, Tensor]], pairs: Sequence[str]) -> dict[str, Cell]:
    """Compute the mean over all pairs, and over those with a width of 3, 5 or 7, with intervals over the seeds."""
    odd = [pair for pair in pairs if ODD & {Bits.parse(pair).w, Bits.parse(pair).a}]
    groups = {"all": list(pairs), "odd_widths": odd}
    return {
        group: interval([float(sum(by[p][seed].mean() for p in members)) / len(members) for seed in by[members[0]]])
        for group, members in groups.items()
        if members and all(pair in by for pair in members)
    }


def _regrets(scores: Scores) -> dict[str, dict[str, Any]]:
    """Compute how much each row loses against networks trained for one pair: on average, and at the worst pair."""
    of_one_pair = [row for row in scores if row.split("+")[0].endswith("_qat")]
    dedicated = {pair: runs for row in of_one_pair for pair, runs in scores[row].items()}
    found = {}
    for row, by in ((row, by) for row, by in scores.items() if row not in of_one_pair):
        shared = [pair for pair in dedicated if pair in by]
        gaps = {pair: _cell(dedicated[pair])["mean"] - _cell(by[pair])["mean"] for pair in shared}
        if len(by) > 1 and gaps:
            worst = max(gaps, key=lambda pair: gaps[pair])
            found[row] = {"mean": sum(gaps.values()) / len(gaps), "worst": gaps[worst], "pair": worst, "pairs": shared}
    return found


def text(found: Mapping[str, Any]) -> str:
    """Format the sheet as text."""
    about, titles = found["set"], {name: method.title for name, method in METHODS.items()}
    shown = [pair for pair in SHOWN if any(pair in row for row in found["accuracy"].values())]
    lines = [
        f"{about['name']}: {about['ways']}-way {about['shots']}-shot, {about['queries']} queries a class, "
        f"{about['part']} classes, {about['episodes']} episodes, checksum {about['checksum']}",
        table(found["accuracy"], shown, titles),
        "± over seeds; over episodes at most "
        f"{max(cell['ci95_episodes'] for row in found['accuracy'].values() for cell in row.values()):.1f}",
    ]
    for row, cells in found["means"].items():
        parts = ", ".join(f"{group} {cell['mean']:.1f}" for group, cell in cells.items())
        lines += [f"{titles.get(row, row)}, mean over pairs: {parts}"] if parts else []
    for row, gap in found["regret"].items():
        worst = f"worst {gap['worst']:+.1f} at {gap['pair']}"
        lines.append(
            f"{titles.get(row, row)}, regret against QAT at {len(gap['pairs'])} pairs: {gap['mean']:+.1f}, {worst}"
        )
    return "\n".join(lines)


def write(found: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write the sheet and its figures to ``folder``, and return their paths.

    The files are JSON, text, a figure of accuracy over cost, and a heat map of each enrolment matrix.
    """
    folder = Path(folder)
    titles = {name: method.title for name, method in METHODS.items()}
    paths = [write_json(folder / "benchmark.json", found)]
    replace(folder / "benchmark.txt", (text(found) + "\n").encode())
    figures = {"bitops": plots.accuracy_over_cost(found["accuracy"], found["bitops"], titles)}
    for row, matrix in found["enrolment"].items():
        panel = {f"{titles.get(row, row)}, {found['set']['name']}": [list(cells.values()) for cells in matrix.values()]}
        axes: dict[str, Any] = {"xlabel": "queries at", "ylabel": "classes enrolled at", "label": plots.ACCURACY}
        columns = list(next(iter(matrix.values())))
        figures[f"enrolment-{row}"] = plots.tables(panel, list(matrix), columns, decimals=1, **axes)
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        plots.save(figure, paths[-1])
    return [*paths, folder / "benchmark.txt"]
