"""Carrying out requests: Detach, Goodbye, Shutdown, Admin. Attaches are decided in admission.py.

A refusal is a :class:`Rejection`, which becomes the request's answer here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shmdriver._native import lib
from shmdriver.driver.admission import Admission
from shmdriver.driver.authentication import Authentication
from shmdriver.driver.clients import describe
from shmdriver.driver.control import Request
from shmdriver.driver.leases import Lease
from shmdriver.driver.lifecycle import ShutdownMode
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.tables import Tables
from shmdriver.errors import Code, Reason
from shmdriver.os_errors import remedy

__all__ = ["Orders", "RequestDesk"]

KINDS = {lib.SHMD_REQUEST_SHUTDOWN: "shutdown", lib.SHMD_REQUEST_ADMIN: "administration"}


class Orders(Protocol):
    """What an authenticated request may make the driver do."""

    @property
    def is_draining(self) -> bool: ...
    def request_shutdown(self, mode: ShutdownMode, reason: str) -> None: ...
    def set_maintenance(self, on: bool, reason: str) -> None: ...
    def announce(self) -> str: ...


class RequestDesk:
    """Answers every request that is not an attach."""

    def __init__(
        self,
        tables: Tables,
        admission: Admission,
        authentication: Authentication,
        orders: Orders,
        log: Callable[[str], None],
    ) -> None:
        self._tables = tables
        self._admission = admission
        self._authentication = authentication
        self._orders = orders
        self._log = log

    def guarded(self, request: Request, act: Callable[[Request, int], None], now_ns: int) -> None:
        """Runs ``act``; whatever it raises becomes the answer, and the driver goes on."""
        try:
            act(request, now_ns)
        except Rejection as rejection:
            self.refuse(request, rejection.code, rejection.reason, rejection.text)
        except Exception as error:
            text = f"the driver failed at this request: {error!r}{remedy(error)}"
            self._tables.authority.log_error(text, now_ns)
            self.refuse(request, Code.INTERNAL_ERROR, Reason.NONE, text)

    def refuse(self, request: Request, code: Code, reason: Reason, text: str) -> None:
        """Answers no."""
        self._tables.authority.count(lib.SHMD_COUNTER_REQUESTS_REJECTED)
        self._tables.events.rejected(request.answer_kind, request, code, reason, text)

    def detach(self, request: Request, now_ns: int) -> None:
        """A lease's owner gives it up, by id or by the attach that asked for it. Idempotent."""
        leases = self._tables.leases
        lease_id = int(request.raw.lease_id)
        target = int(request.raw.target_correlation_id)
        lease = leases.live(lease_id) if lease_id else leases.by_correlation(target)
        if lease is not None:
            self._own(lease, request)
            aborted = not lease_id or request.raw.flags & lib.SHMD_DETACH_ABORTED
            reason = Reason.ABORTED if aborted else Reason.CLOSED
            self._tables.tenure.detach(lease, reason, now_ns, correlation_id=request.correlation_id)
            return
        ended = leases.quarantined(lease_id) if lease_id else leases.quarantined_by_correlation(target)
        if ended is not None:
            self._own(ended, request)
            self._tables.tenure.release(ended)  # its owner will not write to its lines again
        elif lease_id >= int(self._tables.authority.base.next_lease_id):
            raise Rejection(Reason.NOT_OWNER, f"lease {lease_id} was never given", Code.INVALID_PARAMS)
        if not lease_id:
            self._admission.cancel(target, request.client_id)
        self._tables.events.already_detached(request, lease_id)

    def goodbye(self, request: Request, now_ns: int) -> None:
        """The client leaves."""
        client = self._tables.clients.by_id(request.client_id)
        if client is not None:
            self._tables.tenure.client_left(client, now_ns)

    def shutdown(self, request: Request, now_ns: int) -> None:
        """Authenticated: drain and stop, or hand over."""
        self._authenticate(request, now_ns)
        mode = ShutdownMode.HANDOVER if request.raw.admin == lib.SHMD_SHUTDOWN_HANDOVER else ShutdownMode.END
        text = f"shutting down ({mode.value})"
        if self._orders.is_draining:
            if mode is ShutdownMode.HANDOVER:
                raise Rejection(
                    Reason.DRAINING, "driver draining: nothing will be left to hand over; it ends for good"
                )
            text = "it drains already: stopping now"
        self._tables.events.admin_response(request, text)
        self._orders.request_shutdown(mode, f"{request.text or 'no reason given'} ({self._who(request)})")

    def admin(self, request: Request, now_ns: int) -> None:
        """Authenticated: maintenance, revoke, forget, snapshot."""
        self._authenticate(request, now_ns)
        kind = int(request.raw.admin)
        reason = f"{request.text or 'no reason given'} ({self._who(request)})"
        if kind == lib.SHMD_ADMIN_REVOKE:
            lease = self._tables.leases.live(int(request.raw.lease_id))
            if lease is None:
                raise Rejection(
                    Reason.NOT_OWNER,
                    f"there is no live lease {int(request.raw.lease_id)}",
                    Code.INVALID_PARAMS,
                )
            self._tables.tenure.revoke(
                lease, Reason.REVOKED, f"revoked by an administrator: {reason}", now_ns
            )
            text = f"lease {lease.lease_id} is revoked"
        elif kind == lib.SHMD_ADMIN_FORGET:
            text = self._forget(int(request.raw.lease_id), reason, now_ns)
        elif kind == lib.SHMD_ADMIN_SNAPSHOT:
            text = self._orders.announce()
        else:
            on = kind == lib.SHMD_ADMIN_MAINTENANCE_ON
            if self._orders.is_draining:
                raise Rejection(
                    Reason.DRAINING, "driver draining: it admits nobody any more, and ends for good"
                )
            self._orders.set_maintenance(on, reason)
            text = f"maintenance {'on' if on else 'off'}"
        self._log(f"administrator: {text}: {reason}")
        self._tables.events.admin_response(request, text)

    def _forget(self, client_id: int, reason: str, now_ns: int) -> str:
        """A client whose death nobody can prove; it must not be registered any more."""
        client = self._tables.clients.by_id(client_id)
        if client is None:
            raise Rejection(Reason.NOT_OWNER, f"there is no client {client_id}", Code.INVALID_PARAMS)
        if client.state != lib.SHMD_CLIENT_GONE:
            raise Rejection(
                Reason.NOT_OWNER,
                f"client {client_id}, {client.label}, beats and is not gone: end its process, or revoke its "
                "leases",
                Code.INVALID_PARAMS,
            )
        self._tables.tenure.client_died(client, now_ns, f"an administrator says that it is gone: {reason}")
        return f"client {client_id} is forgotten: what was set aside for it is free"

    def _authenticate(self, request: Request, now_ns: int) -> None:
        try:
            self._authentication.check(request.raw, now_ns)
        except Rejection as rejection:
            self._log(
                f"refused a request for {KINDS[request.kind]} of {self._who(request)}: {rejection.text}"
            )
            raise

    def _who(self, request: Request) -> str:
        return describe(self._tables.clients.by_id(request.client_id))

    def _own(self, lease: Lease, request: Request) -> None:
        if lease.client_id != request.client_id:
            raise Rejection(Reason.NOT_OWNER, "that lease belongs to another client")
        stream = self._tables.streams.name_of(lease)
        if stream not in ("", request.stream) or lease.record.role != request.raw.role:
            role = "producer" if lease.is_producer else "consumer"
            raise Rejection(
                Reason.NOT_OWNER,
                f"lease {lease.lease_id} is of a {role} of stream {stream!r}, and the detach names "
                f"another role or stream ({request.stream!r})",
                Code.INVALID_PARAMS,
            )
