"""The one function that turns a code of the C core into an exception."""

from __future__ import annotations

from typing import NoReturn

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.errors import Reason

__all__ = ["last_error", "raise_for"]


def last_error() -> str:
    """The C core's text of this thread's last failure; "" when it left none."""
    return str(ffi.string(lib.shmd_last_error()).decode("utf-8", "replace"))


def raise_for(
    code: int,
    *,
    stream: str | None = None,
    instance: str | None = None,
    doing: str = "",
    length: int = 0,
    limit: int = 0,
    reason: int = 0,
    lease_id: int = 0,
    epoch: int = 0,
    sealed_seq: int | None = None,
    held: int = 0,
    timeout_s: float = 0.0,
    schema: str | None = None,
    stream_schema: str | None = None,
) -> NoReturn:
    """Raises what ``code`` (negative, ``SHMD_E_...``) means for a call that was ``doing`` something.

    Call it right after the C call that failed: the text is the thread's last one. The keywords are
    what the caller knows about the handle, as far as it matters for this code.
    """
    text = last_error()
    where = f"stream {stream!r}" if stream else f"instance {instance!r}" if instance else "shmdriver"
    if code == lib.SHMD_E_REJECTED:
        _raise_rejected(text, where, stream, schema, stream_schema)
    if code == lib.SHMD_E_TIMEOUT:
        raise errors.AttachTimeout(
            f"{where}: no answer from the driver of instance {instance!r} within {timeout_s:g} s"
            f"{_tail(text)}; is it paused or overloaded? `shmdriver stat` shows it",
            stream=stream,
            timeout_s=timeout_s,
        )
    if code == lib.SHMD_E_TOO_LARGE:
        raise errors.MessageTooLarge(stream=stream, length=length, limit=limit)
    if code == lib.SHMD_E_REVOKED:
        why = Reason.describe(reason) if reason else "its lease has ended"
        sealed = (
            f"; of this producer's messages those below seq {sealed_seq} are delivered"
            if sealed_seq is not None
            else ""
        )
        raise errors.LeaseRevoked(
            f"{where}: this handle's lease was revoked: {why}{_tail(text)}{sealed}; attach again to go on",
            stream=stream,
            reason=reason,
            lease_id=lease_id,
            sealed_seq=sealed_seq,
        )
    if code == lib.SHMD_E_END:
        raise errors.EndOfStream(
            f"{where}: the producer closed it, and everything was delivered", stream=stream, epoch=epoch
        )
    if code == lib.SHMD_E_PRODUCER_LOST:
        raise errors.ProducerLost(
            f"{where}: its producer is gone without a clean close: "
            f"{Reason.describe(reason) if reason else 'no reason is known'}; "
            f"all {sealed_seq if sealed_seq is not None else 'committed'} messages of epoch {epoch} were delivered or counted as lost",
            stream=stream,
            reason=reason,
            epoch=epoch,
            sealed_seq=sealed_seq,
        )
    if code == lib.SHMD_E_DRIVER_UNAVAILABLE:
        raise errors.DriverUnavailable(
            f"no driver of instance {instance!r}{_tail(text)}; start one with `shmdriver run`, or run it inside "
            "this program with shmdriver.embedded()",
            instance=instance,
        )
    if code == lib.SHMD_E_LAYOUT:
        raise errors.LayoutMismatch(f"{where}: {text or 'a segment has another layout than this build'}")
    if code == lib.SHMD_E_CONCURRENT:
        raise errors.ConcurrentUseError(
            f"{where}: another thread is inside this handle; give each thread a producer or consumer of its own, or a lock"
        )
    if code == lib.SHMD_E_FORKED:
        raise errors.ForkedHandleError(
            f"{where}: this handle belongs to the process that made it, and this is a child that was forked from it; "
            "pass the Client to the child and make new handles there"
        )
    if code == lib.SHMD_E_CLOSED:
        raise errors.HandleClosed(f"{where}: this handle is closed")
    if code == lib.SHMD_E_VIEWS_HELD:
        raise errors.ViewsHeld(
            f"{where}: {held} views of messages that your program still refers to fill the ring, so nothing new can "
            "arrive: drop or copy them (bytes(message), array.copy()), or give the producer more slots or arena",
            stream=stream,
            held=held,
        )
    if code == lib.SHMD_E_CLAIM:
        raise errors.ClaimError(
            f"{where}: {text or 'a claim is already open, or none is: one at a time for each producer'}"
        )
    if code == lib.SHMD_E_INVALID:
        raise ValueError(
            f"{where}: {doing + ': ' if doing else ''}{text or 'an argument is out of its range'}"
        )
    if code == lib.SHMD_E_NO_MEMORY:
        raise MemoryError(f"{where}: {doing}{_tail(text)}")
    name = ffi.string(lib.shmd_strerror(code)).decode("utf-8", "replace")
    raise errors.ShmDriverError(f"{where}: {doing + ': ' if doing else ''}{text or name} (code {code})")


def _tail(text: str) -> str:
    return f": {text}" if text else ""


def _raise_rejected(
    text: str, where: str, stream: str | None, schema: str | None, stream_schema: str | None
) -> NoReturn:
    reason = int(lib.shmd_last_reason())
    code = int(lib.shmd_last_code())
    says = f"{where}: {text or Reason.describe(reason)}"
    if reason == Reason.SCHEMA:
        raise errors.SchemaMismatch(
            says, code=code, reason=reason, stream=stream, found=stream_schema, expected=schema
        )
    if reason == Reason.LAYOUT:
        raise errors.LayoutMismatch(says)
    raise errors.AttachRejected(says, code=code, reason=_as_reason(reason), stream=stream)


def _as_reason(reason: int) -> int:
    try:
        return Reason(reason)
    except ValueError:
        return reason
