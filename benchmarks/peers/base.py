"""What every system that is compared offers.

A Peer is one way from one process to another. The parent makes it; it travels to both processes
(pickled, so it holds what can travel) and is opened there by ``sender()`` or ``receiver()``. All
functions wait: for room, for a message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]
Buffer = Any  # what a peer hands out: bytes, memoryview, or an object with the buffer protocol


class Peer(ABC):
    name: ClassVar[str]
    claims: ClassVar[bool] = False  # whether a message can be written in place
    # How many messages a run takes, by scenario: about half a second of them.
    counts: ClassVar[dict[str, int]]

    def __init__(self, *, instance: str, tag: str, bytes_each: int) -> None:
        """In the parent. ``instance``: our driver's; ``tag``: a name that nobody else has."""
        self.instance = instance
        self.tag = tag
        self.bytes_each = bytes_each

    @abstractmethod
    def sender(self) -> Callable[[bytes], object]:
        """In the sending process: what sends one message."""

    @abstractmethod
    def receiver(self) -> Callable[[], Buffer]:
        """In the receiving process: what waits for one message, good until the next call."""

    def iterator(self) -> Iterator[Buffer]:
        """In the receiving process: messages one after the other, as a program would iterate over them."""
        return iter(self.receiver(), None)

    @abstractmethod
    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        """In the sending process: what sends an array of records."""

    @abstractmethod
    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        """In the receiving process: what waits for some records."""

    def claim_sender(self) -> Callable[[int], object]:
        """In the sending process: what publishes ``bytes_each`` in place, a number at both ends."""
        raise NotImplementedError

    def sent(self) -> None:  # noqa: B027 - most have nothing to do
        """In the sending process, after the last message: makes sure that it leaves."""

    def close(self) -> int:
        """In either process, when both are through; how many messages it knows to have missed."""
        return 0

    def destroy(self) -> None:  # noqa: B027 - most have nothing to do
        """In the parent, at the end."""
