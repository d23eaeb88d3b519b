"""Put what was measured into README.md of this folder, between the two marks of its section."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put(folder: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in ``folder/README.md``."""
    readme = folder / "README.md"
    before, rest = readme.read_text().split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    readme.write_text(f"{before}<!-- {name} -->\n{text.rstrip()}\n<!-- /{name} -->{after}")


def command(
    about: str | None,
    seeds: int,
    run: Callable[[int], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
    store: Callable[[dict[str, Any]], None],
) -> None:
    """Be the command of a measurement: run it over ``--seeds``, print it, and store it with ``--store``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.seeds)
    print(text(found))
    if arguments.store:
        store(found)
