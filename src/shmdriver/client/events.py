"""What the driver tells everybody, as callbacks."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from shmdriver._native import ffi, lib
from shmdriver.client.link import FOREVER_SLICE_NS, Link
from shmdriver.errors import Code, Reason
from shmdriver.os_errors import last_error
from shmdriver.shown import shown

__all__ = ["DriverEvent", "listen"]

LOOK_S = 1.0  # at a driver that nobody takes over
_STOP_LOOK_S = 0.001

_KINDS = {
    lib.SHMD_EVENT_ATTACH_RESPONSE: "attach_response",
    lib.SHMD_EVENT_DETACH_RESPONSE: "detach_response",
    lib.SHMD_EVENT_LEASE_REVOKED: "lease_revoked",
    lib.SHMD_EVENT_STREAM_ANNOUNCE: "stream_announce",
    lib.SHMD_EVENT_LIFECYCLE_CHANGED: "lifecycle_changed",
    lib.SHMD_EVENT_DRIVER_SHUTDOWN: "driver_shutdown",
    lib.SHMD_EVENT_ERROR: "error",
    lib.SHMD_EVENT_ADMIN_RESPONSE: "admin_response",
    lib.SHMD_EVENT_CONSUMERS_LEFT: "consumers_left",
}


@dataclass(frozen=True, slots=True)
class DriverEvent:
    """One event; ``kind`` says which fields mean something. ``missed`` events before it were overrun.

    ``driver_lost`` comes from no driver: the embedded one is dead, ``text`` says so, and it is the last one.
    """

    kind: str
    code: Code
    reason: Reason
    stream: str
    text: str
    client_id: int
    lease_id: int
    epoch: int
    state: int
    value: int
    time_ns: int
    missed: int


def listen(
    link: Link, callback: Callable[[DriverEvent], object], idle: Callable[[], float] | None = None
) -> Callable[[], None]:
    """Calls ``callback`` for every event from now on, from a daemon thread. Returns what ends it.

    ``idle`` is called after every wait, and says after how many seconds at most it is to be called again
    (0: never, the thread ends).
    """
    stopping = threading.Event()
    if not callable(callback):
        raise TypeError(f"on_event({callback!r}): expected a function of one argument, the event")
    cursor = ffi.new("uint64_t *", link.event_head())
    hooks = [(callback, idle)]
    thread = threading.Thread(
        target=_run, args=(link, hooks, cursor, stopping), name="shmdriver-events", daemon=True
    )

    known = weakref.ref(link)  # the link has `stop`: no cycle. The thread has the link as long as it runs

    def stop() -> None:
        stopping.set()
        if thread.ident is None or thread is threading.current_thread():
            return
        pause_s = _STOP_LOOK_S
        while thread.is_alive():  # again: the thread may have looked, and not have fallen asleep yet
            if (running := known()) is not None:
                lib.shmd_futex_wake(ffi.addressof(running.authority, "event_word"))
            thread.join(pause_s)
            pause_s *= 2

    try:
        link.listeners.append(stop)  # before there is a thread: who closes the link ends it
        thread.start()
        if link.closed:
            stop()  # closed meanwhile, by a thread that may not have seen this listener
    except BaseException:
        stopping.set()
        hooks.clear()  # the link keeps a thread that may have begun or not
        raise
    return stop


def _run(
    link: Link,
    hooks: list[tuple[Callable[[DriverEvent], object], Callable[[], float] | None]],
    cursor: object,
    stopping: threading.Event,
) -> None:
    found = hooks[:]
    if not found:
        return  # who listens was interrupted
    callback, idle = found[0]
    authority = link.authority
    event = ffi.new("shmd_event_t *")
    lost = ffi.new("uint64_t *")
    word = ffi.addressof(authority, "event_word")
    seen_lost = 0
    is_embedded = bool(lib.shmd_instance_is_embedded(link.instance.encode()))
    look_at_s = time.monotonic() + LOOK_S if idle is None else float("inf")
    while not stopping.is_set():
        seen = lib.shmd_futex_load(word)
        while not stopping.is_set() and lib.shmd_event_poll(authority, cursor, event, lost) > 0:
            missed = int(lost[0]) - seen_lost
            seen_lost = int(lost[0])
            callback(_copy(event, missed))
        slice_ns = FOREVER_SLICE_NS
        if idle is not None and not stopping.is_set():
            slice_ns = int(idle() * 1e9)
        if slice_ns == 0:
            return
        if time.monotonic() >= look_at_s and not stopping.is_set():
            look_at_s = time.monotonic() + LOOK_S
            if is_embedded and not link.driver_alive():
                callback(_lost(last_error()))
                return
        if not stopping.is_set():
            lib.shmd_futex_wait(word, seen, slice_ns)


def _lost(text: str) -> DriverEvent:
    """What a dead driver cannot tell, and nobody else will: there comes nothing more."""
    return DriverEvent("driver_lost", Code.OK, Reason.NONE, "", text, 0, 0, 0, 0, 0, time.monotonic_ns(), 0)


def _copy(event: object, missed: int) -> DriverEvent:
    e = ffi.cast("shmd_event_t *", event)
    return DriverEvent(
        kind=_KINDS.get(e.kind, f"event {e.kind}"),
        code=Code(e.code),
        reason=Reason(e.reason),
        stream=ffi.string(e.stream).decode("utf-8", "replace"),
        text=shown(ffi.string(e.text).decode("utf-8", "replace")),
        client_id=int(e.client_id),
        lease_id=int(e.lease_id),
        epoch=int(e.epoch),
        state=int(e.state),
        value=int(e.value),
        time_ns=int(e.time_ns),
        missed=missed,
    )
