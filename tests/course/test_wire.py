"""What crosses to a student's process and back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite.course.classroom import wire

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def same(a, b):
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_plain_values_come_back_as_they_were(value):
    assert same(value, wire.decode(wire.encode(value)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, torch.int64, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype, shape):
    x = torch.randint(0, 2, shape).to(dtype)
    back = wire.decode(wire.encode({"x": [x, x.mT if len(shape) > 1 else x]}))
    assert torch.equal(back["x"][0], x) and back["x"][0].dtype == dtype


def test_what_does_not_travel_keeps_its_types_name():
    back = wire.decode(wire.encode([{1, 2}, object(), torch.nn.Linear(1, 1), ..., NotImplemented]))
    assert [type(value).__name__ for value in back[:3]] == ["set", "object", "Linear"]
    assert back[3] is ... and back[4] is NotImplemented


def raw(text):
    return len(text).to_bytes(4, "big") + text.encode()


FORGED = ("[" * 100_000, '{"dict": []', '{"tensor": "0"}', '{"foreign": [1]}', '{"dict": [[[1], 2]]}', '{"dict": 3}',
          "1" * 5000, '{"special": "open"}', '{"float": "x"}', '{"list": 1, "tuple": 2}')  # fmt: skip


@pytest.mark.parametrize("message", [b"", b"123", b"\0\0\0\x05nonsense", b"\0\0\0\x02{}", b"\xff" * 40,
                                     raw("1") + b"garbage", *map(raw, FORGED)])  # fmt: skip
def test_bytes_that_are_no_message_are_refused(message):
    with pytest.raises(wire.WireError):
        wire.decode(message)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int64", "bool"])
def test_arrays_arrive_as_tensors(dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)[:, ::-1]
    back = wire.decode(wire.encode([x, x.T]))
    assert torch.equal(back[0], torch.from_numpy(x.copy())) and torch.equal(back[1], torch.from_numpy(x.T.copy()))
    others = wire.decode(wire.encode((np.array([object()]), np.array(["a"]), np.array([1j]))))
    assert [type(value).__name__ for value in others] == ["ndarray"] * 3


def test_text_that_no_file_can_hold_is_made_readable():
    got = wire.decode(raw('{"dict": [["\\ud800", "\\udfff"], ["a", {"foreign": "\\ud800"}]]}'))
    str([*got, *got.values(), type(got["a"]).__name__]).encode()


@pytest.mark.parametrize(
    ("value", "words"),
    [(10**400, "too large"), (-(2**9000), "too large"), (torch.ones(2, device="meta"), "device meta")],
)
def test_what_cannot_travel_is_named(value, words):
    with pytest.raises(wire.WireError, match=words):
        wire.encode([value])


def test_a_list_that_holds_itself_is_named():
    endless = []
    endless.append(endless)
    with pytest.raises(wire.WireError, match="holds itself"):
        wire.encode(endless)
