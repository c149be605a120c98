"""Nothing blocks an event loop: attaching and closing are made in threads, which leave nothing behind."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.client.attach import acquire
from shmdriver.driver.driver import Driver
from shmdriver.errors import DriverUnavailable
from tests.chaos.stage import wait_until
from tests.integration.test_client_reconnect import (  # the fixtures by name
    PATIENCE_S,
    Instance,
    client,
    in_its_thread,
    instance,
    lease_of,
    revoke,
)

__all__ = ["client", "instance"]

SHORT_S = 10.0  # what blocks the loop waits so long for what only the loop does, and fails
OWN_THREADS = ("shmdriver-attach", "shmdriver-call")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in OWN_THREADS]


def left_over(instance: Instance) -> dict[str, int]:
    """What there is now: threads that make calls, descriptors, leases, clients."""
    tables = instance.driver.tables
    return {
        "threads": len(own_threads()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "leases": len(tables.leases),
        "clients": len(tables.clients),
    }


def check_nothing_is_left(instance: Instance, before: dict[str, int]) -> None:
    """Nothing more than before. What an earlier test dropped may still go."""

    def more() -> dict[str, int]:
        return {kind: now - before[kind] for kind, now in left_over(instance).items() if now > before[kind]}

    wait_until(lambda: not more(), "what was cancelled to go", PATIENCE_S)


@contextmanager
def deaf(driver: Driver) -> Iterator[None]:
    """The driver lives, and answers nobody."""
    take = driver._ring.take
    heard = threading.Event()

    def hear_nothing(_now_ns: int) -> Iterator[Any]:
        heard.set()
        return iter(())

    driver._ring.take = hear_nothing  # type: ignore[method-assign, assignment]
    driver.wake()
    assert heard.wait(PATIENCE_S)
    try:
        yield
    finally:
        driver._ring.take = take  # type: ignore[method-assign]
        driver.wake()


class Gate:
    """Takes the place of acquire(): each attach waits for the loop to open it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.callers: list[threading.Thread] = []
        self.is_open = threading.Event()
        monkeypatch.setattr("shmdriver.client.reattach.acquire", self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.callers.append(threading.current_thread())
        assert self.is_open.wait(SHORT_S), "it blocks the thread that would have opened it"
        return acquire(*arguments, **options)


# ---- attaching anew


@pytest.mark.fault(57, how="an attach that is not answered, under five awaited consumers")
def test_loop_goes_on_while_awaited_consumers_are_attached_anew(instance, client, monkeypatch) -> None:
    gate = Gate(monkeypatch)

    async def main() -> None:
        readers = [client.consumer(f"s{n}") for n in range(5)]
        outs = [client.producer(f"s{n}", max_message=16) for n in range(5)]
        tasks = [asyncio.create_task(reader.aread()) for reader in readers]
        await asyncio.sleep(0)
        for reader in readers:
            await asyncio.to_thread(revoke, instance, lease_of(reader))
        while not all(reader._is_away for reader in readers):
            await asyncio.sleep(0)
        assert own_threads() == ["shmdriver-attach"], "one for all of them"
        gate.is_open.set()
        for reader in readers:
            while not reader.reattachments:
                await asyncio.sleep(0)
        for n, out in enumerate(outs):
            out.publish(b"%d" % n)
        assert [bytes(await task) for task in tasks] == [b"%d" % n for n in range(5)]
        assert threading.main_thread() not in gate.callers

    run(main())
    wait_until(lambda: own_threads() == [], "the thread to end", PATIENCE_S)


@pytest.mark.parametrize("has_fd", [False, True])
@pytest.mark.parametrize("role", ["consumer", "producer"])
@pytest.mark.fault(57, how="an attach that is not answered")
def test_call_that_may_not_wait_returns_before_its_attach_is_answered(
    instance, client, monkeypatch, role: str, has_fd: bool
) -> None:
    gate = Gate(monkeypatch)
    reader = client.consumer("s", follow=True)
    out = client.producer("s", max_message=16)
    if has_fd:
        reader.fileno()
    handle: Any = reader if role == "consumer" else out
    revoke(instance, lease_of(handle))

    def try_it() -> Any:
        return reader.read(timeout=0) if handle is reader else out.try_publish(b"x")

    while not gate.callers:
        assert not try_it()
    assert not try_it()
    assert gate.callers[0] is not threading.main_thread()
    gate.is_open.set()
    while not handle.reattachments:
        try_it()


def test_attach_under_way_when_its_handle_closes_leaves_nothing(instance, client, monkeypatch) -> None:
    gate = Gate(monkeypatch)
    before = left_over(instance)
    for make in (client.consumer, client.producer):
        handle = make("s")
        revoke(instance, lease_of(handle))
        while not own_threads():
            _ = handle.read(timeout=0) if make == client.consumer else handle.try_publish(b"x")
        handle.close()
        del handle
    gate.is_open.set()
    check_nothing_is_left(instance, before)


def test_attach_that_nobody_asks_for_any_more_is_not_tried_on(instance, client) -> None:
    consumer = client.consumer("s")
    consumer.fileno()
    instance.end()
    while not own_threads():
        consumer.read(timeout=0)
    del consumer
    wait_until(lambda: own_threads() == [], "the thread to end", PATIENCE_S)


def test_fileno_of_a_consumer_that_waits_for_a_driver(instance, client) -> None:
    consumer = client.consumer("s")
    instance.end()
    while not consumer._is_away:
        consumer.read(timeout=0)

    async def main() -> None:
        task = asyncio.create_task(consumer.aread())
        await asyncio.to_thread(instance.start)
        while not consumer.reattachments:
            await asyncio.sleep(0)
        client.producer("s", max_message=16).publish(b"x")
        assert bytes(await task) == b"x"

    run(main())


# ---- attaching and closing


def test_everything_that_waits_for_the_driver_has_a_coroutine(instance) -> None:
    async def main() -> None:
        async with await shmdriver.aconnect(instance.name, name="loop") as client:
            async with await client.aconsumer("s") as reader:
                out = await client.aproducer("s", max_message=16)
                out.publish(b"x")
                assert bytes(await reader.aread()) == b"x"
                await out.aclose()
                assert out.closed
                with pytest.raises(shmdriver.EndOfStream):
                    await reader.aread()
            assert reader.closed
            with pytest.raises(ZeroDivisionError):
                async with await client.aproducer("t"):
                    _ = 1 / 0
        assert client.closed

    run(main())


def test_block_that_an_exception_leaves_aborts_its_producer(instance, client) -> None:
    async def main() -> None:
        reader = await client.aconsumer("s")
        with pytest.raises(ZeroDivisionError):
            async with await client.aproducer("s"):
                _ = 1 / 0
        with pytest.raises(shmdriver.ProducerLost):
            await reader.aread()

    run(main())


def test_errors_are_those_of_the_blocking_calls(instance_name: str, instance, client) -> None:
    async def main() -> None:
        with pytest.raises(DriverUnavailable):
            await shmdriver.aconnect(instance_name + "x")
        with pytest.raises(shmdriver.AttachRejected):
            await client.aconsumer("s", create=False)
        with pytest.raises(ValueError, match="delivery"):
            await client.aconsumer("s", delivery="quick")

    run(main())


@pytest.mark.fault(57, how="a driver that answers nobody, under coroutines that attach")
def test_loop_goes_on_while_a_driver_does_not_answer(instance, client) -> None:
    async def main() -> None:
        with deaf(instance.driver):
            attaching = [
                asyncio.create_task(client.aconsumer("s", attach_timeout=PATIENCE_S)),
                asyncio.create_task(client.aproducer("s", attach_timeout=PATIENCE_S)),
                asyncio.create_task(shmdriver.aconnect(instance.name, timeout=PATIENCE_S)),
            ]
            while len(own_threads()) < 3:
                await asyncio.sleep(0)
            assert not any(task.done() for task in attaching)
        for made in await asyncio.gather(*attaching):
            with deaf(instance.driver):
                closing = asyncio.create_task(made.aclose())
                await asyncio.sleep(0)
            await closing

    run(main())


@pytest.mark.fault(49, how="tasks cancelled at random moments of attaches and connects")
def test_cancelled_attaches_and_connects_leave_nothing(instance, client) -> None:
    chance = random.Random(7)

    async def attempt(make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = asyncio.create_task(make())
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            made = await task
        except asyncio.CancelledError:
            return
        await made.aclose()

    async def main() -> None:
        for n in range(60):
            await attempt(lambda: client.aconsumer("s"))
            await attempt(partial(client.aproducer, f"p{n}"))
            await attempt(lambda: shmdriver.aconnect(instance.name))
        with deaf(instance.driver):
            await attempt(lambda: client.aconsumer("s"))

    before = left_over(instance)
    run(main())
    check_nothing_is_left(instance, before)


def test_cancelled_as_its_result_has_just_come(instance, client) -> None:
    """Then the task has not woken yet, and nobody else knows of the result."""

    async def main() -> None:
        task = asyncio.create_task(client.aconsumer("s"))
        await asyncio.sleep(0)  # its thread has begun; the loop stands still from here on
        wait_until(lambda: own_threads() == [], "the call to have told the loop", PATIENCE_S)
        assert client._handles
        asyncio.get_running_loop().call_soon(task.cancel)  # after the result has come, before the task wakes
        with pytest.raises(asyncio.CancelledError):
            await task

    before = left_over(instance)
    run(main())
    check_nothing_is_left(instance, before)


def test_cancelled_wait_for_a_driver_to_come_ends_its_thread(instance_name: str) -> None:
    async def main() -> None:
        task = asyncio.create_task(shmdriver.aconnect(instance_name, timeout=3600, reconnect=True))
        while not own_threads():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while own_threads():
            await asyncio.sleep(0)

    run(main())


def test_cancelled_read_of_a_consumer_that_waits_for_a_driver_leaves_nothing(instance, client) -> None:
    before = left_over(instance)

    async def main() -> None:
        for n in range(5):
            consumer = client.consumer("s")
            in_its_thread(instance.driver, lambda _now_ns: instance.driver.set_maintenance(True, "a test"))
            revoke(instance, lease_of(consumer))
            task = asyncio.create_task(consumer.aread())
            while not consumer._is_away:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            in_its_thread(instance.driver, lambda _now_ns: instance.driver.set_maintenance(False, "a test"))
            if n % 2:
                await consumer.aclose()
            del task, consumer

    run(main())
    check_nothing_is_left(instance, before)
