"""Put what was measured into README.md of this folder, between the two marks of its section."""

from __future__ import annotations

from pathlib import Path


def put(folder: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in ``folder/README.md``."""
    readme = folder / "README.md"
    before, rest = readme.read_text().split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    readme.write_text(f"{before}<!-- {name} -->\n{text.rstrip()}\n<!-- /{name} -->{after}")
