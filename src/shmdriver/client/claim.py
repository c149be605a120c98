"""Claims: messages that are written in place, in shared memory, and then committed or aborted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from shmdriver.client.boundary import public
from shmdriver.client.hotpath import ClaimCore
from shmdriver.errors import ClaimError

__all__ = ["ArrayClaim", "Claim"]


@public
class _AnyClaim(ClaimCore):
    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} objects cannot be pickled: each is a place in this process's memory")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'open' if self.open else 'over'}>"

    def _over(self) -> NoReturn:
        raise ClaimError("this claim is over: it was committed or aborted; claim again for another message")


class Claim(_AnyClaim):
    """A place for one message. ``view`` is writable shared memory, which nobody reads before the commit.

    A context manager: commits on exit, aborts on an exception; nothing when that was done before. One that
    is dropped is aborted.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # named here, so that the reference has them
        view = ClaimCore.view
        open = ClaimCore.open
    commit = ClaimCore.commit
    abort = ClaimCore.abort


class ArrayClaim(_AnyClaim):
    """A claim whose place is an array: ``with out.claim_array(shape, dtype) as array``.

    A context manager, as :class:`Claim`. From its end on the array is read-only.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # named here, so that the reference has them
        array = ClaimCore.array
        open = ClaimCore.open
    commit = ClaimCore.commit
    abort = ClaimCore.abort
