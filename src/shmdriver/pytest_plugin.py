"""A pytest plugin: drivers as fixtures, and faults to inject. Installed with the package; fixtures only.

def test_my_service_survives_a_slow_reader(shmdriver_client, shmdriver_faults): ...

shmdriver_client    a client, with a driver inside the test process
shmdriver_process   a driver process of its own, which can be killed and started again
shmdriver_faults    stall, kill and lap
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shmdriver import Client, Consumer, Producer

__all__ = ["DriverProcess", "Faults", "shmdriver_client", "shmdriver_faults", "shmdriver_process"]

START_S = 20.0
STOP_S = 20.0
LOOK_MS = 1


class DriverProcess:
    """A driver in a process of its own, under a private instance name."""

    def __init__(self) -> None:
        self.instance = f"pytest-{os.getpid()}-{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the driver; 0 when none runs."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts it, or starts it again after :meth:`kill`: it adopts what is there. Serves on return."""
        import shmdriver

        if self._process is not None:
            raise RuntimeError(f"driver of {self.instance!r} runs already (pid {self.pid})")
        command = [sys.executable, "-m", "shmdriver", "run", "--instance", self.instance]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with shmdriver.connect(self.instance, timeout=START_S, reconnect=True):
            pass

    def connect(self, **arguments: Any) -> Client:
        """A client of it; arguments as of :func:`shmdriver.connect`."""
        import shmdriver

        return shmdriver.connect(self.instance, **arguments)

    def kill(self) -> None:
        """Ends it with -9. Messages keep flowing."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in order: streams are sealed, nothing is left in /dev/shm."""
        if self._process is None:
            self.start()  # killed before: only a driver can take away what is left
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError(f"no driver of {self.instance!r} runs: start() it")
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
            raise


class Faults:
    """What happens to processes and readers in production, on purpose."""

    @contextmanager
    def stall(self, process: Any) -> Iterator[None]:
        """Stops ``process`` (a pid, or an object with ``pid``) with SIGSTOP for the length of the block."""
        pid = _pid_of(process)
        os.kill(pid, signal.SIGSTOP)
        try:
            _await_state(pid, "T")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill(self, process: Any) -> None:
        """Ends ``process`` with SIGKILL; when it returns, it is dead."""
        pid = _pid_of(process)
        os.kill(pid, signal.SIGKILL)
        _await_state(pid, "ZX")

    def lap(self, producer: Producer, consumer: Consumer, payload: bytes = b"") -> int:
        """Publishes until the ring has gone round once more than ``consumer`` (lossy) can follow.

        How many messages were published. Reads nothing: the next read finds the gap.
        """
        if consumer.delivery == "reliable":
            raise ValueError("a reliable consumer cannot be lapped: it holds its producer back")
        rounds = 2 * producer.slots
        for _ in range(rounds):
            producer.publish(payload, timeout=START_S)
        return rounds


def _pid_of(process: Any) -> int:
    pid = process if isinstance(process, int) else process.pid
    if not pid:
        raise ValueError(f"{process!r} has no pid: it was not started, or has ended")
    return int(pid)


def _await_state(pid: int, states: str) -> None:
    """Until the kernel says so: a signal takes effect a moment after it was sent."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            state = "X"
        if state in states:
            return
        if state in "ZX":
            raise ProcessLookupError(f"process {pid} has ended")
        select.poll().poll(LOOK_MS)


@pytest.fixture
def shmdriver_client() -> Iterator[Client]:
    """A client with a driver inside, under an instance name of its own."""
    import shmdriver

    with shmdriver.embedded() as client:
        yield client


@pytest.fixture
def shmdriver_process() -> Iterator[DriverProcess]:
    """A driver process, under an instance name of its own, which serves already."""
    driver = DriverProcess()
    driver.start()
    yield driver
    driver.stop()


@pytest.fixture
def shmdriver_faults() -> Faults:
    """``stall``, ``kill`` and ``lap``."""
    return Faults()
