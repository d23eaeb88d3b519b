"""The command line: demo, train, evaluate, allocate, export, compare, benchmark, assignments, grade, check-submission,
doctor, test.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from mebqat_lite.cli import deploying, doctor, measuring, selftest, teaching, training
from mebqat_lite.cli.shared import check_values

EXPECTED = (ValueError, TypeError, OSError, RuntimeError)  # errors whose words are written for the user
OF_SYSTEM = {  # in plain words, what the system says of a file
    FileExistsError: "there is a file, and a folder is needed",
    NotADirectoryError: "a folder on the way is a file",
    PermissionError: "you may not read or write this",
}
BROKEN_PIPE = 141  # the exit status of a program whose reader went away, as `head` does


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. An error is one line on standard error and exit status 2; ``--traceback`` raises it instead."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["test"]:  # what follows may be options of pytest, which argparse would refuse
        rest = [word for word in words[1:] if word != "--traceback"]
        return _run(lambda: selftest.main(rest), words, rest != words[1:])
    arguments = parser().parse_args(words, argparse.Namespace(words=words))
    return _run(lambda: _checked(arguments), words, arguments.traceback)


def _checked(arguments: argparse.Namespace) -> int:
    """Run the command of the arguments, unless a value among them cannot be."""
    check_values(arguments)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _run(command: Callable[[], int], words: Sequence[str], traceback: bool) -> int:
    """Call a command, and turn whatever it raises into a line and an exit status."""
    try:
        status = command()
        sys.stdout.flush()  # here, and not when Python ends, a reader that went away can be noticed
        return status
    except KeyboardInterrupt:
        advice = "; the same command goes on" if {"train", "compare"} & set(words) else ""
        print(f"mebqat-lite: stopped{advice}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return BROKEN_PIPE
    except Exception as error:
        if traceback:
            raise
        print("mebqat-lite:", _in_a_line(error), file=sys.stderr)
        return 2


def _in_a_line(error: Exception) -> str:
    """Describe an error in a line; one that is not expected also has its type and says how to learn more."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {OF_SYSTEM.get(type(error), error.strerror)}"
    text = " ".join(text.split())
    if text and isinstance(error, EXPECTED):
        return text
    return f"{type(error).__name__}: {text or 'no words'}; run again with --traceback for the details"


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with the commands in the order in which ``--help`` lists them."""
    whole = argparse.ArgumentParser(prog="mebqat-lite", description=__doc__)
    whole.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = whole.add_subparsers(required=True, metavar="command")
    training.add_demo(commands)
    training.add_train(commands)
    measuring.add_evaluate(commands)
    deploying.add_allocate(commands)
    deploying.add_export(commands)
    training.add_compare(commands)
    measuring.add_benchmark(commands)
    teaching.add_assignments(commands)
    teaching.add_grade(commands)
    teaching.add_check_submission(commands)
    doctor.add_doctor(commands)
    selftest.add_test(commands)
    for command in commands.choices.values():
        command.add_argument(  # without a default, which would replace what stands before the command
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error comes from"
        )
    return whole
