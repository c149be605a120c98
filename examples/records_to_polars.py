"""Ticks as records into polars frames, a batch at a time.

A batch is a view of the ring: no copy, but strided by the slot (64 bytes here), and Arrow wants its columns
packed. So one copy a column is what it costs to leave shared memory; numpy and pandas' Series read the
strided columns in place. Bars are computed per batch and added up, so that no frame ever holds more than
half the ring.

Prints: 4 symbols, 100000 ticks, volume 5000000
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import shmdriver

try:
    import polars as pl
except ImportError as error:
    raise SystemExit(f"this example needs polars (pip install polars): {error}") from None

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("qty", "<i8"), ("symbol", "<i4")])


def feed(client: shmdriver.Client) -> None:
    random = np.random.default_rng(7)
    ticks = np.zeros(100_000, TICK)
    ticks["ts"] = np.arange(len(ticks))
    ticks["px"] = 100 + random.standard_normal(len(ticks)).cumsum() / 100
    ticks["qty"] = 50
    ticks["symbol"] = random.integers(0, 4, len(ticks))
    with client.producer("ticks", dtype=TICK, slots=8192, min_consumers=1) as out:
        out.publish(ticks)


def frame_of(batch: np.ndarray[Any, Any]) -> pl.DataFrame:
    """Column by column: one copy each, out of the slots."""
    return pl.DataFrame({name: batch[name].copy() for name in TICK.names or ()})


def main() -> None:
    with shmdriver.embedded() as client:
        ticks = client.consumer("ticks")
        feeder = threading.Thread(target=feed, args=(client,))
        feeder.start()
        parts = [
            frame_of(batch).group_by("symbol").agg(
                pl.len().alias("n"), pl.col("qty").sum().alias("volume"), pl.col("px").max().alias("high")
            )
            for batch in ticks.batches()
        ]  # fmt: skip
        feeder.join()
        bars = pl.concat(parts).group_by("symbol").agg(
            pl.col("n").sum(), pl.col("volume").sum(), pl.col("high").max()
        )  # fmt: skip
        print(f"{bars.height} symbols, {bars['n'].sum()} ticks, volume {bars['volume'].sum()}")


if __name__ == "__main__":
    main()
