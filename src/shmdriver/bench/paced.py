"""Python at a fixed rate: latency from when a message was due until its consumer has it. Idle consumers.

As programs/paced.c does it: message i is due at start + i / rate whatever happened before, so that a hold-up
makes every message late that was due meanwhile. An idle consumer is one to
whom nothing is published: what counts is the processor time that it takes.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np

from shmdriver.bench.native import Outcome
from shmdriver.bench.scenarios import Run
from shmdriver.bench.stream_channel import StreamChannel
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.errors import EndOfStream

__all__ = ["idle", "run"]

_DUE = struct.Struct("<qq")  # when it was due (0: all is over), its number
_TIMEOUT_S = 60
_START_AFTER_NS = 5_000_000


def run(how: Run, rate: int, **options: Any) -> Outcome:
    """Latencies of a stream of ``rate`` messages a second. RuntimeError when a reliable one lost any."""
    way = StreamChannel(tag=f"paced-{time.monotonic_ns()}", **options)
    workers = []
    try:
        workers.append(Worker("paced-receiver", _receive, how, way, core=how.cores[1]))
        workers.append(Worker("paced-sender", _send, how, rate, way, core=how.cores[0]))
        found, _ = results(workers, timeout_s=_TIMEOUT_S)
    finally:
        for worker in workers:
            worker.end()
    if found.pop("wrong"):
        raise RuntimeError(f"paced at {rate}: messages are missing, repeated or wrong")
    samples = found.pop("samples_ns")
    shares = {"p50_ns": 50.0, "p99_ns": 99.0, "p999_ns": 99.9}
    return Outcome(found | {name: float(np.percentile(samples, at)) for name, at in shares.items()}, samples)


def idle(how: Run, **options: Any) -> Outcome:
    """The share of a core that a consumer takes while nothing comes for ``how.seconds``."""
    way = StreamChannel(tag=f"idle-{time.monotonic_ns()}", **options)
    workers = []
    try:
        workers.append(Worker("idle-receiver", _receive_nothing, how, way, core=how.cores[1]))
        workers.append(Worker("idle-sender", _send_nothing, how, way, core=how.cores[0]))
        found, _ = results(workers, timeout_s=_TIMEOUT_S)
    finally:
        for worker in workers:
            worker.end()
    return Outcome(found)


def _send(_port: Port, how: Run, rate: int, way: StreamChannel) -> None:
    publish, now, pack = way.sender(), time.monotonic_ns, _DUE.pack
    rest = bytes(way.bytes_each - _DUE.size)
    start_ns = now() + _START_AFTER_NS
    for number in range(int(rate * (how.warm_s + how.seconds))):
        due_ns = start_ns + number * 1_000_000_000 // rate
        while now() < due_ns:
            pass
        publish(pack(due_ns, number) + rest)
    publish(pack(0, 0) + rest)
    way.close()


def _receive(_port: Port, how: Run, way: StreamChannel) -> dict[str, Any]:
    read, now, unpack = way.consumer().read, time.monotonic_ns, _DUE.unpack_from
    latencies: list[tuple[int, int]] = []
    wrong = missed = next_number = 0
    while True:
        message = read()
        due_ns, number = unpack(message.data)
        if not due_ns:
            break
        latencies.append((due_ns, now() - due_ns))
        missed += number - next_number
        wrong += number < next_number
        next_number = number + 1
    if way.reliable:
        wrong += missed
    way.close()
    found = np.array(latencies, np.int64)
    warm_ns = int(found[0, 0]) + int(how.warm_s * 1e9)
    samples = found[found[:, 0] >= warm_ns, 1]
    return {"samples_ns": samples, "missed": missed, "wrong": wrong}


def _send_nothing(_port: Port, how: Run, way: StreamChannel) -> None:
    publish = way.sender()
    publish(b"soon")  # goes out when the consumer is there
    time.sleep(how.seconds)
    publish(b"over")
    way.close()


def _receive_nothing(_port: Port, _how: Run, way: StreamChannel) -> dict[str, float]:
    read = way.consumer().read
    read()
    cpu_s, start_s = time.process_time(), time.perf_counter()
    try:
        read()
    except EndOfStream:
        raise RuntimeError("the stream ended before its message") from None
    share = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
    way.close()
    return {"cpu_share": share}
