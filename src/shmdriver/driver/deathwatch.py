"""Noticing a client's death in milliseconds: one thread asleep on all pidfds, which only rings.

What a death means is decided in the driver's own thread, which asks the pidfds itself. Without this
thread deaths are noticed at the next lease check.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

__all__ = ["DeathWatch"]


class DeathWatch:
    """Calls ``wake`` whenever one of the pidfds fires, once each."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.rang = False
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._watch, name="shmdriver-deathwatch", daemon=True)
        self._thread.start()

    def add(self, pidfd: int) -> None:
        """Watches one more; a closed pidfd leaves by itself."""
        try:
            self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:
            pass  # a limit of the kernel's (fs.epoll.max_user_watches): its death is found at a lease check

    def close(self) -> None:
        """Ends the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._stop)

    def _watch(self) -> None:
        while True:
            if any(fd == self._stop for fd, _ in self._epoll.poll()):
                return
            self.rang = True
            self._wake()
