"""Shards: n consumers of one stream share its messages, each gets its own, and none waits for another's."""

from __future__ import annotations

import select
import threading

import numpy as np
import pytest

import shmdriver

TICK = np.dtype([("id", "<i8"), ("px", "<f8")])


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def records(first, n):
    made = np.zeros(n, TICK)
    made["id"] = np.arange(first, first + n)
    return made


def test_messages_are_shared_out_by_their_seq(client):
    readers = [client.consumer("s", shard=(k, 3)) for k in range(3)]
    with client.producer("s", slots=256) as out:
        for number in range(100):
            out.publish(b"%d" % number)
    for k, reader in enumerate(readers):
        assert [(m.seq, int(bytes(m))) for m in reader] == [(n, n) for n in range(k, 100, 3)]
        assert reader.lost == 0


def test_arena_messages_are_shared_out_in_place(client):
    readers = [client.consumer("s", shard=(k, 2)) for k in range(2)]
    with client.producer("s", slots=16, max_message=4096) as out:
        for number in range(10):
            out.publish_array(np.full(500, number, np.int64))
    for k, reader in enumerate(readers):
        assert [int(m.array[7]) for m in reader] == list(range(k, 10, 2))


@pytest.mark.parametrize("delivery", ["reliable", "lossy"])
def test_batches_of_a_shard_hold_its_records_only(client, delivery):
    readers = [client.consumer("s", shard=(k, 3), delivery=delivery) for k in range(3)]
    with client.producer("s", dtype=TICK, slots=1024) as out:
        out.publish(records(0, 600))
    for k, reader in enumerate(readers):
        batches = list(reader.batches())
        assert np.concatenate(batches)["id"].tolist() == list(range(k, 600, 3))
        # In place: every third slot of 64 bytes, and a third of half the ring. Else copied, packed.
        assert batches[0].strides == ((3 * 64,) if delivery == "reliable" else (TICK.itemsize,))
        if delivery == "reliable":
            assert max(len(batch) for batch in batches) <= 1024 // 2 // 3


@pytest.mark.parametrize(("slots", "shards"), [(2, 4), (4, 4), (8, 3), (2, 7)])
@pytest.mark.parametrize("wait", ["adaptive", "sleep"])
def test_shards_go_round_small_rings_without_waiting_for_each_other(client, slots, shards, wait):
    readers = [client.consumer("s", shard=(k, shards), wait=wait) for k in range(shards)]
    got: list[list[int]] = [[] for _ in readers]
    threads = [
        threading.Thread(target=lambda k=k: got[k].extend(m.seq for m in readers[k])) for k in range(shards)
    ]
    for thread in threads:
        thread.start()
    with client.producer("s", slots=slots, slot_bytes=4096) as out:
        for _ in range(100):
            out.publish(b"x", timeout=60)
    for thread in threads:
        thread.join()
    assert got == [list(range(k, 100, shards)) for k in range(shards)]


def test_a_shard_that_has_nothing_to_do_holds_nobody_back(client):
    busy, idle = (client.consumer("s", shard=(k, 2)) for k in (0, 1))
    with client.producer("s", slots=4, slot_bytes=4096) as out:
        for number in range(0, 40, 2):
            out.publish(b"mine", timeout=5)
            assert busy.read(timeout=5).seq == number
            assert idle.read(timeout=0) is None  # looks, and passes the other's
            out.publish(b"theirs", timeout=5)
            assert idle.read(timeout=5).seq == number + 1


def test_a_shard_that_is_behind_holds_the_producer_at_its_own_message(client):
    one, two = (client.consumer("s", shard=(k, 2)) for k in (0, 1))
    with client.producer("s", slots=4, slot_bytes=4096) as out:
        assert out.slots == 4
        assert sum(out.try_publish(b"x") for _ in range(10)) == 4
        assert [one.read(timeout=0).seq for _ in range(2)] == [0, 2]
        assert out.try_publish(b"x") == 0
        assert two.read(timeout=0).seq == 1
        assert out.try_publish(b"x") == 1


def test_views_of_a_shard_hold_their_places(client):
    kept = client.consumer("s", shard=(1, 2))
    with client.producer("s", dtype=TICK, slots=8, slot_bytes=4096) as out:
        out.publish(records(0, 8))
        batch = kept.read_batch(limit=1, timeout=5)
        assert batch["id"].tolist() == [1]
        assert kept.read_batch(timeout=0)["id"].tolist() == [3, 5]  # a shard's part of half the ring
        assert out.try_publish(records(8, 8)) == 1  # seq 1 is held, seq 0 is nobody's
        assert batch["id"].tolist() == [1]
        del batch
        kept.release()
        assert out.try_publish(records(9, 8)) > 0


def test_the_newest_of_a_shard(client):
    latest = client.consumer("s", shard=(1, 3), delivery="latest")
    with client.producer("s", slots=16) as out:
        for _ in range(100):
            out.publish(b"x")
        assert latest.read(timeout=5).seq == 97
        assert latest.read(timeout=0) is None
        out.publish(b"x")
        assert latest.read(timeout=5).seq == 100


def test_a_lossy_shard_counts_its_own_losses_only(client):
    lossy = client.consumer("s", shard=(1, 3), delivery="lossy")
    with client.producer("s", slots=16) as out:
        for _ in range(100):
            out.publish(b"x")
    seen = [m.seq for m in lossy]
    assert all(seq % 3 == 1 for seq in seen)
    assert seen[-1] == 97
    assert lossy.lost + len(seen) == len(range(1, 100, 3))
    for gap in lossy.lost_ranges:
        assert gap.first % 3 == gap.last % 3 == 1


def test_shards_begin_anew_with_every_producer(client):
    reader = client.consumer("s", shard=(2, 3), follow=True)
    for _ in range(2):
        with client.producer("s") as out:
            for _ in range(7):
                out.publish(b"x")
    seen = [reader.read(timeout=5) for _ in range(4)]
    assert [m.seq for m in seen] == [2, 5, 2, 5]


def test_lag_counts_the_messages_of_the_shard(client):
    reader = client.consumer("s", shard=(2, 3))
    with client.producer("s", slots=64) as out:
        assert reader.lag == 0
        for count in (2, 1, 3):
            for _ in range(count):
                out.publish(b"x")
        assert reader.lag == 2


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0), (0, 65)])
def test_impossible_shards_are_refused(client, shard):
    with pytest.raises(ValueError, match="0 <= k < n <= 64"):
        client.consumer("s", shard=shard)


def test_what_is_no_pair_is_refused(client):
    with pytest.raises(TypeError, match=r"expected \(k, n\)"):
        client.consumer("s", shard=4)


def read_with_fileno(reader, fetch):
    select.select([reader], [], [], 30)
    return fetch(reader)


def read_with_wait(reader, fetch):
    held = fetch(reader)
    assert shmdriver.wait([reader], timeout=0.01) == []
    return held


def a_message(reader):
    return reader.read(timeout=30)


def a_batch(reader):
    return reader.read_batch(timeout=30)


@pytest.mark.fault(
    43, how="a view of a shard held with an fd, in waits and between reads, while the producer laps"
)
@pytest.mark.parametrize("read", [read_with_fileno, read_with_wait])
@pytest.mark.parametrize("fetch", [a_message, a_batch])
def test_what_a_shard_hands_out_in_place_holds_its_place(client, read, fetch):
    reader = client.consumer("s", shard=(0, 2))
    if fetch is a_batch:
        out, first, other = client.producer("s", dtype=TICK, slots=1024), records(7, 1), records(0, 1)
    else:
        out, first, other = client.producer("s", slots=1024, max_message=8192), b"7" * 8192, b"0" * 8192
    send = out.try_publish
    with reader, out:
        assert send(first)
        held = read(reader, fetch)
        whole = bytes(memoryview(held))
        sent = sum(bool(send(other)) for _ in range(3 * 1024))
        assert bytes(memoryview(held)) == whole
        assert 0 < sent < 1024
        if fetch is a_message:
            assert held.valid()
        del held
        reader.release()
        assert send(other)


def fill(out):
    """How many messages went in before somebody held the producer back."""
    return sum(1 for _ in iter(lambda: out.try_publish(b"x"), 0))


@pytest.mark.fault(55, how="shards that attach one after another, to a ring that the first one has filled")
def test_shards_that_attach_one_after_another_are_merged_in_order(client):
    with client.producer("s", slots=64) as out:
        readers = [client.consumer("s", shard=(0, 4))]
        assert fill(out) == out.slots
        readers += [client.consumer("s", shard=(k, 4)) for k in (1, 2, 3)]
        rest = threading.Thread(target=lambda: [out.publish(b"x", timeout=60) for _ in range(1000)])
        rest.start()
        merged = [readers[seq % 4].read(timeout=60) for seq in range(out.slots)]
        assert [message.seq if message else None for message in merged] == list(range(out.slots))
        for seq in range(64, 1064):
            message = readers[seq % 4].read(timeout=60)
            assert message is not None
            assert message.seq == seq
        rest.join()


@pytest.mark.fault(55, how="a shard's worker is replaced while the ring is full")
def test_a_worker_that_takes_over_a_shard_goes_on_where_the_slowest_stands(client):
    with client.producer("s", slots=64) as out:
        slow, gone = (client.consumer("s", shard=(k, 2)) for k in (0, 1))
        other = client.consumer("s", shard=(2, 3))
        assert fill(out) == out.slots
        gone.close()
        with client.consumer("s", shard=(1, 2)) as successor:
            assert [successor.read(timeout=60).seq for _ in range(32)] == list(range(1, 64, 2))
        other.close()
        slow.close()
        with client.consumer("s", shard=(1, 2)) as alone, client.consumer("s", shard=(0, 3)) as stranger:
            assert alone.read(timeout=0) is None  # nobody shares with it: it begins with the newest
            assert stranger.read(timeout=0) is None
