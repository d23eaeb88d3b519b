"""The version of the package. `pyproject.toml` reads it here, and files and run folders keep it."""

__version__ = "0.2.0"
