"""Latencies in HDR histograms, three significant digits, from the package `hdrhistogram`.

The histograms take what was measured as it is. Paced runs count a latency from when its message was due, so
that they hold every delay that a hold-up caused (no coordinated omission, after Gil Tene's HdrHistogram and
wrk2); round trips have one message in flight and are no measure for a stream at a rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shmdriver.errors import ShmDriverError

__all__ = ["PERCENTILES", "Histogram"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
_LOWEST_NS = 1
_HIGHEST_NS = 60_000_000_000
_DIGITS = 3


class Histogram:
    """Latencies in nanoseconds. ShmDriverError when the package is missing."""

    def __init__(self, encoded: str | None = None) -> None:
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError:
            raise ShmDriverError(
                "latencies need the package hdrhistogram, which is not installed: "
                "pip install 'shmdriver[bench]'"
            ) from None
        self._inner: Any = (
            HdrHistogram.decode(encoded) if encoded else HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)
        )

    def record(self, latencies_ns: np.ndarray[Any, Any]) -> None:
        """Adds all of an array of integers."""
        values, counts = np.unique(np.clip(latencies_ns, _LOWEST_NS, _HIGHEST_NS), return_counts=True)
        record = self._inner.record_value
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            record(value, count)

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._inner.get_total_count())

    def at(self, percentile: float) -> int:
        """The latency (ns) that this share of all did not exceed."""
        return int(self._inner.get_value_at_percentile(percentile))

    def curve(self, points: int = 200) -> list[tuple[float, int]]:
        """(percentile, ns) up to one over the count, evenly spaced on the axis of nines."""
        if not self.count:
            return []
        nines = np.linspace(0, np.log10(max(self.count, 10)), points)
        return [(percentile, self.at(percentile)) for percentile in (100 * (1 - 10.0**-nines)).tolist()]

    def as_json(self) -> dict[str, object]:
        """Count, percentiles (ns), and all of it in HdrHistogram's own encoding (V2, base64)."""
        encoded = self._inner.encode()
        return {
            "unit": "ns",
            "count": self.count,
            "percentiles": {f"{percentile:g}": self.at(percentile) for percentile in PERCENTILES},
            "encoded": encoded.decode() if isinstance(encoded, bytes) else str(encoded),
        }
