"""Fixtures of several rooms."""

import socket
import urllib.error
import urllib.request

import pytest
import torch


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """The folder for downloads, which is not there yet; a connection is an error."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    place = tmp_path_factory.mktemp("home") / "downloads"
    monkeypatch.setenv("MEBQAT_DATA", str(place))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return place


@pytest.fixture(scope="module")
def one_thread():
    """Small networks, and tests beside tests, are fastest with one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
