"""What every system that is measured offers: a channel, one way from one process to others.

The parent makes it; it travels to the processes (pickled, so it holds what can travel) and is opened there by
one of its functions. All of them wait: for room, for a message. A peer is a Channel in ``benchmarks/peers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

__all__ = ["Array", "Buffer", "Channel"]

Array = np.ndarray[Any, Any]
Buffer = Any  # what is handed out: bytes, memoryview, or an object with the buffer protocol


class Channel(ABC):
    """One way. ``skips``: the scenarios that this system has nothing for (what they would need, by name)."""

    name: ClassVar[str]
    skips: ClassVar[dict[str, str]] = {}
    consumers_max: ClassVar[int] = 1

    def __init__(self, *, instance: str, tag: str, bytes_each: int, consumers: int = 1) -> None:
        """In the parent. ``instance``: our driver's; ``tag``: a name that nobody else has."""
        self.instance = instance
        self.tag = tag
        self.bytes_each = bytes_each
        self.consumers = consumers

    @abstractmethod
    def sender(self) -> Callable[[bytes], object]:
        """In the sending process: what sends one message."""

    @abstractmethod
    def receiver(self) -> Callable[[], Buffer]:
        """In a receiving process: what waits for one message, good until the next call."""

    def iterator(self) -> Iterator[Buffer]:
        """In a receiving process: messages one after the other, as a program would iterate over them."""
        return iter(self.receiver(), None)

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        """In the sending process: what sends an array of records."""
        raise NotImplementedError

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        """In a receiving process: what waits for some records."""
        raise NotImplementedError

    def array_sender(self, records: Array) -> Callable[[Array], object]:
        """In the sending process: what sends records as one message. Most have nothing else for them."""
        return self.record_sender(records.dtype)

    def array_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        """In a receiving process: what waits for such a message."""
        return self.record_receiver(dtype)

    def claim_sender(self) -> Callable[[int], object]:
        """In the sending process: what publishes ``bytes_each`` in place, a number (mod 256) at both ends."""
        raise NotImplementedError

    def sent(self) -> None:  # noqa: B027 - most have nothing to do
        """In the sending process, after the last message: makes sure that it leaves."""

    def close(self) -> int:
        """In either process, when both are through; how many messages it knows to have missed."""
        return 0

    def destroy(self) -> None:  # noqa: B027 - most have nothing to do
        """In the parent, at the end."""
