"""What a process that is started again gets and does not get: as docs/guide/failures.md says it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client import Client, Consumer
from shmdriver.driver.config import Config
from shmdriver.errors import EndOfStream, ProducerLost
from tests.chaos.stage import wait_until

PATIENCE_S = 60


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def numbers(reader: Consumer) -> list[int]:
    """Of all messages that are there."""
    return [int(bytes(message)) for message in iter(lambda: reader.read(timeout=0), None)]


def read_three_and_hang(client: Client, has_read: Event) -> None:
    reader = client.consumer("s", start="oldest")
    for _ in range(3):
        reader.read(timeout=PATIENCE_S)
    has_read.set()
    signal.pause()


def publish_ten_and_die(client: Client) -> None:
    out = client.producer("s")
    for number in range(10):
        out.publish(b"%d" % number)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault(55, how="kill -9 of a reliable consumer, which is started again while its ring goes on")
@pytest.mark.parametrize("start", ["newest", "oldest"])
def test_a_consumer_that_is_started_again_counts_from_its_own_start(client: Client, start: Any) -> None:
    context = multiprocessing.get_context("spawn")
    with client.producer("s", slots=64) as out:
        has_read = context.Event()
        first = context.Process(target=read_three_and_hang, args=(client, has_read))
        first.start()
        assert out.wait_for_consumers(1, timeout=PATIENCE_S) == 1
        for number in range(10):
            out.publish(b"%d" % number)
        assert has_read.wait(PATIENCE_S)
        first.kill()
        first.join(PATIENCE_S)
        wait_until(lambda: out.consumers == 0 or None, "its gate to be freed")
        last = 10 + 2 * out.slots
        for number in range(10, last):
            out.publish(b"%d" % number)
        with client.consumer("s", start=start) as second:
            got = numbers(second)
            assert got == (list(range(last - out.slots, last)) if start == "oldest" else [])
            assert second.lost == 0  # and yet 3 to last - slots were read by nobody
            assert second.lost_ranges == []
            out.publish(b"%d" % last)
            message = second.read(timeout=PATIENCE_S)
            assert message is not None
            assert (message.seq, bytes(message)) == (last, b"%d" % last)


def test_the_first_message_tells_how_many_there_were_before(client: Client) -> None:
    with client.producer("s", slots=64) as out:
        for number in range(3 * out.slots):
            out.publish(b"%d" % number)
        with client.consumer("s", start="oldest") as reader:
            message = reader.read(timeout=PATIENCE_S)
            assert message is not None
            assert message.seq == 2 * out.slots
            assert reader.lost == 0


@pytest.mark.fault(55, how="late joiners of a clean end")
def test_a_late_joiner_of_a_clean_end_gets_what_the_ring_has_and_the_end(client: Client) -> None:
    with client.producer("s") as out:
        for number in range(10):
            out.publish(b"%d" % number)
    for _ in range(3):
        with client.consumer("s", start="oldest") as late:
            assert [int(bytes(message)) for message in late] == list(range(10))
            assert late.lost == 0
            with pytest.raises(EndOfStream):
                late.read(timeout=0)


@pytest.mark.fault(55, how="late joiners of a producer that was killed, or aborted")
@pytest.mark.parametrize("end", ["killed", "aborted"])
def test_a_late_joiner_of_an_aborted_end_gets_the_next_producers_messages(client: Client, end: str) -> None:
    attached = client.consumer("s")
    if end == "killed":
        child = multiprocessing.get_context("spawn").Process(target=publish_ten_and_die, args=(client,))
        child.start()
        child.join(PATIENCE_S)
    else:
        out = client.producer("s")
        for number in range(10):
            out.publish(b"%d" % number)
        out.abort()
    wait_until(lambda: client.streams()[0].producer is None, "the driver to have noticed")
    with client.consumer("s", start="oldest") as late:
        assert numbers(late) == []
        with client.producer("s") as out:
            out.publish(b"100")
        assert [int(bytes(message)) for message in late] == [100]
        assert late.lost == 0
    assert numbers_until_lost(attached) == list(range(10))  # committed means delivered


def numbers_until_lost(reader: Consumer) -> list[int]:
    got: list[int] = []
    with pytest.raises(ProducerLost):
        while (message := reader.read(timeout=PATIENCE_S)) is not None:
            got.append(int(bytes(message)))
    return got


def test_a_producer_that_is_started_again_begins_at_seq_0_of_another_epoch(client: Client) -> None:
    with client.consumer("s", follow=True) as reader:
        found = []
        for _ in range(2):
            with client.producer("s") as out:
                assert out.seq == 0
                found.append(out.epoch)
                for number in range(5):
                    out.publish(b"%d" % number)
            for number in range(5):
                message = reader.read(timeout=PATIENCE_S)
                assert message is not None
                assert message.seq == number
                assert reader.epoch == found[-1]
    assert found[1] > found[0]


@pytest.mark.fault(53, how="a late joiner with a dtype, after a clean epoch that had another one")
def test_a_late_joiner_with_a_dtype_joins_no_end_that_has_another(client: Client) -> None:
    with client.producer("s", dtype="<i8") as whole:
        whole.publish(np.arange(3, dtype="<i8"))
    broken = client.producer("s", dtype="<f8")
    broken.abort()
    wait_until(lambda: len(client.streams()[0].epochs) == 1, "the aborted epoch to be retired")
    with client.consumer("s", dtype="<f8", start="oldest") as late:
        assert late.read_batch(timeout=0) is None
        with client.producer("s", dtype="<f8") as out:
            out.publish(np.array([0.5]))
        (batch,) = late.batches()
        assert batch.dtype == np.dtype("<f8")
        assert batch.tolist() == [0.5]


def test_no_end_can_be_joined_without_grace() -> None:
    with shmdriver.embedded(config=Config.load(env={}, overrides={"policies.grace_ms": 0})) as client:
        with client.producer("s") as out:
            out.publish(b"1")
        with client.consumer("s", start="oldest") as late:
            assert numbers(late) == []
