"""Fixtures of several wings."""

import os
import socket
import urllib.error
import urllib.request

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests compare bits, and a GPU adds up in no fixed order

import pytest
import torch
from tiny_few_shot import TINY, made

from mebqat_lite import datasets
from mebqat_lite.experiments.setups import SETUPS


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """The folder for downloads, which is not there yet; a connection is an error."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    place = tmp_path_factory.mktemp("home") / "downloads"
    monkeypatch.setenv("MEBQAT_DATA", str(place))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return place


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks, and tests beside tests, are fastest with one thread each; equal bits need equal threads."""
    torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, where the data "made" and two tiny few-shot set-ups are known by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path / "downloads"))
    monkeypatch.setitem(datasets.DATASETS, "made", made)
    for name, setup in TINY.items():
        monkeypatch.setitem(SETUPS, name, setup)
    return tmp_path
