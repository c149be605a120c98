"""A thread that waits on all pidfds and the driver's socket, and wakes the driver: a client dies, somebody
connects or leaves, a signal comes.

It decides nothing: what a death means is decided in the driver's own thread, which asks the pidfds and the
socket itself. Without this thread deaths and Hellos are noticed at the next lease check.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["DeathWatch"]


class DeathWatch:
    """Calls ``wake`` whenever one of the pidfds fires, once each."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.rang = False
        self._door = -1
        keep_standard_descriptors()
        with ExitStack() as undo:
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._stop)
            self._signalled, self._signal = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, self._signal)
            undo.callback(os.close, self._signalled)
            for fd in (self._stop, self._signalled):
                self._epoll.register(fd, select.EPOLLIN)
            self._thread = threading.Thread(target=self._watch, name="shmdriver-deathwatch", daemon=True)
            self._thread.start()
            self._undo = undo.pop_all()

    def add(self, pidfd: int) -> None:
        """Watches one more; a closed pidfd leaves by itself."""
        try:
            self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:
            pass  # a limit of the kernel's (fs.epoll.max_user_watches): its death is found at a lease check

    def add_door(self, fd: int) -> None:
        """Wakes the driver each time that this descriptor has news, however many stand there already."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._door = fd

    def close(self) -> None:
        """Ends the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._undo.close()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Every signal that Python handles calls ``wake``, too. In the main thread.

        A signal that comes right before the driver falls asleep only leaves a mark for the interpreter, which
        looks when the sleep is over. The byte that it writes here ends the sleep.
        """
        before = signal.set_wakeup_fd(self._signal, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def _watch(self) -> None:
        while True:
            fired = {fd for fd, _ in self._epoll.poll()}
            if self._stop in fired:
                return
            if self._signalled in fired:
                os.read(self._signalled, 4096)
            if fired - {self._signalled, self._door}:
                self.rang = True
            self._wake()
