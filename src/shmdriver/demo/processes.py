"""The demo's own processes: workers that report to it, and the driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from shmdriver.demo.stage import DemoFailed

__all__ = ["DriverProcess", "Port", "Worker", "context", "results"]

context = multiprocessing.get_context("spawn")
_START_TIMEOUT_S = 20.0


class Port:
    """A worker's line to the demo."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def progress(self, value: Any) -> None:
        """Says how far it is."""
        self._connection.send(("progress", value))

    def asked_to_stop(self) -> bool:
        """Whether the demo has told it to come to an end. Never waits."""
        return self._connection.poll()


class Worker:
    """One process of the demo: ``work(port, *arguments)``, whose result comes back."""

    def __init__(self, role: str, work: Callable[..., Any], *arguments: Any, core: int | None = None) -> None:
        self.role = role
        self.latest: Any = None  # what it last reported
        self._outcome: tuple[str, Any] | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_main, args=(work, theirs, core, arguments), name=f"demo-{role}", daemon=True
        )
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return self._outcome is not None

    def receive(self) -> None:
        """Takes what it has reported. DemoFailed when it died without a result."""
        try:
            while self._outcome is None and self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "progress":
                    self.latest = value
                else:
                    self._outcome = (kind, value)
        except (EOFError, ConnectionError):
            self.process.join(1)
            raise DemoFailed(
                f"{self.role} ended without a result, exit code {self.process.exitcode}"
            ) from None

    def result(self) -> Any:
        """What the work returned. DemoFailed with its traceback when it raised."""
        assert self._outcome is not None
        kind, value = self._outcome
        if kind == "error":
            raise DemoFailed(f"{self.role} failed:\n{value}")
        return value

    def ask_to_stop(self) -> None:
        """Tells it to come to an end."""
        self.connection.send("stop")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Makes sure that it is gone: it has ended by itself, or is killed."""
        self.process.join(2 if self.finished else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _main(
    work: Callable[..., Any], connection: Connection, core: int | None, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the demo's to handle
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        outcome = ("result", work(Port(connection), *arguments))
    except BaseException:
        outcome = ("error", traceback.format_exc())
    try:
        connection.send(outcome)
    except OSError:
        pass  # the demo is gone
    connection.close()


def results(
    workers: Sequence[Worker], *, timeout_s: float, tick: Callable[[], object] = lambda: None
) -> list[Any]:
    """The results of all, in their order. ``tick`` is called a few times a second meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    try:
        while not all(worker.finished for worker in workers):
            wait([worker.connection for worker in workers if not worker.finished], timeout=0.2)
            for worker in workers:
                worker.receive()
                if worker.finished:
                    worker.result()  # one that failed must not be waited for by the others
            tick()
            if time.monotonic() > deadline_s:
                late = ", ".join(worker.role for worker in workers if not worker.finished)
                raise DemoFailed(f"no result within {timeout_s:.0f} s from: {late}")
        return [worker.result() for worker in workers]
    finally:
        for worker in workers:
            worker.end()


class DriverProcess:
    """``shmdriver run`` as a process of its own."""

    def __init__(self, instance: str, max_bytes: int, *, grace_ms: int = 0) -> None:
        """``grace_ms``: how long an ended stream can still be joined; its memory is free after that."""
        self.instance = instance
        self._command = [
            *(sys.executable, "-m", "shmdriver", "run", "--instance", instance),
            *("--set", f"shm.max_bytes={max_bytes}"),
            *("--set", f"policies.grace_ms={grace_ms}"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = os.fdopen(os.memfd_create("driver-log"), "w+b")  # no folder may be writable

    def start(self) -> None:
        """Starts it and returns when it serves, which it says as a systemd unit does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ready:
            ready.bind(f"\0shmdriver-demo-{os.getpid()}-{time.monotonic_ns()}")
            ready.settimeout(0.1)
            address = "@" + ready.getsockname()[1:].decode()
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, "NOTIFY_SOCKET": address},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is the demo's to handle
            )
            deadline_s = time.monotonic() + _START_TIMEOUT_S
            while time.monotonic() < deadline_s:
                if self._process.poll() is not None:
                    raise DemoFailed(f"the driver did not start: {self._complaint()}")
                try:
                    if b"READY=1" in ready.recv(4096):
                        return
                except TimeoutError:
                    pass
        raise DemoFailed(f"the driver did not get ready within {_START_TIMEOUT_S:.0f} s")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends it as kill -9 does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it cleanly: it seals, unlinks and exits."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            process.send_signal(number)
            try:
                process.wait(3)
                break
            except subprocess.TimeoutExpired:
                continue

    def _complaint(self) -> str:
        assert self._process is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
