"""Messages and bytes a second, from two looks at the same counters."""

from __future__ import annotations

from dataclasses import dataclass

from shmdriver._native import lib
from shmdriver.observe.records import StreamStatus


@dataclass(frozen=True, slots=True)
class Rate:
    """Per second, over the time between the last two looks."""

    messages: float
    bytes: float


class Rates:
    """Remembers the heads of streams; each :meth:`update` gives the rates since the one before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], tuple[int, int, int]] = {}

    def update(self, streams: tuple[StreamStatus, ...]) -> dict[str, Rate]:
        """Rates by stream name; a stream that is seen for the first time has none yet."""
        now_ns = int(lib.shmd_now_ns())
        rates, seen = {}, {}
        for stream in streams:
            epoch = stream.current
            if epoch is None:
                continue
            key = (stream.name, epoch.epoch)
            seen[key] = (now_ns, epoch.head, epoch.bytes)
            if key in self._seen:
                then_ns, head, count = self._seen[key]
                seconds = max(1, now_ns - then_ns) / 1e9
                rates[stream.name] = Rate(
                    max(0, epoch.head - head) / seconds, max(0, epoch.bytes - count) / seconds
                )
        self._seen = seen
        return rates
