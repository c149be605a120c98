"""The driver's socket, and the connections of its clients, as the kernel has them (csrc/driver/shmd_listener.c).

The C core accepts, reads Hellos and closes whoever says none. Here are the descriptors: one epoll instance
holds the socket and all connections, so that one descriptor tells whether there is anything to do. A process
that the driver's process forks closes its copies at once: it would keep connections open after its driver's
death, and clients would wait at a socket at which nobody accepts. They are only closed there, because an epoll
instance is shared with the child.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["NO_GROUP", "Door"]

NO_GROUP = 0xFFFFFFFF
SOCKET_NAME = "socket"
DROPS = 16  # messages of one connection that are read and dropped a tick

_doors: WeakSet[Door] = WeakSet()


def _close_in_child() -> None:
    for door in list(_doors):
        door.close()


os.register_at_fork(after_in_child=_close_in_child)


class Door:
    """A socket that listens in an instance's folder, under its name from the first moment.

    ``folder``: a descriptor of that folder, which stays the caller's, and its path. ``gid``: members of that
    group may connect, too. ``segments``: descriptors of the authority, read-only, and of the control segment;
    every client gets them. They are this object's from now on. Raises ShmDriverError.
    """

    def __init__(self, folder: int, path: str, gid: int, segments: Callable[[], tuple[int, int]]) -> None:
        self._folder, self._path, self._gid = folder, path.encode(), gid
        self._listener = self._listen(replace=True)
        self._connections: set[int] = set()
        self._epoll = select.epoll()
        self._epoll.register(self._listener.epoll, select.EPOLLIN)
        self._segments = segments()
        _doors.add(self)

    def _listen(self, *, replace: bool) -> Any:
        listener = ffi.new("shmd_listener_t *")
        if lib.shmd_listener_open(self._folder, self._path, self._gid, int(replace), listener) != 0:
            raise ShmDriverError(f"nobody can connect to this driver: {last_error()}")
        return listener

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

    def poll(self) -> tuple[bool, list[int]]:
        """Whether somebody is at the socket, and the connections that have ended."""
        ready = {fd for fd, _ in self._epoll.poll(0)}
        is_called = self._listener.epoll in ready or self._listener.count > 0
        ready.discard(self._listener.epoll)
        return is_called, [fd for fd in ready if lib.shmd_listener_look(fd, DROPS) < 0]

    def accept(self, now_ns: int, budget: int) -> int:
        """Lets in at most so many; how many. Negative: it fails, for the reason in ``last_error``."""
        return int(lib.shmd_listener_accept(self._listener, now_ns, budget))

    def hello(self, now_ns: int) -> tuple[int, Any, Any]:
        """1, who says Hello (``shmd_peer_t *``), and what; 0: nobody more.

        Negative: somebody was refused or is late (``SHMD_E_*``, ``last_error``), and is gone. The peer's pidfd
        is the caller's; its connection is to be kept or forgotten.
        """
        peer, hello = ffi.new("shmd_peer_t *"), ffi.new("shmd_hello_t *")
        found = int(lib.shmd_listener_hello(self._listener, now_ns, peer, hello))
        if found == 1:
            self._connections.add(int(peer.fd))
        return found, peer, hello

    def answer(self, fd: int, welcome: Any) -> bool:
        """Whether a ``shmd_welcome_t *`` went off; with code OK the segments go with it. Never waits."""
        return bool(lib.shmd_listener_answer(fd, welcome, *self._segments) == 0)

    def keep(self, fd: int) -> None:
        """Notices from now on when this connection ends."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def forget(self, fd: int) -> None:
        """Closes a connection, kept or not."""
        self._connections.discard(fd)
        os.close(fd)

    def check(self) -> str:
        """Looks whether clients can find the socket, and makes a missing one anew; what is amiss, or ""."""
        found = lib.shmd_listener_check(self._listener, self._folder)
        if found == 1:
            return ""
        if found != 0:
            return last_error()
        former = self._listener
        try:
            self._listener = self._listen(replace=False)
        except ShmDriverError as error:
            return str(error)
        lib.shmd_listener_close(former)
        self._epoll.register(self._listener.epoll, select.EPOLLIN)
        return f"{self._path.decode()}/{SOCKET_NAME} was removed, and was made anew"

    def remove(self) -> None:
        """Takes the socket's name away, at the end for good."""
        if lib.shmd_listener_check(self._listener, self._folder) == 1:
            os.unlink(SOCKET_NAME, dir_fd=self._folder)

    def close(self) -> None:
        """Closes everything; the name stays. Twice is once."""
        _doors.discard(self)
        lib.shmd_listener_close(self._listener)
        for fd in (*self._connections, *self._segments):
            os.close(fd)
        self._connections, self._segments = set(), (-1, -1)
        self._epoll.close()
