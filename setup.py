"""What pyproject.toml cannot say: find the packages, add the shipped folder data/, and describe them for an index."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def for_an_index(page: str) -> str:
    """The page without links to other files, which a package index does not have: their words stay."""
    return re.sub(r"!?\[([^\]]*)\]\((?!https://|#)[^)]*\)", r"\1", page)


setup(
    packages=[*find_packages(include=["mebqat_lite", "mebqat_lite.*"]), "mebqat_lite._data"],
    long_description=for_an_index(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
