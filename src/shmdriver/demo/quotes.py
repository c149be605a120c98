"""Quote records: real ones from CSV files, or a sample that is made here.

A record is 40 bytes, so that with its header it fills one cache line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["QUOTE", "load", "sample"]

QUOTE = np.dtype([("id", "<u8"), ("time_ns", "<i8"), ("bid", "<f8"), ("ask", "<f8"), ("volume", "<f8")])

_COMPACT = re.compile(r"(\d{8}) (\d{6})(\d{3})$")


def load(paths: Sequence[Path]) -> np.ndarray[Any, Any]:
    """The quotes of CSV files (time, bid, ask and perhaps a volume; a header or none), in the order given.

    Raises ValueError with file and line for one that is no quote.
    """
    rows: list[tuple[int, int, float, float, float]] = []
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.strip().split(",")
                if fields == [""] or (number == 1 and not fields[0][:1].isdigit()):
                    continue
                try:
                    time_ns = _time_ns(fields[0])
                    bid, ask = float(fields[1]), float(fields[2])
                    volume = float(fields[3]) if len(fields) > 3 else 0.0
                except (ValueError, IndexError) as error:
                    raise ValueError(
                        f"{path}, line {number}: {line.strip()!r} is no quote: {error}"
                    ) from None
                rows.append((len(rows), time_ns, bid, ask, volume))
    if not rows:
        raise ValueError(f"no quotes in {', '.join(map(str, paths)) or 'no file'}")
    return np.array(rows, QUOTE)


def sample(count: int = 10_000) -> np.ndarray[Any, Any]:
    """A made-up session: a random walk of a currency pair, the same every time."""
    random = np.random.default_rng(seed=2)
    quotes = np.zeros(count, QUOTE)
    quotes["id"] = np.arange(count)
    start_ns = int(datetime(2024, 1, 2, 17, tzinfo=UTC).timestamp()) * 10**9
    quotes["time_ns"] = start_ns + np.cumsum(random.exponential(8e8, count)).astype(np.int64)
    quotes["bid"] = np.round(1.1 + np.cumsum(random.normal(0, 5e-6, count)), 6)
    quotes["ask"] = quotes["bid"] + np.round(random.uniform(2e-5, 6e-4, count), 6)
    quotes["volume"] = random.integers(1, 50, count) * 1e5
    return quotes


def _time_ns(text: str) -> int:
    """A point in time as in "20200101 170000065" or ISO 8601, in ns since 1970."""
    compact = _COMPACT.match(text)
    if compact is None:
        moment = datetime.fromisoformat(text)
        millis = 0
    else:
        day, clock, tail = compact.groups()
        moment, millis = datetime.strptime(day + clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC), int(tail)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000 + millis * 10**6
