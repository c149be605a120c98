"""Part 2, round trips: a 40-byte quote to another process and back, by a stream each way, a Pipe, a Queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shmdriver.demo.channels import Channel, PipeChannel, QueueChannel, StreamChannel
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.demo.stage import Row, Stage, cores

__all__ = ["run"]

_STOP = b"stop"
_PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
_OURS_S, _PEER_S = 1.0, 0.8


def run(stage: Stage) -> None:
    """Measures all three and adds a row a percentile."""
    quote = stage.quotes[:1].tobytes()
    rows = {"slots": 64, "slot_bytes": 64, "arena": 0}
    instance = stage.instance
    found: dict[str, list[float]] = {}
    lost = 0
    pairs: tuple[tuple[str, Callable[[str], Channel]], ...] = (
        ("shmdriver", lambda stream: StreamChannel(instance, stream, **rows)),
        ("Pipe", lambda _: PipeChannel()),
        ("Queue", lambda _: QueueChannel()),
    )
    for name, make in pairs:
        there, back = make("there"), make("back")
        first, second = cores()
        with stage.screen.bar(f"round trips: {name}"):
            seconds = stage.seconds(_OURS_S if name == "shmdriver" else _PEER_S)
            ping = Worker(f"{name}-ping", _ping, there, back, quote, seconds, core=first)
            pong = Worker(f"{name}-pong", _pong, there, back, core=second)
            trips, echoed = results([ping, pong], timeout_s=20)
        wrong = trips["wrong"] + abs(int(trips["count"] + trips["warm_up"]) - echoed)
        found[name] = trips["us"]
        text = "  ".join(
            f"{label} {us:.2f} µs" for (label, _), us in zip(_PERCENTILES, trips["us"], strict=True)
        )
        stage.screen.line(
            f"round trip, {name:<9}: {text}   ({trips['count']:,} trips)", "✓" if wrong == 0 else "✗"
        )
        if name == "shmdriver":
            lost = wrong
    for index, (label, _) in enumerate(_PERCENTILES):
        stage.rows.append(
            Row(
                f"round trip, {label}",
                "µs",
                found["shmdriver"][index],
                found["Pipe"][index],
                found["Queue"][index],
                lost=lost,
                lower=True,
            )
        )


def _ping(__: Port, there: Channel, back: Channel, quote: bytes, seconds: float) -> dict[str, Any]:
    receive = back.receiver()
    send = there.sender()
    now = time.perf_counter_ns
    trips: list[int] = []
    wrong, warm_up = 0, 200
    for _ in range(warm_up):
        send(quote)
        wrong += receive() != quote
    end_ns = now() + int(seconds * 1e9)
    start = now()
    while start < end_ns:
        start = now()
        send(quote)
        answer = receive()
        trips.append(now() - start)
        if answer != quote:
            wrong += 1
    send(_STOP)
    wrong += receive() != _STOP
    wrong += back.close()
    there.end()
    trips.sort()
    return {
        "count": len(trips),
        "warm_up": warm_up,
        "wrong": wrong,
        "us": [trips[int(len(trips) * share)] / 1e3 for _, share in _PERCENTILES],
    }


def _pong(__: Port, there: Channel, back: Channel) -> int:
    receive = there.receiver()
    send = back.sender()
    count = 0
    while (quote := receive()) != _STOP:
        send(quote)
        count += 1
    send(_STOP)
    there.close()
    back.end()
    return count
