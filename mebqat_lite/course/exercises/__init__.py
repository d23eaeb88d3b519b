"""Exercises that check themselves: show one, ``check(your_function)``, ``hint()``, ``solution()``, ``use()``.

A grader never reads code. It runs the learner's function on fresh random input, against properties and a
reference written another way, and raises a `Mistake` whose message names what is wrong and what to do.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import secrets
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any, get_args, get_origin

import numpy as np
import torch
from torch import Tensor


class Mistake(Exception):
    """What a grader found: the message names the mistake and what to do about it."""


@dataclass(frozen=True)
class Result:
    """The outcome of a check; true if the answer is right. It is printed already, so a cell shows no more."""

    name: str
    status: str  # "OK", "not attempted" or "try again"
    line: str = field(repr=False)  # as printed
    seed: int = field(repr=False)  # check(function, seed=...) repeats the same input

    def __bool__(self) -> bool:
        return self.status == "OK"

    def _ipython_display_(self) -> None: ...


class Student:
    """A learner's function, run on copies of the grader's input. What goes wrong inside becomes a Mistake.

    Functions among that input may raise a Mistake themselves.
    """

    def __init__(self, function: Callable[..., Any], names: Iterable[str]) -> None:
        self.function, self.names, self.calls = function, list(names), 0

    def __call__(self, *args: Any) -> Any:
        """What the function returns; a Mistake, or at the first call NotImplementedError, if it returns nothing."""
        return self.on_copies(self.function, args, lambda found: found)

    def on_copies(self, run: Callable[..., Any], args: Sequence[Any], value: Callable[[Any], Any]) -> Any:
        """What ``run`` returns for copies of ``args``; ``value`` takes from it what the learner's function returned.

        So the grader's own tensors and lists stay what they were, whatever is done to the copies, which it is a Mistake
        to change. Tuples and dictionaries are passed on as they are: a grader may ask for what they hold to be trained.
        """
        copies = [_copied(arg) for arg in args]
        self.calls += 1
        try:
            found = run(*copies)
        except Mistake:
            raise  # of a function that the grader handed over, which says itself what is wrong
        except Exception as error:
            raise self.explain(error) from None
        self.refuse_nothing(value(found))
        for name, arg, copy in zip(self.names, args, copies, strict=False):
            if not _same(arg, copy):
                raise Mistake(f"it changes its input {name} in place: work on a copy of it")
        return found

    def refuse_nothing(self, value: Any) -> None:
        """A stub returns nothing: not attempted, if it is the first call; later a Mistake."""
        if value is None or value is Ellipsis or value is NotImplemented:
            kind = NotImplementedError if self.calls == 1 else Mistake
            raise kind(f"it returns {value}. If you have written it: does every branch end with return?")

    def explain(self, error: Exception) -> Exception:
        """Type and message of the error and the line of the learner's function, without a traceback."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        text = place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if code and (frame.filename, frame.name) == (code.co_filename, code.co_name):
                text, line = frame.line or "", (frame.lineno or 0) - code.co_firstlineno + 1
                place = f", in line {line} of your function: {text}"
        if isinstance(error, NotImplementedError) and self.calls == 1 and (not text or "raise" in text):
            return NotImplementedError("it raises NotImplementedError.")
        return Mistake(f"it stops with {type(error).__name__}: {str(error).strip()[:200]}{place}")


class Exercise:
    """A question with hints, a solution and a grader; ``difficulty`` is 1 to 3, ``minutes`` typical.

    ``package`` is the public function of the package that does the same as the solution, if there is one.
    """

    def __init__(
        self, name: str, title: str, difficulty: int, minutes: int, question: str, hints: Sequence[str],
        solution: Callable[..., Any], grade: Callable[[Callable[..., Any], torch.Generator], None],
        package: Callable[..., Any] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.title, self.minutes, self.hints = name, title, minutes, tuple(hints)
        self.dots = "●" * difficulty + "○" * (3 - difficulty)
        self.question, self.reference, self.grade = inspect.cleandoc(question), solution, grade
        self.package = package or solution
        self._checked: tuple[Any, str] = (None, "not attempted")  # the last function that was checked, and its status

    def check(self, function: Any = None, seed: int | None = None) -> Result:
        """Run ``function`` on fresh random input and print one line; ``seed`` repeats an earlier check."""
        self._checked = (None, "try again")  # until the check has ended, also if it is interrupted
        seed = secrets.randbelow(1_000_000) if seed is None else seed
        status, message = "OK", "right on every input that was tried"
        try:
            if function is None or function is Ellipsis:
                raise NotImplementedError(f"write {self.name}, then run this again")
            if not callable(function):
                raise Mistake(f"give the function itself, not what it returns: check({self.name})")
            student = Student(function, inspect.signature(self.reference).parameters)
            self.grade(student, torch.Generator().manual_seed(seed))
        except NotImplementedError as found:
            status, message = "not attempted", str(found)
        except Mistake as found:
            status, message = "try again", f"{found} (seed {seed})"
        self._checked = (function, status)
        print(line := " ".join(f"[{status}] {self.name}: {message}".split()))
        return Result(self.name, status, line, seed)

    def use(self) -> Callable[..., Any]:
        """Return the function that the lesson goes on with, and print one line that says whose it is.

        It is the learner's if the last ``check`` passed, else the package's. A grader takes a NumPy array, a list or
        float64 for a tensor and such; what the learner's function returns is brought into the form of the solution.
        """
        function, status = self._checked
        if status == "OK":
            print(f"From here on the lesson runs your `{self.name}`.")
            return _in_form(function, inspect.signature(self.reference, eval_str=True).return_annotation)
        why = "is not attempted yet" if status == "not attempted" else "did not pass its last check"
        print(f"From here on the lesson runs the package's `{self.package.__name__.lstrip('_')}`: yours {why}.")
        return self.package

    def hint(self, n: int = 1) -> None:
        """Print the ``n``-th hint; the first says least."""
        count = len(self.hints)
        known = f"{self.name} has {count} hints: hint(1) to hint({count})"
        print(f"Hint {n} of {count}: {self.hints[n - 1]}" if 1 <= n <= count else known)

    def solution(self) -> None:
        """Print the source of one right answer, a function ``_name`` of the lesson, as ``name``."""
        print(inspect.getsource(self.reference).replace("def _", "def ", 1), end="")

    def __repr__(self) -> str:
        return f"Exercise({self.name}: {self.title}, {self.dots}, {self.minutes} minutes)"

    def _repr_markdown_(self) -> str:
        return f"**Exercise {self.title}** · {self.dots} · {self.minutes} minutes\n\n{self.question}"


def _in_form(function: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    """``function`` with its results brought into the form of ``kind``, the return annotation of the solution."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        given = [arg.dtype for arg in args if isinstance(arg, Tensor)]
        return _formed(value, kind, torch.float64 if torch.float64 in given else torch.get_default_dtype())

    return run


def _formed(value: Any, kind: Any, dtype: torch.dtype) -> Any:
    """``value`` as a Python number or as a tensor, if ``kind`` is one; float64 becomes ``dtype``. What does not fit
    stays as it is, and the lesson's own line says what is wrong with it."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if kind in (bool, int, float):
            return number if (number := kind(value)) == value else value
        if kind is Tensor:
            tensor = torch.as_tensor(value)
            return tensor.to(dtype) if tensor.dtype == torch.float64 else tensor
        if get_origin(kind) in (tuple, list):
            inner = get_args(kind) if get_origin(kind) is tuple else get_args(kind) * len(value)
            return get_origin(kind)(_formed(part, of, dtype) for part, of in zip(value, inner, strict=True))
    return value


def _copied(arg: Any) -> Any:
    """A copy of a tensor, or of a list and what it holds; anything else as it is."""
    if isinstance(arg, list):
        return [_copied(part) for part in arg]
    return arg.clone() if isinstance(arg, Tensor) else arg


def _same(arg: Any, copy: Any) -> bool:
    """Whether the copy of an argument still holds what the argument holds."""
    if isinstance(arg, list):
        return len(arg) == len(copy) and all(map(_same, arg, copy))
    if isinstance(arg, Tensor):
        return isinstance(copy, Tensor) and arg.dtype == copy.dtype and torch.equal(arg, copy)
    return arg is copy


def in_words(found: Mistake, known: Mapping[str, str]) -> Mistake:
    """A raw error as its cause in plain words: ``known`` has the words by a part of the error's message.

    The line of the learner's function stays; what is not known stays as it is.
    """
    said = str(found)
    place = said.find(", in line ")
    for part, words in known.items():
        if part in said[:place]:
            return Mistake(words + (said[place:] if place >= 0 else ""))
    return found


def numbers(value: Any, wanted: str = "a tensor of numbers") -> Tensor:
    """``value`` in float64, without a graph: a number, a tensor, a NumPy array, or lists of these.

    Raises:
        Mistake: it is something else, which the message names together with what is ``wanted``.
    """
    if isinstance(value, (list, tuple)):
        rows = [numbers(row, wanted) for row in value]
        if len({row.shape for row in rows}) > 1:
            raise Mistake(f"it returns a {type(value).__name__} of parts that differ in shape: return {wanted}")
        return torch.stack(rows) if rows else torch.empty(0, dtype=torch.float64)
    array: Any = value
    if isinstance(value, (np.ndarray, np.generic)):
        array = None if value.dtype == object else torch.from_numpy(np.array(value, order="C"))
    elif isinstance(value, (Real, Decimal)) and value is not True and value is not False:
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(array, Tensor):
        raise Mistake(f"it returns a value of type {type(value).__name__}: return {wanted}")
    if array.dtype == torch.bool or array.is_complex():
        what = "True and False" if array.dtype == torch.bool else "complex numbers"
        raise Mistake(f"it returns {what}, of dtype {array.dtype}: return {wanted}")
    if array.is_floating_point() and array.dtype.itemsize < 4:
        raise Mistake(f"the result has dtype {array.dtype}, which keeps only three digits: compute in float32")
    return array.detach().to("cpu", torch.float64)


def checked(value: Any, like: Tensor | float) -> Tensor:
    """``value`` in float64; a Mistake unless it is finite and of the shape of ``like``: a number, or a tensor.

    Whole numbers, floats of 32 and 64 bits, NumPy arrays and, for a tensor, lists are all taken.
    """
    if isinstance(like, Tensor) and like.dim():
        double = numbers(value)
        if isinstance(value, (Real, np.generic)):
            raise Mistake(f"it returns a value of type {type(value).__name__}: return a tensor")
        if double.shape != like.shape:
            raise Mistake(f"the result has shape {tuple(double.shape)}; it should be {tuple(like.shape)}")
    else:
        if isinstance(value, (list, tuple)):
            raise Mistake(f"it returns a value of type {type(value).__name__}: return a number")
        double = numbers(value, "a number")
        if double.numel() != 1:
            raise Mistake(f"it returns a {type(value).__name__.lower()} of {double.numel()} values: return one number")
        double = double.reshape(())
    if not double.isfinite().all():
        raise Mistake("it returns NaN or infinity: is something divided by zero?")
    return double


def expect(got: Any, want: Tensor | float, where: str, mistakes: Iterable[tuple[str, Any]] = ()) -> None:
    """Pass if ``got`` is ``want``, to 1e-5 of its largest value. Else raise the first of ``mistakes``, (message,
    its result), whose result ``got`` is; if none, where they differ: ``where`` is the input in words."""
    got, right = checked(got, want), checked(want, want)
    tolerance = 1e-5 * float(right.abs().max()) + 1e-12
    if not (wrong := (got - right).abs() > tolerance).any():
        return
    for message, result in mistakes:
        wide = torch.as_tensor(result, dtype=torch.float64).detach()  # it may be much larger than ``right``
        if bool(((got - result).abs() <= max(tolerance, 1e-5 * float(wide.abs().max()))).all()):
            raise Mistake(f"{message} (for {where})")
    count = f"{int(wrong.sum())} of {wrong.numel()} values are wrong: " if wrong.numel() > 1 else ""
    raise Mistake(f"for {where}: {count}it returns {got[wrong][0]:.6g}, right is {right[wrong][0]:.6g}")
