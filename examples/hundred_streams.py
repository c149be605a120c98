"""An asyncio service that reads a hundred streams: one thread, one task a stream, nothing polled.

All streams of a client share one C thread that sleeps on all of them at once; while nothing comes, the
service uses no CPU to speak of. A fast stream does not starve the others: after each run of messages
the loop has its turn.

Prints: 100 streams, 20000 readings, in order
"""

import asyncio
import multiprocessing

import numpy as np

import shmdriver

READING = np.dtype([("n", "<u4"), ("value", "<f4")])
STREAMS, READINGS = 100, 200


async def watch(client: shmdriver.Client, stream: str) -> int:
    """Everything that one sensor says, until it closes its stream."""
    count = 0
    async with await client.aconsumer(stream, dtype=READING) as readings:
        async for batch in readings.abatches():
            assert batch["n"].tolist() == list(range(count, count + len(batch)))
            count += len(batch)
    return count


def sensors(client: shmdriver.Client) -> None:
    """All of them, in another process."""
    outs = [client.producer(f"sensor{k}", dtype=READING, slots=64, min_consumers=1) for k in range(STREAMS)]
    for n in range(0, READINGS, 10):
        readings = np.zeros(10, READING)
        readings["n"] = np.arange(n, n + 10)
        for out in outs:
            out.publish(readings)
    for out in outs:
        out.close()
    client.close()


async def main(client: shmdriver.Client) -> None:
    tasks = [asyncio.create_task(watch(client, f"sensor{k}")) for k in range(STREAMS)]
    counts = await asyncio.gather(*tasks)
    assert set(counts) == {READINGS}
    print(f"{len(counts)} streams, {sum(counts)} readings, in order")


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client:
        source = context.Process(target=sensors, args=(client,))
        source.start()
        asyncio.run(main(client))
        source.join()
