"""How long messages were on their way: the log-linear histogram of publish-to-read times in a gate.

A stream whose producer has ``timestamps=True`` carries the publish time in every message; its consumers count
``read - publish`` in 256 buckets, 8 to each power of two of nanoseconds (HdrHistogram's layout with 3 bits of
precision), so that a percentile is exact to 12.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shmdriver._native import ffi, lib

__all__ = ["LatencyStatus", "latency_status"]


@dataclass(frozen=True, slots=True)
class LatencyStatus:
    """Publish-to-read times of one consumer in one epoch, in ns; each is the upper end of its bucket.

    Read means: fetched into the consumer's process. A full bucket (2^32) halves all, so ``count`` may be
    less than what was read.
    """

    count: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int


def latency_status(gate: object) -> LatencyStatus | None:
    """Of a gate in place; None when nothing was counted: no timestamps, or nothing was read."""
    return _summary(ffi.unpack(ffi.cast("shmd_gate_t *", gate).latency, int(lib.SHMD_LATENCY_BUCKETS)))


def _summary(buckets: Sequence[int]) -> LatencyStatus | None:
    count = sum(buckets)
    if count == 0:
        return None
    highest = max(index for index, n in enumerate(buckets) if n)
    wanted = [-(-count * share // 1000) for share in (500, 990, 999)]
    found: list[int] = []
    seen = 0
    for index, n in enumerate(buckets):
        seen += n
        while len(found) < len(wanted) and seen >= wanted[len(found)]:
            found.append(_upper_end_ns(index))
    p50_ns, p99_ns, p999_ns = found
    return LatencyStatus(count, p50_ns, p99_ns, p999_ns, _upper_end_ns(highest))


def _upper_end_ns(bucket: int) -> int:
    return int(lib.shmd_latency_bucket_floor(bucket + 1)) - 1
