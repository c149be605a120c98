"""aread, abatches and async for: in asyncio and uvloop, with cancellation, closing and a hundred streams."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading

import numpy as np
import pytest

import shmdriver
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver

TICK = np.dtype([("n", "<i8")])
PATIENCE_S = 60


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine function in a loop of either kind, with a client."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_in_loop(main):
        async def bounded(client):
            async with asyncio.timeout(PATIENCE_S):
                await main(client)

        with shmdriver.embedded() as client, asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded(client))

    return run_in_loop


async def soon(consumer, **arguments):
    """A task that waits in aread, and does wait."""
    task = asyncio.create_task(consumer.aread(**arguments))
    while not consumer._is_awaited and not task.done():
        await asyncio.sleep(0)
    return task


def test_messages_arrive_in_order_up_to_the_clean_end(run):
    async def main(client):
        into, out = client.consumer("s"), client.producer("s")
        found = []

        async def read():
            found.extend([bytes(message) async for message in into])

        task = asyncio.create_task(read())
        for n in range(1000):
            out.publish(b"%d" % n)
            if n % 3 == 0:
                await asyncio.sleep(0)
        out.close()
        await task
        assert found == [b"%d" % n for n in range(1000)]
        with pytest.raises(shmdriver.EndOfStream):
            await into.aread()

    run(main)


def test_a_lost_producer_is_no_end(run):
    async def main(client):
        into, out = client.consumer("s"), client.producer("s")
        task = await soon(into)
        out.publish(b"x")
        assert bytes(await task) == b"x"
        task = await soon(into)
        out.abort()
        with pytest.raises(shmdriver.ProducerLost):
            await task
        with pytest.raises(shmdriver.ProducerLost):
            async for _ in into:
                pass

    run(main)


def test_batches_of_records(run):
    async def main(client):
        into = client.consumer("s")

        def publish():
            with client.producer("s", dtype=TICK) as out:
                for first in range(0, 100_000, 1000):
                    out.publish(np.arange(first, first + 1000).view(TICK), timeout=PATIENCE_S)

        assert await into.aread_batch(timeout=0.01) is None
        thread = threading.Thread(target=publish)
        thread.start()
        expected = 0
        async for batch in into.abatches(limit=700):
            assert 0 < len(batch) <= 700
            assert batch["n"].tolist() == list(range(expected, expected + len(batch)))
            expected += len(batch)
            del batch
        assert expected == 100_000
        thread.join()
        with pytest.raises(ValueError, match="1 or more"):
            into.abatches(limit=0)

    run(main)


def test_timeouts(run):
    async def main(client):
        into, out = client.consumer("s"), client.producer("s")
        assert await into.aread(timeout=0) is None
        assert await into.aread(timeout=0.02) is None
        out.publish(b"x")
        assert bytes(await into.aread(timeout=0)) == b"x"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await into.aread()
        task = await soon(into, timeout=PATIENCE_S)
        out.publish(b"y")
        assert bytes(await task) == b"y"

    run(main)


def test_tasks_that_are_cancelled_have_taken_nothing(run):
    chance = random.Random(7)

    async def main(client):
        into, out = client.consumer("s"), client.producer("s")
        found = []
        sent = 0
        while sent < 500:
            task = asyncio.create_task(into.aread())
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.7:
                for _ in range(chance.randrange(1, 4)):
                    out.publish(b"%d" % sent)
                    sent += 1
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                found.append(bytes(await task))
            except asyncio.CancelledError:
                pass
        while (message := await into.aread(timeout=0)) is not None:
            found.append(bytes(message))
        assert found == [b"%d" % n for n in range(sent)]

    run(main)


@pytest.mark.parametrize("what", ["consumer", "client"])
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_closing_in_mid_wait_ends_the_wait(run, what, where):
    async def main(_):
        with shmdriver.embedded() as client:
            into = client.consumer("s")
            task = await soon(into)
            closing = into if what == "consumer" else client
            if where == "loop":
                closing.close()
            else:
                await asyncio.to_thread(closing.close)
            with pytest.raises(shmdriver.HandleClosed):
                await task

    run(main)


def test_a_driver_that_stops_ends_the_wait(run, instance_name):
    async def main(_):
        config = Config.load(env={}, overrides={"policies.shutdown_timeout_ms": 20})
        driver = EmbeddedDriver(instance_name, config)
        driver.start()
        with shmdriver.connect(instance_name) as client:
            into, out = client.consumer("s"), client.producer("s")
            unborn = client.consumer("t")
            out.publish(b"x")
            assert bytes(await into.aread()) == b"x"
            tasks = [await soon(into), await soon(unborn)]
            await asyncio.to_thread(driver.stop)
            with pytest.raises(shmdriver.ProducerLost):
                await tasks[0]
            with pytest.raises((shmdriver.LeaseRevoked, shmdriver.DriverUnavailable)):
                await tasks[1]

    run(main)


def test_two_tasks_in_one_consumer_are_refused(run):
    async def main(client):
        into, out = client.consumer("s"), client.producer("s")
        task = await soon(into)
        with pytest.raises(shmdriver.ConcurrentUseError, match="another task"):
            await into.aread()
        out.publish(b"x")
        assert bytes(await task) == b"x"

    run(main)


def test_views_that_fill_the_ring_are_told(run):
    async def main(client):
        into, out = client.consumer("s"), client.producer("s", slots=16, max_message=100_000, slot_bytes=64)
        kept = []
        while out.try_publish(b"x" * 100_000):
            kept.append(await into.aread())
        with pytest.raises(shmdriver.ViewsHeld, match="fill the ring"):
            await into.aread()
        kept.clear()
        task = await soon(into)
        assert out.try_publish(b"y" * 100_000)
        assert (await task).data[0] == ord("y")

    run(main)


def test_a_producer_that_waits_for_dropped_views_goes_on(run):
    """The task waits already when the views go: nothing but its fd can have it move the gate."""

    async def main(client):
        into, out = client.consumer("s"), client.producer("s", slots=16, max_message=100_000, slot_bytes=64)
        kept = []
        while out.seq < 5 and out.try_publish(b"x" * 100_000):
            kept.append(await into.aread())
        task = await soon(into)
        publishing = asyncio.create_task(asyncio.to_thread(_fill, out))
        await asyncio.sleep(0)
        kept.clear()
        assert bytes((await task).data[:1]) == b"y"
        del task  # its result is a view, too
        for _ in range(39):
            assert await into.aread() is not None
        await publishing

    run(main)


def _fill(out):
    for _ in range(40):
        out.publish(b"y" * 100_000, timeout=PATIENCE_S)


def test_a_fast_stream_lets_other_tasks_run(run):
    async def main(client):
        into = client.consumer("s")
        stop = threading.Event()

        def publish():
            with client.producer("s", slots=1024) as out:
                while not stop.is_set():
                    out.publish(b"x" * 8, timeout=PATIENCE_S)

        async def read():
            async for _ in into:
                pass

        thread = threading.Thread(target=publish)
        task = asyncio.create_task(read())
        thread.start()
        for _ in range(200):
            await asyncio.sleep(0)
        stop.set()
        await task
        thread.join()

    run(main)


def _publish_to_all(client, streams, count):
    outs = [
        client.producer(f"s{n}", slots=64, slot_bytes=64, arena=0, min_consumers=1) for n in range(streams)
    ]
    for k in range(count):
        for n, out in enumerate(outs):
            out.publish(b"%d %d" % (n, k), timeout=PATIENCE_S)
    for out in outs:
        out.close()
    client.close()


def test_one_service_reads_a_hundred_streams_of_another_process(run):
    streams, count = 100, 50

    async def read(client, n):
        found = [bytes(message) async for message in client.consumer(f"s{n}")]
        assert found == [b"%d %d" % (n, k) for k in range(count)]

    async def main(client):
        readers = [asyncio.create_task(read(client, n)) for n in range(streams)]
        await asyncio.sleep(0)
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=_publish_to_all, args=(client, streams, count))
        child.start()
        await asyncio.gather(*readers)
        child.join()
        assert child.exitcode == 0

    run(main)
