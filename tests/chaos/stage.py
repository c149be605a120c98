"""Where the chaos plays: one instance, its processes, and conditions that are waited for with a deadline."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from shmdriver.driver.collect import collect
from shmdriver.errors import ShmDriverError
from shmdriver.observe import DriverStatus, Instance, LeaseStatus
from tests.chaos.payload import Board
from tests.chaos.zygote import NATIVE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
HEALTHY_S = (
    300.0  # a tick that a busy machine holds up degrades the driver for 10 s, and there may be several
)
LOOK_S = 0.002
LOG_SHOWN = 4000  # characters of an actor's log in a failure's text
FAILPOINT_VARIABLE = "SHMDRIVER_FAILPOINT"
T = TypeVar("T")


class OutOfTime(AssertionError):
    """A condition did not come true."""


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Looks until ``condition()`` is true; its value. OutOfTime says ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise OutOfTime(f"after {timeout_s:g} s still waiting for {what}")
        pause.wait(LOOK_S)


class Zygote:
    """The fork server, and the pids it made."""

    def __init__(self, runtime: Path, *, native: Path | None = None) -> None:
        self.runtime = runtime
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SHMDRIVER_")}
        environment |= {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(runtime)}
        if native is not None:
            environment[NATIVE_VARIABLE] = str(native)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()], cwd=ROOT, env=environment,
        )  # fmt: skip
        theirs.close()
        self._line = ours
        self._lock = threading.Lock()  # tests have a thread for each of several stages
        ours.settimeout(PATIENCE_S)
        assert ours.recv(16) == b"ready", "the zygote did not start"

    def fork(self, request: dict[str, Any], fd: int) -> int:
        with self._lock:
            socket.send_fds(self._line, [json.dumps({"do": "fork", **request}).encode()], [fd])
            return int(json.loads(self._line.recv(256)))

    def exit_code(self, pid: int) -> int:
        """Of a process that is dead: its code, negative for a signal."""
        with self._lock:
            self._line.send(json.dumps({"do": "status", "pid": pid}).encode())
            return int(json.loads(self._line.recv(256)))

    def close(self) -> None:
        self._line.close()
        self._process.wait(PATIENCE_S)


class Actor:
    """One process, as its test sees it."""

    def __init__(self, zygote: Zygote, request: dict[str, Any], board: Path) -> None:
        self.role: str = request["role"]
        self.log = Path(request["log"])
        self.board = Board(board)
        self.board_path = board
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._zygote = zygote
        self._line = ours
        self.heard: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        with theirs:
            self.pid = zygote.fork(request, theirs.fileno())
        self._pidfd = os.pidfd_open(self.pid)

    # -- what it says

    def listen(self) -> list[dict[str, Any]]:
        """Takes what it has said; everything so far."""
        while select.select([self._line], [], [], 0)[0]:
            try:
                data = self._line.recv(65536)
            except ConnectionError:
                break
            if not data:
                break
            self.heard.append(json.loads(data))
        return self.heard

    def words(self, key: str) -> list[dict[str, Any]]:
        """What it said so far that has this key."""
        return [words for words in self.listen() if key in words]

    def wait_for(self, key: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The first thing said that has this key. OutOfTime when it dies or takes too long."""

        def look() -> dict[str, Any] | None:
            dead = not self.alive
            found = self.words(key)
            if not found and dead:
                raise OutOfTime(f"{self} died before it said {key!r}: {self.heard} {self.log_text()}")
            return found[0] if found else None

        return wait_until(look, f"{self} to say {key!r}; log: {self.log_text()}", timeout_s) or {}

    def say(self, word: str) -> None:
        self._line.send(word.encode())

    def log_text(self) -> str:
        return self.log.read_text()[-LOG_SHOWN:] if self.log.exists() else ""

    # -- its life

    @property
    def alive(self) -> bool:
        return self.exit_code is None and not select.select([self._pidfd], [], [], 0)[0]

    @property
    def is_stopped(self) -> bool:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def kill(self) -> None:
        """SIGKILL, and its death awaited."""
        if self.exit_code is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.join()

    def kill_init(self) -> None:
        """Of a container: SIGKILL for the process whose end is the end of all in there, awaited likewise."""
        init = os.pidfd_open(self.wait_for("init")["init"])
        signal.pidfd_send_signal(init, signal.SIGKILL)
        os.close(init)
        wait_until(lambda: not self.alive, f"{self} to see the end of its init")

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def stop(self) -> None:
        """SIGSTOP, and its effect awaited."""
        self.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.is_stopped, f"{self} to be stopped")

    def go_on(self) -> None:
        self.send_signal(signal.SIGCONT)

    def join(self, timeout_s: float = PATIENCE_S) -> int:
        """Awaits its death; its exit code."""
        if self.exit_code is None:
            if not select.select([self._pidfd], [], [], timeout_s)[0]:
                raise OutOfTime(f"{self} lives after {timeout_s:g} s: {self.log_text()}")
            self.listen()
            self.exit_code = self._zygote.exit_code(self.pid)
        return self.exit_code

    def close(self) -> None:
        self.kill()
        self._line.close()
        os.close(self._pidfd)

    def __repr__(self) -> str:
        return f"<{self.role} {self.pid}>"


class Stage:
    """One instance and everybody in it. Leaving it kills all of them and collects what is left."""

    def __init__(self, instance: str, folder: Path, zygote: Zygote, **settings: Any) -> None:
        self.instance = instance
        self.zygote = zygote
        self._folder = folder
        self.settings = {"driver.instance": instance, **settings}
        self.actors: list[Actor] = []
        self._count = 0
        self.driver: Actor | None = None
        self.driver_arguments: dict[str, Any] = {}  # of the next drivers, as actors.drive has them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss(*self.actors)
        collect(self.instance)

    # -- who plays

    def actor(self, role: str, *, failpoint: str = "", **arguments: Any) -> Actor:
        """A new process; ``failpoint`` as FAILPOINT_VARIABLE takes it."""
        self._count += 1
        board = self._folder / f"{self._count}.board"
        request = {
            "role": role,
            "log": str(self._folder / f"{self._count}.{role}.log"),
            "environment": {FAILPOINT_VARIABLE: failpoint},
            "arguments": {"instance": self.instance, "board": str(board), **arguments},
        }
        actor = Actor(self.zygote, request, board)
        self.actors.append(actor)
        return actor

    def dismiss(self, *actors: Actor) -> None:
        """Makes sure that they are gone, and forgets them and their files."""
        for actor in actors:
            actor.close()
            self.actors.remove(actor)
            actor.log.unlink(missing_ok=True)
            actor.board_path.unlink(missing_ok=True)

    def start_driver(self, *, failpoint: str = "", **settings: Any) -> Actor:
        """A driver that serves, unless a failpoint gets it first."""
        self.driver = driver = self.actor(
            "driver", failpoint=failpoint, settings={**self.settings, **settings}, **self.driver_arguments
        )
        wait_until(lambda: " serves: " in driver.log_text() or not driver.alive, f"{driver} to serve")
        if not failpoint:
            assert driver.alive, driver.log_text()
        return driver

    def producer(self, stream: str, writer: int, *, attached: bool = True, **arguments: Any) -> Actor:
        """A process that publishes payloads of ``writer``; ``attached``: awaits that it does."""
        actor = self.actor("producer", stream=stream, writer=writer, **arguments)
        if attached:
            actor.wait_for("attached")
        return actor

    def consumer(self, stream: str, *, attached: bool = True, **arguments: Any) -> Actor:
        """A process that reads and checks."""
        actor = self.actor("consumer", stream=stream, **arguments)
        if attached:
            actor.wait_for("attached")
        return actor

    # -- what is seen from outside

    def segments(self) -> list[str]:
        """Names of all that stands in shared memory for this instance."""
        return sorted(path.name for path in Path("/dev/shm").glob(f"shmd.{self.instance}.*"))

    def driver_status(self) -> DriverStatus:
        with Instance(self.instance) as view:
            return view.driver()

    def leases(self, *, ended: bool = False) -> tuple[LeaseStatus, ...]:
        try:
            with Instance(self.instance) as view:
                return view.leases(ended=ended)
        except ShmDriverError:
            return ()

    def counters(self) -> dict[str, int]:
        with Instance(self.instance) as view:
            return view.counters()


def lease_checks(view: Instance) -> int:
    """How often the driver has checked its leases: in ticks, and in the idle checks that take their place."""
    counters = view.counters()
    return counters["ticks"] + counters["idle_checks"]


def received(consumer: Actor, number: int, writer: int = 0) -> None:
    """Awaits that a consumer has message ``number`` (of ``writer``)."""
    board = consumer.board

    def look() -> bool:
        if not consumer.alive:
            raise OutOfTime(f"{consumer} died: {consumer.listen()} {consumer.log_text()}")
        return (not writer or board[Board.WRITER] == writer) and board[Board.RECEIVED] > number

    wait_until(look, f"{consumer} to receive {number}; it said {consumer.heard}")


def moves_on(consumer: Actor, by: int = 500) -> None:
    """Awaits that a consumer gets ``by`` more messages of the present writer."""
    received(consumer, consumer.board[Board.RECEIVED] + by)
