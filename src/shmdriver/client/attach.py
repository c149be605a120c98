"""Attaching: what a producer or consumer asks for (AttachSpec), and the one way to its handle (acquire).

Python can be interrupted between any two steps: a signal handler may raise, also between the return of a C
call and the assignment of its result. So whatever C hands out has an owner before: a small struct whose
destructor is a C function that gives back what stands there, and never waits (shmdriver/owners.py). New
handles and those attached anew go by acquire().

Called by the client and by what attaches anew (reattach.py). Never takes a lock.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from shmdriver import errors, names
from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.client._raise import failure_of
from shmdriver.client.link import Deadline, wait_for_a_driver
from shmdriver.late import LATE_IMPORT
from shmdriver.os_errors import last_error
from shmdriver.owners import keeping

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.link import Link

__all__ = ["AttachSpec", "acquire"]

_REVOKED = int(lib.SHMD_E_REVOKED)
_UNAVAILABLE = int(lib.SHMD_E_DRIVER_UNAVAILABLE)
_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)
_CLOSED = int(lib.SHMD_E_CLOSED)


class AttachSpec:
    """What is asked for: a stream, a role and its options (a C struct). It can be asked for again.

    ``dtype`` is of records, or None; its canonical text is ``schema``.
    """

    __slots__ = ("_schema_text", "client", "dtype", "is_producer", "options", "schema", "stream")

    def __init__(self, client: Client, stream: str, dtype: Any, *, is_producer: bool) -> None:
        problem = names.stream_problem(stream)
        if problem:
            raise errors.AttachRejected(
                problem, code=errors.Code.INVALID_PARAMS, reason=errors.Reason.BAD_NAME, stream=stream
            )
        self.client = client
        self.stream = stream
        self.is_producer = is_producer
        self.options = ffi.new("shmd_producer_options *" if is_producer else "shmd_consumer_options *")
        self.dtype: Any = None
        self.schema: str | None = None
        if dtype is not None:
            with LATE_IMPORT:
                from shmdriver.client.records import as_dtype, schema_of

            self.dtype = as_dtype(dtype)
            self.schema = schema_of(self.dtype)
            self._schema_text = ffi.new("char[]", self.schema.encode())  # keeps the memory
            self.options.schema = self._schema_text

    def attach(self, native: Any, slot: Any) -> int:
        """The C call: writes the handle into ``slot``, its owner."""
        call = lib.shmd_guarded_producer_attach if self.is_producer else lib.shmd_guarded_consumer_attach
        return int(call(native, self.stream.encode(), self.options, slot))

    def new_slot(self) -> Any:
        """The owner of a handle, empty."""
        if self.is_producer:
            return ffi.gc(ffi.new("shmd_producer **"), lib.shmd_guarded_producer_drop)
        return ffi.gc(ffi.new("shmd_consumer **"), lib.shmd_guarded_consumer_drop)


def acquire(spec: AttachSpec, timeout: float | None, *, waits: bool) -> tuple[Any, Link]:
    """A native handle, which ends when nothing refers to it, and the connection that it belongs to.

    Takes at most ``timeout`` seconds (None: as long as it takes). With ``waits`` it also waits for a
    driver to come. Raises AttachRejected, AttachTimeout, DriverUnavailable, HandleClosed; TypeError and
    ValueError (a ``timeout`` that is none).
    """
    client = spec.client
    deadline = Deadline(timeout, "attach_timeout")
    slot = spec.new_slot()
    while True:
        link = client._connected(deadline.rest_s())
        if client.reconnect and not waits and not link.driver_alive():
            raise errors.DriverUnavailable(last_error(), instance=client.instance)
        spec.options.timeout_ns = deadline.rest_ns()
        code = spec.attach(link.native, slot)
        if code == 0:
            return keeping(slot[0], slot), link
        if code == _CLOSED:
            client._connected(0)  # raises, unless it was this connection alone that was closed
            code = _INTERRUPTED
        if code == _REVOKED and client.reconnect:
            code = client._join_anew(link, deadline.rest_s())
        if code == _UNAVAILABLE and waits and deadline.slice_ns() > 0:
            wait_for_a_driver(deadline)
        elif code not in (0, _INTERRUPTED):
            raise _failure(code, spec, link, timeout)


def _failure(code: int, spec: AttachSpec, link: Link, timeout: float | None) -> Exception:
    stream, schema = spec.stream, spec.schema
    if code == lib.SHMD_E_INVALID:
        text = f"stream {stream!r}: {last_error()}"
        return errors.AttachRejected(text, code=errors.Code.INVALID_PARAMS, stream=stream)
    return failure_of(
        code,
        stream=stream,
        instance=link.instance,
        doing="attaching",
        timeout_s=math.inf if timeout is None else timeout,
        schema=schema,
        stream_schema=directory.schema_by_name(link.authority, stream) if schema else None,
    )
