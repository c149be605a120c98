"""A web feed: one asyncio server that hands the newest prices to every browser (Server-Sent Events).

Each browser has a consumer of its own with ``delivery="latest"``: a slow one skips, and holds nobody
back. When the market closes its stream, every ``async for`` ends; when a browser goes away, its
consumer is closed. ``aconsumer`` attaches in a thread: the other browsers get their prices meanwhile, even
when the driver does not answer. Only the standard library is used; any ASGI framework can iterate the
same way.

Prints: 3 browsers got their prices
"""

import asyncio
import json
import multiprocessing
from contextlib import suppress
from multiprocessing.synchronize import Event

import shmdriver

EVENTS = 20
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n"


class Feed:
    """Any number of browsers on one thread."""

    def __init__(self, client: shmdriver.Client) -> None:
        self.client = client
        self.browsers: set[asyncio.Task[None] | None] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One browser: the newest price whenever there is one, until it goes away."""
        self.browsers.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        async with await self.client.aconsumer("prices", delivery="latest") as prices:
            with suppress(ConnectionError):
                async for message in prices:
                    writer.write(b"data: " + bytes(message) + b"\n\n")
                    await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def browse(port: int) -> int:
    """What a browser's EventSource does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /prices HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    last = -1
    for _ in range(EVENTS):
        event = await reader.readuntil(b"\n\n")
        price = json.loads(event.removeprefix(b"data: "))
        assert price["n"] > last  # in order, each at most once
        last = price["n"]
    writer.close()
    return last


def market(client: shmdriver.Client, closing: Event) -> None:
    """In a process of its own."""
    with client.producer("prices") as out:
        n = 0
        while not closing.wait(0.001):
            out.publish(json.dumps({"n": n, "px": 100 + n % 7}).encode())
            n += 1
    client.close()


async def main(client: shmdriver.Client, closing: Event) -> None:
    feed = Feed(client)
    server = await asyncio.start_server(feed.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    last = await asyncio.gather(*(browse(port) for _ in range(3)))
    closing.set()
    await asyncio.gather(*(task for task in feed.browsers if task))
    server.close()
    assert all(n >= EVENTS - 1 for n in last)
    print(f"{len(last)} browsers got their prices")


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client:
        closing = context.Event()
        process = context.Process(target=market, args=(client, closing))
        process.start()
        asyncio.run(main(client, closing))
        process.join()
