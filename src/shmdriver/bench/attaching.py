"""From nothing to the first message: connect, attach, read, of a stream that is being published.

The stream's producer publishes every 100 µs in a process of its own, so that the first message is waited for
no longer than that; it sleeps in between, because the driver needs a core too.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from shmdriver.bench.native import Outcome
from shmdriver.bench.scenarios import Run
from shmdriver.client import Client, connect
from shmdriver.demo.processes import Port, Worker, results

__all__ = ["STEPS", "run"]

STEPS = ("connect", "attach", "first message")
_INTERVAL_S = 100e-6
_TIMEOUT_S = 30.0


def run(how: Run, instance: str) -> Outcome:
    """Percentiles (µs) of ``how.seconds`` of attaches, one after the other; the samples are the sums."""
    stream = f"attach-{time.monotonic_ns()}"
    producer = Worker("attach-producer", _publish, Client(instance), stream, core=how.cores[0])
    try:
        found = _attach_again_and_again(how, instance, stream, producer)
        producer.ask_to_stop()
        results([producer], timeout_s=_TIMEOUT_S)
    finally:
        producer.end()
    steps = np.array(found, np.int64)
    values = {
        f"{name.replace(' ', '_')}_us": float(np.median(steps[:, at])) / 1e3 for at, name in enumerate(STEPS)
    }
    whole = steps.sum(axis=1)
    shares = {"p50_us": 50.0, "p99_us": 99.0}
    return Outcome(
        values | {name: float(np.percentile(whole, at)) / 1e3 for name, at in shares.items()}, whole
    )


def _attach_again_and_again(how: Run, instance: str, stream: str, producer: Worker) -> list[Any]:
    now = time.perf_counter_ns
    found: list[tuple[int, int, int]] = []
    warm_s = time.monotonic() + how.warm_s
    end_s = warm_s + how.seconds
    deadline_s = time.monotonic() + _TIMEOUT_S
    while producer.latest is None:
        producer.receive()
        if time.monotonic() > deadline_s:
            raise RuntimeError("the producer of the stream to attach to did not start")
    while (at_s := time.monotonic()) < end_s or not found:
        start = now()
        with connect(instance) as client:
            connected = now()
            consumer = client.consumer(stream)
            attached = now()
            consumer.read()
            read = now()
        if at_s >= warm_s:
            found.append((connected - start, attached - connected, read - attached))
        producer.receive()
    return found


def _publish(port: Port, client: Client, stream: str) -> None:
    with client.producer(stream, max_message=64) as out:
        port.progress("ready")
        while not port.asked_to_stop():
            out.publish(bytes(64))
            time.sleep(_INTERVAL_S)
