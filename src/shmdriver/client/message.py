"""Messages as a consumer hands them out.

A Message is a tuple (seq, timestamp_ns, type, flags, payload) with names, because a tuple is what
``struct`` can make thousands of in one C call. Its payload is ``bytes`` for what was small enough to
be copied, and a view of shared memory for what lies in the arena of a reliable stream.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from shmdriver._native import lib

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LostRange", "Message", "PlacedMessage", "PrivateMessage"]

_TENSOR = int(lib.SHMD_FLAG_TENSOR)


class LostRange(NamedTuple):
    """Messages ``first`` to ``last`` (both included) of an epoch that this consumer never saw."""

    epoch: int
    first: int
    last: int


class Message(tuple[Any, ...]):
    """One message. Always true; ``len(message)`` and ``bytes(message)`` are of its payload.

    Two messages are equal when seq, timestamp, type, flags and payload are.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def seq(self) -> int:
            """Its number within the producer's epoch, from 0."""

        @property
        def timestamp_ns(self) -> int:
            """When it was published (CLOCK_MONOTONIC); 0 unless the producer has timestamps on."""

        @property
        def type(self) -> int:
            """The publisher's message type, 0 to 65535."""

        @property
        def flags(self) -> int:
            """How the payload is stored (SHMD_FLAG_...)."""
    else:
        seq = property(itemgetter(0), doc="Its number within the producer's epoch, from 0.")
        timestamp_ns = property(
            itemgetter(1), doc="When it was published (CLOCK_MONOTONIC); 0: timestamps are off."
        )
        type = property(itemgetter(2), doc="The publisher's message type, 0 to 65535.")
        flags = property(itemgetter(3), doc="How the payload is stored (SHMD_FLAG_...).")

    @property
    def data(self) -> memoryview:
        """The payload, read-only, not copied."""
        return memoryview(self[4]).toreadonly()

    @property
    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The array that was published, read-only, not copied. TypeError when it was bytes."""
        if not self[3] & _TENSOR:
            raise TypeError(
                f"message {self[0]} carries bytes, no array: read message.data, or publish with publish_array"
            )
        from shmdriver.client import tensor

        return tensor.decode(self.data)[0]

    @property
    def meta(self) -> bytes:
        """The ``meta=`` that was published with the array; b"" when none, or when it was bytes."""
        if not self[3] & _TENSOR:
            return b""
        from shmdriver.client import tensor

        return tensor.decode(self.data)[1]

    def valid(self) -> bool:
        """Whether the payload is still what was published: always so for copies."""
        return True

    def __bytes__(self) -> bytes:
        return bytes(self[4])

    def __len__(self) -> int:
        return len(self[4])

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return hash((self[0], self[1], self[2], self[3]))

    def __repr__(self) -> str:
        head = bytes(self.data[:32])
        more = "..." if len(self) > len(head) else ""
        return f"<{type(self).__name__} seq={self[0]} type={self[2]} length={len(self)} {head!r}{more}>"


class PrivateMessage(Message):
    """A large message that was copied out of shared memory: the payload is a view of private memory."""

    __slots__ = ()


class PlacedMessage(Message):
    """A message in place: its payload is shared memory, kept from the producer while anything refers to it.

    The sixth field is the mapping (:class:`shmdriver.client.views.Mapping`).
    """

    __slots__ = ()

    def valid(self) -> bool:
        """Whether the place is still protected: False once the lease was revoked or the consumer closed."""
        return bool(self[5].protected())
