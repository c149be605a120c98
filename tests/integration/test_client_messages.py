"""Bytes through a stream: publish and read, ends, deliveries, starts, waiting."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest

import shmdriver
from shmdriver import Reason


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def pair(client, stream="s", *, consumer=None, **producer):
    """A consumer, then the producer: nothing is missed."""
    reader = client.consumer(stream, **(consumer or {}))
    return client.producer(stream, **producer), reader


def test_what_is_published_is_read(client):
    out, into = pair(client)
    with out, into:
        out.publish(b"hello", type=7)
        message = into.read(timeout=5)
        assert bytes(message) == b"hello"
        assert (message.seq, message.type, message.timestamp_ns) == (0, 7, 0)
        assert into.read(timeout=0) is None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_published(client, kind):
    out, into = pair(client)
    with out, into:
        out.publish(kind(b"abc"))
        assert bytes(into.read(timeout=5)) == b"abc"


def test_a_strided_view_is_published_as_its_bytes(client):
    out, into = pair(client)
    with out, into:
        out.publish(memoryview(b"a-b-c-")[::2])
        assert bytes(into.read(timeout=5)) == b"abc"


def test_a_message_is_forwarded(client):
    out, into = pair(client)
    out2, into2 = pair(client, "t")
    with out, into, out2, into2:
        for payload in (b"small", b"x" * 100_000):
            out.publish(payload)
            out2.publish(into.read(timeout=5))
            assert bytes(into2.read(timeout=5)) == payload


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2], object()])
def test_what_is_no_buffer_is_a_type_error(client, wrong):
    out, into = pair(client)
    with out, into:
        with pytest.raises(TypeError, match="bytes"):
            out.publish(wrong)
        with pytest.raises(TypeError, match="bytes"):
            out.try_publish(wrong)


def test_messages_of_all_lengths_keep_order_and_content(client):
    out, into = pair(client)
    with out, into:
        payloads = [
            bytes([n % 251]) * n for n in (0, 1, 39, 40, 41, 103, 104, 105, 1000, 65536, 0, 0, 7, 7, 7)
        ]
        for payload in payloads:
            out.publish(payload)
        got = [into.read(timeout=5) for _ in payloads]
        assert [bytes(message) for message in got] == payloads
        assert [message.seq for message in got] == list(range(len(payloads)))


def test_reading_and_iterating_share_what_was_fetched(client):
    out, into = pair(client)
    with into:
        with out:
            for n in range(100):
                out.publish(b"%d" % n, type=n)
        first = into.read(timeout=5)
        rest = iter(into)
        second = next(rest)
        third = into.read(timeout=5)
        assert [first.type, second.type, third.type] == [0, 1, 2]
        assert [message.type for message in rest] == list(range(3, 100))


def test_timestamps_are_taken_when_asked_for(client):
    import time

    out, into = pair(client, timestamps=True)
    with out, into:
        before = time.monotonic_ns()
        out.publish(b"x")
        assert before <= into.read(timeout=5).timestamp_ns <= time.monotonic_ns()


# ---- the end


def test_close_ends_the_stream_and_iteration(client):
    out, into = pair(client)
    with into:
        with out:
            out.publish(b"a")
            out.publish(b"b")
        assert [bytes(message) for message in into] == [b"a", b"b"]
        with pytest.raises(shmdriver.EndOfStream, match="closed it"):
            into.read()
        with pytest.raises(EOFError):
            into.read(timeout=0)


def test_an_exception_ends_the_stream_as_aborted(client):
    out, into = pair(client)
    with into:
        with pytest.raises(RuntimeError, match="oops"), out:
            out.publish(b"a")
            raise RuntimeError("oops")
        assert bytes(into.read(timeout=5)) == b"a"
        with pytest.raises(shmdriver.ProducerLost) as caught:
            into.read(timeout=5)
        assert caught.value.reason == Reason.ABORTED
        assert caught.value.sealed_seq == 1
        assert isinstance(caught.value, ConnectionError)


def test_a_dropped_producer_ends_as_aborted_and_warns(client):
    out, into = pair(client)
    with into:
        out.publish(b"a")
        with pytest.warns(ResourceWarning, match="without close"):
            del out
        assert bytes(into.read(timeout=5)) == b"a"
        with pytest.raises(shmdriver.ProducerLost):
            into.read(timeout=5)


def test_an_aborted_end_raises_out_of_iteration(client):
    out, into = pair(client)
    with into:
        out.publish(b"a")
        out.abort()
        seen: list[bytes] = []
        with pytest.raises(shmdriver.ProducerLost):
            seen.extend(bytes(message) for message in into)
        assert seen == [b"a"]


def test_follow_goes_on_with_the_next_producer(client):
    with client.consumer("s", follow=True) as into:
        for n in range(3):
            with client.producer("s") as out:
                out.publish(b"%d" % n)
            message = into.read(timeout=5)
            assert bytes(message) == b"%d" % n
            assert message.seq == 0
            assert into.epoch == n + 1
        assert into.lost == 0


def test_leaving_the_clients_block_closes_its_producers_cleanly(client):
    into = client.consumer("s")
    with shmdriver.connect(client.instance) as other:
        out = other.producer("s")
        out.publish(b"a")
    assert out.closed
    with into:
        assert [bytes(message) for message in into] == [b"a"]


def test_an_exception_in_the_clients_block_aborts_its_producers(client):
    into = client.consumer("s")
    with pytest.raises(RuntimeError), shmdriver.connect(client.instance) as other:
        out = other.producer("s")
        out.publish(b"a")
        raise RuntimeError
    assert out.closed
    with into, pytest.raises(shmdriver.ProducerLost):
        for _ in into:
            pass


# ---- deliveries and starts


def test_oldest_reads_what_was_there_before(client):
    with client.producer("s") as out:
        for n in range(10):
            out.publish(b"%d" % n)
        with client.consumer("s", start="oldest") as into:
            out.publish(b"10")
            assert [bytes(into.read(timeout=5)) for _ in range(11)] == [b"%d" % n for n in range(11)]
            assert into.lost == 0


def test_newest_begins_after_what_was_there_before(client):
    with client.producer("s") as out:
        out.publish(b"old")
        with client.consumer("s") as into:
            out.publish(b"new")
            assert bytes(into.read(timeout=5)) == b"new"


def test_a_closed_stream_can_still_be_read_from_the_oldest(client):
    with client.producer("s") as out:
        out.publish(b"a")
    with client.consumer("s", start="oldest") as into:
        assert [bytes(message) for message in into] == [b"a"]


@pytest.mark.fault(9)
def test_a_lossy_consumer_is_overrun_and_counts_every_gap(client):
    out, into = pair(client, consumer={"delivery": "lossy"}, slots=64, slot_bytes=64, arena=0)
    with into:
        with out:
            for n in range(1000):
                out.publish(n.to_bytes(8, "little"))
        got = [int.from_bytes(bytes(message), "little") for message in into]
        assert got == sorted(set(got))
        assert got[-1] == 999
        assert len(got) + into.lost == 1000
        missing = [seq for gap in into.lost_ranges for seq in range(gap.first, gap.last + 1)]
        assert sorted(missing + got) == list(range(1000))


def test_latest_skips_to_the_newest_and_loses_nothing(client):
    out, into = pair(client, consumer={"delivery": "latest"})
    with out, into:
        for n in range(10):
            out.publish(b"%d" % n)
        assert bytes(into.read(timeout=5)) == b"9"
        assert into.read(timeout=0) is None
        assert (into.lost, into.skipped) == (0, 9)


def test_latest_begins_with_the_newest_existing_message(client):
    with client.producer("s") as out:
        out.publish(b"a")
        out.publish(b"b")
        with client.consumer("s", delivery="latest") as into:
            assert bytes(into.read(timeout=5)) == b"b"


def test_two_reliable_consumers_get_everything(client):
    with client.consumer("s") as one, client.consumer("s") as two:
        with client.producer("s") as out:
            for n in range(1000):
                out.publish(b"%d" % n)
        expected = [b"%d" % n for n in range(1000)]
        assert [bytes(message) for message in one] == expected
        assert [bytes(message) for message in two] == expected


# ---- waiting for several


def test_wait_returns_those_that_have_something(client):
    out, one = pair(client, "one")
    other, two = pair(client, "two")
    with out, one, other, two:
        assert shmdriver.wait([one, two], timeout=0) == []
        other.publish(b"x")
        assert shmdriver.wait([one, two], timeout=5) == [two]
        two.read(timeout=5)
        out.close()
        assert shmdriver.wait([one, two], timeout=5) == [one]
        with pytest.raises(shmdriver.EndOfStream):
            one.read()


def test_wait_knows_of_what_was_fetched_already(client):
    out, one = pair(client)
    with out, one:
        for _ in range(3):
            out.publish(b"x")
        one.read(timeout=5)
        assert one.buffered == 2
        assert shmdriver.wait([one], timeout=0) == [one]


def test_lag_counts_what_was_not_handed_out(client):
    out, into = pair(client)
    with out, into:
        for _ in range(10):
            out.publish(b"x")
        assert into.lag == 10
        into.read(timeout=5)
        assert into.lag == 9


def test_a_consumer_without_a_producer_warns_once_with_the_nearest_name(client, monkeypatch):
    from shmdriver.client import waiting

    monkeypatch.setattr(waiting, "_WARN_AFTER_NS", 1)
    with (
        client.producer("prices"),
        client.consumer("pirces") as into,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        while not told:
            assert into.read(timeout=0.01) is None
        for _ in range(10):
            assert into.read(timeout=0.01) is None
    (warning,) = told
    assert "did you mean 'prices'" in str(warning.message)
    assert Path(warning.filename) == Path(__file__), "it names the caller's line"


def test_streams_and_leases_are_shown(client):
    with client.producer("s"), client.consumer("s"):
        assert [stream.name for stream in client.streams()] == ["s"]
        assert sorted(lease.role for lease in client.leases() if lease.live) == ["consumer", "producer"]


def test_events_arrive_by_callback(client):
    seen = []
    arrived = threading.Event()

    def note(event):
        seen.append(event)
        if event.kind == "stream_announce" and event.stream == "s":
            arrived.set()

    stop = client.on_event(note)
    with client.producer("s"):
        assert arrived.wait(60)
    stop()
    assert any(event.kind == "attach_response" for event in seen)
