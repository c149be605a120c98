"""What the driver costs on this machine: starting, attaching, ticking, and doing nothing.

    python scripts/measure_driver.py

Attaches are timed around the C call, in one client, answered by a driver process: idle, and busy with two
other clients that attach and detach without a pause while a third publishes as fast as it can. Ticks are
timed in this process, under a clock that is moved so that a lease check is due in every one of them. Idle
CPU is what the kernel's scheduler counted. The load of the machine shows in all of it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver

ATTACHES = 500
TICKS = 500
IDLE_S = 8.0
SLOTS = 64
STARTS = 7
CHURN = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1]) as client:
    while True:
        client.consumer(sys.argv[2]).close()
        client.producer(sys.argv[2], slots=64).close()
"""
STREAMS, LEASES = 4096, 16384  # the most that limits allow
LIMITS = {
    "policies.limits.streams": STREAMS,
    "policies.limits.leases": LEASES,
    "profiles.default.max_consumers": 4,
    "profiles.default.arena": 0,
}
HOLD = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1], timeout=60) as client:
    attach = getattr(client, sys.argv[2])
    options = {"slots": 64} if sys.argv[2] == "producer" else {}
    held = [attach(f"s{n}", attach_timeout=60, **options) for n in range(int(sys.argv[3]))]
    print("held", flush=True)
    sys.stdin.read()
"""
PUBLISH = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1]) as client:
    out = client.producer("load")
    while True:
        out.publish(b"x" * 32)
"""


def show(text: str, value: str) -> None:
    """One line."""
    print(f"{text:<64} {value}", flush=True)


def spread(nanoseconds: list[int]) -> str:
    """Median, 99th percentile and largest, in microseconds."""
    ordered = sorted(nanoseconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    p50 = statistics.median(ordered)
    return f"p50 {p50 / 1e3:8.1f}   p99 {p99 / 1e3:8.1f}   max {ordered[-1] / 1e3:8.1f} us"


def timed(call: Callable[[], object]) -> int:
    """How long one call takes, in nanoseconds."""
    started_ns = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started_ns


@contextmanager
def driver_process(instance: str, settings: dict[str, int] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``shmdriver run``, serving."""
    command = [sys.executable, "-m", "shmdriver", "run", "-i", instance]
    variables = {
        f"SHMDRIVER_{key.replace('.', '_').upper()}": str(value) for key, value in (settings or {}).items()
    }
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})
    try:
        assert process.stderr is not None
        if not any(" serves: " in line for line in process.stderr):
            raise SystemExit("the driver did not start")
        yield process
    finally:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        process.communicate()


@contextmanager
def busy(instance: str) -> Iterator[None]:
    """Two clients that come and go, one that publishes."""
    scripts = [(CHURN, "churn-a"), (CHURN, "churn-b"), (PUBLISH, "")]
    processes = [subprocess.Popen([sys.executable, "-c", script, instance, name]) for script, name in scripts]
    try:
        with shmdriver.connect(instance) as client:
            while len(client.streams()) < len(scripts):
                client.consumer("load").close()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---- starting


def starting(instance: str) -> None:
    """A driver of this process that makes new segments, and one that adopts; a process from nothing."""
    config = Config.load(env={}, overrides={"driver.instance": instance})
    adopting: list[int] = []
    for turn in range(STARTS + 1):
        driver = Driver(config)
        took_ns = timed(driver.start)
        if turn == 0:
            show("start: new segments", f"{took_ns / 1e6:.1f} ms")
        else:
            adopting.append(took_ns)
        if turn < STARTS:
            driver.close()
        else:
            driver.request_shutdown()
            driver.run()
    show("start: adopting, no lease", f"{statistics.median(adopting) / 1e6:.1f} ms")

    def once() -> None:
        with driver_process(instance):
            pass

    cold = statistics.median(timed(once) for _ in range(3))
    show("process: start, serve, stop", f"{cold / 1e6:.0f} ms")


@contextmanager
def holders(instance: str) -> Iterator[None]:
    """Four processes that hold all leases: one producer and three consumers a stream."""
    command, held = [sys.executable, "-c", HOLD, instance], []
    try:
        for role in ("consumer", "consumer", "consumer", "producer"):
            process = subprocess.Popen(
                [*command, role, str(STREAMS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            held.append(process)
        for process in held:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "held":
                raise SystemExit("a client could not attach to all streams")
        yield
    finally:
        for process in held:
            process.kill()
            process.communicate()


def adopting(instance: str) -> None:
    """All streams and leases that limits allow: a handover to a driver here, and its first ticks."""
    with driver_process(instance, LIMITS) as process, holders(instance):
        process.send_signal(signal.SIGUSR1)
        process.wait()
        ahead = [0]
        driver = Driver(
            Config.load(env={}, overrides={"driver.instance": instance, **LIMITS}),
            clock=lambda: int(lib.shmd_now_ns()) + ahead[0],
        )
        text = f"adopting {STREAMS} streams, {LEASES} leases"
        show(f"{text}: until it serves", f"{timed(driver.start) / 1e6:.0f} ms")
        for what in ("the first lease check", "a lease check"):
            ahead[0] += 200_000_000
            show(f"{text}: {what}", f"{timed(driver.tick) / 1e6:.0f} ms")
    ahead[0] += 200_000_000
    show(f"{text}: the tick in which all die", f"{timed(driver.tick) / 1e6:.0f} ms")
    for _ in range(2):
        driver.request_shutdown()
    driver.run()


# ---- attaching


class Attacher:
    """Attaches and detaches by the C calls."""

    def __init__(self, instance: str) -> None:
        self._client = shmdriver.connect(instance, timeout=30)
        self._handle = self._client._connected().native  # noqa: SLF001 -- the C call is what is measured
        self._consumer = ffi.new("shmd_consumer_options *")
        self._consumer.delivery, self._consumer.start = lib.SHMD_DELIVERY_RELIABLE, lib.SHMD_START_NEWEST
        self._consumer.wait, self._consumer.timeout_ns = lib.SHMD_WAIT_ADAPTIVE, 10_000_000_000
        self._producer = ffi.new("shmd_producer_options *")
        self._producer.slots, self._producer.arena_bytes = SLOTS, 0
        self._producer.timeout_ns = 10_000_000_000
        for options in (self._consumer, self._producer):
            options.flags = lib.SHMD_ATTACH_CREATE

    def run(self, role: str) -> list[int]:
        """Times of that many attaches, in nanoseconds."""
        attach = getattr(lib, f"shmd_{role}_attach")
        close = getattr(lib, f"shmd_{role}_close")
        options: Any = getattr(self, f"_{role}")
        out = ffi.new(f"shmd_{role} **")
        found = []
        for _ in range(ATTACHES):
            started_ns = time.perf_counter_ns()
            code = attach(self._handle, b"measured", options, out)
            found.append(time.perf_counter_ns() - started_ns)
            if code != 0:
                raise SystemExit(f"attach: {ffi.string(lib.shmd_last_error()).decode()}")
            close(out[0])
        return found

    def close(self) -> None:
        """Goodbye."""
        self._client.close()


def attaching(instance: str) -> None:
    """Both roles, with an idle and a busy driver."""
    with driver_process(instance):
        attacher = Attacher(instance)
        for role in ("consumer", "producer"):
            show(f"attach: {role}, idle driver", spread(attacher.run(role)))
        with busy(instance):
            for role in ("consumer", "producer"):
                show(f"attach: {role}, busy driver", spread(attacher.run(role)))
        attacher.close()


# ---- ticking


def ticking(instance: str, leases: int) -> None:
    """Ticks of a driver with so many leases: with nothing due, and with a lease check in each."""
    hour_ms = 3_600_000  # nobody is late under a clock that runs ahead
    limits = {"policies.limits.leases": 2048, "policies.limits.streams": 256}
    times = {"policies.heartbeat_interval_ms": hour_ms, "policies.lease_timeout_ms": 4 * hour_ms}
    ahead = [0]
    driver = Driver(
        Config.load(env={}, overrides={"driver.instance": instance, **limits, **times}),
        clock=lambda: int(lib.shmd_now_ns()) + ahead[0],
    )
    driver.start()
    stop = threading.Event()

    def attach() -> None:
        with shmdriver.connect(instance, timeout=60) as client:
            held = [client.consumer(f"s{number // 16}", attach_timeout=60) for number in range(leases)]
            attached.set()
            stop.wait()
            del held

    attached = threading.Event()
    thread = threading.Thread(target=attach)
    thread.start()
    while not attached.is_set():
        driver.tick()
    for _ in range(50):
        driver.tick()
    show(f"tick: {leases} leases, nothing due", spread([timed(driver.tick) for _ in range(TICKS)]))
    found = []
    for _ in range(TICKS):
        ahead[0] += 100_000_000
        found.append(timed(driver.tick))
    show(f"tick: {leases} leases, a lease check in each", spread(found))
    stop.set()
    while thread.is_alive():
        driver.tick()
    driver.request_shutdown()
    driver.run()


# ---- doing nothing


def cpu_ns(pid: int) -> int:
    """What the scheduler has given to all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def idling(instance: str) -> None:
    """A driver whose clients do nothing."""
    with driver_process(instance) as process, shmdriver.connect(instance) as client:
        for leases in (0, 100):
            held = [client.consumer(f"s{number // 16}") for number in range(leases)]
            before_ns, began_ns = cpu_ns(process.pid), time.perf_counter_ns()
            threading.Event().wait(IDLE_S)
            share = (cpu_ns(process.pid) - before_ns) / (time.perf_counter_ns() - began_ns)
            show(f"idle: CPU of a driver with 1 client, {leases} leases", f"{share:.2%} of a core")
            del held


def main() -> int:
    """Prints all figures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    name = f"measured-{os.getpid()}-{secrets.token_hex(3)}"
    starting(f"{name}-a")
    adopting(f"{name}-d")
    attaching(f"{name}-b")
    for leases in (0, 100, 1000):
        ticking(f"{name}-{leases}", leases)
    idling(f"{name}-c")
    return 0


if __name__ == "__main__":
    sys.exit(main())
