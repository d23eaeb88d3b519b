"""Draw ideas as diagrams: a quantized network, many networks against one, a training step, and the table of methods.

Each takes its words and numbers from a model, from drawn pairs or from `METHODS`. The label of each figure says in
words what it shows, and `plots.show` uses it as alternative text.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from mebqat_lite.bits import FP, FULL, WIDTHS, Bits, BitsLike, Pair
from mebqat_lite.learners import FOMAML, ProtoNet, Supervised
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.measure.looks import (
    BLACK,
    DARK,
    GREEN,
    GREY,
    LIGHT,
    LOOKS,
    PAGE,
    PALE,
    PURPLE,
    SMALLEST,
    WHITE,
    looks,
    pale,
    style,
)
from mebqat_lite.measure.summary import packed_bytes
from mebqat_lite.methods import METHODS, Method
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import InTurn, Listed
from mebqat_lite.switching.batchnorm import NORMS, SwitchableNorm
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.layers import LAYERS, QuantizedLayer
from mebqat_lite.switching.state import at, norm_layers, pairs_of, setting_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS, INPUTS = PURPLE, GREEN  # the colours of what rounds weights and of what rounds inputs
Place = tuple[float, float, float, float]  # left, top, width and height of a box, in inches


def _canvas(height: float) -> tuple[Figure, Axes]:
    """Open a figure as wide as the page, whose coordinates are inches from the left and from the top."""
    figure = plt.figure(figsize=(PAGE, height), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, PAGE), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _box(axes: Axes, place: Place, face: str, edge: str, words: str = "", **text: Any) -> None:
    """Draw a box with round corners, and words in its middle."""
    left, top, width, height = place
    shape = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch((left, top), width, height, shape, facecolor=face, edgecolor=edge, linewidth=1.1))
    _words(axes, left + width / 2, top + height / 2, words, ha="center", **text)


def _words(axes: Axes, x: float, y: float, words: str, **text: Any) -> None:
    if words:
        look: dict[str, Any] = {"va": "center", "fontsize": SMALLEST, "linespacing": 1.25} | text
        axes.text(x, y, words, **look)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = DARK) -> None:
    how: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, linewidth=1.1, **how))


# ---------------------------------------------------------------- a quantized network

LAYER, THIN, NEAR, STEP = 0.67, 0.19, 0.02, 0.12  # inches: widths of boxes, gaps within a group and between groups
TALL, ROW = 1.12, 1.5


@dataclass(frozen=True)
class Part:
    """A module as a box: a layer with weights and its bits, or what stands between two layers."""

    words: str
    bits: Bits | None = None  # of a layer with weights; 32 bits are not rounded

    @property
    def rounds_inputs(self) -> bool:
        """Whether the inputs of the layer are rounded."""
        return self.bits is not None and self.bits.a < FULL

    @property
    def width(self) -> float:
        """The inches that the part takes."""
        return THIN if self.bits is None else LAYER + self.rounds_inputs * (THIN + NEAR)


def parts_of(model: nn.Module) -> list[list[Part]]:
    """List the modules of a quantized model as groups: a layer with weights and what follows it up to the next one.

    They stand in the order in which the model registers them, and layers have the bits that are set at present.
    """
    groups: list[list[Part]] = []
    for module in _atoms(model):
        part = _part(module)
        if part.bits is not None or not groups:
            groups.append([part])
        else:
            groups[-1].append(part)
    return groups


def _atoms(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are drawn as one box."""
    whole = isinstance(module, (QuantizedLayer, SwitchableNorm, *LAYERS, *NORMS))
    if whole or not any(True for _ in module.children()):
        if not isinstance(module, (nn.Identity, nn.Dropout)):
            yield module
        return
    for child in module.children():
        yield from _atoms(child)


def _part(module: nn.Module) -> Part:
    if isinstance(module, tuple(LAYERS)):
        bits = module.bits if isinstance(module, QuantizedLayer) else FP
        if isinstance(module, nn.Linear):
            return Part(f"linear\n{module.in_features} → {module.out_features}", bits)
        size = "×".join(map(str, getattr(module, "kernel_size", ())))
        return Part(f"conv {size}\n{getattr(module, 'in_channels', '')} → {getattr(module, 'out_channels', '')}", bits)
    name = type(module).__name__
    short = {"Norm": "norm", "ReLU": "ReLU", "Pool": "pool", "Mean": "mean"}
    return Part(next((word for key, word in short.items() if key in name), name.lower()))


def network(model: nn.Module, bits: BitsLike | None = None) -> Figure:
    """Draw a network from left to right, with what quantization adds to it.

    Inputs are rounded by Q(x) before a quantized layer, and its weights by Q(w) inside it. A layer without them stays
    float, as the first and the last one do. This is true of a chain of layers. Of another network all modules are
    drawn in the order in which the model registers them, in several rows if need be, but no branches and no shortcuts.

    Args:
        model: a quantized model.
        bits: a pair such as ``"W2A4"``; by default the bits that are set at present.

    Raises:
        NotQuantizedError: the model is a float model.
    """
    with at(model, setting_of(model).bits if bits is None else bits):
        groups, key = parts_of(model), setting_of(model).key
    rows = _wrapped(groups)
    with style():
        figure, axes = _canvas(0.42 + ROW * len(rows))
        _words(axes, 0.12, 0.2, key, fontsize=13, fontweight="bold")
        _legend(axes)
        for number, row in enumerate(rows):
            _draw_row(axes, row, 0.52 + ROW * number, number == 0, number == len(rows) - 1)
    layers = [part for group in groups for part in group if part.bits is not None]
    figure.set_label(f"A network at {key}, from left to right: " + "; ".join(map(_spoken, layers)))
    return figure


def _legend(axes: Axes) -> None:
    for left, color, words in ((2.2, INPUTS, "Q(x) rounds the inputs"), (4.9, WEIGHTS, "Q(w) rounds the weights")):
        _box(axes, (left, 0.12, 0.2, 0.16), pale(color), color)
        _words(axes, left + 0.28, 0.2, words)


def _spoken(part: Part) -> str:
    """Say a layer in words, for the alternative text."""
    assert part.bits is not None
    weights = "float weights" if part.bits.w == FULL else f"Q(w) to {_count(part.bits.w)}"
    inputs = "float inputs" if part.bits.a == FULL else f"Q(x) to {_count(part.bits.a)}"
    return f"{part.words.replace(chr(10), ' ')}, {weights}, {inputs}"


def _count(bits: int) -> str:
    return f"{bits} bit" if bits == 1 else f"{bits} bits"


def _length(row: Sequence[Sequence[Part]]) -> float:
    """The inches of a row of groups, with an arrow before and after each."""
    return sum(sum(p.width for p in group) + NEAR * (len(group) - 1) for group in row) + STEP * (len(row) + 1)


def _wrapped(groups: Sequence[list[Part]]) -> list[list[list[Part]]]:
    """Break the groups into rows that fit the page."""
    rows: list[list[list[Part]]] = [[]]
    for group in groups:
        if rows[-1] and _length([*rows[-1], group]) > PAGE - 0.6:
            rows.append([])
        rows[-1].append(group)
    return rows


def _draw_row(axes: Axes, row: Sequence[list[Part]], top: float, first: bool, last: bool) -> None:
    """Draw one row of groups, from the input to the output or from the row above to the one below."""
    middle, x = top + TALL / 2, 0.3
    _words(axes, 0.15, middle, "input" if first else "…", rotation=90 * first, ha="center")
    for group in row:
        _arrow(axes, (x, middle), (x + STEP, middle))
        x += STEP
        for part in group:
            _draw_part(axes, part, x, top)
            x += part.width + NEAR
        x -= NEAR
    _arrow(axes, (x, middle), (x + STEP, middle))
    _words(axes, x + STEP + 0.12, middle, "output" if last else "…", rotation=90 * last, ha="center")


def _draw_part(axes: Axes, part: Part, x: float, top: float) -> None:
    if part.bits is None:
        _box(axes, (x, top, THIN, TALL), LIGHT, PALE, part.words, rotation=90)
        return
    if part.rounds_inputs:
        words = f"Q(x) {_count(part.bits.a)}"
        _box(axes, (x, top, THIN, TALL), pale(INPUTS), INPUTS, words, rotation=90)
        x += THIN + NEAR
    rounded = part.bits.w < FULL
    _box(axes, (x, top, LAYER, TALL), WHITE, BLACK if rounded else GREY)
    _words(axes, x + LAYER / 2, top + 0.3, part.words, ha="center")
    if rounded:
        chip = (x + 0.06, top + 0.62, LAYER - 0.12, 0.42)
        _box(axes, chip, pale(WEIGHTS), WEIGHTS, f"Q(w)\n{_count(part.bits.w)}")
    else:
        _words(axes, x + LAYER / 2, top + 0.83, "float", ha="center", color=DARK, fontstyle="italic")


# ---------------------------------------------------------------- many networks or one

BOXES = 0.5  # inches from the left to the boxes of the pairs


@dataclass(frozen=True)
class Stored:
    """The bytes of a network for each pair, and of one network for all pairs."""

    dedicated: dict[Bits, int]  # of each pair's own network, with weights packed at the pair's bits
    one: int  # of one float network
    statistics: int  # of its norms' means and variances, one set for each pair


def stored(model: nn.Module) -> Stored:
    """Count what a network for each pair stores, and what one network for all pairs does.

    Args:
        model: a quantized model. What a bitwidth does not change (norms and the first and the last layer, as the
            quantizer has it) counts in each network.
    """
    one, dedicated = stored_bytes(model, statistics=False), {}
    with at(model, FP):
        rest = one - packed_bytes(model)
    for pair in pairs_of(model):
        with at(model, pair):
            dedicated[pair] = packed_bytes(model) + rest
    channels = sum(norm.num_features for norm in norm_layers(model).values())
    return Stored(dedicated, one, len(dedicated) * 2 * 4 * channels)


def many_or_one(model: nn.Module) -> Figure:
    """Draw what a network for each pair stores against one network for all pairs: areas are true to the bytes.

    Each dedicated network is packed at the bits of its pair. The one network is stored as floats, and beside it the
    statistics of its norms for every pair, without which it needs images to measure them anew.

    Args:
        model: a quantized model, such as ``quantize(models.digit_net(), sample=images)``.
    """
    found = stored(model)
    total, count = sum(found.dedicated.values()), len(found.dedicated)
    cell = 0.31  # inches between the boxes; the largest box fills its place
    scale = 0.92 * cell / math.sqrt(max(found.dedicated.values()))  # inches of a side for the root of a byte
    together, below = scale * math.sqrt(total), 0.62 + cell * len(WIDTHS)
    with style():
        figure, axes = _canvas(max(below + 0.48, 0.62 + together + 0.1))
        own, shared = LOOKS["qat"]["color"], LOOKS["mebqat"]["color"]
        _words(axes, 0.12, 0.2, f"{count} networks, one for each pair", fontweight="bold", fontsize=10)
        _words(axes, 0.12, 0.42, f"each packed at its own bits, from {min(found.dedicated)} to {max(found.dedicated)}")
        middles = {width: cell * (place + 0.5) for place, width in enumerate(WIDTHS)}
        for pair, size in found.dedicated.items():
            side = scale * math.sqrt(size)
            x, y = BOXES + middles[pair.a] - side / 2, 0.62 + middles[pair.w] - side / 2
            axes.add_patch(Rectangle((x, y), side, side, color=own, linewidth=0))
        _widths(axes, middles, below)
        x = BOXES + cell * len(WIDTHS) + 0.2
        _words(axes, x, 0.42, f"together {_bytes(total)}")
        axes.add_patch(Rectangle((x, 0.62), together, together, color=pale(own), linewidth=0))
        x += max(together, 1.25) + 0.25
        _words(axes, x, 0.2, "one network for all", fontweight="bold", fontsize=10, color=shared)
        _draw_one(axes, found, scale, x, shared)
    parts = f"one network for all of them {_bytes(found.one)}, and {_bytes(found.statistics)} for its norms' statistics"
    figure.set_label(f"{count} dedicated networks, packed, store {_bytes(total)}; {parts}")
    return figure


def _widths(axes: Axes, middles: Mapping[int, float], below: float) -> None:
    """Write the bits of the weights beside the rows of boxes, and those of the activations below the columns."""
    for width, middle in middles.items():
        words = "FP" if width == FULL else str(width)
        _words(axes, BOXES - 0.06, 0.62 + middle, words, ha="right")
        _words(axes, BOXES + middle, below + 0.12, words, ha="center")
    half = sum(middles.values()) / len(middles)
    _words(axes, 0.12, 0.62 + half, "weight bits", rotation=90, ha="center")
    _words(axes, BOXES + half, below + 0.34, "activation bits", ha="center")


def _draw_one(axes: Axes, found: Stored, scale: float, x: float, color: str) -> None:
    """Draw the one network and, under it, its statistics, with their bytes beside them."""
    y = 0.62
    words = f"norm statistics of\n{len(found.dedicated)} pairs: {_bytes(found.statistics)}"
    both = ((found.one, color, f"floats:\n{_bytes(found.one)}"), (found.statistics, pale(color), words))
    for size, face, label in both:
        side = scale * math.sqrt(size)
        axes.add_patch(Rectangle((x, y), side, side, color=face, linewidth=0))
        _words(axes, x + side + 0.1, y + side / 2, label)
        y += max(side, 0.32) + 0.16
    _words(axes, x, y + 0.16, "All areas are true to the bytes.", color=DARK, fontstyle="italic")


def _bytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


# ---------------------------------------------------------------- a step of MEBQAT

HALF, TOP, PITCH = PAGE / 2, 0.62, 0.62  # inches: where the right half begins, and the rows of both halves
SIDES = (("mebqat", 0.1, "one update for all pairs"), ("mebqat_in_turn", HALF + 0.15, "an update after each"))


def step(pairs: Sequence[Pair], turns: Sequence[Pair] = (), what: str = "batch") -> Figure:
    """Draw a step of MEBQAT, and beside it the form in turn.

    On the left one batch goes forward and backward at each pair, and the mean of the gradients makes one update (ECCV
    2022, algorithm 1). On the right each pair has a batch, and the weights are updated after each.

    Args:
        pairs: what a sampler drew for a step, ``Sampled(...).draw()[0]``.
        turns: what a sampler drew for the steps in turn, such as ``[InTurn(...).draw()[0][0], ...]``; by default
            ``pairs``.
        what: the name of what is learned from, such as "episode".
    """
    names, later = [[_pair(pair) for pair in drawn] for drawn in (pairs, turns or pairs)]
    with style():
        height = TOP + PITCH * max(len(names), len(later)) + 0.05
        figure, axes = _canvas(height)
        for name, left, words in SIDES:
            title, color = METHODS[name].title, LOOKS[name]["color"]
            _words(axes, left, 0.2, title, fontweight="bold", fontsize=11, color=color)
            _words(axes, left, 0.42, words)
        axes.plot([HALF + 0.03] * 2, [0.1, height - 0.1], color=LIGHT, linewidth=1)
        _draw_together(axes, names, what)
        _draw_in_turn(axes, later, what)
    one, other = (METHODS[name].title for name, *_ in SIDES)
    told = f"{one}: one {what}, forward and backward at {', '.join(names)}, the mean of the gradients, one update"
    figure.set_label(f"{told}. {other}: {', '.join(later)}, each on its own {what}, and an update after it")
    return figure


def _pair(pair: Pair) -> str:
    return str(pair) if isinstance(pair, Bits) else "a pair for\neach layer"


def _draw_together(axes: Axes, names: Sequence[str], what: str) -> None:
    """One batch or episode, a row for each pair, their mean and one update."""
    color, middle = LOOKS["mebqat"]["color"], TOP + PITCH * len(names) / 2
    _box(axes, (0.1, middle - 0.3, 0.56, 0.6), LIGHT, GREY, f"one\n{what}")
    for number, name in enumerate(names):
        y = TOP + PITCH * (number + 0.5)
        _arrow(axes, (0.66, middle), (0.84, y))
        _draw_pass(axes, name, 0.84, y, color)
        _arrow(axes, (2.12, y), (2.28, middle))
    _box(axes, (2.28, middle - 0.3, 0.68, 0.6), WHITE, color, "mean of\ngradients")
    _arrow(axes, (2.96, middle), (3.12, middle))
    _box(axes, (3.12, middle - 0.3, 0.6, 0.6), pale(color), color, "one\nupdate", fontweight="bold")


def _draw_pass(axes: Axes, name: str, left: float, y: float, color: str) -> None:
    _box(axes, (left, y - 0.2, 1.28, 0.4), WHITE, color)
    _words(axes, left + 0.64, y - 0.08, name, ha="center", fontweight="bold", fontsize=10)
    _words(axes, left + 0.64, y + 0.1, "forward, backward", ha="center")


def _draw_in_turn(axes: Axes, names: Sequence[str], what: str) -> None:
    """A row for each pair: its batch or episode, its pass and its update, from which the next row starts."""
    color, left = LOOKS["mebqat_in_turn"]["color"], HALF + 0.15
    for number, name in enumerate(names):
        y = TOP + PITCH * (number + 0.5)
        _box(axes, (left, y - 0.2, 0.74, 0.4), LIGHT, GREY, f"{what} {number + 1}")
        _arrow(axes, (left + 0.74, y), (left + 0.96, y))
        _draw_pass(axes, name, left + 0.96, y, color)
        _arrow(axes, (left + 2.24, y), (left + 2.46, y))
        _box(axes, (left + 2.46, y - 0.2, 0.76, 0.4), pale(color), color, f"update {number + 1}", fontweight="bold")
        if number + 1 < len(names):
            start, end, turn = left + 2.84, left + 1.6, y + 0.29
            axes.plot([start, start, end], [y + 0.2, turn, turn], color=color, linewidth=1.1)
            _arrow(axes, (end, turn), (end, y + PITCH - 0.2), color)


# ---------------------------------------------------------------- the table of methods

VISITS = {  # what the samplers visit, as the rows of the table
    "float": "full precision, then\nrounded or not",
    "one": "one pair",
    "listed": "a listed set of pairs,\nall of them in each step",
    "drawn": "M drawn pairs, and one\nupdate for all of them",
    "turn": "M drawn pairs, and an\nupdate after each",
}
LEARNS = {Supervised: "supervised learning", ProtoNet: "prototypical networks", FOMAML: "FOMAML"}


def cells() -> dict[tuple[str, str], list[str]]:
    """Sort the names of `METHODS` into the cells of the table: by what the sampler visits and by how it is learned."""
    tiny = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(2, 2), nn.ReLU())))
    model = quantize(tiny, "dorefa", sample=torch.rand(8, 2))
    found: dict[tuple[str, str], list[str]] = {}
    for name, method in METHODS.items():
        learner = type(method.learner(Recipe(), method.teacher))
        how = next(words for kind, words in reversed(LEARNS.items()) if issubclass(learner, kind))
        found.setdefault((_visits(method, model), how), []).append(name)
    return found


def _visits(method: Method, model: nn.Module) -> str:
    """Find the row of a method: what its sampler visits where the recipe lists no pairs."""
    try:
        sampler = method.sampler(model, Recipe())
    except ValueError:  # it asks for the one pair that it trains
        return "one"
    if isinstance(sampler, Listed):
        return "float" if sampler.pairs == [FP] else "listed"
    return "turn" if isinstance(sampler, InTurn) else "drawn"


def table(met: Collection[str] | None = None) -> Figure:
    """Draw the one idea: a method is what its sampler visits (rows) times how it learns (columns).

    Each name stands beside its line and marker, so that the table is the legend of all figures, too.

    Args:
        met: the names of the methods that the reader knows by now, by default all; the other ones are pale.
    """
    found = cells()
    heights = {row: max(_lines(found.get((row, how), [])) for how in LEARNS.values()) for row in VISITS}
    lefts = [0.1, 1.76, 3.62, 5.5, PAGE - 0.1]
    with style():
        figure, axes = _canvas(0.5 + sum(0.26 + 0.19 * lines for lines in heights.values()))
        for left, words in zip(lefts, ["trained at", *LEARNS.values()], strict=False):
            _words(axes, left, 0.24, words, fontweight="bold", fontsize=10)
        y = 0.44
        for row, lines in heights.items():
            axes.plot([lefts[0], lefts[-1]], [y, y], color=PALE, linewidth=0.8)
            _words(axes, lefts[0], y + 0.12, VISITS[row], va="top")
            for left, how in zip(lefts[1:], LEARNS.values(), strict=False):
                _draw_methods(axes, found.get((row, how), []), left, y + 0.13, METHODS if met is None else met)
            y += 0.26 + 0.19 * lines
    rows = (f"{VISITS[row].replace(chr(10), ' ')}, {how}: {_titles(names)}" for (row, how), names in found.items())
    figure.set_label("Methods by what they train at and how they learn. " + "; ".join(rows))
    return figure


def _wrap(name: str) -> list[str]:
    return textwrap.wrap(METHODS[name].title, 19, break_on_hyphens=False)


def _lines(names: Sequence[str]) -> float:
    """The lines that the entries of a cell take, at least the two of the words at the left."""
    return max(1.6, sum(len(_wrap(name)) for name in names))


def _titles(names: Sequence[str]) -> str:
    return ", ".join(METHODS[name].title for name in names)


def _draw_methods(axes: Axes, names: Sequence[str], left: float, top: float, met: Collection[str]) -> None:
    """Draw the entries of a cell: a sample of the line, and the title beside it; pale if it was not met."""
    y = top + 0.05
    for name, look in looks(names).items():
        alpha, color = (1.0, BLACK) if name in met else (0.3, GREY)
        axes.plot([left, left + 0.18, left + 0.36], [y] * 3, markevery=[1], alpha=alpha, **look)
        for line in _wrap(name):
            _words(axes, left + 0.43, y, line, color=color)
            y += 0.19
