"""The one place where a driver sleeps (csrc/driver/shmd_sleeper.c), and who has woken it.

The listener, all connections, all pidfds and the end of a socket pair for signals are watched here. What
wakes the driver decides nothing: the tick that follows asks for it (``look``) and sees to it. A tick that
nobody has woken, as under a test's clock, finds the same, because ``look`` also asks the kernel.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple
from weakref import WeakSet

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["Sleeper", "Woken"]

FOUND_MAX = 64  # wake-ups of one call; the next call finds more of them
LOOKS_MAX = 128  # calls of one look: what rings faster than it is read is left to the next one
ARM_NS = 10_000_000

_sleepers: WeakSet[Sleeper] = WeakSet()


def _close_in_child() -> None:
    for sleeper in list(_sleepers):
        lib.shmd_sleeper_close_in_child(sleeper.native)


os.register_at_fork(after_in_child=_close_in_child)


class Woken(NamedTuple):
    """What ``add`` was told of a descriptor (``SHMD_SLEEPER_*``, key), and ``SHMD_WOKEN_*`` of it."""

    kind: int
    key: int
    what: int


class Sleeper:
    """Watches descriptors for one driver. Its thread calls everything here but ``wake``.

    ``budget``: so many doorbells of one client within ARM_NS are heard at once; what it sends beyond them
    waits for the next time that ``arm`` is due. Raises ShmDriverError.
    """

    def __init__(self, budget: int) -> None:
        self._found = ffi.new("shmd_wakeup_t[]", FOUND_MAX)
        self._woken: dict[tuple[int, int], int] = {}
        self._armed_ns = 0
        self._is_disarmed = False
        self._bell = threading.RLock()  # reentrant: a signal handler may interrupt its own thread inside
        keep_standard_descriptors()
        native = lib.shmd_sleeper_new(budget)
        try:
            self.native = ffi.gc(native, lib.shmd_sleeper_free)
        except BaseException:
            lib.shmd_sleeper_free(native)
            raise
        try:
            self._check(0 if self.native else -1)
            _sleepers.add(self)
        except BaseException:
            self.close()
            raise

    def add(self, fd: int, kind: int, key: int = 0) -> None:
        """Watches a descriptor of the caller's; one that is watched already gets a new kind and key.

        Raises ShmDriverError, also when this user watches as many descriptors as the kernel allows.
        """
        self._check(lib.shmd_sleeper_add(self.native, fd, kind, key))

    def remove(self, fd: int) -> None:
        """Before the caller closes it, watched still or ended. What is known of it already is still told."""
        found = lib.shmd_sleeper_remove(self.native, fd)
        self._check(0 if found == lib.SHMD_E_INVALID else found)

    def disarm(self, fd: int) -> None:
        """Not watched until ``arm``: who cannot see to it now would be woken by it all the time."""
        self._is_disarmed = True
        self._check(lib.shmd_sleeper_disarm(self.native, fd))

    def arm(self, now_ns: int) -> None:
        """For each tick: when it is due, everything is watched again, each client with a new budget."""
        if now_ns - self._armed_ns >= ARM_NS:
            self._armed_ns, self._is_disarmed = now_ns, False
            self._check(lib.shmd_sleeper_arm(self.native))

    @property
    def arm_due_ns(self) -> int | None:
        """When ``arm`` has something to do; None: nothing is disarmed."""
        return self._armed_ns + ARM_NS if self._is_disarmed else None

    def look(self) -> list[Woken]:
        """Who has woken the driver since the last look, and who would now: each once. Never waits."""
        for _ in range(LOOKS_MAX):
            if self._wait(ffi.NULL, 0, 0) < FOUND_MAX:
                break
        woken, self._woken = self._woken, {}
        return [Woken(kind, key, what) for (kind, key), what in woken.items()]

    def wait(self, rest: object, now_ns: int, until_ns: int) -> None:
        """Sleeps until somebody wakes the driver, or until ``until_ns`` by the caller's clock.

        ``rest`` (``shmd_rest_t *``, or None): idle checks take the place of lease checks meanwhile.
        """
        if not self._woken:
            self._wait(rest or ffi.NULL, now_ns, until_ns)

    def wake(self) -> None:
        """Ends the present sleep, or the next one. From any thread and any signal handler."""
        with self._bell:
            if self.native:
                lib.shmd_sleeper_wake(self.native)

    def close(self) -> None:
        """Closes what is its own. The descriptors that it watched are the caller's. Twice is once."""
        _sleepers.discard(self)
        with self._bell:
            native, self.native = self.native, ffi.NULL
        if native:
            ffi.release(native)

    # -- inner

    def _wait(self, rest: object, now_ns: int, until_ns: int) -> int:
        found = lib.shmd_sleeper_wait(self.native, rest, now_ns, until_ns, self._found, FOUND_MAX)
        self._check(found)
        for i in range(found):
            each = self._found[i]
            who, what = (int(each.kind), int(each.key)), int(each.what)
            self._woken[who] = self._woken.get(who, 0) | what
            self._is_disarmed |= bool(what & lib.SHMD_WOKEN_DISARMED)
        return int(found)

    @staticmethod
    def _check(result: int) -> None:
        if result < 0:
            raise ShmDriverError(f"the driver's sleep: {last_error()}")
