"""Turns: how a thread gets a queue's lock although another thread waits for long while it holds that lock.

The thread inside sleeps in C, on futex words. One of these is the word of the Turns: a call that wants the
lock is noted here and changes that word, so the sleep ends and the thread inside lets the lock go. Called by
queue.py. The lock itself is Python's own, taken by ``with`` alone: no signal handler can tear that.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from typing import Any, Self

from shmdriver._native import ffi, lib
from shmdriver.client import link

__all__ = ["NAP_NS", "Call", "GivingWay", "Turns"]

NAP_NS, NAP_MAX_NS = 50_000, 5_000_000  # outside of a lock that another thread wants

_numbers = itertools.count()


class Call:
    """A call that wants a lock. Noted from its construction until its ``with`` block or its life ends.

    It has no finaliser: what a signal's handler raises in one reaches nobody.
    """

    __slots__ = ("__weakref__", "_noted", "_number")

    def __init__(self, turns: Turns, until_ns: int) -> None:
        self._noted = turns._noted  # noqa: SLF001 -- this module's own
        self._number = next(_numbers)
        self.waits_until(until_ns)
        # Later than in a slice: the thread inside looks in time.
        if turns.is_slept_on and until_ns - time.monotonic_ns() < link.FOREVER_SLICE_NS:
            turns.knock()

    def waits_until(self, end_ns: int) -> None:
        """From now on other threads may wait inside, up to that time."""
        self._noted[self._number] = self._number, weakref.ref(self), threading.get_ident(), end_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._noted.pop(self._number, None)


class Turns:
    """Of one lock: the calls that want it, and the word on which the thread inside sleeps."""

    __slots__ = ("_noted", "_slept_on", "_word")

    def __init__(self) -> None:
        self._slept_on = -1  # that value of the word, by the thread that was inside last
        # By call's number: that, the call, its thread, and when it wants to be inside.
        self._noted: dict[int, tuple[int, weakref.ref[Call], int, int]] = {}
        self._word = ffi.new("uint32_t *")

    def call(self, until_ns: int = 0) -> Call:
        """Notes a call that wants the lock at ``until_ns`` (monotonic; 0: at once), for a ``with``."""
        return Call(self, until_ns)

    @property
    def is_slept_on(self) -> bool:
        """Whether a thread inside may sleep on the word."""
        return bool(self._slept_on == self._word[0])

    def knock(self) -> None:
        """Ends the sleep of the thread inside, in one step: a signal's handler comes before or after it."""
        lib.shmd_futex_change(self._word)  # H3: after the call was noted

    def word(self) -> tuple[Any, int]:
        """The futex word on which the thread inside sleeps, and its value. Read it before rest_ns() (H3)."""
        self._slept_on = seen = self._word[0]
        return self._word, seen

    @property
    def are_several(self) -> bool:
        """Whether other calls than that of the thread inside are noted. Asked as :meth:`rest_ns`."""
        return len(self._noted) > 1

    def rest_ns(self) -> int:
        """For how long the calling thread may wait inside; 0: another thread wants the lock now."""
        if not self.are_several:
            return link.NEVER
        me = threading.get_ident()  # a signal handler's call does not give way to the call beneath it
        ends_ns = []
        for number, call, thread, end_ns in list(self._noted.values()):
            if call() is None:  # an exception came before ``with`` had it, or in its end
                self._noted.pop(number, None)
            elif thread != me:
                ends_ns.append(end_ns)
        return max(0, min(ends_ns, default=link.NEVER) - time.monotonic_ns())


class GivingWay:
    """The naps of one call outside of a lock that another thread wants.

    Each is twice as long as the one before while the call's turns inside are shorter than its naps: then the
    other thread was not inside between them. It may have no CPU, or be in a signal's handler.
    """

    __slots__ = ("_nap_ns", "_since_ns")

    def __init__(self) -> None:
        self._nap_ns = NAP_NS
        self._since_ns = 0

    def nap(self, left_ns: int) -> None:
        """Lets the other thread in, for ``left_ns`` at most."""
        is_in_vain = time.monotonic_ns() - self._since_ns < self._nap_ns
        self._nap_ns = min(2 * self._nap_ns, NAP_MAX_NS) if is_in_vain else NAP_NS
        link.nap(min(self._nap_ns, left_ns))
        self._since_ns = time.monotonic_ns()
