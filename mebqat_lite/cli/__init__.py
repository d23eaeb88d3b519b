"""The command line: demo, train, evaluate, export, compare, benchmark, assignments, grade, doctor, test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from mebqat_lite.cli import deploying, doctor, measuring, selftest, teaching, training


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an expected error is one line on standard error and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["test"]:  # what follows may be options of pytest, which argparse would refuse
        return selftest.main(words[1:])
    arguments = parser().parse_args(words, argparse.Namespace(words=words))
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if arguments.traceback:
            raise
        print("mebqat-lite:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; the same command goes on" if {"train", "compare"} & set(words) else ""
        print(f"mebqat-lite: stopped{advice}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with the commands in the order in which ``--help`` lists them."""
    whole = argparse.ArgumentParser(prog="mebqat-lite", description=__doc__)
    whole.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = whole.add_subparsers(required=True, metavar="command")
    training.add_demo(commands)
    training.add_train(commands)
    measuring.add_evaluate(commands)
    deploying.add_export(commands)
    training.add_compare(commands)
    measuring.add_benchmark(commands)
    teaching.add_assignments(commands)
    teaching.add_grade(commands)
    doctor.add_doctor(commands)
    selftest.add_test(commands)
    return whole
