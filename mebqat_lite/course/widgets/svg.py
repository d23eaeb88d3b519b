"""Small SVG pictures from pure functions: the same numbers in, the same text out. Lengths are pixels."""

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from matplotlib.markers import MarkerStyle

from mebqat_lite.measure import looks

BLUE, VERMILION, GREEN, PURPLE = looks.BLUE, looks.VERMILION, looks.GREEN, looks.PURPLE
ORANGE, SKY, BLACK, DARK, PALE, LIGHT = looks.ORANGE, looks.SKY, looks.BLACK, looks.DARK, looks.PALE, looks.LIGHT


def _outline(marker: str) -> list[tuple[float, float]]:
    """The corners of a marker of matplotlib, of size 1 around (0, 0), with y downwards."""
    form = MarkerStyle(marker)
    corners = form.get_transform().transform(np.asarray(form.get_path().vertices)[:-1])
    return [(2 * float(x), -2 * float(y)) for x, y in corners]


NAMED = {"square": "s", "triangle": "^", "down": "v", "diamond": "D", "star": "*"}
MARKERS = {look["marker"] for look in looks.LOOKS.values()} | set(looks.SPARE_MARKERS)
OUTLINES = {shape: _outline(marker) for shape, marker in [*NAMED.items(), *((m, m) for m in sorted(MARKERS - {"o"}))]}
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Style:
    """How a line and its markers look; an empty ``shape`` draws no markers."""

    colour: str
    dash: str = ""
    shape: str = ""
    width: float = 2.0
    size: float = 4.0
    face: str = ""  # the colour inside the markers, if it is another one

    @property
    def paint(self) -> dict[str, Any]:
        """The attributes of an unfilled line."""
        dash = {"stroke_dasharray": self.dash} if self.dash else {}
        return {"fill": "none", "stroke": self.colour, "stroke_width": self.width, **dash}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The styles of the curves of one picture, as `looks.looks` gives them: each method has its own in all pictures."""
    found = {}
    for name, look in looks.looks(names).items():
        dash = "" if look["linestyle"] == "-" else " ".join(num(2 * part) for part in look["linestyle"][1])
        face = look.get("markerfacecolor", "")
        found[name] = Style(look["color"], dash, look["marker"], look["linewidth"], face=face)
    return found


def num(value: float) -> str:
    """A number with at most 2 decimals; never ``-0``."""
    return f"{round(float(value), 2) + 0.0:.10g}"


def tag(name: str, inside: str = "", **values: Any) -> str:
    """An element: ``inside`` is markup, ``_`` in the name of an attribute stands for ``-``."""
    written = ((key.replace("_", "-"), v if isinstance(v, str) else num(v)) for key, v in values.items())
    return " ".join([f"<{name}", *(f'{key}="{escape(v)}"' for key, v in written)]) + f">{inside}</{name}>"


def figure(width: float, height: float, title: str, *parts: str) -> str:
    """A whole picture on white that shrinks with the page; ``title`` is its text for who does not see it."""
    style = "max-width:100%;height:auto;display:block;background:#fff;font-family:Helvetica,Arial,sans-serif"
    size = {"width": width, "viewBox": f"0 0 {num(width)} {num(height)}", "style": style}
    inside = [tag("title", escape(title)), tag("rect", width="100%", height="100%", fill="#fff"), *parts]
    link = "http://www.w3.org/2000/svg"
    return tag("svg", "".join(inside), xmlns=link, role="img", aria_label=title, **size)


def text(x: float, y: float, words: str, anchor: str = "start", size: float = 12, fill: str = BLACK) -> str:
    """Words at a point; ``anchor`` is start, middle or end."""
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, font_size=size, fill=fill)


def segment(x1: float, y1: float, x2: float, y2: float, style: Style) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **style.paint)


def marker(x: float, y: float, style: Style, hollow: bool = False) -> str:
    """A marker of the style's shape around a point; nothing if it has none."""
    paint = Style(style.colour).paint if hollow else {"fill": style.colour}
    if style.face and not hollow:
        paint = {"fill": style.face, "stroke": style.colour, "stroke_width": 1.3}
    if style.shape in ("circle", "o"):
        return tag("circle", cx=x, cy=y, r=style.size, **paint)
    corners = [(x + style.size * dx, y + style.size * dy) for dx, dy in OUTLINES.get(style.shape, [])]
    return tag("polygon", points=_points(corners), **paint) if corners else ""


def _points(dots: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{num(x)},{num(y)}" for x, y in dots)


def gray_image(x: float, y: float, size: float, pixels: Sequence[Sequence[float]]) -> str:
    """A square grayscale picture, a PNG in the text; ``pixels`` are rows of values, 0 white to 1 black."""
    rows = [bytes(255 - round(255 * min(max(p, 0.0), 1.0)) for p in row) for row in pixels]
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(b"".join(b"\0" + r for r in rows)), b"IEND"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    link = f"data:image/png;base64,{b64encode(png).decode()}"
    return tag("image", x=x, y=y, width=size, height=size, href=link, style="image-rendering:pixelated")


def legend(x: float, y: float, entries: Sequence[tuple[str, Style]], step: float, columns: int) -> str:
    """A sample of each style with its name, in columns ``step`` wide; the first row's middle is at ``y``."""
    parts = []
    for i, (name, style) in enumerate(entries):
        left, down = x + step * (i % columns), y + 17 * (i // columns)
        parts += [segment(left, down, left + 26, down, style), marker(left + 13, down, style)]
        parts.append(text(left + 31, down + 4, name, size=11.5))
    return "".join(parts)


@dataclass
class Plot:
    """An area with axes. What lies outside the ranges is drawn on the border, what is no number not at all."""

    area: tuple[float, float, float, float]  # left, top, width, height
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        (left, top, width, height), (x0, x1), (y0, y1) = self.area, self.x_range, self.y_range
        right, up = (min(max(share, 0.0), 1.0) for share in ((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)))
        return left + width * right, top + height * (1 - up)

    def axes(self, x_label: str, y_label: str, x_ticks: Ticks, y_ticks: Ticks) -> None:
        """The frame, ticks with a light grid, and the labels with their units."""
        (left, top, width, height), thin, grid = self.area, Style(DARK, width=1), Style(LIGHT, width=0.7)
        bottom, turn = top + height, f"translate({num(left - 42)} {num(top + height / 2)}) rotate(-90)"
        for x, name in ((self.at(x, 0)[0], name) for x, name in x_ticks):
            self.parts += [segment(x, bottom, x, bottom + 4, thin), text(x, bottom + 17, name, "middle", 11.5)]
        for y, name in ((self.at(0, y)[1], name) for y, name in y_ticks):
            self.parts += [segment(left, y, left + width, y, grid), text(left - 6, y + 4, name, "end", 11.5)]
        self.parts.append(tag("rect", x=left, y=top, width=width, height=height, **thin.paint))
        self.parts.append(text(left + width / 2, bottom + 36, x_label, "middle"))
        self.parts.append(tag("g", text(0, 0, y_label, "middle"), transform=turn))

    def line(self, xs: Sequence[float], ys: Sequence[float], style: Style) -> None:
        """A line through points, with the style's markers on them."""
        dots = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        self.parts.append(tag("polyline", points=_points(dots), **style.paint))
        self.parts.extend(marker(x, y, style) for x, y in dots)
