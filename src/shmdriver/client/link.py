"""One native connection to a driver, and what happens to it at fork and at interpreter exit.

A Link is made in one process and is of no use in another: a forked child never calls into it (its
heartbeat thread is not there, its lease lines are the parent's). Every open handle registers here, so
that an interpreter that exits ends its streams as aborted: only close() is a clean end.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from shmdriver._native import ffi, lib
from shmdriver.client import exiting
from shmdriver.client._raise import raise_for
from shmdriver.client.hotpath import deadline
from shmdriver.errors import DriverUnavailable, HandleClosed
from shmdriver.owners import keeping
from shmdriver.threads import check_threads
from shmdriver.truncation import guard_truncation

__all__ = [
    "FOREVER_SLICE_NS",
    "TRY_AGAIN_NS",
    "Deadline",
    "Handle",
    "Link",
    "nap",
    "open_handles",
    "pause_after",
    "register",
    "wait_for_a_driver",
]

# A wait without end is made of slices this long, between which Python looks after the driver. A signal ends
# a slice, and so do a message, room, a change that the driver tells of, and a close.
FOREVER_SLICE_NS = 1_000_000_000
NEVER = 2**64 - 1  # what a point in time is that does not come
# Nothing wakes a process that waits for a driver to come: it looks, at first so often, then ever less often.
TRY_AGAIN_NS = 20_000_000
LOOK_PART = 8  # a driver that has come is noticed late by this part of the time that the wait has lasted


class Deadline:
    """A timeout in seconds (None: never) as a point in time, and the next slice to wait until then.

    What is no number of seconds is refused in the name of ``argument``: TypeError, ValueError.
    """

    __slots__ = ("_began_ns", "end_ns")

    def __init__(self, timeout: float | None, argument: str = "timeout") -> None:
        self.end_ns = deadline(timeout, argument)  # NEVER: it has no end
        self._began_ns = time.monotonic_ns()

    def slice_ns(self) -> int:
        """How long to wait next, in ns, at most a slice; 0 when the time is over."""
        return max(0, min(FOREVER_SLICE_NS, self.end_ns - time.monotonic_ns()))

    def pause_ns(self) -> int:
        """How long to sleep before the next look for what nobody tells, in ns; 0 when the time is over."""
        return min(self.slice_ns(), pause_after(time.monotonic_ns() - self._began_ns))

    def rest_ns(self) -> int:
        """What is left, in ns; NEVER without an end."""
        return NEVER if self.end_ns == NEVER else max(0, self.end_ns - time.monotonic_ns())

    def rest_s(self) -> float:
        """What is left, in seconds; infinity without an end."""
        return math.inf if self.end_ns == NEVER else self.rest_ns() / 1e9


def pause_after(lasted_ns: int) -> int:
    """How long to sleep in a wait that has lasted so long, up to a quarter less: not all look at once."""
    longest_ns = max(TRY_AGAIN_NS, min(lasted_ns // LOOK_PART, FOREVER_SLICE_NS))
    return longest_ns - longest_ns * (time.monotonic_ns() & 0xFF) // 1024  # its last digits are chance


_nothing = ffi.new("uint32_t *")


def wait_for_a_driver(until: Deadline) -> None:
    """Sleeps until the next look for a driver, at most until ``until``.

    Raises DriverUnavailable when the coroutine that made this call was cancelled.
    """
    if getattr(threading.current_thread(), "is_cancelled", False):  # coroutines.py
        raise DriverUnavailable("given up: the task that called was cancelled")
    nap(until.pause_ns())


def nap(slice_ns: int) -> None:
    """Lets ``slice_ns`` pass; a signal ends it."""
    lib.shmd_futex_wait(_nothing, 0, slice_ns)


class Handle(Protocol):
    """What the registry needs of a producer, consumer or link."""

    def _abandon(self) -> None: ...

    def _forked(self) -> None: ...


class Link:
    """One native connection, once ``open`` has returned: a hello has been answered, a C thread beats for it.

    It owns the connection before there is one (csrc/core/shmd_owner.c). When nothing refers to it any more,
    the connection parts, without waiting; the authority stays mapped until then, closed or not.
    """

    abandon_turn = 2

    __slots__ = (
        "__weakref__",
        "_cpus",
        "_flags",
        "_name",
        "_owner",
        "_owner_name",
        "authority",
        "boot_id",
        "candidates",
        "closed",
        "generation",
        "instance",
        "listeners",
        "native",
        "owner",
        "successor",
    )

    def __init__(
        self,
        instance: str,
        name: str | None,
        *,
        reconnect: bool,
        heartbeat_cpus: tuple[int, ...] | None = None,
        owner: str | None = None,
    ) -> None:
        """With ``reconnect`` its requests wait, up to their own timeouts, for a driver that adopts.

        ``heartbeat_cpus``: where its C threads run; None: wherever this process may. ``owner``: the user
        whose driver is meant; None: any that this process trusts.
        """
        self.instance = instance
        self.owner = owner
        self.generation = int(lib.shmd_fork_generation())
        self.closed = False
        self.native: Any = None  # the client, which threads that are inside may use past the close
        self.authority: Any = None
        self.boot_id = 0
        self.candidates: dict[int, Link] = {}  # 0: what may take its place, tried by one or several threads
        self.successor: Link | None = None  # what has taken its place
        # What ends the threads that stay inside until they are told, before the mapping goes.
        self.listeners: list[Callable[[], None]] = []
        self._name = ffi.NULL if name is None else ffi.new("char[]", name.encode())
        self._owner_name = ffi.NULL if owner is None else ffi.new("char[]", owner.encode())
        self._cpus = ffi.NULL if heartbeat_cpus is None else ffi.new("uint32_t[]", heartbeat_cpus)
        self._flags = lib.SHMD_HEARTBEAT_THREAD | (lib.SHMD_WAIT_FOR_DRIVER if reconnect else 0)
        self._owner = ffi.gc(ffi.new("shmd_connection_t *"), lib.shmd_connection_drop)
        lib.shmd_connection_init(self._owner)

    def open(self, timeout: float, *, waits: bool = False) -> None:
        """Connects, waiting up to ``timeout`` seconds for the driver's answer; once, whoever calls how often.

        Raises DriverUnavailable (there is none: at once unless ``waits``), AttachTimeout, AttachRejected,
        HandleClosed; ShmDriverError in a process whose threads are greenlets.
        """
        check_threads()
        guard_truncation()
        until = Deadline(timeout)
        instance = self.instance.encode()
        options = ffi.new("shmd_client_options *")
        options.name, options.flags, options.cpus = self._name, self._flags, self._cpus
        options.owner = self._owner_name
        options.cpu_count = len(self._cpus) if self._cpus else 0
        while True:
            options.timeout_ns = until.rest_ns()
            code = lib.shmd_connection_open(self._owner, instance, options)
            if code == lib.SHMD_E_DRIVER_UNAVAILABLE and waits and until.slice_ns() > 0:
                wait_for_a_driver(until)
            elif code != lib.SHMD_E_INTERRUPTED:
                break
        if code == lib.SHMD_E_CLOSED:
            raise HandleClosed(f"instance {self.instance!r}: this client is closed; connect again")
        if code != 0:
            raise_for(code, instance=self.instance, doing="connecting", timeout_s=timeout)
        client = self._owner.client
        self.boot_id = int(lib.shmd_client_boot_id(client))
        self.authority = keeping(lib.shmd_client_authority(client), self._owner)
        self.native = keeping(client, self._owner)
        register(self)

    @property
    def usable(self) -> bool:
        """Whether this process made it. Handles that it leaves open work until they are closed, too."""
        return self.generation == lib.shmd_fork_generation()

    def driver_alive(self) -> bool:
        """False once the driver's death is proved; a death that cannot be proved counts as alive."""
        return not self.closed and bool(lib.shmd_client_driver_alive(self.native))

    def event_head(self) -> int:
        """How many events the driver has told: something has changed when that has."""
        return int(lib.shmd_word_load(ffi.addressof(self.authority, "event_head")))

    def close(self) -> None:
        """Says goodbye, or has the last thread inside do it. Nothing in a child of its process."""
        self.closed = True
        if self.usable:
            for stop in self.listeners:
                stop()
            lib.shmd_connection_close(self._owner)

    def _abandon(self) -> None:
        """Parts without waiting: the interpreter goes."""
        lib.shmd_connection_abandon(self._owner)

    def _forked(self) -> None:
        self.closed = True  # the parent's; nothing of it is freed here


class _Registry:
    """The open handles of this process."""

    def __init__(self) -> None:
        self.handles: weakref.WeakSet[Any] = weakref.WeakSet()
        self.finalized_by: set[str] = set()
        self.is_forking = False

    def add(self, handle: Handle) -> None:
        self.handles.add(handle)
        for package in () if self.is_forking else _PROCESS_PACKAGES:
            if package not in self.finalized_by and _is_a_child_of(package):
                util = sys.modules[f"{package}.util"]
                util.Finalize(None, self.abandon, exitpriority=10)
                self.finalized_by.add(package)

    def abandon(self) -> None:
        exiting.begin()
        handles = list(self.handles)
        self.handles.clear()
        # Queues first, which put what they still have; links last.
        for handle in sorted(handles, key=lambda handle: getattr(handle, "abandon_turn", 1)):
            try:
                handle._abandon()
            except Exception:  # noqa: S110
                pass  # the interpreter is going; the driver sees this process's death

    def forked(self) -> None:
        handles = list(self.handles)
        self.handles.clear()
        self.finalized_by.clear()
        self.is_forking = True  # these packages forget the finalisers that a child has by now
        try:
            for handle in handles:
                handle._forked()
        finally:
            self.is_forking = False


# Their children leave by os._exit, past atexit, but their finalisers run. Two are forks of the first.
_PROCESS_PACKAGES = ("multiprocessing", "multiprocess", "billiard")


def _is_a_child_of(package: str) -> bool:
    """Whether this process was made by ``package``, and runs."""
    process = sys.modules.get(f"{package}.process")
    if process is None or f"{package}.util" not in sys.modules:
        return False
    return type(process.current_process()).__name__ != "_MainProcess"


_REGISTRY = _Registry()
atexit.register(_REGISTRY.abandon)
os.register_at_fork(after_in_child=_REGISTRY.forked)


def register(handle: Handle) -> None:
    """Has ``handle`` abandoned when this interpreter exits and told when this process forks."""
    _REGISTRY.add(handle)


def open_handles() -> list[Any]:
    """The handles of this process that are open, of all clients."""
    return list(_REGISTRY.handles)
