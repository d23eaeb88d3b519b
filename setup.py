"""The one thing pyproject.toml cannot say: find the packages, *and* add the shipped folder data/ to them."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["mebqat_lite", "mebqat_lite.*"]), "mebqat_lite._data"])
