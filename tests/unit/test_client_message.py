"""Message: a tuple with names, always true, with the length and bytes of its payload."""

from __future__ import annotations

import numpy as np
import pytest

from shmdriver.client.message import Message


def make(payload=b"hello", seq=3, kind=7, flags=0):
    return Message((seq, 12345, kind, flags, payload))


def test_fields():
    message = make()
    assert (message.seq, message.timestamp_ns, message.type, message.flags) == (3, 12345, 7, 0)
    assert bytes(message) == b"hello"
    assert bytes(message.data) == b"hello"
    assert len(message) == 5
    assert message.valid()


def test_data_is_read_only():
    assert make().data.readonly
    with pytest.raises(TypeError):
        make().data[0] = 1


def test_an_empty_message_is_true():
    assert make(b"")
    assert len(make(b"")) == 0


def test_equal_when_all_fields_are():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(b"other")
    assert make() != make(seq=4)


def test_bytes_have_no_array():
    with pytest.raises(TypeError, match="no array"):
        _ = make().array
    assert make().meta == b""


def test_an_array_comes_out_of_a_copied_message():
    from shmdriver.client import tensor

    array = np.arange(5, dtype="<i4")
    payload = tensor.head_of(array.shape, array.dtype, False, b"m") + array.tobytes()
    message = make(payload, flags=tensor.FLAG)
    assert np.array_equal(message.array, array)
    assert message.meta == b"m"


def test_repr_shows_the_beginning():
    assert repr(make(b"x" * 100)) == f"<Message seq=3 type=7 length=100 {b'x' * 32!r}...>"
