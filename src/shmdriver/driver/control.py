"""The control ring, read: what clients ask for, copied once, checked, and shared out fairly.

Nothing in a request is used before its copy in private memory has passed the checks of the C core
(checksum over position, claimer and client's nonce; enums, ranges, lengths, UTF-8). A tick takes a bounded
number of requests and a bounded number of each client's; what one client sends beyond that waits here,
in its order, while the others are served.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, text_of
from shmdriver.driver.clients import ClientTable
from shmdriver.driver.failpoints import failpoint
from shmdriver.errors import Code, Reason, ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["ControlRing", "Request"]

WAITING_MAX = 1024

ANSWER_KINDS = {
    lib.SHMD_REQUEST_ATTACH: lib.SHMD_EVENT_ATTACH_RESPONSE,
    lib.SHMD_REQUEST_DETACH: lib.SHMD_EVENT_DETACH_RESPONSE,
    lib.SHMD_REQUEST_SHUTDOWN: lib.SHMD_EVENT_ADMIN_RESPONSE,
    lib.SHMD_REQUEST_ADMIN: lib.SHMD_EVENT_ADMIN_RESPONSE,
}


class Request:
    """A private copy of one request (``raw``: ``shmd_request_t *``), and its most used fields.

    ``stream``: its name, "" when the kind has none. ``attach_hash``: of an attach's stream and role, else 0.
    """

    __slots__ = ("attach_hash", "client_id", "correlation_id", "kind", "raw", "stream")

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.kind = int(raw.kind)
        self.correlation_id = int(raw.correlation_id)
        self.client_id = int(raw.client_id)
        self.stream = text_of(raw.stream)
        self.attach_hash = 0
        if self.kind == lib.SHMD_REQUEST_ATTACH:
            name = self.stream.encode()
            self.attach_hash = int(lib.shmd_hash(name, len(name), int(raw.role)))

    @property
    def deadline_ns(self) -> int:
        """Past this nobody waits for the answer any more."""
        return int(self.raw.deadline_ns)

    @property
    def text(self) -> str:
        """The reason that the sender gave."""
        return text_of(self.raw.text)

    @property
    def answer_kind(self) -> int:
        """The kind of event that answers it."""
        return ANSWER_KINDS.get(self.kind, int(lib.SHMD_EVENT_ERROR))


class ControlRing:
    """The only reader of the control ring."""

    def __init__(
        self,
        authority: Authority,
        clients: ClientTable,
        *,
        budget: int,
        refuse: Callable[[Request, Code, Reason, str], None],
    ) -> None:
        self._authority = authority
        self._clients = clients
        self._budget = budget
        self._share = max(1, budget // 8)
        self._refuse = refuse
        self._waiting: OrderedDict[int, deque[Request]] = OrderedDict()
        self._waiting_count = 0
        self._is_more = False  # the last tick's budget ended before the ring did
        self._is_serving = False  # the next slot's request was handed out, and its slot is not free yet
        self._reader = lib.shmd_control_reader_new(
            authority.control, authority.control_map.size, authority.base
        )
        if self._reader == ffi.NULL:
            raise ShmDriverError(f"control ring of {authority.instance!r}: {last_error()}")
        self._doorbell = ffi.addressof(authority.control, "doorbell")

    def close(self) -> None:
        """Frees the reader; the ring stays."""
        if self._reader != ffi.NULL:
            lib.shmd_control_reader_free(self._reader)
            self._reader = ffi.NULL

    @property
    def has_waiting(self) -> bool:
        """Whether requests wait for the next tick."""
        return self._waiting_count > 0 or self._is_more

    @property
    def is_held_up(self) -> bool:
        """Whether somebody has claimed the next slot and not committed it yet."""
        return bool(lib.shmd_control_claimer(self._reader) != 0)

    @property
    def rings(self) -> int:
        """The doorbell's value, to sleep on."""
        return int(lib.shmd_futex_load(self._doorbell))

    @property
    def reader(self) -> Any:
        """``shmd_control_reader *``."""
        return self._reader

    def sleep(self, rings: int, timeout_ns: int) -> None:
        """Sleeps until somebody commits a request after ``rings`` was read, a wake, or the timeout."""
        lib.shmd_futex_wait(self._doorbell, rings, timeout_ns)

    def wake(self) -> None:
        """Wakes the driver's loop, from any thread."""
        lib.shmd_control_ring(self._authority.control)

    def mend(self) -> None:
        """After the segment has lost pages: garbage in place of turns is free again."""
        lib.shmd_control_mend(self._reader)

    def take(self, now_ns: int) -> Iterator[Request]:
        """The requests of one tick, in each client's own order. Serve each before asking for the next.

        A request's slot is free only when it was served: a driver that is killed in between leaves it to its
        successor, and every request is idempotent. What one client sends beyond its share leaves the ring to
        the others and waits in private memory, where it is lost with the driver.
        """
        if self._is_serving:  # that raised: not again
            self._advance()
        left = self._budget
        served: dict[int, int] = {}
        for client_id in list(self._waiting):  # round robin: who was served goes to the back
            pending = self._waiting[client_id]
            turns = min(self._share, len(pending), left)
            self._waiting.move_to_end(client_id)
            served[client_id] = turns
            left -= turns
            for _ in range(turns):
                self._waiting_count -= 1
                yield pending.popleft()
            if not pending:
                del self._waiting[client_id]
        self._is_more = True
        for _ in range(self._budget):
            if self._waiting_count >= WAITING_MAX:
                break
            found, request = self._read(now_ns)
            if not found:
                self._is_more = False
                break
            if request is None:
                continue
            client_id = request.client_id
            taken = served.get(client_id, 0)
            if client_id in self._waiting or taken >= self._share or left == 0:
                self._waiting.setdefault(client_id, deque()).append(request)
                self._waiting_count += 1
            else:
                served[client_id] = taken + 1
                left -= 1
                self._is_serving = True
                yield request
            self._advance()

    def _advance(self) -> None:
        self._is_serving = False
        failpoint("request.accepted")
        lib.shmd_control_advance(self._reader)

    def sweep(self) -> None:
        """Frees the slots whose claimers said that they are done, or are proved dead."""
        if not lib.shmd_control_sweep(self._reader):
            return
        for slot in range(lib.SHMD_CONTROL_SLOTS):
            who = lib.shmd_control_quarantined(self._reader, slot)
            if who and self._is_proved_dead(who):
                lib.shmd_control_release(self._reader, slot)

    def _read(self, now_ns: int) -> tuple[bool, Request | None]:
        """One slot of the ring: whether there was one, and its request if it is to be served.

        A slot with such a request is still to be freed; any other is free.
        """
        raw = ffi.new("shmd_request_t *")
        found = lib.shmd_control_poll(self._reader, raw, now_ns)
        if found == 0:
            return False, None
        if found == lib.SHMD_E_TIMEOUT:
            return self._skip(), None
        request = Request(raw) if found == 1 else None
        if request is None:
            self._authority.count(lib.SHMD_COUNTER_REQUESTS_CORRUPT)
            self._authority.log_error(f"control ring: {last_error()}", now_ns)
        elif self._accept(request, now_ns):
            return True, request
        self._advance()
        return True, None

    def _accept(self, request: Request, now_ns: int) -> bool:
        """Whether it is one to serve; the answer to any other is given."""
        self._authority.count(lib.SHMD_COUNTER_REQUESTS)
        found = lib.shmd_request_check(request.raw)
        if found == lib.SHMD_E_LAYOUT:
            self._refuse(request, Code.UNSUPPORTED, Reason.LAYOUT, last_error())
        elif found != 0:
            self._authority.count(lib.SHMD_COUNTER_REQUESTS_CORRUPT)
            reason = Reason.BAD_NAME if "name" in last_error() else Reason.NONE
            self._refuse(request, Code.INVALID_PARAMS, reason, last_error())
        elif request.deadline_ns < now_ns:
            self._authority.count(lib.SHMD_COUNTER_REQUESTS_EXPIRED)  # nobody waits for the answer
        else:
            return True
        return False

    def _skip(self) -> bool:
        who = int(lib.shmd_control_claimer(self._reader))
        if not lib.shmd_control_skip(self._reader, int(self._is_proved_dead(who))):
            return who != 0  # committed at this very moment: read it
        return True

    def _is_proved_dead(self, who: int) -> bool:
        record = self._authority.client(who - 1) if who else ffi.NULL
        if record == ffi.NULL:
            return True  # no such record: garbage, not a claimer
        client = self._clients.by_index(who - 1)
        return client is None or client in self._clients.deaths()
