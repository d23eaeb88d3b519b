"""Small SVG pictures from pure functions: the same numbers in, the same text out.

Lengths are pixels, rounded to 2 decimals. Colours are those of Okabe and Ito, and each comes with a dash pattern
and a marker shape, so that neither a colour-blind reader nor a grey print loses anything.
"""

from __future__ import annotations

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, BLACK, DARK, GREY, LIGHT = "#E69F00", "#000000", "#333333", "#888888", "#D9D9D9"
FONT = "font-family:Helvetica,Arial,sans-serif"
OUTLINES = {  # of a marker of size 1 around (0, 0)
    "square": "-.9,-.9 .9,-.9 .9,.9 -.9,.9",
    "triangle": "0,-1.2 1.1,.8 -1.1,.8",
    "down": "0,1.2 1.1,-.8 -1.1,-.8",
    "diamond": "0,-1.3 1.3,0 0,1.3 -1.3,0",
    "cross": "-.9,-.5 -.5,-.9 0,-.4 .5,-.9 .9,-.5 .4,0 .9,.5 .5,.9 0,.4 -.5,.9 -.9,.5 -.4,0",
}
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Style:
    """How a line and its markers look; an empty ``shape`` draws no markers."""

    colour: str
    dash: str = ""
    shape: str = ""
    width: float = 2.0
    size: float = 4.0


def num(value: float) -> str:
    """A number with at most 2 decimals; never ``-0``."""
    return f"{round(float(value), 2) + 0.0:.10g}"


def figure(width: float, height: float, title: str, *parts: str) -> str:
    """A whole picture on white that shrinks with the page; ``title`` is its text for who does not see it."""
    title = escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{title}" '
        f'viewBox="0 0 {num(width)} {num(height)}" width="{num(width)}" '
        f'style="max-width:100%;height:auto;display:block;background:#fff">'
        f'<title>{title}</title><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    size: float = 12,
    colour: str = BLACK,
    extra: str = "",
) -> str:
    """Words at a point; ``anchor`` is start, middle or end."""
    return (
        f'<text x="{num(x)}" y="{num(y)}" text-anchor="{anchor}" font-size="{num(size)}" '
        f'fill="{colour}" style="{FONT}"{extra}>{escape(words)}</text>'
    )


def segment(x1: float, y1: float, x2: float, y2: float, style: Style) -> str:
    """A straight line."""
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    ends = f'x1="{num(x1)}" y1="{num(y1)}" x2="{num(x2)}" y2="{num(y2)}"'
    return f'<line {ends} stroke="{style.colour}" stroke-width="{num(style.width)}"{dash}/>'


def marker(x: float, y: float, style: Style, hollow: bool = False) -> str:
    """A marker of the style's shape around a point."""
    size = style.size
    paint = f'fill="none" stroke="{style.colour}" stroke-width="2"' if hollow else f'fill="{style.colour}"'
    if style.shape == "circle":
        return f'<circle cx="{num(x)}" cy="{num(y)}" r="{num(size)}" {paint}/>'
    corners = (corner.split(",") for corner in OUTLINES[style.shape].split())
    points = " ".join(f"{num(x + size * float(dx))},{num(y + size * float(dy))}" for dx, dy in corners)
    return f'<polygon points="{points}" {paint}/>'


def frame(x: float, y: float, width: float, height: float, style: Style) -> str:
    """A rectangle without filling."""
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    box = f'x="{num(x)}" y="{num(y)}" width="{num(width)}" height="{num(height)}"'
    return f'<rect {box} fill="none" stroke="{style.colour}" stroke-width="{num(style.width)}"{dash}/>'


def gray_image(x: float, y: float, size: float, pixels: Sequence[Sequence[float]]) -> str:
    """A square grayscale picture; ``pixels`` are rows of values, 0 white to 1 black."""
    rows = [bytes(255 - round(255 * min(max(p, 0.0), 1.0)) for p in row) for row in pixels]
    uri = f"data:image/png;base64,{b64encode(_png(rows)).decode()}"
    box = f'x="{num(x)}" y="{num(y)}" width="{num(size)}" height="{num(size)}"'
    return f'<image {box} href="{uri}" style="image-rendering:pixelated"/>'


def _png(rows: Sequence[bytes]) -> bytes:
    """An 8-bit grayscale PNG file."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def legend(x: float, y: float, entries: Sequence[tuple[str, Style]], step: float, columns: int) -> str:
    """A sample of each style with its name, in columns ``step`` wide; the first row's middle is at ``y``."""
    parts = []
    for i, (name, style) in enumerate(entries):
        left, middle = x + step * (i % columns), y + 17 * (i // columns)
        parts.append(segment(left, middle, left + 26, middle, style))
        parts.append(marker(left + 13, middle, style) if style.shape else "")
        parts.append(text(left + 31, middle + 4, name, size=11.5))
    return "".join(parts)


@dataclass
class Plot:
    """An area with axes. What lies outside the ranges is drawn on the border, what is no number not at all."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = _share(x, *self.x_range)
        return self.left + self.width * across, self.top + self.height * (1 - _share(y, *self.y_range))

    def axes(self, x_label: str, y_label: str, x_ticks: Ticks, y_ticks: Ticks) -> None:
        """The frame, ticks with a light grid, and the labels with their units."""
        bottom, right = self.top + self.height, self.left + self.width
        for x, name in x_ticks:
            across = self.at(x, self.y_range[0])[0]
            self.parts.append(segment(across, bottom, across, bottom + 4, Style(DARK, width=1)))
            self.parts.append(text(across, bottom + 17, name, "middle", 11.5))
        for y, name in y_ticks:
            down = self.at(self.x_range[0], y)[1]
            self.parts.append(segment(self.left, down, right, down, Style(LIGHT, width=0.7)))
            self.parts.append(text(self.left - 6, down + 4, name, "end", 11.5))
        self.parts.append(frame(self.left, self.top, self.width, self.height, Style(DARK, width=1)))
        self.parts.append(text(self.left + self.width / 2, bottom + 36, x_label, "middle"))
        middle, across = self.top + self.height / 2, self.left - 42
        turn = f' transform="rotate(-90 {num(across)} {num(middle)})"'
        self.parts.append(text(across, middle, y_label, "middle", extra=turn))

    def line(self, xs: Sequence[float], ys: Sequence[float], style: Style) -> None:
        """A line through points, with the style's markers on them."""
        dots = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        points = " ".join(f"{num(x)},{num(y)}" for x, y in dots)
        dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
        paint = f'fill="none" stroke="{style.colour}" stroke-width="{num(style.width)}"{dash}'
        self.parts.append(f'<polyline points="{points}" {paint}/>' if points else "")
        self.parts.extend(marker(x, y, style) for x, y in dots if style.shape)

    def stairs(self, edges: Sequence[float], heights: Sequence[float], style: Style) -> None:
        """A staircase: ``heights[i]`` from ``edges[i]`` to ``edges[i + 1]``."""
        xs = [x for pair in zip(edges[:-1], edges[1:], strict=True) for x in pair]
        self.line(xs, [y for y in heights for _ in range(2)], style)

    def bars(self, edges: Sequence[float], heights: Sequence[float], colour: str) -> None:
        """Bars that stand on the lower border: ``heights[i]`` from ``edges[i]`` to ``edges[i + 1]``."""
        for i, height in enumerate(heights):
            (x1, y1), (x2, y2) = self.at(edges[i], self.y_range[0]), self.at(edges[i + 1], height)
            if y1 - y2 >= 0.01:
                box = f'x="{num(x1)}" y="{num(y2)}" width="{num(x2 - x1)}" height="{num(y1 - y2)}"'
                self.parts.append(f'<rect {box} fill="{colour}"/>')

    def points(self, xs: Sequence[float], ys: Sequence[float], style: Style, hollow: bool = False) -> None:
        """Markers without a line."""
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        self.parts.extend(marker(*self.at(x, y), style, hollow) for x, y in pairs)

    def draw(self) -> str:
        """Everything drawn so far, as a group."""
        return f"<g>{''.join(self.parts)}</g>"


def nice_ticks(low: float, high: float, about: int = 5) -> list[tuple[float, str]]:
    """Round numbers between two bounds, as ticks."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if raw <= power * m * 1.0001)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [((first + i) * step, f"{(first + i) * step + 0.0:.6g}") for i in range(count)]


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
