"""The driver's socket and its clients' connections, as the kernel has them (csrc/driver/shmd_listener.c).

The C core accepts, reads Hellos and closes whoever says none. Here are the descriptors, which the driver's
sleeper watches. A child that the driver's process forks closes its copies at once: it would keep connections
open after its driver's death, and clients would wait at a socket at which nobody accepts.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.sleeper import Sleeper
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["NO_GROUP", "SOCKET_NAME", "Door"]

NO_GROUP = 0xFFFFFFFF
SOCKET_NAME = "socket"

_doors: WeakSet[Door] = WeakSet()


def _close_in_child() -> None:
    for door in list(_doors):
        door.close()


os.register_at_fork(after_in_child=_close_in_child)


class Door:
    """A socket that listens in the runtime folder of the authority's lock, and is put in place whole.

    ``gid``: members of that group may connect, too. Every client gets a descriptor of the authority that
    cannot write. Raises ShmDriverError, OSError.
    """

    def __init__(self, authority: Authority, gid: int, sleeper: Sleeper) -> None:
        self._lock, self._gid, self._sleeper = authority.lock, gid, sleeper
        self._connections: dict[int, bool] = {}  # whether it is watched
        self._authority = -1
        self._listener = _no_listener()
        try:
            self._authority = os.open(f"/proc/self/fd/{authority.file.fd}", os.O_RDONLY | os.O_CLOEXEC)
            self._listen(self._listener, replace=True)
            sleeper.add(self._listener.epoll, lib.SHMD_SLEEPER_READ)
            _doors.add(self)
        except BaseException:
            self.close()
            raise

    def _listen(self, listener: Any, *, replace: bool) -> None:
        folder = self._lock.folder
        path = os.fsencode(folder.path)
        if lib.shmd_listener_open(folder.fd, path, self._gid, int(replace), listener) != 0:
            raise ShmDriverError(f"nobody can connect to this driver: {last_error()}")

    @property
    def silent(self) -> int:
        """How many are connected that have not said Hello yet."""
        return int(self._listener.count)

    def accept(self, now_ns: int, budget: int) -> int:
        """Lets in at most so many; how many. Negative: it fails, for the reason in ``last_error``."""
        return int(lib.shmd_listener_accept(self._listener, now_ns, budget))

    def hello(self, now_ns: int) -> tuple[int, Any, Any]:
        """1, who says Hello (``shmd_peer_t *``), and what; 0: nobody more.

        Negative: somebody was refused or is late (``SHMD_E_*``, ``last_error``), and is gone. The peer's
        pidfd is the caller's; its connection is to be kept or forgotten.
        """
        peer, hello = ffi.new("shmd_peer_t *"), ffi.new("shmd_hello_t *")
        found = int(lib.shmd_listener_hello(self._listener, now_ns, peer, hello))
        if found == 1:
            self._connections[int(peer.fd)] = False
        return found, peer, hello

    def answer(self, fd: int, welcome: Any, control: int = -1) -> bool:
        """Whether a ``shmd_welcome_t *`` went off. Never waits.

        With code OK the authority and ``control``, a descriptor of that client's own segment, go with it.
        """
        return bool(lib.shmd_listener_answer(fd, welcome, self._authority, control) == 0)

    def keep(self, fd: int, client_id: int) -> None:
        """The sleeper tells of this connection from now on, as the doorbell of that client."""
        self._sleeper.add(fd, lib.SHMD_SLEEPER_DOORBELL, client_id)
        self._connections[fd] = True

    def forget(self, fd: int) -> None:
        """Closes a connection, kept or not."""
        if self._connections.pop(fd):
            self._sleeper.remove(fd)
        os.close(fd)

    def check(self) -> tuple[bool, str]:
        """Whether clients find the socket, after a missing one was made anew; and what was amiss, or ""."""
        found = lib.shmd_listener_check(self._listener, self._lock.folder.fd)
        if found == 1:
            return True, ""
        if found != 0:
            return False, last_error()
        former, self._listener = self._listener, _no_listener()
        try:
            self._listen(self._listener, replace=False)
        except ShmDriverError as error:
            self._listener = former
            return False, str(error)
        self._sleeper.remove(former.epoll)
        lib.shmd_listener_close(former)
        self._sleeper.add(self._listener.epoll, lib.SHMD_SLEEPER_READ)
        where = self._lock.folder.path
        return True, f"{where}/{SOCKET_NAME} was removed: made anew. Find who cleans up there"

    def close(self) -> None:
        """Closes everything; the name stays. Twice is once. The sleeper is closed by its owner."""
        _doors.discard(self)
        lib.shmd_listener_close(self._listener)
        for fd in (*self._connections, self._authority):
            if fd >= 0:
                os.close(fd)
        self._connections, self._authority = {}, -1


def _no_listener() -> Any:
    return ffi.new("shmd_listener_t *", {"fd": -1, "epoll": -1, "spare": -1})
