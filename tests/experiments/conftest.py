"""Fixtures of several files about experiments."""

import pytest
from sweep_tasks import run


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """A whole comparison in this process."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run(folder)
