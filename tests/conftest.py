"""Fixtures of several rooms."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Small networks, and tests beside tests, are fastest with one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
