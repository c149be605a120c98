"""Exceptions from the codes of the C core: made (``failure_of``), or raised (``raise_for``), in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client import exiting
from shmdriver.errors import Code, Reason
from shmdriver.os_errors import last_error

__all__ = ["failure_of", "raise_for"]


@dataclass(frozen=True, slots=True)
class _Failure:
    """A code, the C core's text, and what the caller knows about the handle, as far as it matters."""

    code: int
    text: str
    stream: str | None = None
    instance: str | None = None
    doing: str = ""
    length: int = 0
    limit: int = 0
    reason: int = 0
    lease_id: int = 0
    epoch: int = 0
    sealed_seq: int | None = None
    held: int = 0
    timeout_s: float = 0.0
    schema: str | None = None
    stream_schema: str | None = None

    @property
    def where(self) -> str:
        if self.stream:
            return f"stream {self.stream!r}"
        return f"instance {self.instance!r}" if self.instance else "shmdriver"

    @property
    def detail(self) -> str:
        return f": {self.text}" if self.text else ""

    @property
    def why(self) -> str:
        return Reason(self.reason).words if self.reason else "no reason is known"


def failure_of(code: int, **context: Any) -> Exception:
    """The exception that ``code`` (negative, ``SHMD_E_...``) means; ``context``: fields of _Failure.

    Call it right after the C call that failed, in its thread: the text is that thread's last one.
    """
    failure = _Failure(int(code), last_error(), **context)
    return _MAKERS.get(failure.code, _other)(failure)


def raise_for(code: int, **context: Any) -> NoReturn:
    """Raises what :func:`failure_of` makes."""
    raise failure_of(code, **context)


def _rejected(failure: _Failure) -> Exception:
    code, reason = Code(lib.shmd_last_code()), Reason(lib.shmd_last_reason())
    told = failure.text or reason.words
    text = told if failure.where in told else f"{failure.where}: {told}"
    if reason == Reason.SCHEMA:
        return errors.SchemaMismatch(
            text,
            code=code,
            reason=reason,
            stream=failure.stream,
            found=failure.stream_schema,
            expected=failure.schema,
        )
    if reason == Reason.LAYOUT:
        return errors.LayoutMismatch(text)
    return errors.AttachRejected(text, code=code, reason=reason, stream=failure.stream)


def _timeout(failure: _Failure) -> Exception:
    return errors.AttachTimeout(
        f"{failure.where}: no answer within {failure.timeout_s:g} s{failure.detail}",
        stream=failure.stream,
        timeout_s=failure.timeout_s,
    )


def _too_large(failure: _Failure) -> Exception:
    return errors.MessageTooLarge(stream=failure.stream, length=failure.length, limit=failure.limit)


def _revoked(failure: _Failure) -> Exception:
    sealed = failure.sealed_seq
    fate = "" if sealed is None else f"; of its messages those below seq {sealed} are delivered"
    return errors.LeaseRevoked(
        f"{failure.where}: this handle's lease has ended: {failure.why}{failure.detail}{fate}; attach again",
        stream=failure.stream,
        reason=failure.reason,
        lease_id=failure.lease_id,
        sealed_seq=sealed,
    )


def _end(failure: _Failure) -> Exception:
    return errors.EndOfStream(
        f"{failure.where}: its producer closed it, and everything was delivered",
        stream=failure.stream,
        epoch=failure.epoch,
    )


def _producer_lost(failure: _Failure) -> Exception:
    sealed = "" if failure.sealed_seq is None else f"below seq {failure.sealed_seq} "
    return errors.ProducerLost(
        f"{failure.where}: its producer is gone without a clean close ({failure.why}); "
        f"what it had committed {sealed}was delivered",
        stream=failure.stream,
        reason=failure.reason,
        epoch=failure.epoch,
        sealed_seq=failure.sealed_seq,
    )


def _driver_unavailable(failure: _Failure) -> Exception:
    return errors.DriverUnavailable(
        f"{failure.text or f'no driver of instance {failure.instance!r}'}; "
        "or run one inside this program: shmdriver.embedded()",
        instance=failure.instance,
    )


def _layout(failure: _Failure) -> Exception:
    return errors.LayoutMismatch(
        f"{failure.where}: {failure.text or 'a segment has another layout than this build'}"
    )


def _concurrent(failure: _Failure) -> Exception:
    return errors.ConcurrentUseError(
        f"{failure.where}: another thread is inside this handle; give each thread a producer or consumer "
        "of its own, or put a lock around it"
    )


def _forked(failure: _Failure) -> Exception:
    return errors.ForkedHandleError(
        f"{failure.where}: this handle belongs to the process that made it, and this is a child forked from "
        "it; pass the Client to the child and make new handles there"
    )


def _closed(failure: _Failure) -> Exception:
    exiting.stay_if_daemon()
    return errors.HandleClosed(f"{failure.where}: this handle is closed")


def _views_held(failure: _Failure) -> Exception:
    return errors.ViewsHeld(
        f"{failure.where}: this process, {failure.held} views: views of messages that this program still "
        "refers to fill the ring, so that nothing new can arrive. Drop them, copy them (bytes(message), "
        "array.copy()), or give the producer more slots or a larger arena",
        stream=failure.stream,
        held=failure.held,
    )


def _claim(failure: _Failure) -> Exception:
    return errors.ClaimError(failure.text or f"{failure.where}: a claim is open already, or none is")


def _invalid(failure: _Failure) -> Exception:
    return ValueError(f"{failure.where}: {failure.text or 'an argument is out of its range'}")


def _no_memory(failure: _Failure) -> Exception:
    return MemoryError(f"{failure.where}: {failure.doing}{failure.detail}")


def _other(failure: _Failure) -> Exception:
    kind = ffi.string(lib.shmd_strerror(failure.code)).decode("utf-8", "replace")
    doing = f"{failure.doing}: " if failure.doing else ""
    return errors.ShmDriverError(f"{failure.where}: {doing}{kind}{failure.detail}")


_MAKERS: dict[int, Callable[[_Failure], Exception]] = {
    lib.SHMD_E_REJECTED: _rejected,
    lib.SHMD_E_TIMEOUT: _timeout,
    lib.SHMD_E_TOO_LARGE: _too_large,
    lib.SHMD_E_REVOKED: _revoked,
    lib.SHMD_E_END: _end,
    lib.SHMD_E_PRODUCER_LOST: _producer_lost,
    lib.SHMD_E_DRIVER_UNAVAILABLE: _driver_unavailable,
    lib.SHMD_E_LAYOUT: _layout,
    lib.SHMD_E_CONCURRENT: _concurrent,
    lib.SHMD_E_FORKED: _forked,
    lib.SHMD_E_CLOSED: _closed,
    lib.SHMD_E_VIEWS_HELD: _views_held,
    lib.SHMD_E_CLAIM: _claim,
    lib.SHMD_E_INVALID: _invalid,
    lib.SHMD_E_NO_MEMORY: _no_memory,
}
