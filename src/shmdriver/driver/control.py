"""What clients ask for: read from each client's own ring, copied once, checked, and shared out fairly.

Nothing in a request is used before its copy in private memory has passed the checks of the C core
(position, client, checksum; enums, ranges, lengths, UTF-8). A tick serves the clients that have rung, in
turns: a bounded number of requests in all, and a bounded number of each client's. What one client sends
beyond that stays in its ring until the next tick.

Bad bytes in a slot are counted and passed over: nobody gets an answer. A ring in which nothing can be read
any more (an impossible tail, missing pages) ends its client's registration.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, text_of
from shmdriver.driver.clients import Client, ClientTable
from shmdriver.driver.failpoints import failpoint
from shmdriver.errors import Code, Reason
from shmdriver.os_errors import last_error

__all__ = ["ControlRings", "Request"]

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


class ControlRings:
    """The only reader of all clients' rings. ``expel``: ends a client whose ring cannot be read any more."""

    def __init__(
        self,
        authority: Authority,
        clients: ClientTable,
        *,
        budget: int,
        refuse: Callable[[Request, Code, Reason, str], None],
        expel: Callable[[Client, str, int], None],
    ) -> None:
        self._authority = authority
        self._clients = clients
        self._budget = budget
        self._share = max(1, budget // 8)
        self._refuse = refuse
        self._expel = expel
        self._rung: OrderedDict[int, None] = OrderedDict()  # client ids: whose ring is looked at
        self._serving: Client | None = None  # its request was handed out, and its slot is not free yet

    @property
    def has_waiting(self) -> bool:
        """Whether requests wait for the next tick."""
        return bool(self._rung)

    def ring(self, client: Client) -> None:
        """Somebody has rung, or something was seen in its ring, which is looked at."""
        self._rung[client.client_id] = None

    def take(self, now_ns: int) -> Iterator[Request]:
        """The requests of one tick, in each client's own order. Serve each before asking for the next.

        A request's slot is free only when it was served: a driver that is killed in between leaves it to its
        successor, and every request is idempotent.
        """
        if self._serving is not None:  # that raised: not again
            self._advance(self._serving)
        left = self._budget
        for client_id in list(self._rung):
            self._rung.move_to_end(client_id)  # round robin: who is served goes to the back
            for _ in range(min(self._share, left)):
                client = self._clients.by_id(client_id)
                found = None if client is None else self._read(client, now_ns)
                if client is None or found == 0:
                    self._rung.pop(client_id, None)
                    break
                left -= 1
                if isinstance(found, Request):
                    self._serving = client
                    yield found
                    self._advance(client)
            if left == 0:
                break

    def _advance(self, client: Client) -> None:
        self._serving = None
        failpoint("request.accepted")
        if client.control is not None:  # else it has said goodbye
            lib.shmd_client_ring_advance(client.control.reader)

    def _read(self, client: Client, now_ns: int) -> Request | int:
        """The client's next request if it is to be served; 0: none; 1: one that is not, and was passed."""
        control = client.control
        if control is None:
            return 0
        raw = ffi.new("shmd_request_t *")
        found = lib.shmd_client_ring_poll(control.reader, raw)
        if control.is_damaged:
            self._expel(client, f"its control segment {control.name} was truncated", now_ns)
            return 0
        if found == 0:
            return 0
        request = Request(raw) if found == 1 else None
        if request is None:
            text = last_error()
            self._authority.count(lib.SHMD_COUNTER_REQUESTS_CORRUPT)
            self._authority.log_error(f"control ring: {text}", now_ns)
            if not control.reader.is_polled:
                self._expel(client, text, now_ns)
                return 0
        elif self._accept(request, now_ns):
            return request
        self._advance(client)
        return 1

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
