"""What pairs of pinned Python processes do, the same for every channel.

    single     small messages, one call each way a message
    iterate    the same, read as a program iterates
    watch      the same by a consumer that may miss some (ours only)
    batch      64-byte records, 1,024 a call, read as arrays: each a message of its own
    array      the same records, 1,024 in one message (what peers do with records anyway)
    roundtrip  a message there and back, one in flight
    frames     large payloads, copied in; the reader looks at both ends of each
    claim      large payloads, written in place (a number at both ends)

Senders send for a time, in chunks; the last message of a chunk carries how many there were and whether it was
the last chunk. The receiver counts, compares, and measures from the end of the warm-up to the last message: a
run that loses or repeats anything is an error, not a figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel
from shmdriver.bench.native import Outcome
from shmdriver.bench.stream_channel import StreamChannel
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.errors import EndOfStream

__all__ = ["RECORD", "RECORDS", "SCENARIOS", "Run", "Scenario", "run"]

RECORD = np.dtype([("number", "<u8"), ("values", "<f8", (7,))])
RECORDS = 1024
_START_S = 60  # for processes to start, attach and end; one that hangs for longer has lost a message
_TOO_SHORT = "give it more seconds"
_LAST = 1 << 63
_LAST_FRAME = 255


@dataclass(frozen=True, slots=True)
class Run:
    """How long a run is, after how much warm-up, and on which cores its two sides are."""

    seconds: float = 0.5
    warm_s: float = 0.1
    cores: tuple[int, int] = (0, 1)
    chunk: int = 500


@dataclass(frozen=True, slots=True)
class Scenario:
    """``send(port, run, *channels)`` in one process, ``receive`` alike in the others."""

    name: str
    send: Callable[..., Any]
    receive: Callable[..., Any]
    two_way: bool = False


def run(scenario: Scenario, make: Callable[..., Channel], how: Run, **options: Any) -> Outcome:
    """One run over a channel of ``make(tag=..., **options)``. RuntimeError when anything was lost.

    With ``consumers`` in the options that many processes receive, all on the second core; what the
    slowest of them found is the result, and ``deliveries_s`` is what all of them received together.
    """
    tag = f"{scenario.name}-{time.monotonic_ns()}"
    ways = [make(tag=f"{tag}-{way}", **options) for way in range(2 if scenario.two_way else 1)]
    name, workers = ways[0].name, []
    try:
        for number in range(ways[0].consumers):
            role = f"{name}-receiver-{number}"
            workers.append(Worker(role, scenario.receive, how, *ways, core=how.cores[1]))
        workers.append(Worker(f"{name}-sender", scenario.send, how, *ways, core=how.cores[0]))
        *got, sent = results(workers, timeout_s=_START_S + how.warm_s + how.seconds)
    finally:
        for worker in workers:
            worker.end()
        for way in ways:
            way.destroy()
    found = _merged(got, sent, two_way=scenario.two_way)
    samples = found.pop("samples_ns", np.empty(0, np.uint64))
    if found.pop("wrong"):
        raise RuntimeError(f"{name}, {scenario.name}: messages are missing, repeated or wrong")
    return Outcome(found, samples)


def _merged(got: list[Any], sent: Any, *, two_way: bool) -> dict[str, Any]:
    if two_way:
        return dict(sent)
    found = dict(min(got, key=lambda each: each["messages_s"]))
    found["deliveries_s"] = sum(each["messages_s"] for each in got)
    found["wrong"] = sum(each["wrong"] for each in got)
    return found | {"produced_s": sent["produced_s"]}


class _Pace:
    """Says when the warm-up and when the run is over, and how fast it was; asked once a chunk."""

    def __init__(self, how: Run) -> None:
        self._warm_s = time.perf_counter() + how.warm_s
        self._end_s = self._warm_s + how.seconds
        self._start_s = self._now_s = 0.0
        self._start_count = self._count = 0

    def goes_on(self, count: int) -> bool:
        self._count, self._now_s = count, time.perf_counter()
        if not self._start_s and self._now_s >= self._warm_s:
            self._start_s, self._start_count = self._now_s, count
        return self._now_s < self._end_s or self._count == self._start_count

    @property
    def per_second(self) -> float:
        if not self._start_s or self._count == self._start_count:
            raise RuntimeError(f"the run was over before its warm-up: {_TOO_SHORT}")
        return (self._count - self._start_count) / (self._now_s - self._start_s)


def _stamp(payload: bytes, number: int, *, last: bool) -> bytes:
    return (number | (_LAST if last else 0)).to_bytes(8, "little") + payload[8:]


def _stamp_of(payload: Buffer) -> int:
    return int.from_bytes(bytes(payload)[:8], "little")


# ---- one way. A receiver says when it is through; only then a sender closes.


def _send_messages(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    send, payload = way.sender(), bytes(way.bytes_each)
    pace, count = _Pace(how), 0
    goes_on = True
    while goes_on:
        for _ in range(how.chunk - 1):
            send(payload)
        count += how.chunk
        goes_on = pace.goes_on(count)
        send(_stamp(payload, count, last=not goes_on))
    return _sent(way, pace)


def _count_chunks(how: Run, way: Channel, take_chunk: Callable[[], Buffer]) -> dict[str, float]:
    # No message is kept: one in the arena is a view, and what it holds the sender cannot use again.
    wrong, count = int(_stamp_of(take_chunk()) != how.chunk), how.chunk
    pace = _Pace(how)
    pace.goes_on(count)
    last = False
    while not last:
        stamp = _stamp_of(take_chunk())
        count += how.chunk
        pace.goes_on(count)
        last = stamp >= _LAST
        wrong += stamp & (_LAST - 1) != count
        if wrong:
            raise RuntimeError(f"{way.name}: message {stamp & (_LAST - 1)} came as number {count}")
    return _received(way, pace, wrong=wrong)


def _receive_messages(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    receive, rest = way.receiver(), range(how.chunk - 1)

    def take_chunk() -> Buffer:
        for _ in rest:
            receive()
        return receive()

    return _count_chunks(how, way, take_chunk)


def _iterate_messages(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    messages, size = way.iterator(), how.chunk

    def take_chunk() -> Buffer:
        left = size
        for payload in messages:
            left -= 1
            if not left:
                return payload
        raise RuntimeError(f"{way.name}: the messages ended too early")

    return _count_chunks(how, way, take_chunk)


def _send_records(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    return _send_numbers(how, way, way.record_sender(RECORD), np.zeros(RECORDS, RECORD))


def _send_arrays(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    records = np.zeros(RECORDS, RECORD)
    return _send_numbers(how, way, way.array_sender(records), records)


def _send_numbers(
    how: Run, way: Channel, send: Callable[[Array], object], records: Array
) -> dict[str, float]:
    number = records["number"]
    number[:] = np.arange(RECORDS)
    pace, count, goes_on = _Pace(how), 0, True
    while goes_on:
        count += RECORDS
        goes_on = pace.goes_on(count)
        if not goes_on:
            number[-1] |= np.uint64(_LAST)
        send(records)
        number += RECORDS
    return _sent(way, pace)


def _receive_records(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    return _receive_numbers(how, way, way.record_receiver(RECORD))


def _receive_arrays(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    return _receive_numbers(how, way, way.array_receiver(RECORD))


def _receive_numbers(how: Run, way: Channel, receive: Callable[[], Array]) -> dict[str, float]:
    records = receive()
    count, wrong, last = len(records), 0, False
    pace = _Pace(how)
    while not last:
        records = receive()
        first, end = records["number"][[0, -1]].tolist()
        wrong += first & (_LAST - 1) != count
        count += len(records)
        last = end >= _LAST
        wrong += end & (_LAST - 1) != count - 1
        pace.goes_on(count)
    del records
    return _received(way, pace, wrong=wrong)


def _send_frames(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    send, body = way.sender(), bytes(way.bytes_each - 2)
    frames = {number: bytes([number]) + body + bytes([number]) for number in (*range(8), _LAST_FRAME)}
    return _send_numbered(how, way, lambda number: send(frames[number]))


def _send_claims(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    return _send_numbered(how, way, way.claim_sender())


def _send_numbered(how: Run, way: Channel, send: Callable[[int], object]) -> dict[str, float]:
    """Frames 0 to 7 in turn; another number is the last one's."""
    pace, count, goes_on = _Pace(how), 0, True
    while goes_on:
        for number in range(7):
            send(number)
        count += 8
        goes_on = pace.goes_on(count)
        send(7 if goes_on else _LAST_FRAME)
    return _sent(way, pace)


def _receive_frames(_port: Port, how: Run, way: Channel) -> dict[str, float]:
    receive = way.receiver()
    count, wrong, last = 0, 0, False
    pace: _Pace | None = None
    while not last:
        frame = receive()
        view: Any = getattr(frame, "data", frame)
        first, end = view[0], view[-1]
        last = first == _LAST_FRAME
        wrong += first != end or (not last and first != count & 7)
        del frame, view
        count += 1
        pace = pace or _Pace(how)
        pace.goes_on(count)
    assert pace is not None
    return _received(way, pace, wrong=wrong)


def _sent(way: Channel, pace: _Pace) -> dict[str, float]:
    way.sent()
    way.close()
    return {"produced_s": pace.per_second}


def _received(way: Channel, pace: _Pace, *, wrong: int) -> dict[str, float]:
    rate = pace.per_second
    lost = way.close()
    return {"messages_s": rate, "gb_s": rate * way.bytes_each / 1e9, "wrong": wrong + lost}


def _watch_messages(_port: Port, how: Run, way: StreamChannel) -> dict[str, float]:
    """For consumers that do not get everything: whatever comes, up to the end of the stream."""
    read, rest = way.consumer().read, range(how.chunk - 1)
    count, wrong, seq = 0, 0, -1
    pace: _Pace | None = None
    try:
        while True:
            for _ in rest:
                read()
            message = read()
            count += how.chunk
            wrong += message.seq <= seq
            seq = message.seq
            pace = pace or _Pace(how)
            pace.goes_on(count)
    except EndOfStream:
        pass
    if pace is None:
        raise RuntimeError(f"{way.name}: not even {how.chunk} messages came: {_TOO_SHORT}")
    return _received(way, pace, wrong=wrong)


# ---- there and back


def _ping(_port: Port, how: Run, there: Channel, back: Channel) -> dict[str, Any]:
    send, receive = there.sender(), back.receiver()  # in this order: some wait for the other end here
    now, payload = time.perf_counter_ns, bytes(there.bytes_each)
    warm_ns = now() + int(how.warm_s * 1e9)
    end_ns = warm_ns + int(how.seconds * 1e9)
    trips: list[int] = []
    warm, count, goes_on, wrong = 0, 0, True, 0
    while goes_on:
        for _ in range(how.chunk - 1):
            start = now()
            send(payload)
            receive()
            trips.append(now() - start)
        count += how.chunk
        warm = warm or (len(trips) if now() >= warm_ns else 0)
        goes_on = now() < end_ns or warm == len(trips)
        stamp = _stamp(payload, count, last=not goes_on)
        send(stamp)
        wrong += bytes(receive()) != stamp
    there.sent()
    there.close()
    wrong += back.close()
    samples = np.array(trips[warm:], np.uint64)
    shares = {"p50_us": 50.0, "p99_us": 99.0, "p999_us": 99.9}
    found: dict[str, Any] = {name: float(np.percentile(samples, at)) / 1e3 for name, at in shares.items()}
    return found | {"wrong": wrong, "samples_ns": samples}


def _pong(_port: Port, how: Run, there: Channel, back: Channel) -> None:
    receive, send = there.receiver(), back.sender()
    last = False
    while not last:
        message: Any = b""
        for _ in range(how.chunk):
            message = receive()
            if not isinstance(message, bytes):
                message = bytes(message)
            send(message)
        last = _stamp_of(message) >= _LAST
    back.sent()
    back.close()
    there.close()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("single", _send_messages, _receive_messages),
        Scenario("iterate", _send_messages, _iterate_messages),
        Scenario("batch", _send_records, _receive_records),
        Scenario("array", _send_arrays, _receive_arrays),
        Scenario("roundtrip", _ping, _pong, two_way=True),
        Scenario("watch", _send_messages, _watch_messages),
        Scenario("frames", _send_frames, _receive_frames),
        Scenario("claim", _send_claims, _receive_frames),
    )
}
