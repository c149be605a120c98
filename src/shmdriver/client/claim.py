"""Claims: messages that are written in place, in shared memory, and then committed or aborted."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmdriver._native import lib
from shmdriver.errors import ClaimError

if TYPE_CHECKING:
    import numpy as np

    from shmdriver.client.producer import Producer

__all__ = ["ArrayClaim", "Claim"]

_commit = lib.shmd_guarded_commit


class Claim:
    """A place for one message. ``view`` is writable shared memory, which nobody reads before the commit.

    A context manager: commits on exit, aborts on an exception; nothing when that was done before.
    """

    __slots__ = ("_flags", "_producer", "_type", "view")

    view: memoryview
    _producer: Producer | None
    _type: int
    _flags: int

    # No __init__: Producer.claim fills one in, once a message, for a fraction of what a call costs.

    def commit(self, length: int | None = None) -> None:
        """Publishes the message; with ``length``, only that many first bytes of it."""
        producer = self._producer
        if producer is None:
            raise self._over()
        size = len(self.view)
        if length is not None:
            if not 0 <= length <= size:
                raise ValueError(f"commit of {length} bytes of a claim of {size}")
            size = length
        self._publish(producer, size)

    def _publish(self, producer: Producer, size: int) -> None:
        view = self.view
        self._producer = None
        try:
            code = _commit(producer._handle, size, self._type, self._flags)
        except TypeError:
            _let_go(view)
            producer._check_open()
            raise
        try:  # _let_go, without the call
            view.release()
        except BufferError:
            pass
        if code != 0:
            raise producer._failure(code, size)

    def abort(self) -> None:
        """Gives the place back: nobody ever sees it."""
        producer = self._producer
        if producer is None:
            raise self._over()
        self._producer = None
        _let_go(self.view)
        if producer.closed:
            return  # closing aborted it
        code = lib.shmd_guarded_abort(producer._handle)
        if code not in (0, lib.SHMD_E_REVOKED):
            raise producer._failure(code, 0)

    @property
    def open(self) -> bool:
        """Whether it was neither committed nor aborted."""
        return self._producer is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        producer = self._producer
        if producer is None:
            return
        if kind is None:
            self._publish(producer, len(self.view))
        else:
            self.abort()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'open' if self.open else 'over'}>"

    def _over(self) -> ClaimError:
        return ClaimError("this claim is over: it was committed or aborted; claim again for another message")


def _let_go(view: memoryview) -> None:
    try:
        view.release()
    except BufferError:
        pass  # an array still looks at it: what that writes now lands in a published message


class ArrayClaim:
    """A claim whose place is an array: ``with out.claim_array(shape, dtype) as array``."""

    __slots__ = ("_claim", "array")

    array: np.ndarray[Any, Any]

    def __init__(self, claim: Claim, array: np.ndarray[Any, Any]) -> None:
        self._claim = claim
        self.array = array

    def commit(self) -> None:
        """Publishes the array, which is read-only from then on."""
        self.array.flags.writeable = False
        self._claim.commit()

    def abort(self) -> None:
        """Gives the place back: nobody ever sees it."""
        self.array.flags.writeable = False
        self._claim.abort()

    @property
    def open(self) -> bool:
        """Whether it was neither committed nor aborted."""
        return self._claim.open

    def __enter__(self) -> np.ndarray[Any, Any]:
        return self.array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._claim.open:
            self.array.flags.writeable = False
            self._claim.__exit__(kind, error, trace)
