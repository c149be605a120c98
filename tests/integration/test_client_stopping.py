"""Ends that are meant: sys.exit(0), and a stop that a signal asks for, are clean; others are not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import shmdriver
from shmdriver import Reason

HEAD = """
import asyncio, os, signal, sys, shmdriver

def waiting(out):
    out.publish(b"ready")
    out.wait_for_consumers(9)  # never so many: until something ends it

async def idle(out):
    out.publish(b"ready")
    await asyncio.get_running_loop().create_future()

instance = sys.argv[1]
"""
PROGRAMS = {
    "exit of 0": """
with shmdriver.connect(instance) as client, client.producer("s", min_consumers=1) as out:
    out.publish(b"ready")
    sys.exit(0)
""",
    "exit by the client's block": """
with shmdriver.connect(instance) as client:
    out = client.producer("s", min_consumers=1)
    out.publish(b"ready")
    sys.exit()
""",
    "exit of 1": """
with shmdriver.connect(instance) as client, client.producer("s", min_consumers=1) as out:
    out.publish(b"ready")
    sys.exit(1)
""",
    "exception": """
with shmdriver.connect(instance) as client, client.producer("s", min_consumers=1) as out:
    out.publish(b"ready")
    raise KeyboardInterrupt
""",
    "stop": """
with shmdriver.stop_on_signals(), shmdriver.connect(instance) as client:
    with client.producer("s", min_consumers=1) as out:
        waiting(out)
""",
    "stop of tasks": """
async def main():
    with shmdriver.connect(instance) as client, client.producer("s", min_consumers=1) as out:
        await idle(out)

with shmdriver.stop_on_signals():
    asyncio.run(main())
""",
    "stop without a recipe": """
with shmdriver.connect(instance) as client, client.producer("s", min_consumers=1) as out:
    waiting(out)
""",
}


@pytest.fixture
def client(instance_name: str) -> Iterator[Any]:
    with shmdriver.embedded(instance_name) as client:
        yield client


def end_of(client: Any, program: str, number: int | None) -> tuple[int | None, int]:
    """How the stream of a program ends (a Reason; None: cleanly), and its exit code."""
    reader = client.consumer("s")
    process = subprocess.Popen([sys.executable, "-c", HEAD + program, client.instance])
    try:
        assert bytes(reader.read(timeout=60)) == b"ready"
        if number is not None:
            process.send_signal(number)
        try:
            reader.read(timeout=60)
            pytest.fail("it went on")
        except shmdriver.EndOfStream:
            reason = None
        except shmdriver.ProducerLost as error:
            reason = error.reason
        return reason, process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault(67, how="exits, SIGTERM and SIGINT in programs with and without stop_on_signals")
@pytest.mark.parametrize(
    ("what", "number", "reason", "code"),
    [
        ("exit of 0", None, None, 0),
        ("exit by the client's block", None, None, 0),
        ("exit of 1", None, Reason.ABORTED, 1),
        ("exception", None, Reason.ABORTED, 130),
        ("stop", signal.SIGTERM, None, 0),
        ("stop", signal.SIGINT, None, 0),
        ("stop of tasks", signal.SIGTERM, None, 0),
        ("stop without a recipe", signal.SIGTERM, Reason.DIED, -signal.SIGTERM),
    ],
)
def test_only_a_meant_end_is_clean(client: Any, what: str, number: int, reason: Any, code: int) -> None:
    assert end_of(client, PROGRAMS[what], number) == (reason, -signal.SIGINT if code == 130 else code)


@pytest.mark.fault(67, how="a second SIGTERM while the first is obeyed")
def test_a_second_signal_does_what_it_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, shmdriver.stop_on_signals(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is not before
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.fault(67, how="a signal that the program had ignored")
def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with shmdriver.stop_on_signals(signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.fault(67, how="stop_on_signals in another thread than the main one")
def test_a_thread_that_cannot_handle_signals_is_told_so() -> None:
    told: list[str] = []

    def attempt() -> None:
        try:
            with shmdriver.stop_on_signals():
                pass
        except ValueError as error:
            told.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert "main thread only" in told[0]
