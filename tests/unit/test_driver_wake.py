"""What wakes a driver changes the word that it sleeps on: nothing is lost between its look and its sleep.

Timers are an hour away here, so a wake-up that is lost is a test that does not end.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.embedded import EmbeddedDriver

HANG_S = 400
HOUR_MS = 3_600_000
LONG = {
    "policies.announce_interval_ms": HOUR_MS,
    "policies.lease_timeout_ms": HOUR_MS,
    "policies.lease_check_interval_ms": HOUR_MS,
}


def before_first_sleep(driver: Driver, act: Callable[[], None]) -> None:
    """Has ``act`` done in another thread after the driver has computed how long it sleeps, before it does."""
    ring, done = driver._ring, threading.Event()

    def sleep(rings: int, timeout_ns: int, real: Any = ring.sleep) -> None:
        if not done.is_set():
            done.set()
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        real(rings, timeout_ns)

    ring.sleep = sleep  # type: ignore[method-assign]


@pytest.mark.fault(51, how="an order between the driver's deadline and its sleep")
def test_order_right_before_the_sleep_is_obeyed_at_once(instance_name: str) -> None:
    driver = Driver(Config.load(env={}, overrides={**LONG, "driver.instance": instance_name}))
    driver.start()
    before_first_sleep(driver, driver.request_shutdown)
    thread = threading.Thread(target=driver.run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive()


@pytest.mark.fault(51, how="stop() of an embedded driver, at any moment")
def test_embedded_driver_stops_at_one_call_without_polling() -> None:
    for _ in range(20):
        embedded = EmbeddedDriver(config=Config.load(env={}, overrides=LONG))
        embedded.start()
        thread = embedded._thread
        embedded.stop(HANG_S)
        assert thread is not None
        assert not thread.is_alive()


SIGNALLED = """
import os, signal, sys, threading, time
from shmdriver.driver import process
from shmdriver.driver.config import Config
from shmdriver.driver.control import ControlRing

FUTEX = ("202 ", "98 ")  # its number on x86-64, and on ARM64
main, pause, asleep = threading.get_native_id(), threading.Event(), threading.Event()

def kill_when_asleep():
    asleep.wait()
    while not open(f"/proc/self/task/{main}/syscall").read().startswith(FUTEX):
        pause.wait(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

def sleep(ring, rings, timeout_ns, real=ControlRing.sleep):
    asleep.set()
    real(ring, rings, timeout_ns)

ControlRing.sleep = sleep
threading.Thread(target=kill_when_asleep, daemon=True).start()  # the only thread that takes the signal
def serve(config):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return process.run_driver(config)
real_handlers = process.obey_signals
def handlers(*arguments):
    real_handlers(*arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
process.obey_signals = handlers
sys.exit(serve(Config.load(env={}, overrides=OVERRIDES)))
"""


@pytest.mark.fault(51, how="SIGTERM that another thread takes while the driver sleeps")
def test_signal_that_does_not_interrupt_the_sleep_ends_it(instance_name: str, tmp_path: Any) -> None:
    """As one that comes between the interpreter's last look at its signals and the system call."""
    overrides = {**LONG, "driver.instance": instance_name}
    result = subprocess.run(
        [sys.executable, "-c", SIGNALLED.replace("OVERRIDES", repr(overrides))],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert "SIGTERM" in result.stderr
