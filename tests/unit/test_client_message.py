"""Message: always true, with the length and bytes of its payload, a buffer of its own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from shmdriver.client.message import Message


def make(payload=b"hello", seq=3, kind=7, flags=0):
    return Message(seq, 12345, kind, flags, payload)


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


def test_it_is_a_read_only_buffer():
    view = memoryview(make())
    assert (view.readonly, view.format, view.nbytes) == (True, "B", 5)
    assert np.frombuffer(make(), np.uint8).tolist() == list(b"hello")
    with pytest.raises(ValueError, match="WRITEABLE"):
        np.frombuffer(make(), np.uint8).flags.writeable = True


def test_what_was_made_of_it_keeps_it():
    view = make(b"x" * 1000).data
    assert bytes(view[-3:]) == b"xxx"


def test_it_can_be_pickled_and_copied():
    assert pickle.loads(pickle.dumps(make())) == make()
    assert copy.copy(make()) == make()


@pytest.mark.parametrize("fields", [(1, 2, 70000, 0, b""), (-1, 0, 0, 0, b""), (1, 2, 3, 4, "text"), (1, 2)])
def test_it_is_made_of_five_fields_in_range(fields):
    with pytest.raises((TypeError, OverflowError)):
        Message(*fields)


def test_messages_of_one_time_are_in_the_order_of_their_numbers():
    assert [message.seq for _, message in sorted([(1, make(seq=5)), (1, make(seq=4))])] == [4, 5]


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
