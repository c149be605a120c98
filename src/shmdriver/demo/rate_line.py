"""Part 4's two processes, and the line that shows what arrives, verified, in records a second.

The producer publishes quotes that carry a running number, at a fixed pace. The consumer checks every
number and says a few times a second how many it has seen of each epoch.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from shmdriver import Client
from shmdriver.demo.processes import Port, Worker
from shmdriver.demo.screen import Screen
from shmdriver.demo.stage import DemoFailed

__all__ = ["PACE_PER_S", "RateLine", "consume", "produce"]

PACE_PER_S = 500_000
_BATCH = 500  # one a millisecond
_REPORT_S = 0.05
_SPARKS = "▁▂▃▄▅▆▇█"
_WINDOW_S = 0.5


def produce(port: Port, client: Client, stream: str, quotes: np.ndarray[Any, Any]) -> int:
    """Publishes until it is asked to stop; how many."""
    block = np.resize(quotes, _BATCH)
    sent = 0
    pause_s = _BATCH / PACE_PER_S
    with client, client.producer(stream, dtype=quotes.dtype) as out:
        due_s = time.monotonic()
        while not port.asked_to_stop():
            block["id"] = np.arange(sent, sent + _BATCH)
            out.publish(block)
            sent += _BATCH
            due_s += pause_s
            now_s = time.monotonic()
            if due_s > now_s:
                time.sleep(due_s - now_s)
            elif now_s - due_s > 0.1:
                due_s = now_s  # it was held back: go on at the pace, do not make up for it
        return sent


def consume(port: Port, client: Client, stream: str) -> dict[str, Any]:
    """Reads across producers until it is asked to stop: records of each epoch, and what was out of order."""
    counts: dict[int, int] = {}
    wrong = 0
    reported_s = time.monotonic()
    with client, client.consumer(stream, follow=True) as consumer:
        port.progress((time.monotonic(), {}))
        while not port.asked_to_stop():
            batch = consumer.read_batch(timeout=_REPORT_S)
            if batch is not None:
                epoch, number = consumer.epoch, batch["id"]
                expected = counts.get(epoch, 0)
                n = len(number)
                wrong += not np.array_equal(number, np.arange(expected, expected + n, dtype=number.dtype))
                counts[epoch] = expected + n
                del batch, number  # a view holds its place in the ring
            now_s = time.monotonic()
            if now_s - reported_s >= _REPORT_S:
                reported_s = now_s
                port.progress((now_s, dict(counts)))
        return {"counts": counts, "wrong": wrong, "lost": consumer.lost}


class RateLine:
    """What the consumer says it has verified, as a rate, drawn while something else happens."""

    def __init__(self, screen: Screen, consumer: Worker) -> None:
        self._screen = screen
        self.consumer = consumer
        self._samples: deque[tuple[float, int]] = deque()
        self._history: deque[float] = deque([0.0] * 40, maxlen=40)
        self._drawn_s = 0.0

    @property
    def counts(self) -> dict[int, int]:
        """Records by epoch, as last reported."""
        return self._report()[1]

    @property
    def total(self) -> int:
        """Records of all epochs, as last reported."""
        return sum(self.counts.values())

    def _report(self) -> tuple[float, dict[int, int]]:
        """When the consumer last reported, on the clock that all processes share, and what."""
        self.consumer.receive()
        return self.consumer.latest or (time.monotonic(), {})

    def _rate(self) -> float:
        """Records a second over the last half second; 0 when no report comes any more."""
        reported_s, counts = self._report()
        now_s, total = time.monotonic(), sum(counts.values())
        samples = self._samples
        if not samples or reported_s > samples[-1][0]:
            samples.append((reported_s, total))
        while len(samples) > 2 and samples[1][0] < reported_s - _WINDOW_S:
            samples.popleft()
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        if now_s - last_s > 4 * _REPORT_S or last_s <= first_s:
            return 0.0
        return (last - first) / (last_s - first_s)

    def watch(self, seconds: float, status: Any, text: str) -> float:
        """Draws for that long; the rate over the whole time, between the consumer's reports."""
        first_s, counts = self._report()
        first = sum(counts.values())
        until_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < until_s:
            self._draw(status, text, now_s)
            self.consumer.connection.poll(0.05)
        last_s, counts = self._report()
        return (sum(counts.values()) - first) / (last_s - first_s) if last_s > first_s else 0.0

    def wait_for(self, done: Any, seconds: float, status: Any, text: str) -> float:
        """Draws until ``done()``, at most ``seconds`` (DemoFailed); how long that took, in seconds."""
        start_s = time.monotonic()
        while not done():
            now_s = time.monotonic()
            if now_s > start_s + seconds:
                raise DemoFailed(f"{text}: not within {seconds:.0f} s")
            self._draw(status, text, now_s)
            time.sleep(0.005)
        return time.monotonic() - start_s

    def _draw(self, status: Any, text: str, now_s: float) -> None:
        rate = self._rate()
        if status is None or now_s - self._drawn_s < 0.1:
            return
        self._drawn_s = now_s
        self._history.append(rate)
        top = len(_SPARKS) - 1
        line = "".join(_SPARKS[min(top, int(top * each / PACE_PER_S + 0.5))] for each in self._history)
        status.update(f"{line} {rate:>9,.0f} records/s   {text}")
