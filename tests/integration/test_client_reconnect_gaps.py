"""reconnect=True where it meets something else: shards, queues, and segments that somebody removed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.client.attach import acquire
from shmdriver.errors import Reason
from tests.integration.test_client_reconnect import (
    PATIENCE_S,
    Instance,
    client,
    instance,
    lease_of,
    revoke,
    texts,
)

__all__ = ["client", "instance"]  # fixtures

SHM = Path("/dev/shm")


class DriverProcess:
    """`shmdriver run` in a process that can be killed."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmdriver", "run", "--instance", instance],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert any("serves" in line for line in self.process.stderr)

    def end(self, sent: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sent)
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def drivers(instance_name: str) -> Iterator[list[DriverProcess]]:
    """The drivers of one instance, one after another."""
    drivers = [DriverProcess(instance_name)]
    yield drivers
    drivers[-1].end(signal.SIGTERM)


def lose_everything(drivers: list[DriverProcess]) -> None:
    """kill -9 of the driver, rm of all its segments, a new driver."""
    instance = drivers[-1].instance
    drivers[-1].end(signal.SIGKILL)
    for path in SHM.glob(f"shmd.{instance}.*"):
        path.unlink()
    drivers.append(DriverProcess(instance))


# ---- shards


def test_revoked_shard_goes_on_with_its_own_messages(instance: Instance, client: shmdriver.Client) -> None:
    shards = [client.consumer("s", shard=(k, 3)) for k in range(3)]
    producer = client.producer("s", slots=64, max_message=16)
    for number in range(15):
        producer.publish(b"%d" % number)
    for k, shard in enumerate(shards):
        assert texts(shard, 5) == [b"%d" % number for number in range(k, 15, 3)]
    revoke(instance, lease_of(shards[1]))
    for number in range(15, 30):
        producer.publish(b"%d" % number)
    for k, shard in enumerate(shards):
        assert texts(shard, 5) == [b"%d" % number for number in range(15 + k, 30, 3)]
        assert (shard.lost, shard.lost_ranges) == (0, [])
    (again,) = shards[1].reattachments
    assert (again.reason, again.epoch, again.lost) == (Reason.REVOKED, 1, 0)
    assert producer.consumers == 3


def test_revoked_shard_counts_what_was_overwritten_of_its_own(
    instance: Instance, client: shmdriver.Client
) -> None:
    shard = client.consumer("s", shard=(1, 4))
    producer = client.producer("s", slots=64, max_message=16)
    for number in range(8):
        producer.publish(b"%d" % number)
    assert texts(shard, 2) == [b"1", b"5"]
    revoke(instance, lease_of(shard))
    for number in range(8, 400):
        producer.publish(b"%d" % number)
    (first,) = texts(shard, 1)
    number = int(first)
    assert number % 4 == 1
    expected = list(range(9, number, 4))
    assert shard.lost == len(expected) > 0
    assert [(r.first, r.last) for r in shard.lost_ranges] == [(expected[0], expected[-1])]
    assert texts(shard, 1) == [b"%d" % (number + 4)]


# ---- segments that are gone


def test_handles_go_over_to_a_driver_that_finds_nothing_of_the_dead_one(drivers: list[DriverProcess]) -> None:
    with shmdriver.connect(drivers[0].instance, reconnect=True, timeout=PATIENCE_S) as client:
        boot = client.boot_id
        consumer = client.consumer("s", follow=True)
        producer = client.producer("s", slots=64, max_message=16)
        producer.publish(b"before")
        assert texts(consumer, 1) == [b"before"]
        lose_everything(drivers)
        producer.publish(b"still in the old ring")
        assert texts(consumer, 1) == [b"still in the old ring"]
        while producer.try_publish(b"fills it"):
            pass
        producer.publish(b"goes over", timeout=PATIENCE_S)  # no room: only then it looks who serves
        (again,) = producer.reattachments
        assert (again.old_seq, again.seq, again.lost) == (
            66,
            0,
            None,
        )  # nobody sealed what the dead driver had
        assert client.boot_id != boot
        assert texts(consumer, 65) == [b"fills it"] * 64 + [b"goes over"]
        (again,) = consumer.reattachments
        assert (again.boot_id, again.old_seq, again.seq, again.lost) == (client.boot_id, 66, 0, 0)


def test_waiting_for_several_goes_over_to_a_driver_that_finds_nothing(drivers: list[DriverProcess]) -> None:
    with shmdriver.connect(drivers[0].instance, reconnect=True, timeout=PATIENCE_S) as client:
        readers = [client.consumer("a", follow=True), client.consumer("b", follow=True)]
        lose_everything(drivers)
        with client.producer("b") as producer:
            producer.publish(b"from the new driver")
            assert shmdriver.wait(readers, timeout=PATIENCE_S) == [readers[1]]
            assert texts(readers[1], 1) == [b"from the new driver"]
        assert [len(reader.reattachments) for reader in readers] == [1, 1]


# ---- queues


def test_queue_goes_on_in_the_next_driver_with_what_was_in_it(
    instance: Instance, client: shmdriver.Client
) -> None:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as other:
        puts, gets = client.queue("jobs"), other.queue("jobs")
        puts.put(1)
        assert gets.get(timeout=PATIENCE_S) == 1
        puts.put("put before")
        instance.end()
        instance.start()
        puts.put("put after", timeout=PATIENCE_S)
        assert [gets.get(timeout=PATIENCE_S) for _ in range(2)] == ["put before", "put after"]
        puts.put("and on")
        assert gets.get(timeout=PATIENCE_S) == "and on"


def test_queue_goes_on_over_a_revocation_of_its_putter(instance: Instance, client: shmdriver.Client) -> None:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as other:
        puts, gets = client.queue("jobs"), other.queue("jobs")
        puts.put(1)
        assert gets.get(timeout=PATIENCE_S) == 1
        puts.put("put before")
        (lane,) = [
            lease for lease in client.leases() if lease.stream == "queue.jobs.0" and lease.role == "producer"
        ]
        revoke(instance, lane.lease_id)
        puts.put("put after", timeout=PATIENCE_S)
        assert [gets.get(timeout=PATIENCE_S) for _ in range(2)] == ["put before", "put after"]


def test_waiting_for_several_that_all_wait_for_a_driver_sleeps_between_its_tries(
    instance: Instance, client: shmdriver.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = [client.consumer(stream, follow=True) for stream in ("a", "b")]
    instance.end()
    tries: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        return acquire(*arguments, **options)

    monkeypatch.setattr("shmdriver.client.reattach.acquire", counted)
    assert shmdriver.wait(readers, timeout=0.5) == []
    assert 0 < len(tries) < 100  # each of the two at most once in 20 ms
