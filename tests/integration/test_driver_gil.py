"""C code that keeps the GIL in the driver's process: the driver is late, and charges nobody for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shmdriver
from shmdriver.driver.collect import collect

TIMEOUT_MS = 1000
# An embedded driver beside a thread that keeps the GIL for longer than a lease's timeout, again and again.
PROGRAM = f"""
import ctypes, sys, threading
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver
settings = {{"policies.lease_timeout_ms": {TIMEOUT_MS}, "policies.heartbeat_interval_ms": 100}}
driver = EmbeddedDriver(config=Config.load(env={{}}, overrides=settings))
driver.start()
print(driver.instance, flush=True)
sys.stdin.readline()
keeps_gil = ctypes.PyDLL(None).usleep
for _ in range(4):
    keeps_gil({TIMEOUT_MS * 1300})
    threading.Event().wait(0.05)
print("done", flush=True)
sys.stdin.read()
driver.stop()
"""


@pytest.mark.fault(51, how="ctypes.PyDLL: sleeps that keep the GIL of the embedded driver's program")
def test_attaches_that_returned_hold_while_the_driver_cannot_run() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    instance = program.stdout.readline().strip()
    try:
        with shmdriver.connect(instance, timeout=60) as client:
            program.stdin.write("\n")
            program.stdin.flush()
            pairs = []
            for number in range(4):
                producer = client.producer(f"s{number}", attach_timeout=60, slots=64)
                consumer = client.consumer(f"s{number}", attach_timeout=60)
                pairs.append((producer, consumer))
                for out, into in pairs:
                    out.publish(b"%d" % number, timeout=60)
                    message = into.read(timeout=60)
                    assert message is not None
                    assert bytes(message) == b"%d" % number
            assert program.stdout.readline() == "done\n"
            for out, into in pairs:
                out.publish(b"the last", timeout=60)
                assert into.read(timeout=60) is not None
            assert {lease.state for lease in client.leases()} <= {"attached", "active", "stalled"}
            assert len(client.leases()) == 2 * len(pairs)
    finally:
        program.kill()
        program.communicate()
        collect(instance)
