"""Arrays as messages: what was put in comes out, read-only, and a payload that lies is refused."""

from __future__ import annotations

import numpy as np
import pytest

from shmdriver.client import tensor
from shmdriver.client.message import Message
from shmdriver.errors import ShmDriverError


def message_of(array, meta=b""):
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    head = tensor.head_of(array.shape, array.dtype, fortran, meta)
    return head + array.tobytes(order="F" if fortran else "C")


def received(payload):
    return Message(0, 0, 0, tensor.FLAG, payload)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="<f8").reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
        np.array(7, dtype="u1"),
        np.zeros((0, 5), "<f4"),
        np.array([1, 2], "<M8[us]"),
        np.zeros(3, [("a", "<i4"), ("b", "S3")]),
        np.arange(3, dtype=">u4"),
        np.zeros((1,) * 32, "u1"),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}d",
)
def test_what_goes_in_comes_out(array):
    message = received(message_of(array, b"tag"))
    decoded = message.array
    assert message.meta == b"tag"
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert np.array_equal(decoded, array)
    assert decoded.flags.f_contiguous == array.flags.f_contiguous


def test_a_decoded_array_is_read_only_for_good():
    decoded = received(message_of(np.arange(8))).array
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        decoded.flags.writeable = True


def test_elements_begin_at_a_multiple_of_64():
    for meta in (b"", b"x" * 256):
        assert len(tensor.head_of((3, 4), np.dtype("f8"), False, meta)) % 64 == 0


def test_python_objects_are_refused():
    with pytest.raises(TypeError, match="Python objects"):
        tensor.head_of((1,), np.dtype("O"), False, b"")


def test_too_long_meta_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="257 bytes: at most 256"):
        tensor.head_of((1,), np.dtype("u1"), False, b"x" * 257)


@pytest.mark.parametrize("cut", [0, 3, 15, 40, 63, 70])
def test_a_truncated_message_is_refused(cut):
    with pytest.raises(ShmDriverError, match="array message"):
        _ = received(message_of(np.arange(100))[:cut]).array


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0), (0, 65), (0, 255), (4, 255), (8, 2), (9, 33), (9, 200)]
)
def test_a_lying_head_is_refused(offset, value):
    payload = bytearray(message_of(np.arange(10)))
    payload[offset] = value
    with pytest.raises(ShmDriverError):
        _ = received(payload).array
