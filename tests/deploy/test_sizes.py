"""What networks take on disk."""

import functools

import pytest
import torch

from mebqat_lite import models, quantize, save_packed
from mebqat_lite.deploy.sizes import file_sizes, savings

IMAGES = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@functools.cache
def sized(quantizer):
    """A network and the sizes of its files."""
    torch.manual_seed(0)
    model = quantize(models.digit_net_wide(), quantizer, sample=IMAGES)
    return model, file_sizes(model, IMAGES)


@pytest.mark.parametrize(("quantizer", "count"), [("dorefa", 75), ("sat", 73)])
def test_sizes_are_those_of_the_files(quantizer, count, tmp_path):
    model, sizes = sized(quantizer)
    save_packed(model, tmp_path / "w4", "W4A4")
    assert sizes.bytes["W4A4"] == (tmp_path / "w4").stat().st_size
    assert sizes.bytes["FP32, each pair"] == count * sizes.bytes["FP32"] and sizes.files["packed, each pair"] == count
    # a bit more a weight is a bit more a weight: 23,040 weights in the body, and nothing else grows but padding
    each_bit = sizes.bytes["W2A2":"W8A8"].diff().dropna()
    assert (each_bit - 23_040 / 8).abs().max() <= 16
    assert sizes.bytes["up to W8"] < sizes.bytes["up to W8, each pair"]
    found = savings(sizes)
    assert found["FP32, each pair"] == pytest.approx(100 * (1 - 1 / count))
    assert 90 < found["packed, each pair"] < found["FP32, each pair"]


def test_nested_codes_are_smaller_than_codes_of_each_width():
    saved = sized("lsq")[1].bytes["up to W8"] - sized("sat")[1].bytes["up to W8"]
    assert saved > 23_040 * (2 + 3 + 4 + 5 + 6 + 7) / 8  # the codes of the other widths
