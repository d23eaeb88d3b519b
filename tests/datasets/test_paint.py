"""A photograph as a task: its pixels, its coordinates, and labels that are values."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from mebqat_lite import datasets
from mebqat_lite.datasets import DataError, Episodes, Split, load, picture, subset


def by_hand(photo):
    """The middle square of the photograph, and in each of 64 x 64 places the mean of the pixels that it touches."""
    whole = load_sample_image(f"{photo}.jpg")
    assert whole.shape == (427, 640, 3)
    square, shown = whole[:, 106:533].astype(np.float64), np.empty((64, 64, 3))
    for row in range(64):
        for column in range(64):
            area = square[
                427 * row // 64 : -(-427 * (row + 1) // 64), 427 * column // 64 : -(-427 * (column + 1) // 64)
            ]
            shown[row, column] = area.mean((0, 1)) / 255
    return shown


@pytest.mark.parametrize("photo", ["flower", "china"])
def test_the_picture_is_the_middle_of_the_photograph_averaged(photo):
    data = datasets.paint(photo)
    shown = picture(data.test.labels)
    assert shown.shape == (64, 64, 3) and shown.dtype == torch.float32
    assert np.abs(shown.numpy() - by_hand(photo)).max() <= 1 / 255


@pytest.mark.parametrize(
    ("photo", "means", "pixels"),
    [
        ("flower", (80.3, 78.9, 55.8), {0: (1, 53, 51), 63: (4, 31, 27), 2080: (214, 101, 60), 4095: (1, 54, 65)}),
        ("china", (146.0, 144.8, 141.1), {0: (185, 212, 242), 2080: (187, 181, 186), 3000: (119, 118, 86)}),
    ],
)
def test_the_picture_is_the_one_that_the_numbers_are_about(photo, means, pixels):
    """Programs that decode the photograph differ by 1 of 255 at most."""
    colours = 255 * datasets.paint(photo).test.labels
    assert colours.mean(0).tolist() == pytest.approx(means, abs=0.2)
    for place, wanted in pixels.items():
        assert colours[place].tolist() == pytest.approx(wanted, abs=1.5)


def test_coordinates_are_the_middles_of_pixels_row_by_row():
    x = datasets.paint().test.images
    assert x.shape == (4096, 2) and x.dtype == torch.float32
    assert x[0].tolist() == [-63 / 64, -63 / 64] and x[1].tolist() == [-61 / 64, -63 / 64]
    assert x[64].tolist() == [-63 / 64, -61 / 64] and x[-1].tolist() == [63 / 64, 63 / 64]


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_training_pixels_are_the_same_in_another_order(seed):
    data = datasets.paint(seed=seed)
    key = (data.train.images * 32 + 31.5).round().long()  # column and row, each from 0 to 63
    place = key[:, 1] * 64 + key[:, 0]
    assert sorted(place.tolist()) == list(range(4096)) and place.tolist() != list(range(4096))
    assert torch.equal(data.train.labels, data.test.labels[place])
    assert data.val is data.test and torch.equal(data.test.labels, datasets.paint().test.labels)
    assert torch.equal(data.train.images, load("paint", seed).train.images)


def test_names():
    assert repr(datasets.paint()) == "Data(paint: 3 values; train 4096, val 4096, test 4096)"
    data = load("paint,photo=china", 2)
    assert data.name == "paint,photo=china" and data.classes == ("red", "green", "blue")
    assert torch.equal(data.train.labels, datasets.paint("china", 2).train.labels)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("paint,photo=dog", "no photograph 'dog'; choose flower or china"),
        ("paint,photo=3", "no photograph 3; choose flower or china"),
        ("paint,seed=3", "paint has no option seed; known: count, photo, test, val"),
        ("paint,count=all", "count must be a whole number"),
        ("paint,count=100", "a stratified subset is for classes, but the labels of these data are values"),
    ],
)
def test_what_is_not_there_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        load(name)


# ---------------------------------------------------------------- labels that are values

X, Y = torch.zeros(6, 2), torch.rand(6, 3)


@pytest.mark.parametrize(
    ("labels", "outputs", "words"),
    [
        (Y[:, 0], None, r"labels are whole numbers, .* not torch.float32; values to predict are floats of shape"),
        (Y[:5], None, r"6 images need one label each, but the labels have the shape \(5, 3\)"),
        (Y[None], None, r"the labels have the shape \(1, 6, 3\)"),
        ((255 * Y).long(), None, r"the labels have the shape \(6, 3\)"),
        (Y > 0.5, None, r"the labels have the shape \(6, 3\)"),
        (torch.where(Y.max() == Y, torch.nan, Y), None, "labels are not finite"),
        (torch.where(Y.max() == Y, -torch.inf, Y), None, "labels are not finite"),
        (Y, 4, "labels have 3 values each, but this network has 4 outputs"),
        (Y[:, :1], 3, "labels have 1 values each, but this network has 3 outputs"),
        (
            torch.tensor([[0.0, 255, 7]]).expand(6, 3),
            3,
            r"values to predict are in \[0, 1\], but these go from 0 to 255",
        ),
        (torch.eye(3)[[0, 2, 1, 1, 0, 2]], None, r"all labels are one-hot rows: give .*labels\.argmax\(1\)"),
        (Y - 1, None, r"values to predict are in \[0, 1\], but these go from -"),
        ((255 * Y).to(torch.uint8), None, r"the shape \(6, 3\); values to predict are floats of this shape"),
    ],
)
def test_values_that_cannot_be_are_refused(labels, outputs, words):
    with pytest.raises(DataError, match=words):
        Split(X, labels).check(outputs)


@pytest.mark.parametrize("labels", [Y, Y.double(), Y.half(), Y[:, :1], Y.round()])
def test_values_of_any_type_are_taken(labels):
    split = Split(X, labels)
    assert split.check(labels.shape[1]) is split and split.has_values


def test_what_is_about_classes_refuses_values():
    data = datasets.Data("values", Split(X, Y), Split(X, Y), Split(X, Y), tuple("rgb"))
    with pytest.raises(DataError, match="an episode is for classes, but the labels of these data are values"):
        Episodes(data.train, 2, 1, 1)
    with pytest.raises(DataError, match="a stratified subset is for classes"):
        subset(data, 3)
    assert Split(X, torch.arange(6)).of_classes("anything").labels.tolist() == list(range(6))
