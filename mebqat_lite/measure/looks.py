"""How every figure looks: the width of a page, the palette, and the colour, marker and dash of each method.

A reader can learn what a line says. Its colour tells at which bitwidths the method trained: warm colours at full
precision alone (and it was rounded afterwards), black and greys at a single pair, greens at a listed set of pairs, blue
and wine at pairs that were drawn. The filling of its markers tells how the method learned: full for supervised
learning, white for prototypical networks, half for FOMAML, whose lines have dashes of their own, too.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt

from mebqat_lite.methods import METHODS

PAGE, PIXELS = 7.5, 784  # the width of a page: inches of a figure, and pixels in JupyterLab
SMALLEST = 9  # points of the smallest letters in a figure as wide as the page

# Okabe and Ito's palette for the colour-blind, and Tol's purple and wine. Orange is darker than theirs, so that all of
# them have a contrast of 3 on white. Sky blue has less: it fills areas, and draws no line.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION = "#000000", "#B27300", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
PURPLE, WINE = "#AA4499", "#882255"
DARK, GREY, PALE, LIGHT, WHITE = "#333333", "#777777", "#BBBBBB", "#E6E6E6", "#FFFFFF"

Look = dict[str, Any]  # what matplotlib's `plot` takes: color, marker, linestyle and more


def _look(color: str, marker: str, dash: Sequence[float] = (), width: float = 1.8) -> Look:
    return {"color": color, "marker": marker, "linestyle": (0, tuple(dash)) if dash else "-", "linewidth": width}


SUPERVISED: dict[str, Look] = {
    "fp": _look("#57311D", "h"),
    "ptq_naive": _look("#C97B00", "v", (1, 1.5)),
    "ptq_mse": _look("#B8301A", "s", (5, 2)),
    "qat": _look(BLACK, "D", (1, 3)),
    "qat_w1a1": _look("#2B2B2B", "^", (6, 2, 1, 2)),
    "qat_w2a2": _look("#6A6A6A", "P", (6, 2, 1, 2, 1, 2)),
    "qat_w4a4": _look("#919191", "d", (2.5, 1.2)),
    "adabits": _look("#0B6817", ">", (9, 2.5)),
    "any_precision_hard": _look("#07A26E", "<", (4, 1.5, 1, 1.5)),
    "any_precision_soft": _look("#5DA442", "p", (3, 1, 3, 3)),
    "any_precision_recursive": _look("#248542", "*", (1.5, 1, 1.5, 1, 6, 1)),
    "mebqat": _look(BLUE, "o", width=2.6),
    "mebqat_in_turn": _look(WINE, "X", width=2.6),
}
# The few-shot methods and the supervised ones that they look like.
SISTERS = {
    "pn": "fp",
    "pn_ptq_mse": "ptq_mse",
    "pn_qat": "qat",
    "mebqat_pn": "mebqat",
    "mebqat_pn_in_turn": "mebqat_in_turn",
    "fomaml": "fp",
    "fomaml_ptq_mse": "ptq_mse",
    "fomaml_ptq_lsq": "ptq_naive",
    "fomaml_qat": "qat",
    "mebqat_maml": "mebqat",
    "mebqat_maml_in_turn": "mebqat_in_turn",
}


def pale(color: str, share: float = 0.65) -> str:
    """Mix a colour, ``"#0072B2"``, with white, which has this ``share`` of the mixture."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)


def _sister(name: str) -> Look:
    look = SUPERVISED[SISTERS[name]]
    return _half_filled(look) if METHODS[name].base == "fomaml" else look | {"markerfacecolor": WHITE}


def _half_filled(look: Look) -> Look:
    """Return a look with markers whose right half is white, and a dash that no supervised method has."""
    dash = (9, 1.5, 1.5, 1.5) if look["linestyle"] == "-" else [2 * part for part in look["linestyle"][1]]
    halves = {"fillstyle": "left", "markerfacecolor": look["color"], "markerfacecoloralt": WHITE, "markersize": 8}
    return look | halves | {"linestyle": (0, tuple(dash))}


LOOKS: dict[str, Look] = SUPERVISED | {name: _sister(name) for name in SISTERS}
# What is no method, and still looks alike in every figure: a reader's guess, and a squared error with its two parts.
FIXED: dict[str, Look] = {
    "your guess": {"color": BLACK, "marker": "X", "linestyle": "none", "markersize": 11},
    "total": _look(BLACK, "", width=2.4),
    "rounding": _look(BLUE, "o", (4, 1.5)),
    "clipping": _look(VERMILION, "s", (1, 1.5)),
}
# Methods by the words that figures and lessons write for them.
NAMES = {method.title: name for name, method in METHODS.items()}
NAMES |= {title.removeprefix("FP + "): name for title, name in NAMES.items()}
NAMES |= {f"QAT for {name[4:].upper()}": name for name in LOOKS if name.startswith("qat_")}
KNOWN = "|".join(map(re.escape, sorted([*LOOKS, *NAMES], key=len, reverse=True)))
METHOD = re.compile(rf"({KNOWN})(?:$|\+|, | \(| x )")  # a method, and what separates it from how it was changed

SPARE_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, BLACK)
SPARE_MARKERS = ("o", "s", "^", "D", "v", "P")
SPARE_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2.5, 1.2)), (0, (9, 2.5)))


def method_of(name: str) -> str:
    """Find the method that a name, a title or a variant of one of them speaks of, or ``""``.

    >>> method_of("mebqat_pn+lr=0.05"), method_of("MEBQAT, own statistics"), method_of("clipping")
    ('mebqat_pn', 'mebqat', '')
    """
    found = METHOD.match(name)
    return NAMES.get(found[1], found[1]) if found else ""


def color_of(name: str) -> str:
    """Return the colour of the method that a name speaks of, as `method_of` finds it; black if there is none."""
    return str(LOOKS[method]["color"]) if (method := method_of(name)) else BLACK


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Give the curves of one figure their looks.

    A method has the same look in every figure. If there are several variants of it, all have its colour, and the second
    and later ones other markers and dashes. Curves that are no methods get colours that no method of the figure has,
    or the look that `FIXED` has for them.
    """
    names = list(names)
    methods = {name: method_of(name) for name in names}
    used = {LOOKS[method]["color"] for method in methods.values() if method}
    used |= {FIXED[name]["color"] for name in names if name in FIXED}
    spare = combinations([color for color in SPARE_COLORS if color not in used], SPARE_DASHES, SPARE_MARKERS)
    count: Counter[str] = Counter()
    found = {}
    for name, method in methods.items():
        if method:
            found[name] = _variant(method, count[method])
            count[method] += 1
        elif name in FIXED:
            found[name] = FIXED[name]
        else:
            color, dash, marker = next(spare)
            found[name] = {"color": color, "linestyle": dash, "marker": marker, "linewidth": 1.8}
    return found


def _variant(method: str, number: int) -> Look:
    """Return the look of a method, or that of the first, second, ... further variant of it."""
    look = LOOKS[method]
    if not number:
        return look
    markers = [marker for marker in SPARE_MARKERS if marker != look["marker"]]
    dashes = [dash for dash in SPARE_DASHES if dash not in (look["linestyle"], "-")]  # a sister's line may be solid
    return look | {
        "marker": markers[(number - 1) % len(markers)],
        "linestyle": dashes[(number - 1) % len(dashes)],
    }


def combinations(*parts: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield combinations without end, such as a colour and a dash, and repeat one as late as possible.

    After each round every part but the first moves on by one more place, so that 6 colours and 6 markers give 36 looks.
    """
    size = len(parts[0])
    for number in itertools.count():
        shift, place = divmod(number, size)
        yield tuple(part[(place + shift * index) % len(part)] for index, part in enumerate(parts))


def luminance(color: Any) -> float:
    """Compute the relative luminance, 0 to 1, of (red, green, blue), each from 0 to 1 (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(color: Any) -> str:
    """Choose black or white letters, whichever have the higher contrast on (red, green, blue), each from 0 to 1."""
    return BLACK if luminance(color) > 0.179 else WHITE


# Letters and lines are black and the ground is white whatever the notebook's theme or the user's own style.
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.alpha": 0.4,
    "figure.dpi": PIXELS / PAGE,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), WHITE),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), BLACK),
}


def style() -> Any:
    """The package's look, as a context: ``with looks.style(): ...``."""
    return plt.rc_context(STYLE)
