"""reconnect=True in event loops: the fd stays the same over revocations and drivers."""

from __future__ import annotations

import asyncio
import select

import shmdriver
from tests.integration.test_client_reconnect import (  # the fixtures by name
    PATIENCE_S,
    client,
    instance,
    lease_of,
    revoke,
)

__all__ = ["client", "instance"]

QUIET_S = 0.2  # several tries to attach anew


def test_an_awaited_consumer_goes_on_over_a_revocation(instance, client) -> None:
    async def main() -> None:
        into, out = client.consumer("s"), client.producer("s", max_message=16)
        fd = into.fileno()
        for number in range(3):
            task = asyncio.create_task(into.aread())
            await asyncio.to_thread(revoke, instance, lease_of(into))
            while len(into.reattachments) == number:
                await asyncio.sleep(0)
            out.publish(b"%d" % number)
            assert bytes(await task) == b"%d" % number
        assert into.fileno() == fd
        assert into.lost == 0

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_async_iteration_goes_on_over_drivers(instance, client) -> None:
    found: list[bytes] = []

    async def read() -> None:
        found.extend([bytes(message) async for message in client.consumer("s")])

    def produce(boot: int) -> None:
        with shmdriver.connect(instance.name) as other, other.producer("s", max_message=16) as producer:
            producer.wait_for_consumers(1)
            producer.publish(b"%d" % boot)
            if boot < 2:
                instance.end()
        if boot < 2:
            instance.start()

    async def main() -> None:
        task = asyncio.create_task(read())
        for boot in range(3):
            await asyncio.to_thread(produce, boot)
        await task

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert found == [b"0", b"1", b"2"]


def test_a_selector_sleeps_while_no_driver_is_there(instance, client) -> None:
    with client.consumer("s") as into:
        assert into.read(timeout=0) is None
        assert not select.select([into], [], [], 0)[0]
        instance.end()
        while not into._is_away:  # the driver's last words make it readable
            assert select.select([into], [], [], PATIENCE_S)[0]
            assert into.read(timeout=0) is None
        assert not select.select([into], [], [], QUIET_S)[0]
        instance.start()
        with client.producer("s", max_message=16) as out:
            while not into.reattachments:
                assert select.select([into], [], [], PATIENCE_S)[0]
                assert into.read(timeout=0) is None
            out.publish(b"x")
            while (message := into.read(timeout=0)) is None:
                assert select.select([into], [], [], PATIENCE_S)[0]
            assert bytes(message) == b"x"
