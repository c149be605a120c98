"""Notes of the requests in work, so that what killed one driver is not served by the next one.

The loop notes each request while it serves it, and an attach again while it grants the memory that was made
for it. The memory worker notes an attach while it makes that memory. A driver that adopts and finds a note
knows that its predecessor died while that request was in work. It remembers the request in the authority,
for its own successors too, and refuses it after that one death: nothing proves that the death had another
cause. So one attach kills one driver at most. Two things are done again, until ``DEATHS_MAX`` drivers have
died at them:

* a Detach or a Goodbye, which allocates nothing. It is sent once: refused, it would be lost;
* the answer to an attach or a Hello whose lease or client stands in the tables. Only the answer is given
  again: refused, what was granted would be nobody's. (A Hello is known by its nonce, which a client keeps.)

Requests that wait (in the ring, for the memory worker, for their grant) are never noted. A client that was
told may ask again, which is a new request. A client that attaches anew by itself has another request for the
same stream and role by then, and is told by the refusal of that one; unless the first had its answer: its
driver died right after that, and need not have died of it.

Why a kill at any moment is right: each entry of the authority has one writing thread, and notes in one entry
never nest. The state is stored last (release). The successor reads it once it holds the instance's lock,
after all stores of the dead process. A kill before that store finds the request untouched, and a kill after
the note has gone finds it answered or waiting: it is served by what the tables show. ``inherit`` remembers a
note before it frees it, and the note says how many deaths came before: a kill in between counts once.

Called by the driver and, for ``making``, by the memory worker.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Protocol

from shmdriver._native import ffi, lib
from shmdriver.driver.tables import Tables

__all__ = ["DEATHS_MAX", "Noted", "Work"]

DEATHS_MAX = 3  # of drivers, at what must not be lost
SENT_ONCE = (lib.SHMD_REQUEST_DETACH, lib.SHMD_REQUEST_GOODBYE)
FREE, NOTED, TOLD = 0, 1, 2  # states of an entry


class Noted(Protocol):
    """A request, or a Hello, as far as its note needs it."""

    @property
    def kind(self) -> int: ...
    @property
    def client_id(self) -> int: ...
    @property
    def correlation_id(self) -> int: ...
    @property
    def attach_hash(self) -> int: ...


class _Note:
    """A request is in work while this block runs. What ends the process leaves the note, as a kill does."""

    __slots__ = ("_bytes", "_deaths", "_entry", "_request", "_work")

    def __init__(self, work: Work, request: Noted, size: int) -> None:
        self._work = work
        self._request = request
        self._bytes = size
        self._deaths = work.deaths_at(request)

    def __enter__(self) -> None:
        entry = self._entry = self._work.entry_of(self._bytes)
        request = self._request
        _fill(entry, request.client_id, request.correlation_id, self._bytes, self._deaths)
        entry.stream_hash = request.attach_hash
        _store_state(entry, NOTED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            _store_state(self._entry, FREE)


class Work:
    """The notes of one instance: what is in work, and what drivers have died at."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        base = tables.authority.base
        entries = [ffi.addressof(base.work, index) for index in range(lib.SHMD_WORK_ENTRIES)]
        first = lib.SHMD_WORK_REMEMBERED
        self._notes, self._remembered = entries[:first], entries[first:]
        self._loop_thread = threading.get_ident()
        self._died: dict[tuple[int, int], Any] = {}  # client and correlation id: its entry
        for entry in self._remembered:
            if entry.state:
                self._died[_key(entry)] = entry

    def inherit(self, now_ns: int) -> list[str]:
        """Remembers what was in work when the driver before died; texts about it.

        The tables are adopted, and name the driver before still (``introduce`` comes later).
        A driver that is killed in here leaves notes from which the next one comes to the same.
        """
        found = []
        pid = int(self._tables.authority.base.driver_pid)
        for entry in self._notes:
            if entry.state:
                entry.driver_pid, entry.died_ns = pid, now_ns
                correlation_id = int(entry.correlation_id)
                is_told = self._is_granted(correlation_id) or self._tables.events.has_answered(correlation_id)
                state = TOLD if is_told else NOTED
                self._remember(_key(entry), entry, int(entry.deaths) + 1, state)
                found.append(
                    f"the driver before (pid {pid}) died while request "
                    f"{int(entry.correlation_id):#x} of client {int(entry.client_id)} was in work"
                    + (f", for which it made {int(entry.bytes)} bytes" if entry.bytes else "")
                )
                _store_state(entry, FREE)
        return found

    def serving(self, request: Noted) -> _Note:
        """A block in which the loop serves this request, or grants its memory. Such blocks never nest."""
        self._loop_thread = threading.get_ident()
        return _Note(self, request, 0)

    def making(self, request: Noted, size: int) -> _Note:
        """A block in which ``size`` bytes (not 0) are made for this attach, in whichever thread."""
        return _Note(self, request, size)

    def entry_of(self, size: int) -> Any:
        """Where this thread notes work that makes so many bytes (0: none): ``shmd_work_t *``."""
        if size == 0:
            return self._notes[lib.SHMD_WORK_LOOP]
        is_loop = threading.get_ident() == self._loop_thread
        return self._notes[lib.SHMD_WORK_MEMORY if is_loop else lib.SHMD_WORK_THREAD]

    def deaths_at(self, request: Noted) -> int:
        """How many drivers have died while this request was in work, as far as it is remembered."""
        entry = self._died.get((request.client_id, request.correlation_id))
        return 0 if entry is None else int(entry.deaths)

    def refusal(self, request: Noted) -> str:
        """Why this request is not served, because of what it may have done to drivers; "" when it is.

        When a driver died at an attach, its client's next one to that stream in that role is told so, too.
        """
        key = request.client_id, request.correlation_id
        entry = self._died.get(key) or self._untold_like(request)
        if entry is None:
            return ""
        pid, deaths = int(entry.driver_pid), int(entry.deaths)
        if deaths < DEATHS_MAX and (request.kind in SENT_ONCE or self._is_granted(int(entry.correlation_id))):
            return ""
        _store_state(entry, TOLD)
        if key not in self._died:  # it may come again: clients repeat what is not answered
            entry = self._remember(key, entry, deaths, TOLD)
        if entry.bytes:
            return (
                f"a driver (pid {pid}) died while it made {int(entry.bytes)} bytes for this attach, so it is "
                "not tried again. Look whether it was out of memory (dmesg; oom_kill in its cgroup's "
                "memory.events), and ask for less (slots, slot_bytes, arena, max_message) or raise that "
                "limit. Attaching again is a new request"
            )
        died = f"a driver (pid {pid})" if deaths == 1 else f"{deaths} drivers (the last one: pid {pid})"
        return (
            f"{died} died while serving this request. The request may have been the cause, so it is not "
            "served again: see the driver's log and dmesg. Asking again is a new request"
        )

    def _untold_like(self, request: Noted) -> Any | None:
        if not self._died or request.kind != lib.SHMD_REQUEST_ATTACH:
            return None
        if self._is_granted(request.correlation_id):  # asked for again, only because its answer was lost
            return None
        wanted = request.attach_hash
        for (client_id, _), entry in self._died.items():
            is_like = client_id == request.client_id and int(entry.stream_hash) == wanted
            if is_like and int(entry.state) == NOTED:
                return entry
        return None

    def _remember(self, key: tuple[int, int], found: Any, deaths: int, state: int) -> Any:
        """Keeps what is ``found`` about a request in its entry, or in place of the oldest; that entry."""
        size, stream_hash, pid, died_ns = found.bytes, found.stream_hash, found.driver_pid, found.died_ns
        entry = self._died.get(key)
        if entry is None:
            entry = min(self._remembered, key=lambda known: int(known.died_ns) if known.state else -1)
            self._died.pop(_key(entry), None)
            _store_state(entry, FREE)
            entry.bytes = 0
        entry.driver_pid, entry.died_ns, entry.stream_hash = pid, died_ns, stream_hash
        _fill(entry, *key, max(int(size), int(entry.bytes)), deaths)
        _store_state(entry, state)
        self._died[key] = entry
        return entry

    def _is_granted(self, correlation_id: int) -> bool:
        """Whether the lease or the client that a request asked for stands in the tables."""
        clients, leases = self._tables.clients, self._tables.leases
        return bool(clients.of_hello(correlation_id) or leases.by_correlation(correlation_id))


def _key(entry: Any) -> tuple[int, int]:
    return int(entry.client_id), int(entry.correlation_id)


def _fill(entry: Any, client_id: int, correlation_id: int, size: int, deaths: int) -> None:
    entry.client_id, entry.correlation_id = client_id, correlation_id
    entry.bytes, entry.deaths = size, deaths


def _store_state(entry: Any, state: int) -> None:
    lib.shmd_word_store(ffi.addressof(entry, "state"), state)
