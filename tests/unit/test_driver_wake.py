"""Whatever a driver sees to ends its sleep at once, and nothing is lost between its look and its sleep.

Timers are an hour away here, so a wake-up that is lost is a test that does not end.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import shmdriver
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
    sleeper, done = driver.sleeper, threading.Event()

    def wait(rest: object, now_ns: int, until_ns: int, real: Any = sleeper.wait) -> None:
        if not done.is_set():
            done.set()
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        real(rest, now_ns, until_ns)

    sleeper.wait = wait  # type: ignore[method-assign]


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


DIES = """
import sys
import shmdriver

client = shmdriver.connect(sys.argv[1])
producer = client.producer("held")
print(flush=True)
input()
"""


@pytest.mark.fault(51, how="Hello, requests, a clean end and a death, while all timers are an hour away")
def test_hello_request_and_death_end_the_sleep(instance_name: str) -> None:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    driver = Driver(Config.load(env={}, overrides={**LONG, "driver.instance": instance_name}), log=lines.put)
    driver.start()
    thread = threading.Thread(target=driver.run, daemon=True)
    thread.start()
    try:
        with shmdriver.connect(instance_name, timeout=HANG_S) as client:
            client.producer("s").close()
            child = subprocess.Popen(
                [sys.executable, "-c", DIES, instance_name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            with child:
                assert child.stdout
                assert child.stdout.readline()
                child.kill()
                while "has died" not in lines.get(timeout=HANG_S):
                    pass
            client.producer("held").close()  # its former producer is gone
    finally:
        driver.request_shutdown()
        thread.join(HANG_S)
    assert not thread.is_alive()


SIGNALLED = """
import os, signal, sys, threading, time
from shmdriver.driver import process
from shmdriver.driver.config import Config
from shmdriver.driver.sleeper import Sleeper

SLEEPS = ("441 ", "232 ", "22 ")  # epoll_pwait2; without it epoll_wait on x86-64, epoll_pwait on ARM64
main, pause, asleep = threading.get_native_id(), threading.Event(), threading.Event()

def kill_when_asleep():
    asleep.wait()
    while not open(f"/proc/self/task/{main}/syscall").read().startswith(SLEEPS):
        pause.wait(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

def wait(sleeper, rest, now_ns, until_ns, real=Sleeper.wait):
    asleep.set()
    real(sleeper, rest, now_ns, until_ns)

Sleeper.wait = wait
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
