"""Operations one by one, in one process, by pytest-benchmark: `make bench`, or

    pytest -o addopts=--import-mode=importlib benchmarks --benchmark-only

A producer and its consumer share a process here: nothing crosses cores, what is left is the work itself.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import shmdriver
from shmdriver.driver.lifecycle import Event, Lifecycle
from tests.driver_rig import Rig

RECORD = np.dtype([("number", "<u8"), ("values", "<f8", (4,))])
MANY = 100
FRAME_BYTES = 1 << 20
CONSUMERS_A_STREAM = 16


@pytest.fixture(scope="module")
def client():
    with shmdriver.embedded() as made:
        yield made


@pytest.fixture
def pair(client, request):
    """A stream's two ends, for messages of up to a slot."""
    stream = request.node.name.replace("[", "-").replace("]", "")
    consumer = client.consumer(stream)
    with client.producer(stream, max_message=256, slots=4096) as out:
        yield out, consumer
        consumer.close()


@pytest.mark.parametrize("size", [40, 64, 256])
def test_publish(benchmark, client, size):
    with client.producer(f"alone-{size}", max_message=size, slots=4096) as out:
        benchmark(out.publish, bytes(size))


def test_publish_and_read(benchmark, pair):
    out, consumer = pair
    payload, publish, read = bytes(40), out.publish, consumer.read

    def there_and_here():
        publish(payload)
        return read()

    assert len(benchmark(there_and_here).data) == 40


def test_poll_of_nothing(benchmark, pair):
    _, consumer = pair
    assert benchmark(consumer.read, 0) is None


def test_read_of_a_run(benchmark, pair):
    out, consumer = pair

    def publish_many():
        for _ in range(MANY):
            out.publish(bytes(40))

    def read_many():
        for _ in range(MANY):
            consumer.read()

    benchmark.pedantic(read_many, setup=publish_many, rounds=300)


def test_claim_and_commit(benchmark, client):
    with client.producer("claims", max_message=FRAME_BYTES, slots=8) as out:

        def claim():
            with out.claim(FRAME_BYTES) as place:
                place.view[0] = 1

        benchmark(claim)


@pytest.mark.parametrize("n", [1, 64, 1024])
def test_batches_out_and_in(benchmark, client, n):
    records = np.zeros(n, RECORD)
    consumer = client.consumer(f"batches-{n}", dtype=RECORD)
    with client.producer(f"batches-{n}", dtype=RECORD, slots=4096) as out:

        def there_and_here():
            out.publish(records)
            return len(consumer.read_batch())

        assert benchmark(there_and_here) == n
        consumer.close()


def test_decode_of_an_array(benchmark, client):
    """publish_array and the array again: head, shape, dtype."""
    frame = np.zeros((64, 64), np.float32)
    consumer = client.consumer("arrays")
    with client.producer("arrays", slots=64, max_message=frame.nbytes) as out:

        def there_and_here():
            out.publish_array(frame)
            return consumer.read().array.shape

        assert benchmark(there_and_here) == (64, 64)
        consumer.close()


def test_attach_and_detach(benchmark, client):
    with client.producer("attached", max_message=64):
        benchmark(lambda: client.consumer("attached").close())


def test_connect_attach_detach(benchmark, client):
    def all_of_it():
        with shmdriver.connect(client.instance) as other:
            other.consumer("attached-too").close()

    benchmark(all_of_it)


class NoHooks:
    """Hooks that do nothing, so that only the machine is measured."""

    def __getattr__(self, _name):
        return lambda *_arguments: None


def test_getter_looks_at_an_event(benchmark, client):
    """What every event of the driver costs a blocked getter of a queue, whatever it tells."""
    queue = client.queue("q")
    queue.put(1)
    queue.get()
    outlet = queue._outlet

    def look():
        outlet._events_seen = -1
        outlet.discover()

    benchmark(look)
    queue.close()


def test_lifecycle_tick(benchmark):
    machine = Lifecycle(NoHooks())
    machine.dispatch(Event.START, 0)
    benchmark(machine.dispatch, Event.TICK, 0)


def test_lifecycle_there_and_back(benchmark):
    """degrade and recover: two transitions between leaves."""
    machine = Lifecycle(NoHooks())
    machine.dispatch(Event.START, 0)

    def there_and_back():
        machine.dispatch(Event.DEGRADE, 0, reason="memory")
        machine.dispatch(Event.RECOVER, 0, reason="memory")

    benchmark(there_and_back)


@pytest.mark.parametrize("leases", [1, 100, 1000])
def test_tick_with_a_lease_check(benchmark, leases):
    """A duty cycle with nothing to do but to look at all leases."""
    rig = Rig(f"bench-tick-{os.getpid()}-{leases}", policies__limits__leases=leases + 64)
    try:
        client = rig.client()
        for number in range(leases):
            client.consume(f"s{number // CONSUMERS_A_STREAM}")

        def tick():
            client.beat()
            rig.clock.advance_ms(100)
            rig.driver.tick()

        benchmark(tick)
        assert client.client_id
    finally:
        rig.close()
