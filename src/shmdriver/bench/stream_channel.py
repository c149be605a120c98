"""Ours: a stream. Reliable, adaptive waits, everything else as by default, unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel
from shmdriver.client import Client

__all__ = ["StreamChannel"]

Delivery = Literal["reliable", "lossy", "latest"]
Wait = Literal["adaptive", "spin", "sleep"]
_SMALL_BYTES = 4096
_SLOTS = 16384
_LARGE_SLOTS = 8
_ARRAY_SLOTS = 16
_ATTACH_TIMEOUT_S = 20.0


class StreamChannel(Channel):
    """One stream of the driver ``instance``, with ``slots`` (default: by the size of its messages)."""

    name = "shmdriver"
    consumers_max = 64

    def __init__(
        self,
        *,
        instance: str,
        tag: str,
        bytes_each: int,
        consumers: int = 1,
        delivery: Delivery = "reliable",
        wait: Wait = "adaptive",
        slots: int | None = None,
    ) -> None:
        super().__init__(instance=instance, tag=tag, bytes_each=bytes_each, consumers=consumers)
        self._client = Client(instance)
        self._delivery: Delivery = delivery
        self._wait: Wait = wait
        self._slots = slots
        self._open: Any = None

    def _producer(self, default_slots: int = 0, **options: Any) -> Any:
        if "dtype" not in options:
            options.setdefault("max_message", self.bytes_each)
        gated = self.consumers if self._delivery == "reliable" else 0
        slots = self._slots or default_slots or (_LARGE_SLOTS if self.bytes_each >= _SMALL_BYTES else _SLOTS)
        self._open = self._client.producer(self.tag, slots=slots, min_consumers=gated, **options)
        self._open.wait_for_consumers(self.consumers, timeout=_ATTACH_TIMEOUT_S)
        return self._open

    @property
    def reliable(self) -> bool:
        """Whether its consumers get everything."""
        return self._delivery == "reliable"

    def consumer(self, **options: Any) -> Any:
        """In a receiving process: the consumer itself."""
        self._open = self._client.consumer(self.tag, delivery=self._delivery, wait=self._wait, **options)
        return self._open

    def sender(self) -> Callable[[bytes], object]:
        publish: Callable[[bytes], object] = self._producer().publish
        return publish

    def receiver(self) -> Callable[[], Buffer]:
        read: Callable[[], Buffer] = self.consumer().read
        return read

    def iterator(self) -> Iterator[Buffer]:
        return iter(self.consumer())

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        publish: Callable[[Array], object] = self._producer(dtype=dtype).publish
        return publish

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        read: Callable[[], Array] = self.consumer(dtype=dtype).read_batch
        return read

    def array_sender(self, records: Array) -> Callable[[Array], object]:
        out = self._producer(_ARRAY_SLOTS, max_message=records.nbytes)
        publish: Callable[[Array], object] = out.publish_array
        return publish

    def array_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:  # noqa: ARG002 - it brings its own
        read = self.consumer().read
        return lambda: read().array

    def claim_sender(self) -> Callable[[int], object]:
        out, size = self._producer(), self.bytes_each

        def send(number: int) -> None:
            with out.claim(size) as claim:
                view = claim.view
                view[0] = view[-1] = number & 0xFF

        return send

    def close(self) -> int:
        lost = int(getattr(self._open, "lost", 0)) if self._delivery == "reliable" else 0
        self._client.close()
        return lost
