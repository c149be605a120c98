"""Market data fan-out: two strategies that must see every tick, and a slow logger that cannot hurt them.

Who needs everything is ``reliable`` (the default): its gate holds the producer back, nothing is lost.
Who would rather miss ticks than slow the market down is ``lossy``: it is overrun when it does not keep
up, and is told exactly what it missed. The logger here sleeps; the ticks flow on at the strategies'
pace.

Prints: strategies got 200000 ticks each; the logger knows of every tick that it missed
"""

import multiprocessing
import time

import numpy as np

import shmdriver

TICK = np.dtype([("seq", "<u8"), ("px", "<f8"), ("qty", "<f8")])
TICKS, BATCH = 200_000, 500


def strategy(client: shmdriver.Client, name: str) -> None:
    """Sees every tick, in order."""
    with client.consumer("ticks", dtype=TICK) as ticks, client.producer(f"report.{name}") as report:
        seen, volume = 0, 0.0
        for batch in ticks.batches():
            assert batch["seq"][0] == seen
            seen += len(batch)
            volume += float(batch["qty"].sum())
        report.publish(f"{seen} {volume}".encode())
    client.close()


def logger(client: shmdriver.Client) -> None:
    """Writes to a disk that is far too slow for this market."""
    with (
        client.consumer("ticks", dtype=TICK, delivery="lossy") as ticks,
        client.producer("report.log") as report,
    ):
        logged = 0
        for batch in ticks.batches(limit=100):
            logged += len(batch)
            time.sleep(0.01)  # the slow disk
        report.publish(f"{logged} {ticks.lost}".encode())
    client.close()


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client:
        names = ("fast", "other", "log")
        reports = {name: client.consumer(f"report.{name}") for name in names}
        readers = [context.Process(target=strategy, args=(client, name)) for name in names[:2]]
        readers.append(context.Process(target=logger, args=(client,)))
        for reader in readers:
            reader.start()
        with client.producer("ticks", dtype=TICK, slots=4096) as out:
            out.wait_for_consumers(3)
            ticks = np.zeros(BATCH, TICK)
            for first in range(0, TICKS, BATCH):
                ticks["seq"] = np.arange(first, first + BATCH)
                ticks["px"], ticks["qty"] = 100.0, 1.0
                out.publish(ticks)  # waits for the strategies at most, never for the logger
        seen = {name: bytes(report.read()).split() for name, report in reports.items()}
        for reader in readers:
            reader.join()
    assert seen["fast"] == seen["other"] == [b"%d" % TICKS, b"%.1f" % TICKS]
    logged, lost = (int(number) for number in seen["log"])
    assert logged + lost == TICKS
    print(f"strategies got {TICKS} ticks each; the logger knows of every tick that it missed")


if __name__ == "__main__":
    main()
