"""Attaching anew in a thread, for handles whose callers must not wait: event loops, ``timeout=0``.

An Attempt is tried again and again until it succeeds, fails for good, or nobody wants it any more. The
Attempts of one client share one thread, which ends when none of them is left.

Called by what attaches anew (reattach.py). The threads that call here never wait for a driver, but for
those of an interpreter that exits, which starts no thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.client.boundary import outcome_of
from shmdriver.client.link import pause_after

__all__ = ["Attempt", "Attempts", "change_news", "news"]

_news = ffi.new("uint32_t *")


def news() -> tuple[Any, int]:
    """A futex word that changes whenever an Attempt of this process is over or given up, and what it is."""
    return _news, _news[0]


def change_news() -> None:
    """An Attempt is over, or given up."""
    lib.shmd_futex_change(_news)  # H3: after what it tells of


class Attempt:
    """Something that is tried for ``owner`` until it has a result or an error, or until ``owner`` ends.

    ``act`` makes one try: a result, or None for "not yet". It must not refer to ``owner``. ``ring`` owns an
    eventfd that is told when it is over, or is None.
    """

    __slots__ = ("__weakref__", "_act", "_error", "_found", "_owner", "_word", "ring")

    def __init__(self, owner: Any, act: Callable[[], Any]) -> None:
        self._owner = weakref.ref(owner)
        self._act: Callable[[], Any] | None = act
        self._word = ffi.new("uint32_t *")  # 1: it is over
        self._found: Any = None
        self._error: BaseException | None = None
        self.ring: Any = None

    @property
    def is_over(self) -> bool:
        """Whether it has a result or an error."""
        return bool(self._word[0])

    def wait(self, timeout_ns: int) -> None:
        """Until it is over, at most ``timeout_ns``. A signal ends the wait, too."""
        if not self.is_over:
            lib.shmd_futex_wait(self._word, 0, timeout_ns)

    def take(self) -> Any:
        """Its result, for the caller to own from now on. Raises its error."""
        found, self._found = self._found, None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return found

    def make(self) -> bool:
        """One try. Whether another one is of no use."""
        owner = self._owner()
        is_wanted = owner is not None and not owner.closed
        del owner  # it may end while this waits for the driver
        act = self._act
        if not is_wanted or act is None:
            self._act = self.ring = None  # `act` may lead back here: no cycle stays
            return True
        self._found, self._error = outcome_of(act)
        if self._found is None and self._error is None:
            return False
        self._act = None
        self._word[0] = 1
        lib.shmd_futex_wake(self._word)
        change_news()
        ring = self.ring  # read after the word was set: a caller that sets it later looks at the word then
        if ring is not None:
            os.eventfd_write(ring[0], 1)
        return True


class Attempts:
    """Of one client in one process: makes them in turn, in a thread that lives while one waits."""

    __slots__ = ("_added", "_thread", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[Attempt, None] = {}
        self._added = ffi.new("uint32_t *")  # another value whenever one more waits
        self._thread: threading.Thread | None = None

    def see_to(self, attempt: Attempt) -> None:
        """Has ``attempt`` made until it is over. Call it at each look: an interrupted call loses nothing."""
        if attempt.is_over:
            return
        if attempt not in self._waiting:
            self._waiting[attempt] = None
            lib.shmd_futex_change(self._added)
        thread = self._thread
        if thread is not None and thread.is_alive():
            return
        thread = self._thread = threading.Thread(target=self._run, name="shmdriver-attach", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if sys.is_finalizing() or "interpreter shutdown" in str(error):
                attempt.make()  # no thread starts any more
                return
            # No thread can be made now (RLIMIT_NPROC, pids.max). The next look tries again.
            ring, attempt.ring = attempt.ring, None
            if ring is not None:  # the fd's reader is woken to look, and silences the fd again
                os.eventfd_write(ring[0], 1)

    def _run(self) -> None:
        me = threading.current_thread()
        lib.shmd_thread_settle()  # the thread that wants it may be pinned, and spin under SCHED_FIFO
        added, began_ns = -1, 0
        while self._thread is me:
            seen = int(lib.shmd_futex_load(self._added))
            if seen != added:
                added, began_ns = seen, time.monotonic_ns()  # the new one is tried soon
            if self._go_round():
                lib.shmd_futex_wait(self._added, seen, pause_after(time.monotonic_ns() - began_ns))
                continue
            self._thread = None
            if self._waiting and self._thread is None:  # one was added while this thread was still alive
                self._thread = me

    def _go_round(self) -> bool:
        """Makes each attempt once, until one has to wait for the driver: the others would wait, too.

        Returns whether any attempt is left.
        """
        for attempt in list(self._waiting):
            is_over = attempt.make()
            self._waiting.pop(attempt, None)
            if not is_over:
                self._waiting[attempt] = None  # at the end: the next round begins with the others
                return True
        return bool(self._waiting)
