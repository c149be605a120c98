"""Notes of the requests in work, so that what killed one driver is not served by the next one.

The loop notes each request from its copy to its answer; the memory worker notes a producer's attach while it
makes that stream's memory. The notes stand in the authority, before the work begins, and go with its end. A
driver that adopts and finds a note knows that its predecessor died while that request was in work. It
remembers the request there, for its own successors too, and then:

* an attach for which memory was being made is refused at once: making it may be what has killed the driver
  (a cgroup's out-of-memory killer, a crash), and nothing proves that it was something else;
* any other request allocates nothing. It is served again until ``DEATHS_MAX`` drivers have died at it.

Requests that merely wait (in the ring, for the memory worker, for another client's) are never noted. The
client may ask again, which is a new request, once it was told: a client that attaches anew by itself has
another request for the same stream by then, and that is what it is told by. Called by the driver and, for
``making``, by the memory worker.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.control import Request

__all__ = ["DEATHS_MAX", "Work"]

DEATHS_MAX = 3  # of drivers, at a request for which no memory is made
FREE, NOTED, TOLD = 0, 1, 2  # states of an entry


class _Note:
    """A request is in work while this block runs. What ends the process leaves the note, as a kill does."""

    __slots__ = ("_bytes", "_deaths", "_entry", "_request", "_work")

    def __init__(self, work: Work, request: Request, size: int) -> None:
        self._work = work
        self._request = request
        self._bytes = size
        self._deaths = work.deaths_at(request)

    def __enter__(self) -> None:
        entry = self._entry = self._work.entry_of(self._bytes)
        request = self._request
        _fill(entry, request.client_id, request.correlation_id, self._bytes, self._deaths)
        entry.stream_hash = _hash(request.stream) if self._bytes else 0
        _store_state(entry, NOTED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            _store_state(self._entry, FREE)


class Work:
    """The notes of one instance: what is in work, and what drivers have died at."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        entries = [ffi.addressof(authority.base.work, index) for index in range(lib.SHMD_WORK_ENTRIES)]
        self._notes, self._remembered = (
            entries[: lib.SHMD_WORK_REMEMBERED],
            entries[lib.SHMD_WORK_REMEMBERED :],
        )
        self._loop_thread = threading.get_ident()
        self._died: dict[tuple[int, int], Any] = {}  # client and correlation id: its entry
        for entry in self._remembered:
            if entry.state:
                self._died[_key(entry)] = entry

    def inherit(self, now_ns: int) -> list[str]:
        """Remembers what was in work when the driver before died; texts about it. Before ``introduce``.

        A driver that is killed in here leaves notes from which the next one comes to the same.
        """
        found = []
        for entry in self._notes:
            if entry.state:
                self._remember(entry, now_ns)
                found.append(
                    f"the driver before (pid {int(self._authority.base.driver_pid)}) died while request "
                    f"{int(entry.correlation_id):#x} of client {int(entry.client_id)} was in work"
                    + (f", for which it made {int(entry.bytes)} bytes" if entry.bytes else "")
                )
                _store_state(entry, FREE)
        return found

    def serving(self, request: Request) -> _Note:
        """A block in which the loop serves this request."""
        self._loop_thread = threading.get_ident()
        return _Note(self, request, 0)

    def making(self, request: Request, size: int) -> _Note:
        """A block in which ``size`` bytes (not 0) are made for this attach, in whichever thread."""
        return _Note(self, request, size)

    def entry_of(self, size: int) -> Any:
        """Where this thread notes work that makes so many bytes (0: none): ``shmd_work_t *``."""
        if size == 0:
            return self._notes[lib.SHMD_WORK_LOOP]
        is_loop = threading.get_ident() == self._loop_thread
        return self._notes[lib.SHMD_WORK_MEMORY if is_loop else lib.SHMD_WORK_THREAD]

    def deaths_at(self, request: Request) -> int:
        """How many drivers have died while this request was in work, as far as it is remembered."""
        entry = self._died.get((request.client_id, request.correlation_id))
        return 0 if entry is None else int(entry.deaths)

    def refusal(self, request: Request) -> str:
        """Why this request is not served, because of what it may have done to drivers; "" when it is.

        When a driver died over the memory of an attach, its next attach to the stream is told so, too.
        """
        entry = self._died.get((request.client_id, request.correlation_id)) or self._untold_like(request)
        if entry is None:
            return ""
        pid, deaths = int(entry.driver_pid), int(entry.deaths)
        if entry.bytes:
            _store_state(entry, TOLD)
            return (
                f"a driver (pid {pid}) died while it made {int(entry.bytes)} bytes for this attach, so it is "
                "not tried again. Look whether it was out of memory (dmesg; oom_kill in its cgroup's "
                "memory.events), and ask for less (slots, slot_bytes, arena, max_message) or raise that "
                "limit. Attaching again is a new request"
            )
        if deaths < DEATHS_MAX:
            return ""
        return (
            f"{deaths} drivers died while they served this request, the last one was pid {pid}: it is not "
            "served again. See why they died (their log, dmesg). Asking again is a new request"
        )

    def _untold_like(self, request: Request) -> Any | None:
        if request.kind != lib.SHMD_REQUEST_ATTACH or request.raw.role != lib.SHMD_ROLE_PRODUCER:
            return None
        for (client_id, _), entry in self._died.items():
            is_like = client_id == request.client_id and int(entry.stream_hash) == _hash(request.stream)
            if is_like and entry.bytes and int(entry.state) == NOTED:
                return entry
        return None

    def _remember(self, note: Any, now_ns: int) -> None:
        key = _key(note)
        entry = self._died.get(key)
        size, deaths = int(note.bytes), int(note.deaths) + 1
        if entry is None:
            entry = min(self._remembered, key=lambda known: int(known.died_ns) if known.state else -1)
            self._died.pop(_key(entry), None)
            _store_state(entry, FREE)
            entry.stream_hash = 0
        else:
            size = max(size, int(entry.bytes))
        entry.driver_pid, entry.died_ns = self._authority.base.driver_pid, now_ns
        entry.stream_hash = note.stream_hash or entry.stream_hash
        _fill(entry, *key, size, deaths)
        _store_state(entry, NOTED)
        self._died[key] = entry


def _key(entry: Any) -> tuple[int, int]:
    return int(entry.client_id), int(entry.correlation_id)


def _fill(entry: Any, client_id: int, correlation_id: int, size: int, deaths: int) -> None:
    entry.client_id, entry.correlation_id = client_id, correlation_id
    entry.bytes, entry.deaths = size, deaths


def _hash(stream: str) -> int:
    name = stream.encode()
    return int(lib.shmd_hash(name, len(name), 0))


def _store_state(entry: Any, state: int) -> None:
    lib.shmd_word_store(ffi.addressof(entry, "state"), state)
