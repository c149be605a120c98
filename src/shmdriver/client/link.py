"""One native connection to a driver, and what happens to it at fork and at interpreter exit.

A Link is made in one process and is of no use in another: a forked child never calls into it (its
heartbeat thread is not there, its lease lines are the parent's). Every open handle registers here, so
that an interpreter that exits ends its streams as aborted: only close() is a clean end.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from shmdriver._native import ffi, lib
from shmdriver.client._raise import raise_for
from shmdriver.errors import HandleClosed

__all__ = [
    "FOREVER_SLICE_NS",
    "TRY_AGAIN_NS",
    "Deadline",
    "Handle",
    "Link",
    "nap",
    "register",
    "wait_for_a_driver",
]

# A wait without end is made of slices this long, between which Python runs signal handlers (Ctrl-C).
FOREVER_SLICE_NS = 50_000_000
TRY_AGAIN_NS = 20_000_000  # while what is waited for has no word that one could sleep on


class Deadline:
    """A timeout in seconds (None: never) as a point in time, and the next slice to wait until then."""

    __slots__ = ("_end_ns",)

    def __init__(self, timeout: float | None) -> None:
        self._end_ns = None if timeout is None else time.monotonic_ns() + max(0, int(timeout * 1e9))

    def slice_ns(self) -> int:
        """How long to wait next, in ns, at most a slice; 0 when the time is over."""
        if self._end_ns is None:
            return FOREVER_SLICE_NS
        return max(0, min(FOREVER_SLICE_NS, self._end_ns - time.monotonic_ns()))

    def rest_ns(self) -> int | None:
        """What is left, in ns; None without an end."""
        return None if self._end_ns is None else max(0, self._end_ns - time.monotonic_ns())

    def rest_s(self) -> float:
        """What is left, in seconds, of one that has an end."""
        return (self.rest_ns() or 0) / 1e9


_nothing = ffi.new("uint32_t *")


def wait_for_a_driver(deadline: Deadline) -> None:
    """A moment of the time that is left."""
    nap(min(deadline.slice_ns(), TRY_AGAIN_NS))


def nap(slice_ns: int) -> None:
    """Lets ``slice_ns`` pass; a signal ends it."""
    lib.shmd_futex_wait(_nothing, 0, slice_ns)


class Handle(Protocol):
    """What the registry needs of a producer, consumer or link."""

    def _abandon(self) -> None: ...

    def _forked(self) -> None: ...


class Link:
    """One native connection: a hello has been answered, a C thread beats for it."""

    abandon_turn = 2

    __slots__ = (
        "__weakref__",
        "_parting",
        "_users",
        "authority",
        "boot_id",
        "generation",
        "handle",
        "instance",
        "listeners",
    )

    def __init__(
        self,
        instance: str,
        name: str | None,
        timeout: float,
        *,
        waits: bool = False,
        reconnect: bool = False,
    ) -> None:
        """Connects, waiting up to ``timeout`` seconds for the driver's answer.

        Raises DriverUnavailable (there is none: at once unless ``waits``), AttachTimeout, AttachRejected.
        With ``reconnect`` its requests wait, up to their own timeouts, for a driver that adopts.
        """
        self.handle: Any = None
        self._users: set[object] = set()  # calls inside, each a token of its own
        self._parting: list[Any] = []  # the handle, closed while somebody was inside
        # What ends the threads that stay inside until they are told, before the mapping goes.
        self.listeners: list[Callable[[], None]] = []
        deadline = Deadline(timeout)
        mode = lib.SHMD_HEARTBEAT_THREAD | (lib.SHMD_WAIT_FOR_DRIVER if reconnect else 0)
        out = ffi.new("shmd_client **")
        client_name = ffi.NULL if name is None else name.encode()
        while True:
            code = lib.shmd_connect_named(instance.encode(), client_name, mode, deadline.rest_ns() or 0, out)
            if code == lib.SHMD_E_DRIVER_UNAVAILABLE and waits and deadline.slice_ns() > 0:
                wait_for_a_driver(deadline)
            elif code != lib.SHMD_E_INTERRUPTED:
                break
        if code != 0:
            raise_for(code, instance=instance, doing="connecting", timeout_s=timeout)
        self.instance = instance
        self.handle = out[0]
        self.generation = int(lib.shmd_fork_generation())
        self.boot_id = int(lib.shmd_client_boot_id(self.handle))
        # Mapped as long as this object lives: whoever reads in it need not know whether it was closed.
        self.authority: Any = _kept_authority(self.handle)
        register(self)

    @property
    def usable(self) -> bool:
        """Whether this process made it. Handles that it leaves open work until they are closed, too."""
        return self.generation == lib.shmd_fork_generation()

    def driver_alive(self) -> bool:
        """Whether the driver behind it lives, as far as it can be proved."""
        try:
            with self.used() as native:
                return bool(lib.shmd_client_driver_alive(native))
        except HandleClosed:
            return False

    @contextmanager
    def used(self) -> Iterator[Any]:
        """The native handle, which stays until the block is left, whoever closes the link meanwhile.

        Raises HandleClosed.
        """
        token = object()
        self._users.add(token)
        try:
            handle = self.handle
            if handle is None:
                raise HandleClosed(f"instance {self.instance!r}: this client is closed; connect again")
            yield handle
        finally:
            self._users.discard(token)
            self._part()

    def event_head(self) -> int:
        """How many events the driver has told: something has changed when that has."""
        return int(lib.shmd_word_load(ffi.addressof(self.authority, "event_head")))

    def close(self) -> None:
        """Says goodbye and unmaps, or has the last thread inside do it. Nothing in a child of its process."""
        handle, self.handle = self.handle, None
        if handle is not None and self.usable:
            for stop in self.listeners:
                stop()
            self._parting.append(handle)
            self._part()

    def _part(self) -> None:
        # The closer parks the handle, then looks at the users; a user leaves, then looks for the handle: at
        # least one of them sees both, and only one takes it. No lock: a finaliser may close meanwhile.
        if self._parting and not self._users and self.usable:
            try:
                handle = self._parting.pop()
            except IndexError:
                return
            lib.shmd_disconnect(handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.close()

    def _abandon(self) -> None:
        self.close()

    def _forked(self) -> None:
        self.handle = None  # the parent's; nothing of it is freed here


def _kept_authority(client: Any) -> Any:
    lib.shmd_client_keep_authority(client)
    return ffi.gc(lib.shmd_client_authority(client), lambda _: lib.shmd_client_drop_authority(client))


class _Registry:
    """The open handles of this process."""

    def __init__(self) -> None:
        self.handles: weakref.WeakSet[Any] = weakref.WeakSet()
        self.finalized_by_multiprocessing = False

    def add(self, handle: Handle) -> None:
        self.handles.add(handle)
        if not self.finalized_by_multiprocessing and "multiprocessing.util" in sys.modules:
            # A multiprocessing child leaves by os._exit, past atexit; its own finalisers do run.
            import multiprocessing.util

            if multiprocessing.parent_process() is not None:
                multiprocessing.util.Finalize(None, self.abandon, exitpriority=10)
            self.finalized_by_multiprocessing = True

    def abandon(self) -> None:
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
        self.finalized_by_multiprocessing = False
        for handle in handles:
            handle._forked()


_REGISTRY = _Registry()
atexit.register(_REGISTRY.abandon)
os.register_at_fork(after_in_child=_REGISTRY.forked)


def register(handle: Handle) -> None:
    """Has ``handle`` abandoned when this interpreter exits and told when this process forks."""
    _REGISTRY.add(handle)
