"""A program of test_client_owners.py: collects handles while their driver is stopped, and prints counts.

It runs with the build that counts entries into waiting calls, for each thread (csrc/shmd_failpoint.h).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.chaos.zygote import NATIVE_VARIABLE, use_native

use_native(os.environ[NATIVE_VARIABLE])

import shmdriver  # noqa: E402
from shmdriver._native import lib  # noqa: E402
from shmdriver.driver.embedded import EmbeddedDriver  # noqa: E402
from shmdriver.observe import Instance  # noqa: E402
from tests.chaos.stage import wait_until  # noqa: E402

TICK = np.dtype([("n", "<i8")])
CYCLES = 30  # of each kind: with all of them the control ring of 64 requests is full


def waits_of(act: Callable[[], object]) -> int:
    """How many waiting calls this thread enters in ``act``."""
    waits: Callable[[], int] = lib.shmd_waits_entered  # type: ignore[attr-defined]
    before = waits()
    act()
    return waits() - before


def in_a_cycle(*objects: Any) -> None:
    cycle: list[Any] = list(objects)
    cycle.append(cycle)


def make_garbage(client: shmdriver.Client, first: int, last: int) -> None:
    for number in range(first, last):
        consumer = client.consumer(f"a{number}")
        producer = client.producer(f"a{number}", slots=16, max_message=4096)
        producer.publish(bytes(4000))
        reader = client.consumer(f"b{number}", dtype=TICK)
        writer = client.producer(f"b{number}", dtype=TICK, slots=16)
        writer.publish(np.zeros(4, TICK))
        claimer = client.producer(f"c{number}", slots=16, max_message=64)
        watched = client.consumer(f"a{number}")
        watched.fileno()
        in_a_cycle(consumer, producer, consumer.read())
        in_a_cycle(reader, writer, reader.read_batch())
        in_a_cycle(claimer, claimer.claim(8))
        in_a_cycle(watched)
    queue = client.queue(f"q{first}")
    queue.put(bytes(4000))
    queue.get(timeout=60)
    queue.put(np.zeros(4000))  # nobody has got it
    in_a_cycle(queue, client.queue(f"r{first}"))


def collected_in(kind: str, instance: str, driver: int) -> int:
    """Entries into waiting calls of a thread that collects handles while their driver is stopped."""
    clients = [shmdriver.connect(instance) for _ in range(4)]
    for number, client in enumerate(clients):
        make_garbage(client, number * CYCLES // 4, (number + 1) * CYCLES // 4)
    in_a_cycle(*clients)
    del client
    clients.clear()
    found: list[int] = []
    os.kill(driver, signal.SIGSTOP)
    try:
        if kind == "main":
            found.append(waits_of(gc.collect))
        else:
            thread = threading.Thread(target=lambda: found.append(waits_of(gc.collect)))
            thread.start()
            thread.join()
    finally:
        os.kill(driver, signal.SIGCONT)
    return found[0]


def collected_in_the_drivers_thread() -> int:
    """As collected_in(), in the thread of a driver that the handles belong to."""
    embedded = EmbeddedDriver()
    embedded.start()
    driver = embedded._driver
    assert driver is not None
    client = shmdriver.connect(embedded.instance)
    make_garbage(client, 0, 4)
    in_a_cycle(client)
    del client
    found: list[int] = []
    done = threading.Event()
    take = driver._ring.take

    def collect_and_take(now_ns: int) -> Any:
        if not done.is_set():
            found.append(waits_of(gc.collect))
            done.set()
        return take(now_ns)

    driver._ring.take = collect_and_take  # type: ignore[method-assign]
    driver.wake()
    assert done.wait(60)
    with Instance(embedded.instance) as view:
        wait_until(lambda: not view.leases() and not view.clients(), "all leases and clients to end")
    embedded.stop()
    return found[0]


def main() -> None:
    instance = sys.argv[1]
    gc.disable()
    warnings.simplefilter("ignore", ResourceWarning)
    driver = subprocess.Popen(
        [sys.executable, "-m", "shmdriver", "run", "--instance", instance], stderr=subprocess.DEVNULL
    )
    counted = {}
    try:
        shmdriver.connect(instance, reconnect=True, timeout=60).close()
        with Instance(instance) as view:
            for kind in ("main", "other"):
                counted[kind] = collected_in(kind, instance, driver.pid)
                wait_until(lambda: not view.leases() and not view.clients(), "all leases and clients to end")
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait(60)
    counted["driver"] = collected_in_the_drivers_thread()
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
