"""The driver's socket and its sleep in a simulated kernel: in place of driver/door.py and driver/sleeper.py.

A connection is two ends, each with a line of messages that the other end has sent. Either end can be closed.
What was sent before can still be read, unless the driver's end was closed over unread messages: then the
client's end is reset, and may lose its welcome.
"""

from __future__ import annotations

import errno
from collections import deque
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.driver.identity import digest_of
from shmdriver.driver.sleeper import Woken
from tests.driver_rig import time_namespace

if TYPE_CHECKING:
    from tests.simulation.kernel import Kernel, Task

BACKLOG = 6
WAITING = 8
PATIENCE_NS = 2_000_000_000
FIRST_FD = 1_000_000  # of connections: no descriptor of this process has such a number


class Connection:
    """One connection, and the process that made it. ``fd``: the driver's number for its end; -1: none."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.fd = -1
        self.is_open = self.is_served = True  # the client's end, and the driver's
        self.is_reset = False
        self.is_kept = False  # it is a client's
        self.to_driver: deque[Any] = deque()
        self.to_client: deque[Any] = deque()
        self.hello: Any = None  # that the driver has read
        self.is_proved = False  # it has a pidfd with it
        self.is_passing = False  # it had none only because no descriptor was left
        self.is_too_late = False  # its process had ended
        self.began_in = 0  # the PID namespace in which it read the process's start time; 0: not read
        self.accepted_ns = 0

    @property
    def key(self) -> tuple[int, bytes]:
        """Whose Hello the driver has read: nonce and secret, as a record shows them."""
        return int(self.hello.nonce), digest_of(self.hello)

    def send(self, hello: Any) -> bool:
        """Whether the client's message went off."""
        if self.is_served:
            self.to_driver.append(ffi.new("shmd_hello_t *", hello[0]))
        return self.is_served

    def ring(self) -> None:
        """A byte that wakes the driver."""
        if self.is_served:
            self.to_driver.append(None)

    def close(self) -> None:
        """The client's end."""
        self.is_open = False

    def end(self, rng: Random) -> None:
        """The driver's end is closed, by whomever."""
        if self.is_served and self.to_driver and rng.random() < 0.5:
            self.is_reset = True
            self.to_client.clear()
        self.is_served, self.is_kept, self.fd = False, False, -1


class Network:
    """All connections of one machine, and the socket at which they are made."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.backlog: deque[Connection] | None = None  # of the socket that is in place; None: nobody listens
        self.waiting: list[Connection] = []  # accepted, and their Hellos not read
        self.known: list[Connection] = []  # that this driver kept at the last check
        self.welcomed: list[Connection] = []  # since the last check
        self.served: list[Connection] = []  # whose driver's end is open, in the backlog or accepted
        self._mapped: list[tuple[Any, int]] = []  # for clients

    def connect(self, task: Task) -> Connection | int:
        """Or an errno."""
        if self.backlog is None:
            return errno.ECONNREFUSED
        if len(self.backlog) >= BACKLOG:
            return errno.EAGAIN
        connection = Connection(task)
        self.backlog.append(connection)
        self.served.append(connection)
        return connection

    def end(self, connection: Connection) -> None:
        connection.end(self.rng)
        self.served.remove(connection)

    def bury(self) -> None:
        """The driver's process is gone."""
        self.backlog = None
        self.waiting.clear()
        self.known.clear()
        self.welcomed.clear()
        for connection in list(self.served):
            self.end(connection)

    def map(self, fd: int, size: int) -> Any:
        """Maps a control segment for the client that gets this descriptor; where."""
        out = ffi.new("void **")
        assert lib.shmd_segment_map(fd, 0, size, 1, 0, out) == 0
        self._mapped.append((out[0], size))
        return out[0]

    def unmap_all(self) -> None:
        for base, size in self._mapped:
            lib.shmd_segment_unmap(base, size)
        self._mapped.clear()

    @property
    def kept(self) -> list[Connection]:
        """What the driver keeps for clients."""
        return [connection for connection in self.served if connection.is_kept]


class Sleeper:
    """As the driver uses it. It tells of what is there; nobody sleeps."""

    arm_due_ns = None

    def __init__(self, kernel: Kernel) -> None:
        self._network = kernel.network
        self._watched: dict[int, tuple[int, int]] = {}  # kind and key by descriptor

    def add(self, fd: int, kind: int, key: int = 0) -> None:
        self._watched[fd] = (kind, key)

    def remove(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def look(self) -> list[Woken]:
        found = self._ready()
        for connection in self._network.kept:
            connection.to_driver.clear()  # what comes after the Hello only rings
            if not connection.is_open:
                self._watched.pop(connection.fd, None)
        return found

    @property
    def has_news(self) -> bool:
        """Whether somebody would wake the driver now."""
        return bool(self._ready())

    def _ready(self) -> list[Woken]:
        network, found = self._network, []
        if network.backlog or any(c.to_driver or not c.is_open for c in network.waiting):
            found.append(Woken(int(lib.SHMD_SLEEPER_READ), 0, int(lib.SHMD_WOKEN_READABLE)))
        for connection in network.kept:
            if connection.fd in self._watched and (connection.to_driver or not connection.is_open):
                what = lib.SHMD_WOKEN_READABLE if connection.to_driver else 0
                what |= 0 if connection.is_open else lib.SHMD_WOKEN_ENDED
                found.append(Woken(*self._watched[connection.fd], int(what)))
        return found

    def arm(self, now_ns: int) -> None:
        pass

    def disarm(self, fd: int) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self._watched.clear()


class Door:
    """As the driver uses it. Who has connected, and the pidfds, are kernel.py's tasks."""

    def __init__(self, kernel: Kernel, sleeper: Sleeper) -> None:
        self._kernel, self._network, self._sleeper = kernel, kernel.network, sleeper
        self._accepted: dict[int, Connection] = {}
        self._network.backlog = deque()

    @property
    def silent(self) -> int:
        return len(self._network.waiting)

    def accept(self, now_ns: int, budget: int) -> int:
        done, backlog = 0, self._network.backlog
        while backlog and done < budget:
            if len(self._network.waiting) >= WAITING and not self._make_room():
                break
            connection = backlog.popleft()
            connection.accepted_ns = now_ns
            connection.fd = next(number for number in count(FIRST_FD) if number not in self._accepted)
            self._accepted[connection.fd] = connection
            self._network.waiting.append(connection)
            done += 1
        return done

    def _make_room(self) -> bool:
        silent = [connection for connection in self._network.waiting if not connection.to_driver]
        if silent:
            self._refuse(silent[0])
        return bool(silent)

    def _refuse(self, connection: Connection) -> None:
        self._network.waiting.remove(connection)
        del self._accepted[connection.fd]
        self._network.end(connection)

    def hello(self, now_ns: int) -> tuple[int, Any, Any]:
        peer, hello = ffi.new("shmd_peer_t *"), ffi.new("shmd_hello_t *")
        for connection in list(self._network.waiting):
            if connection.to_driver:
                self._network.waiting.remove(connection)
                connection.hello = connection.to_driver.popleft()
                hello[0] = connection.hello[0]
                self._identify(connection, peer)
                return 1, peer, hello
            if not connection.is_open:
                self._refuse(connection)
                return int(lib.SHMD_E_CLOSED), peer, hello
            if now_ns - connection.accepted_ns >= PATIENCE_NS:
                self._refuse(connection)
                return int(lib.SHMD_E_TIMEOUT), peer, hello
        return 0, peer, hello

    def _identify(self, connection: Connection, peer: Any) -> None:
        """As csrc/driver/shmd_peer.c does, when the connection is accepted."""
        kernel, task = self._kernel, connection.task
        peer.fd, peer.uid, peer.gid, peer.accepted_ns = connection.fd, task.uid, task.uid, 0
        peer.process.pid = task.pid_in(kernel.namespace)
        peer.process.pid_namespace, peer.process.time_namespace = kernel.namespace, time_namespace()
        peer.pidfd = -1
        if kernel.is_short:
            peer.pidfd_error = errno.EMFILE
        elif kernel.is_old and not peer.process.pid:
            peer.pidfd_error = errno.ENOPROTOOPT
        elif task.is_reaped:
            peer.pidfd_error = errno.ESRCH
        else:
            peer.pidfd = kernel.pidfd_of(task)
            peer.pidfd_inode = 0 if kernel.is_old else task.inode
            if peer.process.pid and task.alive and not task.veil:
                peer.process.start_time = task.start_time
        connection.is_proved = peer.pidfd >= 0
        connection.is_too_late = peer.pidfd_error == errno.ESRCH
        connection.is_passing = peer.pidfd_error == errno.EMFILE and peer.process.pid != 0
        connection.began_in = kernel.namespace if peer.process.start_time else 0

    def answer(self, fd: int, welcome: Any, control: int = -1) -> bool:
        """``control``: a descriptor of the client's own segment, which goes with a welcome."""
        connection = self._accepted[fd]
        if welcome.code == lib.SHMD_CODE_OK:
            self._network.welcomed.append(connection)
            is_blind = not (connection.is_proved or connection.is_passing)
            blind_to = self._kernel.blind_to
            (blind_to.add if is_blind else blind_to.discard)(connection.key)
        if connection.is_open:
            base = self._network.map(control, int(welcome.control_bytes)) if control >= 0 else None
            connection.to_client.append((ffi.new("shmd_welcome_t *", welcome[0]), base))
        return connection.is_open

    def keep(self, fd: int, client_id: int) -> None:
        self._sleeper.add(fd, int(lib.SHMD_SLEEPER_DOORBELL), client_id)
        self._accepted[fd].is_kept = True

    def forget(self, fd: int) -> None:
        if self._accepted[fd].is_kept:
            self._sleeper.remove(fd)
        self._network.end(self._accepted.pop(fd))

    def check(self) -> tuple[bool, str]:
        return True, ""

    def close(self) -> None:
        """As the kernel does it at the driver's end."""
        self._accepted.clear()
        self._network.bury()
