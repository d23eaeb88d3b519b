"""Exercises of lesson 08: packing codes, cutting a nested code, bits for each layer, and a half-integer zero."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect, numbers
from mebqat_lite.deploy import codes as packing

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


# --- 8.1 -------------------------------------------------------------------------------------------------------


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The bit planes of codes of any shape, the most significant plane first: (bits, bytes)."""
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])
    flat = torch.nn.functional.pad(codes.flatten(), (0, -codes.numel() % 8))  # whole bytes
    planes = [(flat // 2**k % 2).reshape(-1, 8) @ places for k in reversed(range(bits))]
    return torch.stack(planes).to(torch.uint8)


def _grade_pack(student: Student, rng: Generator) -> None:
    for bits, shape in ((2, (8 * _whole(3, 4, rng),)), (_whole(3, 5, rng), (3, 5, 3, 1)), (8, (2, 3, 3)), (4, (8, 7))):
        codes = torch.randint(0, 2**bits, shape, generator=rng)
        want = _planes(codes.flatten().tolist(), bits).double()
        got = student(codes, bits)
        _check_planes(got, want, codes, bits)
        expect(got, want, f"{codes.numel()} codes of {bits} bits", _wrong_planes(codes.flatten(), bits))


def _check_planes(got: Any, want: Tensor, codes: Tensor, bits: int) -> None:
    """Name the shapes that are likely."""
    if not isinstance(got, Tensor) or got.shape == want.shape:
        return
    count, length = codes.numel(), want.shape[1]
    if got.shape == (bits, count) or got.shape == (bits, *codes.shape):
        raise Mistake("it has a value for each bit: put the bits of eight codes into one byte")
    if got.shape == (bits, count // 8):
        raise Mistake("the last codes are lost: fill the last byte of each plane up with zeros")
    if got.shape == (bits, count // 8 + 1):
        raise Mistake("there is a byte too many: the codes fill the last byte here")
    if got.shape == (length, bits):
        raise Mistake("rows and columns are exchanged: each plane is a row")
    if got.shape == (8, length):
        raise Mistake(f"these are 8 planes: codes of {bits} bits have {bits}")


def _planes(codes: list[int], bits: int = 8) -> Tensor:
    """Bit planes (bits, bytes) of codes, by text: row k is bit k from the left."""
    rows = ["".join(f"{code:0{bits}b}"[k] for code in codes) for k in range(bits)]
    padded = [row + "0" * (-len(row) % 8) for row in rows]
    return torch.tensor([[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in padded], dtype=torch.uint8)


def _wrong_planes(codes: Tensor, bits: int) -> list[tuple[str, Tensor]]:
    right, count = _planes(codes.tolist(), bits), len(codes)
    front = _planes([0] * (-count % 8) + codes.tolist(), bits)
    turned = _turned(right)
    known = [
        ("the planes are in the wrong order: the first row is the most significant one", right.flip(0)),
        ("the first code of a byte is its highest bit, the one worth 128", turned),
        ("the first code of a byte is its highest bit, and the first row the most significant plane", turned.flip(0)),
        ("zeros and ones are exchanged", _planes((2**bits - 1 - codes).tolist(), bits)),
        ("the zeros that fill the last byte come after the codes, not before", front),
    ]
    if count % 8 == 0:
        text = "".join(f"{code:0{bits}b}" for code in codes.tolist())
        stream = torch.tensor([int(text[i : i + 8], 2) for i in range(0, len(text), 8)]).reshape(bits, -1)
        known.append(("whole codes stand one after the other: take one bit of each code for a plane", stream))
    return [(message, planes.double()) for message, planes in known]


def _turned(planes: Tensor) -> Tensor:
    """The same bytes, with the bits of each in reverse."""
    return torch.tensor([int(f"{v:08b}"[::-1], 2) for v in planes.flatten().tolist()]).reshape(planes.shape)


pack = Exercise(
    "pack",
    "8.1: Pack codes into bit planes",
    difficulty=2,
    minutes=15,
    question="""
    Store codes of `bits` bits in `bits` bits each. A **bit plane** holds one bit of every code. The first plane is
    the most significant one. In a plane each byte holds the bits of eight codes, the first code in the highest bit
    (worth 128), and the last byte is filled up with zeros.

    Write `pack(codes, bits)`. `codes` is a tensor of whole numbers from 0 to 2^bits - 1, of any shape, and is read row
    by row. Return the planes, `(bits, bytes)`: whole numbers from 0 to 255.
    """,
    hints=[
        "Flatten the codes. The bit worth 2^k of all of them: codes // 2**k % 2. Begin with k = bits - 1.",
        "Add zeros until there are whole bytes, and reshape to (bytes, 8).",
        "A byte is the sum of its eight bits times 128, 64, ..., 1. numpy.packbits does all of this for a row.",
    ],
    solution=_pack,
    grade=_grade_pack,
    package=packing.pack,
)

# --- 8.2 -------------------------------------------------------------------------------------------------------


def _cut(planes: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """The upper ``bits`` bits of ``count`` codes, from eight bit planes, (8, bytes): (count,)."""
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1])
    codes = torch.zeros(count, dtype=torch.int64)
    for plane in planes[:bits]:  # the most significant first
        ones = (plane[:, None] // places % 2).flatten()[:count]  # (bytes, 8) -> (count,)
        codes = 2 * codes + ones
    return codes


def _grade_cut(student: Student, rng: Generator) -> None:
    for bits in (_whole(2, 3, rng), _whole(4, 6, rng), 8):
        count = 8 * _whole(2, 5, rng) + _whole(1, 7, rng)
        codes = torch.randint(0, 256, (count,), generator=rng)
        planes = _planes(codes.tolist())
        want = torch.tensor([int(f"{code:08b}"[:bits], 2) for code in codes.tolist()], dtype=torch.float64)
        got = student(planes, count, bits)
        if isinstance(got, Tensor):
            got = got.double()
            if got.numel() == 8 * planes.shape[1] and count != got.numel():
                raise Mistake("the zeros that fill the last byte are still there: keep the first count codes")
        expect(got, want, f"{count} codes cut to {bits} bits", _wrong_cuts(planes, codes, bits))


def _wrong_cuts(planes: Tensor, codes: Tensor, bits: int) -> list[tuple[str, Tensor]]:
    shift, count = 8 - bits, len(codes)
    mirrored = _read(planes.flip(0)[shift:].flip(0), count)  # as many upper planes, the first counting least
    turned = _turned(planes)
    upper = codes >> shift
    reverse = torch.tensor([int(f"{code:0{bits}b}"[::-1], 2) for code in upper.tolist()])
    return [
        ("these are the whole 8-bit codes: take the first bits rows only", codes.double()),
        ("these are the lower bits: the first rows are the most significant", (codes % 2**bits).double()),
        ("the first row counts most: begin with it, and double before each further one", reverse.double()),
        ("the first code of a byte is its highest bit, the one worth 128", _read(turned[:bits], count)),
        ("the first code of a byte is its highest bit, and the first row counts most", _mirror(turned, bits, count)),
        ("the codes are shifted back: with fewer bits they go from 0 to 2^bits - 1", (upper << shift).double()),
        ("it rounds: a nested code is cut, without rounding", ((codes + (1 << shift >> 1)) >> shift).double()),
        (
            "it scales the codes down and rounds: only cut the lower bits off",
            (codes.double() * (2**bits - 1) / 255).round(),
        ),
        ("the rows are added: each further one is worth half of the one before", _ones(planes[:bits], count)),
        ("this is one bit too few: take as many rows as bits", (codes >> (shift + 1)).double()),
        ("the first row counts most: begin with it, and double before each further one", mirrored),
    ]


def _read(planes: Tensor, count: int) -> Tensor:
    """Codes of some planes, the first row counting most."""
    value = torch.zeros(count, dtype=torch.float64)
    for row in planes.tolist():
        ones = "".join(f"{byte:08b}" for byte in row)[:count]
        value = 2 * value + torch.tensor([float(one) for one in ones], dtype=torch.float64)
    return value


def _mirror(turned: Tensor, bits: int, count: int) -> Tensor:
    return _read(turned[:bits].flip(0), count)


def _ones(planes: Tensor, count: int) -> Tensor:
    return torch.stack([_read(row[None], count) for row in planes]).sum(0)


cut = Exercise(
    "cut",
    "8.2: Cut a nested code",
    difficulty=2,
    minutes=15,
    question="""
    A nested file holds the 8-bit codes of a layer as eight bit planes; a network of fewer bits reads only the first
    planes. Be that network.

    Write `cut(planes, count, bits)`. `planes` is a uint8 tensor, `(8, bytes)`, the most significant plane first. In a
    row each byte holds the bits of eight codes, the first code in the highest bit (worth 128); after `count` codes the
    last byte is filled up with zeros. Return the upper `bits` bits of each code, `(count,)`: whole numbers from 0
    to 2^bits - 1.
    """,
    hints=[
        "Only planes[:bits] is needed. Begin with zeros, and for each plane: codes = 2 * codes + its ones.",
        "The ones of a byte: byte // 128 % 2, byte // 64 % 2, ..., byte // 1 % 2. Or numpy.unpackbits.",
        "plane[:, None] // torch.tensor([128, 64, ..., 1]) % 2 is (bytes, 8); flatten it, keep the first count.",
    ],
    solution=_cut,
    grade=_grade_cut,
)

# --- 8.3 -------------------------------------------------------------------------------------------------------


def _choose_bits(losses: list[list[float]], sizes: list[list[int]], budget: int) -> list[int]:
    """The choice of each layer: the least sum of losses among all whose sizes add up to at most the budget."""
    choices: list[list[int]] = [[]]
    for row in losses:
        choices = [[*choice, k] for choice in choices for k in range(len(row))]
    best, least = choices[0], float("inf")
    for choice in choices:
        size = sum(row[k] for row, k in zip(sizes, choice, strict=True))
        loss = sum(row[k] for row, k in zip(losses, choice, strict=True))
        if size <= budget and loss < least:
            best, least = choice, loss
    return best


def _grade_choose_bits(student: Student, rng: Generator) -> None:
    for layers, options, is_exact in ((4, 3, False), (4, 4, False), (3, 4, False), (4, 4, True), (5, 4, False)):
        losses, sizes, budget, want, wrong = _clear_knapsack(layers, options, is_exact, rng)
        got = student([list(row) for row in losses], [list(row) for row in sizes], budget)
        numbers(got, "a list of whole numbers")
        values = checked(got, torch.tensor(want, dtype=torch.float64)).tolist()
        _check_choice(values, losses, sizes, budget)
        where = f"{layers} layers of {options} choices and a budget of {budget}"
        known = [(words, torch.tensor(choice).double()) for words, choice in wrong]
        expect(got, torch.tensor(want).double(), where, known)


def _clear_knapsack(layers: int, options: int, is_exact: bool, rng: Generator) -> tuple[Any, ...]:
    """Tables, a budget, the right choice and wrong ones, all of them different so that each can be named."""
    while True:
        losses, sizes = _knapsack(layers, options, rng)
        best = sorted(itertools.product(range(options), repeat=layers), key=lambda c: _total(losses, c))
        budget = _total(sizes, best[_whole(3, len(best) // 2, rng)])
        fits = [choice for choice in best if _total(sizes, choice) <= budget]
        wrong = _wrong_choices(fits, losses, sizes, budget)
        if is_exact:
            wrong = [("a choice of exactly the budget fits: at most, not less than", fits[1])]
        used, spent = _total(sizes, fits[0]), sorted(_total(sizes, choice) for choice in fits)
        below = used < budget or (is_exact and _total(sizes, fits[1]) < budget)
        differ = len({fits[0], *(choice for _, choice in wrong)}) == 1 + len(wrong)
        if below and differ and spent[-1] > spent[-2] and (used == budget) == is_exact:
            return losses, sizes, budget, fits[0], wrong


def _knapsack(layers: int, options: int, rng: Generator) -> tuple[list[list[float]], list[list[int]]]:
    """Losses that fall and sizes that rise from choice to choice; a layer that is far larger than the others."""
    falls = torch.rand(layers, options, generator=rng) + 0.01
    losses = falls.flip(1).cumsum(1).flip(1) * (1 + 9 * torch.rand(layers, 1, generator=rng))
    planes = torch.randint(20, 90, (layers, 1), generator=rng) * (1 + 3 * (torch.arange(layers)[:, None] == 1))
    return losses.double().tolist(), (planes * torch.tensor([1, 2, 4, 8])[:options]).tolist()


def _total(table: list[list[Any]], choice: Any) -> Any:
    return sum(row[k] for row, k in zip(table, choice, strict=True))


def _check_choice(values: list[float], losses: list[list[float]], sizes: list[list[int]], budget: int) -> None:
    """Whether it is a choice, and fits."""
    if any(value != int(value) or not 0 <= value < len(row) for value, row in zip(values, losses, strict=True)):
        raise Mistake(
            f"it returns {values}: return the place of the choice in each row, a whole number from 0 to "
            f"{len(losses[0]) - 1}"
        )
    if (size := _total(sizes, map(int, values))) > budget:
        raise Mistake(
            f"the choice takes {size} bytes, more than the budget of {budget}: the sizes of all layers add up"
        )


def _wrong_choices(
    fits: list[tuple[int, ...]], losses: list[list[float]], sizes: list[list[int]], budget: int
) -> list[tuple[str, tuple[int, ...]]]:
    """``fits`` are the choices that fit, the least loss first."""
    forwards, backwards = (_in_order(sizes, budget, range(len(sizes))[::step]) for step in (1, -1))
    return [
        ("it wastes the budget: this is the smallest choice, not the best that fits", (0,) * len(losses)),
        ("all layers have the same choice: each may have its own", next(c for c in fits if len(set(c)) == 1)),
        ("it takes the most bytes that fit: take the least loss", max(fits, key=lambda c: _total(sizes, c))),
        ("it spends on one layer after the other, the first one first: try all combinations", forwards),
        ("it spends on one layer after the other, the last one first: try all combinations", backwards),
        ("it takes the best step each time, and never gives one back: try all combinations",
         _greedy(losses, sizes, budget)),
    ]  # fmt: skip


def _in_order(sizes: list[list[int]], budget: int, order: range) -> tuple[int, ...]:
    """The largest choice that still fits for one layer after the other, the later ones at their smallest."""
    choice = [0] * len(sizes)
    for layer in order:
        for option in range(len(sizes[layer])):
            trial = [*choice[:layer], option, *choice[layer + 1 :]]
            choice = trial if _total(sizes, trial) <= budget else choice
    return tuple(choice)


def _greedy(losses: list[list[float]], sizes: list[list[int]], budget: int) -> tuple[int, ...]:
    """From the smallest on, one step of one layer at a time: the one that gains most for a byte."""
    choice = [0] * len(sizes)
    while True:
        steps = []
        for layer, option in enumerate(choice):
            trial = [*choice[:layer], option + 1, *choice[layer + 1 :]]
            if option + 1 < len(sizes[layer]) and _total(sizes, trial) <= budget:
                gain = losses[layer][option] - losses[layer][option + 1]
                steps.append((gain / (sizes[layer][option + 1] - sizes[layer][option]), trial))
        if not steps:
            return tuple(choice)
        choice = max(steps)[1]


choose_bits = Exercise(
    "choose_bits",
    "8.3: Bits for each layer",
    difficulty=2,
    minutes=15,
    question="""
    Each layer of a network may have weights of other bits. `losses[i][k]` is how much is lost if layer `i` has its
    choice `k`, and `sizes[i][k]` is how many bytes the layer then takes. Both are lists with a row for each layer.
    What is lost, and the bytes, add up over the layers.

    Write `choose_bits(losses, sizes, budget)`. Among all combinations that take at most `budget` bytes, find the one
    that loses least, and return its choice for each layer, a list of whole numbers from 0 on. (Five layers with four
    choices each are only 1,024 combinations: you may try them all. One of them always fits.)
    """,
    hints=[
        "All combinations: itertools.product(range(4), range(4), ...), or a longer list with each layer.",
        "The bytes of a combination: sum(row[k] for row, k in zip(sizes, combination)). Keep those of at most budget.",
        "min(..., key=...) finds the one whose losses have the least sum.",
    ],
    solution=_choose_bits,
    grade=_grade_choose_bits,
)

# --- 8.4 -------------------------------------------------------------------------------------------------------


def _correction(x: torch.Tensor, kernel: int, step: float, zero: float) -> torch.Tensor:
    """What a convolution with codes lacks: (batch, channels, height, width) -> (batch, 1, height, width)."""
    ones = torch.ones(1, x.shape[1], kernel, kernel)
    sums = torch.nn.functional.conv2d(x, ones, padding=kernel // 2)  # (batch, 1, height, width)
    return -step * zero * sums


def _grade_correction(student: Student, rng: Generator) -> None:
    for kernel, bits in ((3, 8), (5, 2), (1, 4), (3, _whole(2, 8, rng))):
        batch, channels, height, width = (_whole(2, 4, rng) for _ in range(4))
        x = torch.rand(batch, channels, height + 3, width + 4, generator=rng)
        step, zero = 0.3 + 0.5 * float(torch.rand((), generator=rng)), (2**bits - 1) / 2
        codes = torch.randint(0, 2**bits, (3, channels, kernel, kernel), generator=rng).double()
        whole, parts = (_convolve(x, step * c) for c in (codes - zero, codes))
        want = (whole - parts)[:, :1].float()
        where = f"a {kernel} x {kernel} kernel and zero = {zero}"
        got = student(x, kernel, step, zero)
        _check_channels(got, want, channels)
        expect(got, want, where, _wrong_corrections(x, kernel, step, zero))


def _convolve(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x.double(), w, padding=w.shape[-1] // 2)


def _check_channels(got: Any, want: Tensor, channels: int) -> None:
    """Name the two shapes that are likely."""
    if not isinstance(got, Tensor) or got.shape == want.shape or got.dim() != 4:
        return
    if got.shape[1] == channels != 1 and got.shape[2:] == want.shape[2:]:
        raise Mistake("it has a value for each channel of x: the product sums over all of them, so sum over them too")
    if got.shape[2:] != want.shape[2:]:
        raise Mistake(
            f"the picture is {tuple(got.shape[2:])}, it should stay {tuple(want.shape[2:])}: pad by kernel // 2"
        )


def _wrong_corrections(x: Tensor, kernel: int, step: float, zero: float) -> list[tuple[str, Tensor]]:
    wide, double = kernel // 2, x.double()
    sums = F.unfold(double, kernel, padding=wide).sum(1).reshape(len(x), 1, *x.shape[2:])
    size = x.shape[1] * kernel**2
    mean = F.avg_pool2d(double, kernel, 1, wide, count_include_pad=False).sum(1, keepdim=True) * kernel**2
    right, everywhere = -step * zero * sums, double.sum((1, 2, 3), keepdim=True).expand_as(sums)
    padded = F.pad(double, (wide,) * 4, mode="replicate").unfold(2, kernel, 1).unfold(3, kernel, 1)
    return [
        ("the sign is wrong: code - zero is less than code, so something is taken away", -right),
        ("zero is forgotten: each x in the window counts zero times", -step * sums),
        ("zero counts twice: only in doubled codes it is 2 zero", 2 * right),
        ("zero is rounded to a whole number: here it is a half-integer", right / zero * math.ceil(zero)),
        ("zero is rounded to a whole number: here it is a half-integer", right / zero * math.floor(zero)),
        ("step is forgotten: w = step (code - zero)", -zero * sums),
        ("step and zero are forgotten: multiply the sums by -step * zero", sums),
        ("step and zero are forgotten: multiply the sums by -step * zero", -sums),
        ("the sums are divided by step: multiply", -zero / step * sums),
        ("step counts twice: once is enough", right * step),
        ("this is a mean over the window: take the sum", right / size),
        ("this is a mean over the channels: take the sum", right / x.shape[1]),
        ("this is a mean over the pixels of the window: take the sum", right / kernel**2),
        ("at the border the window reaches over zeros, which add nothing: pad with zeros", -step * zero * mean),
        ("at the border the window reaches over zeros: pad with zeros, do not repeat pixels",
         -step * zero * padded.sum((1, 4, 5))[:, None]),
        ("this is the sum of x alone at each pixel: sum over the kernel's window too",
         -step * zero * double.sum(1, keepdim=True)),
        ("this is the sum over the whole picture: only the kernel's window counts", -step * zero * everywhere),
        ("only the first channel is in it: sum over all channels of x", -step * zero * _first(double, kernel)),
    ]  # fmt: skip


def _first(x: Tensor, kernel: int) -> Tensor:
    return F.avg_pool2d(x[:, :1], kernel, 1, kernel // 2) * kernel**2


correction = Exercise(
    "correction",
    "8.4: A half-integer zero on integer hardware",
    difficulty=3,
    minutes=15,
    question=r"""
    The weights of a convolution are $w = s\,(c - z)$: `step` $s$, integer codes $c$, and a `zero` $z$ that may be a
    half-integer. A device multiplies with codes only. So it computes $s \cdot \mathrm{conv}(x, c)$, and the rest must
    be added:

    $$\mathrm{conv}(x, w) = s\,\mathrm{conv}(x, c) + \mathrm{correction}$$

    Write `correction(x, kernel, step, zero)`. `x` is `(batch, channels, height, width)`, the kernels are `kernel` x
    `kernel` (an odd number), stride 1, with a padding of `kernel // 2` zeros. The correction needs no weight, and is
    the same for each output channel: return it as `(batch, 1, height, width)`.
    """,
    hints=[
        "Put w = step (code - zero) into the sum of products. Which part has no code in it?",
        "It is -step * zero times the sum of x over the window and over all channels of x.",
        "A convolution whose weights are all 1 sums over the window: torch.nn.functional.conv2d(x, ones, padding=...).",
    ],
    solution=_correction,
    grade=_grade_correction,
)

EXERCISES = (pack, cut, choose_bits, correction)
