"""Datasets by name, with their options."""

import warnings

import pytest
import torch
from pictures import make, numbered, sizes

from mebqat_lite import cli, datasets
from mebqat_lite.datasets import folder, load, subset

pytestmark = pytest.mark.usefixtures("home")


def test_a_folder_by_name(tmp_path, monkeypatch):
    make(tmp_path / "my, pets=2", {"cat": 20, "dog": 20})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    wanted = folder(tmp_path / "my, pets=2", seed=3)
    for name in (f"folder:{tmp_path / 'my, pets=2'}", "folder:~/my, pets=2"):
        assert torch.equal(load(name, 3).val.images, wanted.val.images)
    monkeypatch.chdir(tmp_path / "my, pets=2")
    assert torch.equal(load("folder:.", 3).val.images, wanted.val.images)


def test_options_by_name(tmp_path):
    make(tmp_path / "pets", {"cat": 20, "dog": 20})
    data = load(f"folder:{tmp_path / 'pets'},size=4,count=10", 3)
    wanted = subset(folder(tmp_path / "pets", 3, size=4), 10, 3)
    assert data.train.images.shape == (10, 3, 4, 4) and torch.equal(data.train.images, wanted.train.images)
    assert sizes(load("digits,count=100")) == [100, 257, 540]


@pytest.mark.parametrize("name", ["folder", "folder:", "cifar", "digits:x", ",count=3"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(
        ValueError, match="known: digits, cifar10, svhn, glyphs, glyph_classes, omniglot, paint, folder:PATH"
    ):
        load(name)


def test_an_unknown_option_lists_the_known():
    with pytest.raises(ValueError, match="svhn has no option height; known: count, size"):
        load("svhn,height=3")


@pytest.mark.parametrize("value", ["-1", "0", "5", "999", "1000000"])
@pytest.mark.parametrize("key", ["count", "val", "test"])
def test_a_number_of_images_that_cannot_be_is_blamed_itself(key, value):
    with pytest.raises(datasets.DataError, match=f"no stratified subset of {value} of the "):
        load(f"digits,{key}={value}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("count=many", "count must be a whole number, in "),
        ("val=1.5", "val must be a whole number, in "),
        ("size=8px", "size must be a whole number, in "),
        ("size=8,size=9", "each option of a dataset once, not 'size=8,size=9'"),
        ("size=0", "size must be a whole number of pixels from 1 to 32,768, not 0"),
        ("size=-3", "size must be a whole number of pixels from 1 to 32,768, not -3"),
    ],
)
def test_an_option_that_cannot_be_is_blamed_itself(tmp_path, options, message):
    make(tmp_path / "pets", {"cat": 20, "dog": 20})
    with pytest.raises(ValueError, match=message):
        load(f"folder:{tmp_path / 'pets'},{options}")


def test_the_command_line_names_the_cure(tmp_path, capsys):
    assert cli.main(["train", "--data", f"folder:{tmp_path / 'nothing'}"]) == 2
    assert capsys.readouterr().err.startswith("mebqat-lite: there is no folder")


def test_exports():
    assert set(datasets.DATASETS) == {"digits", "cifar10", "svhn", "glyphs", "glyph_classes", "omniglot", "paint"}
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "made: 2 classes; train 10, val 4, test 4" in repr(numbered([5, 5]))
