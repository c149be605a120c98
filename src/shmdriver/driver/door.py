"""The driver's socket and its clients' connections, as the kernel has them (csrc/driver/shmd_listener.c).

The C core accepts, reads Hellos and closes whoever says none. Here are the descriptors: one epoll instance
holds the socket and all connections, so that one descriptor tells whether there is anything to do. A child
that the driver's process forks closes its copies at once: it would keep connections open after its driver's
death, and clients would wait at a socket at which nobody accepts. They are only closed there, because an
epoll instance is shared with the child. Here a connection leaves it before it is closed, because it would
stay in it as long as a child has a copy.
"""

from __future__ import annotations

import os
import select
from typing import Any
from weakref import WeakSet

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["NO_GROUP", "SOCKET_NAME", "Door"]

NO_GROUP = 0xFFFFFFFF
SOCKET_NAME = "socket"
DROPS = 16  # messages of one connection that are read a tick: a byte rings, whatever it is

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

    def __init__(self, authority: Authority, gid: int) -> None:
        self._lock, self._gid = authority.lock, gid
        self._connections: dict[int, bool] = {}  # whether it is in the epoll instance
        self._authority = -1
        self._listener = _no_listener()
        self._epoll = select.epoll()
        try:
            self._authority = os.open(f"/proc/self/fd/{authority.file.fd}", os.O_RDONLY | os.O_CLOEXEC)
            self._listen(self._listener, replace=True)
            self._epoll.register(self._listener.epoll, select.EPOLLIN)
            _doors.add(self)
        except BaseException:
            self.close()
            raise

    def _listen(self, listener: Any, *, replace: bool) -> None:
        folder = self._lock.folder
        path = os.fsencode(folder.path)
        if lib.shmd_listener_open(folder.fd, path, self._gid, int(replace), listener) != 0:
            raise ShmDriverError(f"nobody can connect to this driver: {last_error()}")

    def fileno(self) -> int:
        """Readable while somebody arrives, says something or leaves."""
        return self._epoll.fileno()

    @property
    def has_news(self) -> bool:
        """Whether it is readable now."""
        return bool(self._epoll.poll(0, 1))

    @property
    def silent(self) -> int:
        """How many are connected that have not said Hello yet."""
        return int(self._listener.count)

    def poll(self) -> tuple[bool, list[tuple[int, bool]]]:
        """Whether somebody is at the socket; and the connections that have rung: whether they have ended."""
        ready = {fd for fd, _ in self._epoll.poll(0)}
        is_called = self._listener.epoll in ready or self._listener.count > 0
        ready.discard(self._listener.epoll)
        return is_called, [(fd, lib.shmd_listener_look(fd, DROPS) < 0) for fd in ready]

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

    def keep(self, fd: int) -> None:
        """Notices from now on when this connection ends."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._connections[fd] = True

    def forget(self, fd: int) -> None:
        """Closes a connection, kept or not."""
        if self._connections.pop(fd):
            self._epoll.unregister(fd)
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
        lib.shmd_listener_close(former)
        self._epoll.register(self._listener.epoll, select.EPOLLIN)
        where = self._lock.folder.path
        return True, f"{where}/{SOCKET_NAME} was removed: made anew. Find who cleans up there"

    def close(self) -> None:
        """Closes everything; the name stays. Twice is once."""
        _doors.discard(self)
        lib.shmd_listener_close(self._listener)
        for fd in (*self._connections, self._authority):
            if fd >= 0:
                os.close(fd)
        self._connections, self._authority = {}, -1
        self._epoll.close()


def _no_listener() -> Any:
    return ffi.new("shmd_listener_t *", {"fd": -1, "epoll": -1, "spare": -1})
