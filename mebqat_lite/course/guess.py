"""Guess, then reveal: a lesson asks for a number or a choice, and a later cell answers it.

::

    my = guess.number("What percentage is right at W1A1?", unit="%")  # one cell asks
    print(guess.said(my, truth))  # a later one answers: "You said 70 %; it is 31.4 %, 38.6 points lower."

``my.value`` is None until the reader has answered, and `said` then tells only the truth: nobody has to guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mebqat_lite.course import of_the_lab

with of_the_lab():
    import anywidget
    import traitlets
    from IPython.display import display

FOLDER = Path(__file__).parent


class Guess(anywidget.AnyWidget):
    """A slider or some buttons. ``value`` is None until the reader has moved or chosen something."""

    _esm = FOLDER / "guess.js"
    _css = FOLDER / "guess.css"
    question = traitlets.Unicode().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    limits: traitlets.List[float] = traitlets.List().tag(sync=True)  # low, high and step of a number
    options: traitlets.List[str] = traitlets.List().tag(sync=True)  # of a choice
    value = traitlets.Any(None, allow_none=True).tag(sync=True)

    def __repr__(self) -> str:
        """What a page without a kernel shows in the place of the controls."""
        return "Run the notebook to answer with a guess."


def number(question: str, low: float = 0, high: float = 100, unit: str = "", step: float = 1) -> Guess:
    """Ask for a number from ``low`` to ``high`` by a slider with steps of ``step``.

    The question stands above the slider as text, which a stored page shows too.

    Raises:
        ValueError: if the range holds fewer than two steps.
    """
    if not (step > 0 and math.isfinite(high - low) and high - low >= step):
        raise ValueError(f"a guess from {low} to {high} in steps of {step} leaves no choice: give low + step <= high")
    return _ask(Guess(question=question, unit=unit, limits=[low, high, step]))


def choice(question: str, options: Sequence[str]) -> Guess:
    """Ask for one of ``options`` by buttons; ``value`` is its text.

    Raises:
        ValueError: unless there are at least two options, all different.
    """
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(f"a choice needs at least two options, all different, not {list(options)}")
    return _ask(Guess(question=question, options=[*options]))


def _ask(guess: Guess) -> Guess:
    """Show the question as text of its own, since the controls are not there without a kernel."""
    display({"text/markdown": f"**Your guess:** {guess.question}", "text/plain": guess.question}, raw=True)
    display(guess)
    return guess


def said(guess: Any, truth: Any, digits: int = 1) -> str:
    """The sentence that answers a guess: what the reader said, what is true, and how far apart the two are.

    Args:
        guess: anything with a ``value``, None if the reader gave none, and perhaps a ``unit``.
        truth: a number (also a tensor of one value), or the right option of a choice.
        digits: places after the decimal point.

    Raises:
        TypeError: if the guess and the truth are of two kinds, such as a number and text.
    """
    unit, value = getattr(guess, "unit", ""), guess.value
    told = _written(truth, unit, digits)
    if value is None:
        return f"It is {told}."
    if isinstance(value, str) != isinstance(truth, str):
        raise TypeError(f"the guess {value!r} and the truth {truth!r} cannot be compared: give two of one kind")
    mine = _written(value, unit, digits)
    if mine == told:
        return f"You said {mine}, and that is right."
    if isinstance(truth, str):
        return f"You said {mine}; it is {told}."
    away = round(float(truth), digits) - round(float(value), digits)  # of the numbers as they are written
    distance = _written(abs(away), " points" if unit == "%" else unit, digits)
    return f"You said {mine}; it is {told}, {distance} {'higher' if away > 0 else 'lower'}."


def _written(value: Any, unit: str, digits: int) -> str:
    """Text as it is; a number with its unit, such as 31.4 %."""
    if isinstance(value, str):
        return value
    words = f"{round(float(value), digits) + 0.0:,.{digits}f}".removesuffix("." + "0" * digits)
    return f"{words} {unit.strip()}".rstrip()
