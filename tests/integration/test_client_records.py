"""Records: n records are n messages, batches are views in place, nothing is lost or doubled."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import shmdriver

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("qty", "<f8"), ("id", "<u8")])


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def ticks(n, first=0):
    records = np.zeros(n, TICK)
    records["id"] = np.arange(first, first + n)
    records["px"] = records["id"] * 0.5
    return records


def pair(client, stream="s", *, consumer=None, **producer):
    reader = client.consumer(stream, **(consumer or {}))
    return client.producer(stream, dtype=TICK, **producer), reader


@pytest.mark.parametrize("delivery", ["reliable", "lossy"])
def test_a_batch_arrives_as_it_was_published(client, delivery):
    out, into = pair(client, consumer={"delivery": delivery})
    with out, into:
        sent = ticks(100)
        out.publish(sent)
        batch = into.read_batch(timeout=5)
        assert batch.dtype == TICK
        assert np.array_equal(batch, sent)
        assert into.read_batch(timeout=0) is None
        with pytest.raises(ValueError, match=r"WRITEABLE|read-only"):
            batch.flags.writeable = True


def test_a_batch_of_a_reliable_consumer_is_in_place(client):
    out, into = pair(client)
    with out, into:
        out.publish(ticks(10))
        batch = into.read_batch(timeout=5)
        assert batch.strides == (64,)
        assert into.held == 1
        part = batch["px"][3:5]
        del batch
        assert into.held == 1
        del part
        assert into.held == 0


def test_more_than_the_ring_goes_through_in_order_once(client):
    out, into = pair(client, slots=256)
    got: list[np.ndarray] = []

    def read_all():
        with into:
            got.extend(batch["id"].copy() for batch in into.batches())

    thread = threading.Thread(target=read_all)
    thread.start()
    with out:
        out.publish(ticks(100_000))
    thread.join(30)
    assert np.array_equal(np.concatenate(got), np.arange(100_000))
    assert max(len(part) for part in got) <= 128


def test_batches_are_at_most_half_the_ring_or_the_limit(client):
    out, into = pair(client, slots=256)
    with out, into:
        assert out.try_publish(ticks(1000)) == out.slots
        assert len(into.read_batch(timeout=5)) == out.slots // 2
        assert len(into.read_batch(10, timeout=5)) == 10


def test_a_batch_that_is_kept_stays_intact(client):
    out, into = pair(client, slots=256)
    with out, into:
        out.publish(ticks(32))
        kept = into.read_batch(timeout=5)
        before = kept.copy()
        n = 32
        while done := out.try_publish(ticks(50, n)):
            n += done
            while into.read_batch(timeout=0) is not None:
                pass
        assert np.array_equal(kept, before)
        with pytest.raises(shmdriver.ViewsHeld):
            into.read_batch(timeout=5)
        del kept
        into.release()
        assert out.try_publish(ticks(1)) == 1


def test_back_pressure_says_how_many_records_went_in(client):
    out, into = pair(client, slots=256)
    with out, into:
        with pytest.raises(shmdriver.BackPressured) as caught:
            out.publish(ticks(1000), timeout=0.01)
        assert caught.value.published == out.slots
        assert out.seq == out.slots


@pytest.mark.parametrize(
    "records",
    [
        ticks(10),
        ticks(20)[::2],
        ticks(10)[::-1],
        ticks(12).reshape(3, 4),
        ticks(3)[1],
        ticks(5).tobytes(),
        ticks(4).tolist(),
        ticks(0),
    ],
    ids=["array", "strided", "reversed", "2-d", "scalar", "bytes", "tuples", "none"],
)
def test_what_can_be_published_as_records(client, records):
    out, into = pair(client)
    with into:
        with out:
            out.publish(records)
        got = [batch["id"].tolist() for batch in into.batches()]
        expected = np.frombuffer(records, TICK) if isinstance(records, bytes) else np.array(records, TICK)
        assert [n for part in got for n in part] == expected["id"].reshape(-1).tolist()


def test_reading_one_by_one_and_in_batches_share_what_was_fetched(client):
    out, into = pair(client)
    with out, into:
        out.publish(ticks(1000))
        assert np.frombuffer(into.read(timeout=5).data, TICK)["id"] == [0]
        got = [0]
        while len(got) < 1000:
            got.extend(into.read_batch(100, timeout=5)["id"].tolist())
        assert got == list(range(1000))


def test_the_dtype_comes_from_the_producer(client):
    with client.consumer("s") as into:
        assert into.dtype is None
        with client.producer("s", dtype=TICK) as out:
            out.publish(ticks(1))
            assert len(into.read_batch(timeout=5)) == 1
            assert into.dtype == TICK


def test_a_batch_consumer_that_starts_at_the_oldest(client):
    with client.producer("s", dtype=TICK) as out:
        out.publish(ticks(500))
        with client.consumer("s", start="oldest") as into:
            out.publish(ticks(500, 500))
            got: list[int] = []
            while len(got) < 1000:
                got.extend(into.read_batch(timeout=5)["id"].tolist())
            assert got == list(range(1000))


def test_batches_go_on_with_the_next_producer(client):
    got: list[int] = []
    with client.consumer("s", follow=True) as into:
        for first, slots in ((0, 4096), (1000, 256), (2000, 1024)):
            with client.producer("s", dtype=TICK, slots=slots) as out:
                for part in range(0, 1000, 100):
                    out.publish(ticks(100, first + part), timeout=5)
                    while len(got) < first + part + 100:
                        got.extend(into.read_batch(timeout=5)["id"].tolist())
    assert got == list(range(3000))


@pytest.mark.fault(43, how="eviction between a look at the next epoch and the fetch of its records")
def test_a_run_that_is_overwritten_before_it_was_fetched_is_not_handed_out(monkeypatch):
    from shmdriver.client.batches import RecordReader
    from shmdriver.driver.config import Config

    config = Config.load(overrides={"profiles.default.evict_after_ms": 20})
    with shmdriver.embedded(config=config) as client, client.consumer("s", dtype=TICK, follow=True) as into:
        with client.producer("s", dtype=TICK, slots=1024) as out:
            out.publish(ticks(1))
        assert into.read_batch(timeout=30) is not None
        with client.producer("s", dtype=TICK, slots=16, slow_consumer="evict") as out:
            out.publish(ticks(out.slots))
            learn = RecordReader._learn

            def learn_and_be_evicted(*args):
                learnt = learn(*args)
                out.publish(ticks(out.slots, 1000), timeout=30)
                return learnt

            monkeypatch.setattr(RecordReader, "_learn", learn_and_be_evicted)
            with pytest.raises(shmdriver.LeaseRevoked):
                into.read_batch(timeout=30)


def test_a_first_batch_of_the_next_ring_is_at_most_half_of_that_one(client):
    with client.consumer("s", dtype=TICK, follow=True) as into:
        with client.producer("s", dtype=TICK, slots=1024) as out:
            out.publish(ticks(1))
        assert len(into.read_batch(timeout=30)) == 1
        with client.producer("s", dtype=TICK, slots=64) as out:
            out.publish(ticks(out.slots))
            batch = into.read_batch(timeout=30)
            assert len(batch) == out.slots // 2
            assert batch.strides == (64,)  # in place


def test_a_lossy_batch_consumer_counts_its_gaps(client):
    out, into = pair(client, consumer={"delivery": "lossy"}, slots=256)
    with into:
        with out:
            out.publish(ticks(10_000))
        got = [n for batch in into.batches() for n in batch["id"].tolist()]
        assert got == sorted(set(got))
        assert got[-1] == 9_999
        assert len(got) + into.lost == 10_000


@pytest.mark.parametrize(
    "dtype", ["<M8[ns]", [("when", "<M8[us]"), ("px", "<f8")], "<c16", "S7", "<m8[s]", "?"]
)
@pytest.mark.parametrize("step", [1, 3])
def test_records_of_dtypes_that_have_no_buffer_format_travel_too(client, dtype, step):
    kind = np.dtype(dtype)
    sent = np.frombuffer(bytes(index % 2 for index in range(kind.itemsize * 12)), kind)[::step]
    reader = client.consumer("odd", dtype=kind)
    client.producer("odd", dtype=kind).publish(sent)
    got = reader.read_batch(timeout=5)
    assert got.dtype == kind
    assert got.tobytes() == sent.tobytes()


class LooksLikeADataFrame:
    def __array__(self, dtype=None, copy=None):
        return np.array([[1.0, 2.0, 3.0, 4.0]], dtype)

    def to_records(self):
        raise AssertionError("nobody asked")


@pytest.mark.fault(53, how="tables, lists of lists, flat lists and masked arrays, each published as records")
@pytest.mark.parametrize("call", ["publish", "try_publish"])
@pytest.mark.parametrize(
    "data",
    [LooksLikeADataFrame(), [[1, 2.0, 3.0, 4]], [1, 2.0, 3.0, 4], 5, np.ma.masked_array(ticks(2))],
    ids=["table", "lists", "flat", "scalar", "masked"],
)
def test_records_that_nobody_meant_are_refused_and_nothing_is_published(client, call, data):
    out, into = pair(client)
    with into, out:
        with pytest.raises(TypeError, match="stream 's': "):
            getattr(out, call)(data)
        out.publish([(1, 2.0, 3.0, 4)])
        assert into.read_batch(timeout=5).tolist() == [(1, 2.0, 3.0, 4)]
        assert out.seq == 1


def test_the_advice_for_tables_works_whatever_the_order_of_their_columns(client):
    pandas = pytest.importorskip("pandas")
    df = pandas.DataFrame(
        {"id": [1, 2], "qty": [3.5, 4.5], "px": [5.5, 6.5], "ts": [7, 8], "more": ["x", "y"]}
    )
    out, into = pair(client)
    with into, out:
        with pytest.raises(
            TypeError, match=r"df\[list\(producer.dtype.names\)\].to_records\(index=False\).astype"
        ):
            out.publish(df)
        out.publish(df[list(out.dtype.names)].to_records(index=False).astype(out.dtype))
        assert into.read_batch(timeout=5).tolist() == [(7, 5.5, 3.5, 1), (8, 6.5, 4.5, 2)]


def test_a_claim_on_a_record_stream_is_one_record(client):
    out, into = pair(client)
    with into, out:
        for length in (0, 8, 31, 64):
            with pytest.raises(ValueError, match="where a record has 32"):
                out.claim(length)
        with out.claim(TICK.itemsize) as claim:
            claim.view[:] = ticks(1, 7).tobytes()
        assert into.read_batch(timeout=5)["id"].tolist() == [7]


def test_a_record_stream_takes_no_arrays_with_shapes_of_their_own(client):
    out, into = pair(client)
    with into, out:
        with pytest.raises(TypeError, match=r"publish\(records\)"):
            out.publish_array(ticks(1))
        with pytest.raises(TypeError, match=r"publish\(records\)"):
            out.claim_array((1,), TICK)
        assert out.seq == 0


def test_a_forwarded_message_of_records_is_those_records(client):
    out, into = pair(client)
    on, last = pair(client, "next")
    with into, out, on, last:
        out.publish(ticks(3))
        for _ in range(3):
            on.publish(into.read(timeout=5))
        assert last.read_batch(timeout=5)["id"].tolist() == [0, 1, 2]


@pytest.mark.fault(54, how="back-pressure and refusals kept by their user")
def test_an_exception_that_is_kept_keeps_no_buffer_of_records(client):
    out, into = pair(client, slots=256)
    with into, out:
        data = bytearray(ticks(out.slots + 1).tobytes())
        with pytest.raises(shmdriver.BackPressured) as full:
            out.publish(data, timeout=0.01)
        with pytest.raises(TypeError) as odd:
            out.publish(memoryview(data).cast("d"))
        data.append(1)  # BufferError while somebody exports it
    with pytest.raises(shmdriver.HandleClosed) as closed:
        out.publish(data[:32])
    data.append(1)
    assert all(caught.value.args for caught in (full, odd, closed))
