"""What the driver says: answers and news, one typed function a kind of event.

Events tell of what the tables already show. Whoever misses one reads the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, put_text, record_state
from shmdriver.errors import Code, Reason, ShmDriverError

__all__ = ["EventLog"]


class _Addressed(Protocol):
    """A request, as far as an answer needs it."""

    @property
    def correlation_id(self) -> int: ...
    @property
    def client_id(self) -> int: ...
    @property
    def stream(self) -> str: ...


class EventLog:
    """The writer of the event ring; resumes by scanning when the driver adopts."""

    def __init__(self, authority: Authority, clock: Callable[[], int]) -> None:
        self._authority = authority
        self._clock = clock
        self._event = ffi.new("shmd_event_t *")
        self._writer = lib.shmd_event_writer_new(authority.base)
        if self._writer == ffi.NULL:
            raise ShmDriverError("no memory for the event ring's writer")

    def close(self) -> None:
        """Frees the writer; the ring stays."""
        if self._writer != ffi.NULL:
            lib.shmd_event_writer_free(self._writer)
            self._writer = ffi.NULL

    # -- answers

    def has_answered(self, correlation_id: int) -> bool:
        """Whether an answer to this request is in the ring still."""
        base, found = self._authority.base, ffi.new("shmd_event_t *")
        cursor = ffi.new("uint64_t *", max(0, int(base.event_head) - int(base.event_slots)))
        while lib.shmd_event_poll(base, cursor, found, ffi.NULL) == 1:
            if found.correlation_id == correlation_id:
                return True
        return False

    def attach_response(self, lease: Any, stream_name: str) -> None:
        """A lease, wired as its record says (``shmd_lease_record_t *``)."""
        event = self._of_lease(lib.SHMD_EVENT_ATTACH_RESPONSE, lease, stream_name)
        event.correlation_id = lease.correlation_id
        event.epoch = lease.epoch if lease.role == lib.SHMD_ROLE_PRODUCER else lease.first_epoch
        event.record = lease.record
        event.gate = lease.gate
        event.entry = lease.entry
        event.start_seq = lease.start_seq
        event.value = lease.joined_seq
        self._publish()

    def detach_response(self, lease: Any, stream_name: str, correlation_id: int = 0) -> None:
        """A lease has ended at its client's wish, or because it was delivered or never confirmed."""
        event = self._of_lease(lib.SHMD_EVENT_DETACH_RESPONSE, lease, stream_name)
        event.correlation_id = correlation_id
        event.reason = lease.end_reason
        self._publish_change()

    def already_detached(self, request: _Addressed, lease_id: int) -> None:
        """The answer to a detach of a lease that is gone: repeating a detach is no error."""
        event = self._begin(lib.SHMD_EVENT_DETACH_RESPONSE, text="that lease had ended before")
        self._address(event, request)
        event.lease_id = lease_id
        event.state = lib.SHMD_LEASE_DETACHED
        self._publish()

    def rejected(self, kind: int, request: _Addressed, code: Code, reason: Reason, text: str) -> None:
        """No, and why; ``kind`` is the event that would have said yes."""
        event = self._begin(kind, code=code, reason=reason, text=text)
        self._address(event, request)
        self._publish()

    def admin_response(self, request: _Addressed, text: str) -> None:
        """A Shutdown or Admin request was carried out."""
        event = self._begin(lib.SHMD_EVENT_ADMIN_RESPONSE, text=text)
        self._address(event, request)
        self._publish()

    # -- news

    def lease_revoked(self, lease: Any, stream_name: str, text: str) -> None:
        """A lease has ended without its client's wish."""
        event = self._of_lease(lib.SHMD_EVENT_LEASE_REVOKED, lease, stream_name, text)
        event.reason = lease.end_reason
        self._publish_change()

    def stream_changed(self, stream: Any, epoch: Any | None) -> None:
        """As :meth:`stream_announce`, when an epoch has begun or ended."""
        self.stream_announce(stream, epoch)
        self._authority.changed()

    def stream_announce(self, stream: Any, epoch: Any | None) -> None:
        """A stream's newest epoch (``shmd_epoch_record_t *``) as it stands, or that it has none yet."""
        event = self._of_stream(lib.SHMD_EVENT_STREAM_ANNOUNCE, stream)
        if epoch is not None:
            event.epoch = epoch.epoch
            event.state = int(epoch.hot.state) & 0xFF
            event.lease_id = epoch.producer_lease_id
            event.reason = epoch.end_reason
            event.value = epoch.hot.sealed_seq
        self._publish()

    def consumers_left(self, stream: Any, epoch: Any) -> None:
        """An open epoch's last reliable consumer has left; ``lease_id`` is its producer's."""
        text = "its last reliable consumer has left: nothing is kept until another one attaches"
        event = self._of_stream(lib.SHMD_EVENT_CONSUMERS_LEFT, stream, text)
        event.epoch = epoch.epoch
        event.state = lib.SHMD_EPOCH_OPEN
        event.lease_id = epoch.producer_lease_id
        self._publish()

    def lifecycle_changed(self, lifecycle: int, text: str) -> None:
        """The driver's lifecycle (``SHMD_LIFECYCLE_*``) is another now."""
        event = self._begin(lib.SHMD_EVENT_LIFECYCLE_CHANGED, text=text)
        event.state = lifecycle
        self._publish()

    def driver_shutdown(self, mode: int, reason: Reason, text: str) -> None:
        """The driver stops; ``mode`` is ``SHMD_SHUTDOWN_*``."""
        event = self._begin(lib.SHMD_EVENT_DRIVER_SHUTDOWN, reason=reason, text=text)
        event.state = lib.SHMD_LIFECYCLE_STOPPED
        event.value = mode
        self._publish()

    def error(self, text: str) -> None:
        """Something that a person should know."""
        self._begin(lib.SHMD_EVENT_ERROR, code=Code.INTERNAL_ERROR, text=text)
        self._publish()

    # -- inner

    def _begin(self, kind: int, *, code: int = Code.OK, reason: int = Reason.NONE, text: str = "") -> Any:
        event = self._event
        ffi.memmove(event, b"\0" * 160, 160)  # all that stands before the text
        event.entry = 0
        event.kind, event.code, event.reason = kind, code, reason
        event.text_bytes = put_text(event.text, text)
        event.time_ns = self._clock()
        return event

    def _of_lease(self, kind: int, lease: Any, stream_name: str, text: str = "") -> Any:
        event = self._begin(kind, text=text)
        event.client_id, event.client_index = lease.client_id, lease.client_index
        event.lease_id, event.lease_index = lease.lease_id, lease.index
        event.stream_index, event.stream_id = lease.stream_index, lease.stream_id
        event.state = record_state(lease)
        put_text(event.stream, stream_name)
        return event

    def _of_stream(self, kind: int, stream: Any, text: str = "") -> Any:
        event = self._begin(kind, text=text)
        event.stream_index, event.stream_id = stream.index, stream.stream_id
        ffi.memmove(event.stream, stream.name, ffi.sizeof(event.stream))
        return event

    @staticmethod
    def _address(event: Any, request: _Addressed) -> None:
        event.correlation_id = request.correlation_id
        event.client_id = request.client_id
        put_text(event.stream, request.stream)

    def _publish(self) -> None:
        lib.shmd_event_publish(self._writer, self._event)

    def _publish_change(self) -> None:
        """Of a change in the tables that others may wait for: they are woken."""
        self._publish()
        self._authority.changed()
