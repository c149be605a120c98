"""A client's connection to its driver: what csrc/core/shmd_session.c does, without waiting.

The client says Hello on a new connection, with a higher serial each time, and says it again when the
connection has ended. Once it was welcomed it names its client id; as long as it was not, the same nonce and
secret find what a lost welcome has told of.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.driver.identity import digest_of
from shmdriver.driver.work import DEATHS_MAX
from shmdriver.errors import Code, Reason
from tests.driver_rig import time_namespace
from tests.simulation.door import Connection
from tests.simulation.rules import demand, is_alive, text_of

if TYPE_CHECKING:
    from tests.simulation.actors import Process

MS = 1_000_000
REFUSED_MS = 1000  # until a client that was refused, and has its record yet, asks again


class Session:
    """The connection of one simulated client."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.secret = process.rng.randbytes(lib.SHMD_SECRET_BYTES)
        self.image = process.task.image
        self.serial = 0
        self.said: set[int] = set()  # serials
        self.connection: Connection | None = None
        self._welcomed: Connection | None = None  # on which it was welcomed last
        self.due_ns = 0
        self.is_over = False  # it was refused for good
        self.key = (process.nonce, digest_of(self.hello(0)))

    @property
    def is_settled(self) -> bool:
        """Whether it has been welcomed on its newest connection, or has no hope to be."""
        return self.is_over or (self.connection is not None and self.connection is self._welcomed)

    def hello(self, serial: int, **fields: Any) -> Any:
        """``shmd_hello_t *``."""
        process, hello = self._process, ffi.new("shmd_hello_t *")
        if process.client_id:
            hello.client_id, hello.boot_id = process.client_id, process.boot.view.boot_id
        hello.serial, hello.nonce, hello.secret, hello.image = serial, process.nonce, self.secret, self.image
        hello.start_time, hello.time_namespace = process.task.start_time, time_namespace()
        hello.name = b"sim"
        for name, value in fields.items():
            setattr(hello, name, value)
        return hello

    def begin(self, now_ns: int) -> str:
        """Connects and says Hello, if that is possible now; what came of it. What was open stays open."""
        process = self._process
        found = process.boot.kernel.network.connect(process.task)
        if isinstance(found, int):
            self._later(now_ns)
            return f"cannot connect: {errno.errorcode[found]}"
        self.serial = max(self.serial + 1, now_ns)  # so that those of one process compare
        self.said.add(self.serial)
        self.connection = found
        found.send(self.hello(self.serial))
        for former in process.boot.processes:
            if former.task is process.task and former.is_replaced:
                former.is_succeeded |= 0 != former.session.image != self.image != 0
        return "says hello"

    def step(self, now_ns: int) -> str:
        """Goes on as far as that is possible now; what came of it, "" for nothing."""
        connection = self.connection
        if connection is None:
            said = "" if self.is_over or now_ns < self.due_ns else self.begin(now_ns)
            return said if self.connection is not None else ""
        if connection.is_reset or not (connection.is_served or connection.to_client):
            self.hang_up()
            self._later(now_ns)
            return "has lost its connection"
        return self._hear(connection, now_ns) if connection.to_client else ""

    def hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def ring(self) -> None:
        """The doorbell: one byte on the connection on which it was welcomed, if that is open."""
        if self._welcomed is not None and self._welcomed is self.connection:
            self._welcomed.ring()

    def _later(self, now_ns: int) -> None:
        self.due_ns = now_ns + self._process.rng.choice((1, 10, 50)) * MS

    def _hear(self, connection: Connection, now_ns: int) -> str:
        process, boot = self._process, self._process.boot
        welcome, control = connection.to_client.popleft()
        text = text_of(welcome)
        if welcome.code == Code.OK:
            client_id = int(welcome.client_id)
            demand(welcome.boot_id == boot.view.boot_id, "a welcome names its boot", process)
            same = process.client_id in (0, client_id)
            demand(same, "a client that says Hello again keeps its record", process, client_id)
            process.join(client_id, int(welcome.client_index), control)
            self._welcomed = connection
            self.ring()  # for what was written before anybody listened
            boot.welcomed(process, connection)
            return f"is client {client_id} at {process.index}"
        self.hang_up()
        demand(welcome.code != Code.INTERNAL_ERROR, "no Hello makes the driver fail", text)
        record = boot.record_of(self.key)
        has_record = record is not None and is_alive(record)
        died = welcome.reason == Reason.DRIVER_DIED
        if died:
            least = DEATHS_MAX if has_record else 1
            rule = "a Hello is refused for a driver's death only when it was in work then"
            demand(boot.deaths[process.nonce] >= least, rule, process, text)
        demand(died or not has_record, "a client that says Hello again is welcome", process, text)
        if has_record:
            self.due_ns = now_ns + REFUSED_MS * MS
        else:
            self.is_over = True
            process.left = not process.connected  # a new one's program ends
        return f"is refused: {text[:90]}"
