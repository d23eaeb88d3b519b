"""Fetch the scripts of the site that pip does not bring: for formulas, for the diagram, and for the front page.

MathJax draws formulas, Mermaid the diagram, and ONNX Runtime runs networks in the browser. ``python site/assets.py``
fetches them by npm, which comes with Node.js, into ``site/assets``, which git ignores. ``assets.json`` pins the
archives, and the files of one are there either whole and right, or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / "assets"


def integrity(content: bytes) -> str:
    """The sha512 of a file, written as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def download(package: str) -> bytes:
    """The bytes of the archive of a package, such as ``mathjax@3.2.2``, from where npm is set up to fetch.

    Raises:
        OSError: npm is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["npm", "pack", package, "--silent", "--pack-destination", folder]
        run = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or len(archives) != 1:
            raise OSError(f"npm pack {package} failed: {' '.join(run.stderr.split())[:200]}")
        return archives[0].read_bytes()


def fetch(name: str, pin: dict[str, Any], folder: Path) -> None:
    """Write the files of a pin out of its archive, and then its integrity beside them; nothing if all are there.

    Raises:
        OSError: the archive cannot be downloaded.
        ValueError: the archive is another one than was pinned.
    """
    stamp, files = folder / f"{name}.integrity", {folder / file: member for file, member in pin["files"].items()}
    if stamp.is_file() and stamp.read_text() == pin["integrity"] and all(path.is_file() for path in files):
        return
    content = download(pin["package"])
    if (found := integrity(content)) != pin["integrity"]:
        raise ValueError(f"{pin['package']} has the integrity {found}, and assets.json pins {pin['integrity']}")
    folder.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)  # so that it never stands beside files of another version
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for path, inside in files.items():
            member = archive.extractfile(inside)
            assert member is not None  # the pinned archive has this file
            partial = path.with_suffix(".part")
            partial.write_bytes(member.read())
            partial.replace(path)
    stamp.write_text(pin["integrity"])


def main(folder: Path = FOLDER) -> int:
    """Fetch all; 1 and one message if one cannot be had."""
    for name, pin in json.loads((HERE / "assets.json").read_text()).items():
        try:
            fetch(name, pin, folder)
        except (OSError, ValueError) as problem:
            print(
                f"{name} cannot be fetched: {problem}. The site is built without it: formulas and diagrams may stay "
                "text, and networks still pictures. With a network and npm, which comes with Node.js: make site-assets",
                file=sys.stderr,
            )
            return 1
        print(f"{name} is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
