"""Exercises of lesson 08: bytes of bit planes, cutting a nested code, a half-integer zero, and what a device holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect

Student = Callable[..., Any]


def _whole(low: int, high: int, rng: Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


# --- 8.1 -------------------------------------------------------------------------------------------------------


def _packed_size(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of the ``bits`` bit planes of a layer of that shape."""
    count = 1
    for size in shape:
        count *= size
    plane = (count + 7) // 8  # bytes, rounded up
    return bits * plane


def _grade_packed_size(student: Student, rng: Generator) -> None:
    odd = [(8 * _whole(2, 5, rng) + 3, 3, 5, 1), (5, 7 + 2 * _whole(0, 3, rng)), (2 * _whole(2, 7, rng) + 1,)]
    even = [(8 * _whole(1, 4, rng), _whole(3, 9, rng), 3, 3), (10, 8 * _whole(2, 5, rng))]
    for shape in (*odd, *even):
        bits, count = (3, 5, 6, 7)[_whole(0, 3, rng)], math.prod(shape)  # at 4 the bits are as many as a float's bytes
        codes = torch.zeros(bits, count, dtype=torch.bool)  # counted, not computed
        want = sum(len(row.split(8)) for row in codes)
        got = student(shape, bits)
        checked(got, 0.0)
        expect(got, float(want), f"shape {shape} at {bits} bits", _wrong_sizes(shape, bits))


def _wrong_sizes(shape: tuple[int, ...], bits: int) -> list[tuple[str, float]]:
    count = math.prod(shape)
    return [
        ("these are the bytes of float weights: 4 each. Count bits a weight", 4 * count),
        ("these are bits: a byte holds eight of them", bits * count),
        ("each plane begins at a new byte: round up plane by plane, not at the end", math.ceil(bits * count / 8)),
        ("a file has whole bytes: each plane is rounded up", bits * count / 8),
        ("it rounds down: the last weights of a plane need a byte too", bits * count // 8),
        ("it rounds down: the last weights of a plane need a byte too", bits * (count // 8)),
        ("one byte too many where the weights fill the last byte: round up, do not always add one",
         bits * (count // 8 + 1)),
        ("this is a byte for each weight: a plane holds eight in a byte", count),
        ("this is one plane: there are as many as bits", math.ceil(count / 8)),
        ("this is the number of levels times a plane: there are as many planes as bits",
         2**bits * math.ceil(count / 8)),
        ("the sizes of the shape are added: multiply them", bits * math.ceil(sum(shape) / 8)),
        ("only the first size of the shape counts in it: multiply all", bits * math.ceil(shape[0] / 8)),
    ]  # fmt: skip


packed_size = Exercise(
    "packed_size",
    "8.1: Bytes of a packed layer",
    difficulty=1,
    minutes=5,
    question="""
    A packed layer is stored as `bits` bit planes. A plane holds one bit of each weight, eight in a byte, and its last
    byte is filled up with zeros: so each plane begins at a new byte.

    Write `packed_size(shape, bits)`. `shape` is a tuple of whole numbers, as `(32, 16, 3, 3)`, of any length. Return
    the number of bytes of all planes, one whole number.
    """,
    hints=[
        "How many weights has the layer? math.prod(shape), or a loop.",
        "How many bytes has one plane? Eight weights a byte, rounded up: (count + 7) // 8.",
        "There are as many planes as bits.",
    ],
    solution=_packed_size,
    grade=_grade_packed_size,
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


def _planes(codes: list[int]) -> Tensor:
    """Bit planes (8, bytes) of 8-bit codes, by text: row k is bit k from the left."""
    rows = ["".join(f"{code:08b}"[k] for code in codes) for k in range(8)]
    padded = [row + "0" * (-len(row) % 8) for row in rows]
    return torch.tensor([[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in padded], dtype=torch.uint8)


def _wrong_cuts(planes: Tensor, codes: Tensor, bits: int) -> list[tuple[str, Tensor]]:
    shift, count = 8 - bits, len(codes)
    mirrored = _read(planes.flip(0)[shift:].flip(0), count)  # as many upper planes, the first counting least
    turned = torch.tensor([int(f"{v:08b}"[::-1], 2) for v in planes.flatten().tolist()]).reshape(planes.shape)
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
    "8.3: A half-integer zero on integer hardware",
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

# --- 8.4 -------------------------------------------------------------------------------------------------------


def _best_file(budget: int, layers: list[int], rest: int, statistics: int, widths: list[int]) -> int:
    """Bytes of the smaller of both files for pairs of these weight bits, or 0 if it is larger than ``budget``."""
    plane = sum((count + 7) // 8 for count in layers)  # bytes of one bit of every weight
    smaller = min(8, sum(widths)) * plane  # nested, or codes of each width
    size = smaller + rest + len(widths) * statistics
    return size if size <= budget else 0


def _grade_best_file(student: Student, rng: Generator) -> None:
    for widths in ([2, 4, 8], [2, 4], [1, 2, 3], [3, 4, 5, 6], [2, 3]):
        layers = [9 * (2 * _whole(150, 500, rng) + 1) for _ in range(_whole(3, 5, rng))]
        rest, statistics = _whole(4000, 9000, rng), _whole(300, 1500, rng)
        planes = [sum(-(-count // 8) for count in layers for _ in range(b)) for b in (8, sum(widths))]
        size = rest + statistics * len(widths) + min(planes)
        larger = rest + statistics * len(widths) + max(planes)
        for budget in (size + larger, size, size - 1, (size + larger) // 2, 64_000):
            want = size if size <= budget else 0
            got = student(budget, list(layers), rest, statistics, list(widths))
            where = f"budget {budget:,}, layers {layers}, rest {rest:,}, statistics {statistics:,}, widths {widths}"
            expect(got, float(want), where, _wrong_files(budget, layers, rest, statistics, widths))


def _wrong_files(
    budget: int, layers: Sequence[int], rest: int, statistics: int, widths: Sequence[int]
) -> list[tuple[str, float]]:
    plane, k, both = sum(math.ceil(n / 8) for n in layers), len(widths), (8, sum(widths))
    few = min(both)
    size = few * plane + rest + k * statistics
    known = [
        ("the nested file is not always the smaller one: compare it with codes of each width", _file(8, plane, k)),
        ("codes of each width are not always the smaller ones: compare with the nested file", _file(both[1], plane, k)),
        ("a nested file holds all 8 planes, however few bits its pairs have", _file(max(widths), plane, k)),
        ("the statistics are there once for each pair", _file(few, plane, 1)),
        ("the norm statistics are forgotten: they are there once for each pair", _file(few, plane, 0)),
        ("round up layer by layer, each plane begins at a new byte", _file(few, math.ceil(sum(layers) / 8), k)),
        ("round up layer by layer, each plane begins at a new byte", _file(few, sum(layers) / 8, k)),
        ("it rounds down: the last weights of a plane need a byte too", _file(few, sum(n // 8 for n in layers), k)),
        ("these are bits where bytes are wanted: eight weights of a plane are a byte", _file(few, sum(layers), k)),
        ("the rest is forgotten: it is in every file", lambda r, s: few * plane + k * s),
        ("the rest is in the file once, not for each pair", lambda r, s: few * plane + k * (r + s)),
    ]
    sizes = [(message, how(rest, statistics)) for message, how in known]
    return [
        ("a file of exactly the budget fits: at most, not less than", 0 if size == budget else math.nan),
        (
            "it does not fit: return 0 if the smaller file is larger than the budget",
            size if size > budget else math.nan,
        ),
        ("it does fit: 0 is only for what is larger than the budget", 0 if size < budget else math.nan),
        ("this is the budget: return the size of the file, or 0", budget if budget != size else math.nan),
        *[(message, value) for message, value in sizes if value != size],
    ]


def _file(planes: float, plane: float, pairs: int) -> Callable[[int, int], float]:
    return lambda rest, statistics: planes * plane + rest + pairs * statistics


best_file = Exercise(
    "best_file",
    "8.4: What a 64 kB device holds",
    difficulty=2,
    minutes=15,
    question="""
    A device must switch between several pairs, whose weights have the bits in `widths`, and has `budget` bytes for the
    file. There are two forms: a **nested** file holds all 8 bit planes of each layer once, whatever the widths; the
    other holds the codes of **each width**: b planes for b bits. `rest` bytes (float layers, header) are in either file
    once, `statistics` bytes (of the norms) once for each pair.

    Write `best_file(budget, layers, rest, statistics, widths)`. `layers` is a list of the numbers of weights, `widths`
    a list such as `[2, 4, 8]`, one pair each. Return the bytes of the smaller file if it fits (exactly the budget is
    fine), else 0.
    """,
    hints=[
        "One plane of all layers: the sum of (count + 7) // 8. Exercise 8.1 is that for one layer.",
        "A nested file has 8 planes. The other has as many as all the widths together.",
        "Add rest once and statistics once for each width; then compare with the budget.",
    ],
    solution=_best_file,
    grade=_grade_best_file,
)

EXERCISES = (packed_size, cut, correction, best_file)
