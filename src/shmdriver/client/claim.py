"""Claims: messages that are written in place, in shared memory, and then committed or aborted."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from shmdriver.client.hotpath import ClaimCore
from shmdriver.errors import ClaimError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ArrayClaim", "Claim"]


class Claim(ClaimCore):
    """A place for one message. ``view`` is writable shared memory, which nobody reads before the commit.

    A context manager: commits on exit, aborts on an exception; nothing when that was done before.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # named here, so that the reference has them
        view = ClaimCore.view
        open = ClaimCore.open
    commit = ClaimCore.commit
    abort = ClaimCore.abort

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Claim cannot be pickled: it is a place in this process's memory")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'open' if self.open else 'over'}>"

    def _over(self) -> None:
        raise ClaimError("this claim is over: it was committed or aborted; claim again for another message")


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
