"""Arrays: their bytes are theirs alone and lie aligned everywhere; what cannot travel is refused."""

from __future__ import annotations

import copy
import importlib
import pickle

import numpy as np
import pytest

import shmdriver

META = b"exposure=3"
# How a message comes to lie where it does: in the arena, copied out of it, in a run of copies, out of a slot.
WAYS = {
    "in place": ({"delivery": "reliable"}, {"slots": 8, "max_message": 1 << 16}, (40, 25)),
    "latest": ({"delivery": "latest"}, {"slots": 8, "max_message": 1 << 16}, (40, 25)),
    "lossy": ({"delivery": "lossy"}, {"slots": 8, "max_message": 1 << 16}, (40, 25)),
    "lossy, small": ({"delivery": "lossy"}, {"slots": 64, "max_message": 4096}, (3,)),
    "lossy, large": ({"delivery": "lossy"}, {"slots": 8, "max_message": 1 << 18}, (150, 150)),
    "out of its slot": ({"delivery": "reliable"}, {"slots": 64, "slot_bytes": 512}, (5,)),
}


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def exchange(client, way, count=5):
    """``count`` arrays that travelled that way (of a latest reader one), and how they were published."""
    return exchange_with_reader(client, way, count)[1:]


def exchange_with_reader(client, way, count=5):
    """As exchange(), and before them the reader, which is still attached."""
    consumer, producer, shape = WAYS[way]
    reader = client.consumer("a", **consumer)
    sent = [np.arange(np.prod(shape), dtype="<f8").reshape(shape) + n for n in range(count)]
    with client.producer("a", **producer) as out:
        for array in sent:
            out.publish_array(array, meta=META)
        messages = []
        while (message := reader.read(timeout=0)) is not None:
            messages.append(message)
    return reader, messages, sent[-len(messages) :]


def address_of(buffer):
    return np.frombuffer(buffer, "u1").ctypes.data


@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_of_an_array_message_are_the_arrays(client, way):
    messages, sent = exchange(client, way)
    assert messages
    for message, array in zip(messages, sent, strict=True):
        assert len(message) == array.nbytes
        assert bytes(message) == bytes(message.data) == bytes(memoryview(message)) == array.tobytes()
        assert np.array_equal(np.frombuffer(message, array.dtype), array.reshape(-1))
        assert np.array_equal(np.frombuffer(message.data, array.dtype), array.reshape(-1))
        assert np.array_equal(message.array, array)
        assert message.meta == META
        assert message.data.readonly
        assert not message.array.flags.writeable


@pytest.mark.parametrize("way", WAYS)
def test_arrays_lie_at_multiples_of_64_also_as_copies(client, way):
    messages, _ = exchange(client, way)
    assert messages
    for message in messages:
        assert address_of(message) % 64 == 0
        assert message.array.ctypes.data % 64 == 0
        assert message.array.flags.aligned


def test_the_payload_of_a_small_message_lies_at_a_word(client):
    reader = client.consumer("s")
    with client.producer("s") as out:
        for n in range(40):
            out.publish(bytes(n))
        assert {address_of(reader.read(timeout=5)) % 8 for _ in range(40)} == {0}


@pytest.mark.parametrize("delivery", ["reliable", "lossy"])
def test_a_copied_batch_of_records_lies_at_a_multiple_of_64(client, delivery):
    kind = np.dtype([("a", "<f8"), ("b", "<f8", 4)])
    with client.producer("r", dtype=kind) as out:
        out.publish(np.zeros(100, kind))
        with client.consumer("r", delivery=delivery, start="oldest") as reader:
            for batch in (reader.read_batch(7, timeout=5), reader.read_batch(5, timeout=5)):
                assert batch.ctypes.data % 64 == 0
                assert batch["b"].flags.aligned
            reader.read(timeout=5)
            assert reader.buffered
            assert reader.read_batch(timeout=5).ctypes.data % 64 == 0


def test_fortran_order_and_no_elements_at_all(client):
    reader = client.consumer("a")
    with client.producer("a", slots=8, max_message=4096) as out:
        sent = np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3))
        out.publish_array(sent)
        out.publish_array(np.zeros((0, 5), "<f4"), meta=META)
        message, empty = reader.read(timeout=5), reader.read(timeout=5)
        assert bytes(message) == sent.tobytes(order="A") == sent.T.tobytes()
        assert np.array_equal(message.array, sent)
        assert (bytes(empty), len(empty), empty.meta, empty.array.shape) == (b"", 0, META, (0, 5))


@pytest.mark.parametrize("way", ["in place", "latest"])
def test_an_array_message_that_is_copied_or_pickled_is_the_same(client, way):
    _reader, (message, *_), _ = exchange_with_reader(client, way)
    for twin in (pickle.loads(pickle.dumps(message)), copy.copy(message)):
        assert twin == message
        assert twin.meta == META
        assert np.array_equal(twin.array, message.array)
        assert address_of(twin) % 64 == 0


def test_arrays_of_the_same_bytes_and_another_shape_are_not_equal(client):
    reader = client.consumer("a")
    with client.producer("a", slots=8, max_message=4096) as out:
        for shape in ((4, 2), (2, 4), (8,)):
            out.publish_array(np.zeros(shape, "<f4"))
        messages = [reader.read(timeout=5) for _ in range(3)]
    assert len({bytes(message) for message in messages}) == 1
    assert len({(m.array.shape, m.meta) for m in messages}) == 3
    first = messages[0]
    others = [
        type(m)(first.seq, first.timestamp_ns, 0, first.flags, m._wire_head + bytes(m)) for m in messages
    ]
    assert [other == first for other in others] == [True, False, False]


def test_an_array_that_is_forwarded_as_bytes_is_its_elements(client):
    array = np.arange(1000, dtype="<u2")
    first, second = client.consumer("a"), client.consumer("b")
    with (
        client.producer("a", slots=4, max_message=8192) as out,
        client.producer("b", slots=4, max_message=8192) as on,
    ):
        out.publish_array(array)
        on.publish(first.read(timeout=5))
        assert bytes(second.read(timeout=5)) == array.tobytes()


# ---- what the wire has no words for

SUBARRAY = np.dtype(("<f4", (4,)))
UNION = np.dtype(("<i4", [("low", "<u2"), ("high", "<u2")]))
OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2]})
ODD = {"subarray": SUBARRAY, "union": UNION, "overlapping": OVERLAPPING, "objects": np.dtype("O")}


def more_odd_dtypes():
    strings = getattr(np.dtypes, "StringDType", None)
    found = {} if strings is None else {"strings": strings()}
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")  # not a dependency, so mypy may not know it
    except ImportError:
        return found
    own = [ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn]
    return found | {kind.__name__: np.dtype(kind) for kind in own}


ODD |= more_odd_dtypes()
NESTABLE = ODD.keys() - {"subarray", "strings"}  # a subarray has a description as a field, the other is none
ODD |= {f"{name} in a field": np.dtype([("field", ODD[name])]) for name in sorted(NESTABLE)}


@pytest.mark.fault(53, how="dtypes that numpy describes as something else, wherever a dtype enters")
@pytest.mark.parametrize("kind", ODD.values(), ids=ODD.keys())
@pytest.mark.filterwarnings("ignore:Custom dtypes are saved")
def test_a_dtype_that_would_arrive_as_another_is_refused_wherever_it_enters(client, kind):
    with client.producer("bytes", slots=4, max_message=4096) as out:
        with pytest.raises(TypeError, match="dtype"):
            out.claim_array((2,), kind)
        if kind is not SUBARRAY:  # no array has it
            for array in (np.zeros(2, kind), np.zeros((4, 4), kind)[::2]):
                with pytest.raises(TypeError, match="dtype"):
                    out.publish_array(array)
        assert out.seq == 0
    for make in (client.producer, client.consumer):
        with pytest.raises(TypeError, match="dtype"):
            make("records", dtype=kind)


@pytest.mark.fault(53, how="masked arrays, whose hidden values would arrive as plain ones")
def test_a_masked_array_is_refused(client):
    masked = np.ma.masked_array(np.arange(6.0).reshape(2, 3), mask=np.eye(2, 3) > 0)
    reader = client.consumer("a")
    with client.producer("a", slots=4, max_message=4096) as out:
        for array in (masked, masked[:, ::2], masked.T, np.ma.masked_array([1, 2])):
            with pytest.raises(TypeError, match="lose its mask"):
                out.publish_array(array)
        out.publish_array(masked.filled(-1))
        assert reader.read(timeout=5).array.tolist() == [[-1, 1, 2], [3, -1, 5]]


def test_arrays_of_dtypes_without_a_description_go_through_a_queue_as_they_are(client):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    queue = client.queue("q")
    sent = [np.arange(5000).astype(bfloat16), np.ma.masked_array([1, 2, 3], mask=[False, True, False])]
    for array in sent:
        queue.put(array)
    first, second = queue.get(timeout=60), queue.get(timeout=60)
    assert first.dtype == sent[0].dtype
    assert first.tolist() == sent[0].tolist()
    assert second.mask.tolist() == [False, True, False]
    queue.close()
