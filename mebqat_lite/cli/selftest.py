"""Everything CI runs, one stage after the other: what ``mebqat-lite test`` and ``make test`` do.

Every stage runs, also after a failure, and its output is streamed as it comes. The summary comes last.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mebqat_lite import paths
from mebqat_lite.cli.shared import Commands

# Modules that the stages run, and that tests import: the extra [test].
TOOLS = ["ruff", "mypy", "pytest", "xdist", "nbval"]
LIBRARIES = ["hypothesis", "playwright", "setuptools", "yaml", "jupyterlab", "sphinx", "myst_nb"]
# loadfile: a notebook's cells must share one kernel. By itself it begins with the files of many tests; the last ones
# would then be the files of few and long tests, at which one worker sits while the other has nothing left to do.
PARALLEL = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
SHARED = ("-n", "2", "--dist", "worksteal")  # each worker has its own server and browser; the tests are few and long
SLOWEST = ("--durations", "15")  # the output ends with the tests that take longest
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "120")
NO_TESTS = 5  # pytest's exit status when it collected nothing


@dataclass(frozen=True)
class Stage:
    """One command of the test run: ``python -m command``, in the checkout's root."""

    name: str
    command: tuple[str, ...]
    parallel: bool = False

    @property
    def is_pytest(self) -> bool:
        """Whether extra options for pytest concern this stage."""
        return self.command[0] == "pytest"


STAGES = (
    Stage("lint", ("ruff", "check", ".")),
    Stage("format", ("ruff", "format", "--check", ".")),
    Stage("types", ("mypy", "mebqat_lite")),
    Stage("tests", ("pytest", "tests", *PARALLEL, *SLOWEST, "-m", "not browser"), parallel=True),
    Stage("notebooks", ("pytest", *NBVAL, *PARALLEL, "notebooks"), parallel=True),
    Stage("browser", ("pytest", "tests", "-m", "browser", *SHARED, *SLOWEST), parallel=True),
)
# A part of ``tests`` that runs only where it is named: what `make check` runs after each change.
QUICK = Stage("quick", ("pytest", "tests", *PARALLEL, *SLOWEST, "-m", "not slow and not browser"), parallel=True)


def add_test(commands: Commands) -> None:
    """List ``mebqat-lite test`` in ``--help``; `cli.main` hands its words to `main` before argparse reads them."""
    command = commands.add_parser(
        "test", help="run all that CI runs (from a checkout); stages and pytest options may follow"
    )
    command.add_argument("extra", nargs="*", help="names of stages")
    command.set_defaults(run=lambda arguments: main(arguments.extra))


def main(extra: Sequence[str] = ()) -> int:
    """Run the stages, print ``[OK]`` or ``[FAIL]`` for each; 1 if one failed, 2 if none could start, else 0.

    Args:
        extra: leading names of stages (``lint format types tests notebooks browser``, and ``quick``, the tests that
            are not slow) choose these; what follows goes to pytest, as in ``["tests", "-x", "-k", "bits"]``.
    """
    if problem := obstacle():
        print(problem, file=sys.stderr)
        return 2
    chosen, options = split(extra)
    if options and not options[0].startswith("-") and not Path(paths.checkout() or "", options[0]).exists():
        print(f"no stage {options[0]!r}; known: {', '.join(s.name for s in (*STAGES, QUICK))}", file=sys.stderr)
        return 2
    if options and not any(stage.is_pytest for stage in chosen):
        print(f"{' '.join(options)}: no stage here takes options of pytest", file=sys.stderr)
        return 2
    outcomes = [(stage.name, *run(stage, options)) for stage in chosen]
    print("\nSummary")
    for name, passed, seconds in outcomes:
        print(f"{'[OK]' if passed else '[FAIL]':6} {name} ({seconds:.0f} s)")
    return 0 if all(passed for _, passed, _ in outcomes) else 1


def split(extra: Sequence[str]) -> tuple[list[Stage], list[str]]:
    """The stages that the leading words of ``extra`` name (none: all), and the options after them."""
    known = {stage.name: stage for stage in (*STAGES, QUICK)}
    count = next((i for i, word in enumerate(extra) if word not in known), len(extra))
    chosen = [stage for name, stage in known.items() if name in extra[:count]]
    return chosen or list(STAGES), list(extra[count:])


def run(stage: Stage, options: Sequence[str] = ()) -> tuple[bool, float]:
    """Run one stage: whether it passed, its seconds. Collecting no test passes only if options narrow it."""
    options = tuple(options) if stage.is_pytest else ()
    environment = dict(os.environ)
    if stage.parallel:  # workers that each start a thread per core are several times slower
        environment["OMP_NUM_THREADS"] = "1"
    print(f"\n== {stage.name}: {' '.join((*stage.command, *options))}", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", *stage.command, *options]
    status = subprocess.run(command, cwd=paths.checkout(), env=environment, check=False).returncode
    passed = status == 0 or (status == NO_TESTS and bool(options))
    return passed, time.perf_counter() - start


def obstacle() -> str | None:
    """Why the tests cannot run here, and the cure; None if they can."""
    root = paths.checkout()
    if root is None or not Path(root, "tests").is_dir():
        return "An installed package has no tests. Get the repository, and in its checkout: make test"
    missing = [name for name in TOOLS + LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        return f'Not installed: {", ".join(missing)}. In the checkout: pip install -e ".[test]"'
    return None
