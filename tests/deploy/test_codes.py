"""Integers of any width in exactly so many bits."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mebqat_lite.deploy.codes import pack, unpack


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_codes_come_back_from_exactly_b_bits_each(bits, values):
    codes = torch.tensor([value % 2**bits for value in values], dtype=torch.int32)
    planes = pack(codes, bits)
    assert planes.dtype == torch.uint8 and planes.shape == (bits, math.ceil(len(values) / 8))
    assert torch.equal(unpack(planes, (len(values),)), codes)
    for fewer in range(1, bits + 1):  # the upper bits are the first rows
        assert torch.equal(unpack(planes[:fewer], (len(values),)), codes >> (bits - fewer))


def test_the_layout_is_what_the_file_says():
    """Code 2 of 2 bits at the ninth place: the most significant plane, second byte, highest bit."""
    assert pack(torch.tensor([0] * 8 + [2]), 2).tolist() == [[0, 128], [0, 0]]
