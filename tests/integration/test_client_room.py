"""Room: back pressure and whom it names, waiting for consumers; claims, which are written in place."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import shmdriver


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def pair(client, stream="s", *, consumer=None, **producer):
    """A consumer, then the producer: nothing is missed."""
    reader = client.consumer(stream, **(consumer or {}))
    return client.producer(stream, **producer), reader


# ---- room


def test_a_full_ring_is_back_pressure_that_names_the_consumer(client):
    with (
        shmdriver.connect(client.instance, name="the-slow-one") as other,
        other.consumer("s") as into,
        client.producer("s", slots=64, slot_bytes=64, arena=0) as out,
    ):
        n = 0
        while out.try_publish(b"x"):
            n += 1
        assert n == out.slots
        with pytest.raises(shmdriver.BackPressured, match="the-slow-one") as caught:
            out.publish(b"x", timeout=0)
        error = caught.value
        assert (error.stream, error.published, error.consumer, error.lag) == ("s", 0, "the-slow-one", n)
        assert error.pid == os.getpid()
        assert isinstance(error, TimeoutError)
        into.read(timeout=60)
        while into.read(timeout=0):
            pass
        assert out.try_publish(b"x") == 1


def test_a_ring_that_is_full_of_this_process_own_views_is_said_to_be(client):
    reader = client.consumer("records", dtype="<i8")
    with client.producer("records", dtype="<i8", slots=64) as out:
        kept = []
        while out.try_publish(np.arange(1)):
            kept.append(np.ascontiguousarray(reader.read_batch()))  # of a batch of one that is a view
        with pytest.raises(shmdriver.BackPressured, match=rf"this process, {len(kept)} views") as told:
            out.publish(np.arange(1), timeout=0)
        assert told.value.pid == os.getpid()
        with pytest.raises(shmdriver.ViewsHeld, match=rf"this process, {len(kept)} views"):
            reader.read_batch(timeout=5)
        kept = [kept[0].copy()]
        reader.release()
        assert out.try_publish(np.arange(1)) == 1


def test_publish_waits_for_room_without_a_timeout(client):
    out, into = pair(client, slots=64, slot_bytes=64, arena=0)
    got: list[int] = []

    def read_all():
        with into:
            got.extend(int.from_bytes(bytes(message), "little") for message in into)

    thread = threading.Thread(target=read_all)
    thread.start()
    with out:
        for n in range(20_000):
            out.publish(n.to_bytes(4, "little"))
    thread.join(30)
    assert got == list(range(20_000))


def test_a_lossy_consumer_never_holds_the_producer_back(client):
    out, into = pair(client, consumer={"delivery": "lossy"}, slots=64, slot_bytes=64, arena=0)
    with out, into:
        for _ in range(1000):
            out.publish(b"x", timeout=0)


def test_min_consumers_leaves_no_room_before_they_are_there(client):
    with client.producer("s", min_consumers=1) as out:
        assert out.try_publish(b"x") == 0
        with pytest.raises(shmdriver.BackPressured, match="no consumer yet"):
            out.publish(b"x", timeout=0)
        with client.consumer("s") as into:
            out.publish(b"x", timeout=60)
            assert bytes(into.read(timeout=60)) == b"x"


def test_wait_for_consumers_counts_every_delivery(client):
    with client.producer("s") as out:
        assert out.wait_for_consumers(1, timeout=0) == 0
        kept = []
        arrives = threading.Thread(target=lambda: kept.append(client.consumer("s", delivery="lossy")))
        with client.consumer("s"):
            arrives.start()
            assert out.wait_for_consumers(2, timeout=60) == 2
            arrives.join()


# ---- claims


@pytest.mark.parametrize("length", [8, 100_000])
def test_a_claim_is_written_in_place_and_committed_on_exit(client, length):
    out, into = pair(client)
    with out, into:
        with out.claim(length, type=5) as claim:
            assert len(claim.view) == length
            assert not claim.view.readonly
            claim.view[:] = b"z" * length
            assert into.read(timeout=0) is None
        message = into.read(timeout=60)
        assert bytes(message) == b"z" * length
        assert message.type == 5


def test_a_claim_is_aborted_on_an_exception(client):
    out, into = pair(client)
    with out, into:
        with pytest.raises(RuntimeError), out.claim(100):
            raise RuntimeError
        out.publish(b"next")
        message = into.read(timeout=60)
        assert (bytes(message), message.seq) == (b"next", 0)


def test_a_claim_can_be_committed_shorter(client):
    out, into = pair(client)
    with out, into:
        with out.claim(1000) as claim:
            claim.view[:3] = b"abc"
            claim.commit(3)
        assert bytes(into.read(timeout=60)) == b"abc"


def test_one_open_claim_a_producer(client):
    out, into = pair(client)
    with out, into, out.claim(10):
        with pytest.raises(shmdriver.ClaimError, match="claim is open"):
            out.claim(10)
        with pytest.raises(shmdriver.ClaimError, match="claim is open"):
            out.publish(b"x")


def test_a_claim_that_is_over_says_so(client):
    out, into = pair(client)
    with out, into:
        claim = out.claim(10)
        claim.abort()
        with pytest.raises(shmdriver.ClaimError, match="over"):
            claim.commit()
        with pytest.raises(ValueError, match="released"):
            _ = claim.view[0]


def test_closing_with_an_open_claim_aborts_it(client):
    out, into = pair(client)
    with into:
        claim = out.claim(100_000)
        out.close()
        claim.abort()
        assert list(into) == []


def test_a_claim_that_is_over_stays_over_when_another_is_open(client):
    out, consumer = client.producer("s", max_message=4096, slots=8), client.consumer("s")
    first = out.claim(8)
    first.view[:] = b"the 1st."
    first.commit()
    with out.claim(8) as second:
        with pytest.raises(shmdriver.errors.ClaimError, match="is over"):
            first.commit()
        with pytest.raises(ValueError, match="released"):
            first.view[0] = 0
        second.view[:] = b"the 2nd."
    assert [bytes(consumer.read()) for _ in range(2)] == [b"the 1st.", b"the 2nd."]
    out.close()


def test_claims_of_all_lengths_take_turns_in_slots_and_arena(client):
    """Several times around both, so that some lie across the end of the arena."""
    out, consumer = client.producer("s", max_message=3000, slots=4), client.consumer("s")
    for number in range(64):
        length = (40, 3000, 8, 1700, 0, 2900)[number % 6]
        payload = bytes([number]) * length
        with out.claim(length) as claim:
            assert len(claim.view) == length
            claim.view[:] = payload
        assert bytes(consumer.read()) == payload
    out.close()


def test_messages_that_come_during_a_wait_are_all_read_in_order(client):
    """The first is handed out alone: its successors come with the next call."""
    out, consumer = client.producer("s", max_message=64, slots=256), client.consumer("s")
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(lambda: [bytes(consumer.read(timeout=60)) for _ in range(200)])
        for number in range(200):
            out.publish(number.to_bytes(8, "little"))
        assert [int.from_bytes(each, "little") for each in read.result()] == list(range(200))
    out.close()
