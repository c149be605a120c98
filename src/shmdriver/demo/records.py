"""Part 2: quotes replayed as fast as they go, one by one and in batches, and the same by Pipe and Queue.

One by one the consumer compares every message with the quote that it must be. In batches every record
gets a running number, and the consumer checks each batch's first, last and sum of numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import numpy as np

from shmdriver.demo.channels import Channel, PipeChannel, QueueChannel, StreamChannel
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.demo.quotes import QUOTE
from shmdriver.demo.stage import DemoFailed, Row, Stage, cores

__all__ = ["run"]

_BATCH = 1024
_SLOTS = 65_536  # of 64 bytes: 4 MiB
_SINGLES_S, _BATCHES_S = 2.0, 1.5
_PEER_S = 1.0


def run(stage: Stage) -> None:
    """Measures both and checks every record."""
    singles = {"slots": _SLOTS // 4, "slot_bytes": 64, "arena": 0}
    ours, pipe, queue = _compare(
        stage,
        "one by one",
        _send_singles,
        _take_singles,
        _SINGLES_S,
        StreamChannel(stage.instance, "singles", **singles),
    )
    stage.rows.append(Row("quotes one by one", "M/s", ours[0], pipe[0], queue[0], ours[1]))
    ours, pipe, queue = _compare(
        stage,
        f"batches of {_BATCH}",
        _send_batches,
        _take_batches,
        _BATCHES_S,
        StreamChannel(stage.instance, "quotes", slots=_SLOTS),
    )
    stage.rows.append(Row(f"quotes, batches of {_BATCH}", "M/s", ours[0], pipe[0], queue[0], ours[1]))


def _compare(
    stage: Stage,
    label: str,
    send: Callable[..., int],
    take: Callable[..., dict[str, Any]],
    seconds: float,
    stream: StreamChannel,
) -> list[tuple[float, int]]:
    """(millions a second, lost) of a stream, a Pipe and a Queue."""
    found = []
    channels: tuple[tuple[str, Channel, float], ...] = (
        ("shmdriver", stream, seconds),
        ("Pipe", PipeChannel(), _PEER_S),
        ("Queue", QueueChannel(), _PEER_S),
    )
    for name, channel, seconds_of in channels:
        with stage.screen.bar(f"{label}: {name}") as bar:
            started_s = time.monotonic()
            limit_s = stage.seconds(seconds_of)
            writer, reader = cores()
            consumer = Worker(f"{name}-consumer", take, channel, stage.quotes, core=reader)
            producer = Worker(f"{name}-producer", send, channel, stage.quotes, limit_s, core=writer)

            def show(since_s: float = started_s, until_s: float = limit_s, bar: Any = bar) -> None:
                bar.update((time.monotonic() - since_s) / (until_s + 0.5))

            got, sent = results([consumer, producer], timeout_s=30, tick=show)
        lost = sent - got["count"] + got["wrong"] + got["lost"]
        found.append((got["count"] / got["seconds"] / 1e6, lost))
        if name != "shmdriver" and lost:
            raise DemoFailed(f"{name}, {label}: sent {sent}, received {got}")
        stage.screen.line(
            f"{label}, {name:<9}: {got['count']:>11,} records in {got['seconds']:.2f} s, "
            f"{found[-1][0]:>7.2f} M/s, all there, in order: {'yes' if lost == 0 else f'NO, {lost} are not'}",
            "✓" if lost == 0 else "✗",
        )
    return found


def _send_singles(_: Port, channel: Channel, quotes: np.ndarray[Any, Any], seconds: float) -> int:
    rows = _as_payloads(quotes)
    send = channel.sender()
    sent = 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for row in rows:
            send(row)
        sent += len(rows)
    channel.end()
    return sent


def _take_singles(_: Port, channel: Channel, quotes: np.ndarray[Any, Any]) -> dict[str, Any]:
    rows = _as_payloads(quotes)
    payloads = channel.payloads()
    first = next(payloads)
    wrong = 0
    started_s = time.perf_counter()
    count = wrong = 0
    expected = chain.from_iterable(repeat(rows))
    for count, (payload, row) in enumerate(zip(chain((first,), payloads), expected, strict=False), 1):  # noqa: B007
        if payload != row:
            wrong += 1
    return {
        "count": count,
        "wrong": wrong,
        "seconds": time.perf_counter() - started_s,
        "lost": channel.close(),
    }


def _send_batches(_: Port, channel: Channel, quotes: np.ndarray[Any, Any], seconds: float) -> int:
    # A whole number of batches: the quotes, and as many of the first again as it takes.
    block = np.resize(quotes, -(-len(quotes) // _BATCH) * _BATCH)
    block["id"] = np.arange(len(block))
    batches = [block[start : start + _BATCH] for start in range(0, len(block), _BATCH)]
    send = channel.record_sender(QUOTE)
    sent = 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for batch in batches:
            send(batch)
            batch["id"] += len(block)
        sent += len(block)
    channel.end()
    return sent


def _take_batches(_: Port, channel: Channel, __: np.ndarray[Any, Any]) -> dict[str, Any]:
    count = wrong = 0
    started_s = 0.0
    for batch in channel.record_batches(QUOTE):
        started_s = started_s or time.perf_counter()
        number = batch["id"]
        n = len(number)
        last = count + n - 1
        if number[0] != count or number[-1] != last or int(number.sum()) != (count + last) * n // 2:
            wrong += 1
        count += n
        del batch, number  # a view holds its place in the ring
    return {
        "count": count,
        "wrong": wrong,
        "seconds": time.perf_counter() - started_s,
        "lost": channel.close(),
    }


def _as_payloads(quotes: np.ndarray[Any, Any]) -> list[bytes]:
    raw, size = quotes.tobytes(), quotes.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
