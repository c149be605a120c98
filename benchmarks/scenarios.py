"""The same work for every peer, in two pinned processes.

    single     64-byte messages, one call each way a message
    iterate    the same, read as a program iterates (the same as single where there is no iteration)
    batch      64-byte records, 1,024 a call, read as arrays
    roundtrip  64 bytes there and back
    frames     1 MiB, copied in; the reader looks at both ends
    claim      1 MiB, written in place (a number at both ends)

The receiver counts, and looks at the number that the last message carries; a run that loses anything
is an error, not a figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.machine import cores
from benchmarks.peers import Peer
from shmdriver.demo.processes import Port, Worker, results

RECORD = np.dtype([("number", "<u8"), ("values", "<f8", (7,))])
BATCH = 1024
_WARM_UP = 500
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    unit: str
    metric: str
    bytes_each: int
    send: Callable[..., Any]
    receive: Callable[..., Any]
    two_way: bool = False
    lower: bool = False


def run(scenario: Scenario, peer: type[Peer], instance: str) -> dict[str, float]:
    """One run. DemoFailed when a process fails; RuntimeError when messages are lost."""
    n = peer.counts[scenario.name]
    first, second = cores()
    tag = f"{scenario.name}-{time.monotonic_ns()}"
    ways = [
        peer(instance=instance, tag=f"{tag}-{way}", bytes_each=scenario.bytes_each)
        for way in range(2 if scenario.two_way else 1)
    ]
    try:
        consumer = Worker(f"{peer.name}-receiver", scenario.receive, n, *ways, core=second)
        producer = Worker(f"{peer.name}-sender", scenario.send, n, *ways, core=first)
        got, sent = results([consumer, producer], timeout_s=_TIMEOUT_S)
    finally:
        for way in ways:
            way.destroy()
    found: dict[str, float] = sent if scenario.two_way else got
    if found.pop("wrong"):
        raise RuntimeError(f"{peer.name}, {scenario.name}: messages are missing or wrong")
    return found


# ---- one way. A receiver says when it is through; only then a sender closes.


def _send_messages(port: Port, n: int, way: Peer) -> None:
    send = way.sender()
    payload = bytes(way.bytes_each)
    last = (n - 1).to_bytes(8, "little") + payload[8:]
    for _ in range(n - 1):
        send(payload)
    send(last)
    _finish(way)


def _receive_messages(port: Port, n: int, way: Peer) -> dict[str, float]:
    receive = way.receiver()
    payload = receive()
    start_s = time.perf_counter()
    for _ in range(n - 1):
        payload = receive()
    seconds = time.perf_counter() - start_s
    return _rates(way, n, seconds, wrong=_number_of(payload) != n - 1)


def _iterate_messages(port: Port, n: int, way: Peer) -> dict[str, float]:
    messages = way.iterator()
    payload = next(messages)
    start_s, left = time.perf_counter(), n - 1
    for payload in messages:  # noqa: B007
        left -= 1
        if not left:
            break
    seconds = time.perf_counter() - start_s
    return _rates(way, n, seconds, wrong=_number_of(payload) != n - 1)


def _send_records(port: Port, n: int, way: Peer) -> None:
    send = way.record_sender(RECORD)
    records = np.zeros(BATCH, RECORD)
    number = records["number"]
    number[:] = np.arange(BATCH)
    for _ in range(n // BATCH):
        send(records)
        number += BATCH
    _finish(way)


def _receive_records(port: Port, n: int, way: Peer) -> dict[str, float]:
    n = n // BATCH * BATCH
    receive = way.record_receiver(RECORD)
    records = receive()
    first = count = len(records)
    wrong = 0
    start_s = time.perf_counter()
    while count < n:
        records = receive()
        wrong += records["number"][0] != count
        count += len(records)
    seconds = time.perf_counter() - start_s
    wrong += records["number"][-1] != n - 1
    del records
    return _rates(way, n - first + 1, seconds, wrong=bool(wrong) or count != n)


def _send_claims(port: Port, n: int, way: Peer) -> None:
    send = way.claim_sender()
    for number in range(n):
        send(number)
    _finish(way)


def _send_frames(port: Port, n: int, way: Peer) -> None:
    send = way.sender()
    frames = [bytes([number]) + bytes(way.bytes_each - 2) + bytes([number]) for number in range(8)]
    for number in range(n):
        send(frames[number & 7])
    _finish(way)


def _receive_frames(port: Port, n: int, way: Peer, mask: int = 7) -> dict[str, float]:
    receive = way.receiver()
    wrong = 0
    start_s = 0.0
    for number in range(n):
        frame = receive()
        view: Any = getattr(frame, "data", frame)
        start_s = start_s or time.perf_counter()
        if view[0] != number & mask or view[-1] != number & mask:
            wrong += 1
        del frame, view
    seconds = time.perf_counter() - start_s
    return _rates(way, n, seconds, wrong=bool(wrong))


def _receive_claims(port: Port, n: int, way: Peer) -> dict[str, float]:
    return _receive_frames(port, n, way, mask=0xFF)


# ---- there and back


def _ping(port: Port, n: int, there: Peer, back: Peer) -> dict[str, float]:
    receive = back.receiver()
    send = there.sender()
    now = time.perf_counter_ns
    payload = bytes(there.bytes_each)
    trips = []
    for _ in range(n + _WARM_UP):
        start = now()
        send(payload)
        receive()
        trips.append(now() - start)
    _finish(there)
    wrong = back.close()
    trips = sorted(trips[_WARM_UP:])
    share = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
    return {name: trips[int(n * at)] / 1e3 for name, at in share.items()} | {"wrong": wrong}


def _pong(port: Port, n: int, there: Peer, back: Peer) -> None:
    receive = there.receiver()
    send = back.sender()
    for _ in range(n + _WARM_UP):
        message = receive()
        send(message if isinstance(message, bytes) else bytes(message))
    _finish(back)
    there.close()


def _finish(way: Peer) -> None:
    way.sent()
    way.close()


def _rates(way: Peer, n: int, seconds: float, *, wrong: bool) -> dict[str, float]:
    lost = way.close()
    rate = (n - 1) / seconds
    return {"millions_s": rate / 1e6, "gb_s": rate * way.bytes_each / 1e9, "wrong": int(wrong) + lost}


def _number_of(payload: Any) -> int:
    return int.from_bytes(bytes(payload)[:8], "little")


MIB = 1 << 20
SCENARIOS = (
    Scenario("single", "64 B one by one", "M/s", "millions_s", 64, _send_messages, _receive_messages),
    Scenario("iterate", "64 B, iterated", "M/s", "millions_s", 64, _send_messages, _iterate_messages),
    Scenario(
        "batch", f"64 B records, {BATCH} a call", "M/s", "millions_s", 64, _send_records, _receive_records
    ),
    Scenario("roundtrip", "64 B round trip, p50", "µs", "p50_us", 64, _ping, _pong, two_way=True, lower=True),
    Scenario("frames", "1 MiB copied in", "GB/s", "gb_s", MIB, _send_frames, _receive_frames),
    Scenario("claim", "1 MiB claimed", "M frames/s", "millions_s", MIB, _send_claims, _receive_claims),
)
