"""Messages as a consumer hands them out.

A Message is one object that exports its payload as a read-only buffer; of an array that is its elements,
at an address that is a multiple of 64. The payload of a small one is copied into it; one that lies in the
arena of a reliable stream is shared memory, which is kept from the producer as long as the message, or
anything made of it, lives.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from shmdriver._native import lib
from shmdriver.client.boundary import public
from shmdriver.client.hotpath import MessageCore
from shmdriver.errors import LeaseRevoked
from shmdriver.late import LATE_IMPORT

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LostRange", "Message", "tensor_module"]

_TENSOR = int(lib.SHMD_FLAG_TENSOR)


class LostRange(NamedTuple):
    """Messages ``first`` to ``last`` (both included) of an epoch that this consumer never saw."""

    epoch: int
    first: int
    last: int


@public
class Message(MessageCore):
    """One message. Always true; ``len(message)`` and ``bytes(message)`` are of its payload.

    Of an array they are its elements, as they lie in memory. Two messages are equal when seq, timestamp,
    type, flags and payload are (of an array: shape, dtype and meta, too). Pickling and copying make a private
    copy; they raise LeaseRevoked when the bytes may have been overwritten.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # named here, so that the reference has them
        seq = MessageCore.seq
        timestamp_ns = MessageCore.timestamp_ns
        type = MessageCore.type
        flags = MessageCore.flags
        data = MessageCore.data

    @property
    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The array that was published, read-only, not copied. TypeError when it was bytes."""
        if not self.flags & _TENSOR:
            raise TypeError(
                f"message {self.seq} carries bytes, no array: "
                "read message.data, or publish with publish_array"
            )
        array: np.ndarray[Any, np.dtype[Any]] = tensor_module().decode(self._wire_head, self.data)[0]
        return array

    @property
    def meta(self) -> bytes:
        """The ``meta=`` that was published with the array; b"" when none, or when it was bytes."""
        if not self.flags & _TENSOR:
            return b""
        meta: bytes = tensor_module().decode(self._wire_head, self.data)[1]
        return meta

    def valid(self) -> bool:
        """Whether the payload is still what was published: always so for copies.

        One in place is not once the lease was revoked or the consumer closed.
        """
        mapping = self._mapping
        return mapping is None or bool(mapping.protected())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return _fields(self) == _fields(other) and self.data == other.data

    def __lt__(self, other: Message) -> bool:  # for heaps of (time, message), and sorted()
        return (*_fields(self), bytes(self)) < (*_fields(other), bytes(other))

    def __hash__(self) -> int:
        return hash(_fields(self))

    def __reduce__(self) -> tuple[Any, ...]:
        *fields, wire_head = _fields(self)
        copy = wire_head + bytes(self)
        if not self.valid():  # asked after the last byte was copied: a copy says that it is valid for ever
            raise LeaseRevoked(
                f"message {self.seq} cannot be copied or pickled: its lease has ended, so its bytes may be a "
                "later message's by now; copy messages (bytes(message)) while their consumer is open"
            )
        return self.__class__, (*fields, copy)

    def __repr__(self) -> str:
        head = bytes(self.data[:32])
        more = "..." if len(self) > len(head) else ""
        return f"<Message seq={self.seq} type={self.type} length={len(self)} {head!r}{more}>"


@cache
def tensor_module() -> Any:
    """shmdriver.client.tensor, and numpy with it: only who sends or reads arrays pays for that."""
    with LATE_IMPORT:
        from shmdriver.client import tensor

    return tensor


def _fields(message: Message) -> tuple[int, int, int, int, bytes]:
    """All but the payload."""
    return message.seq, message.timestamp_ns, message.type, message.flags, message._wire_head  # noqa: SLF001
