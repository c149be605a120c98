"""Ours: a reliable stream, adaptive waits, everything else as by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.base import Array, Buffer, Peer
from shmdriver import Client


class StreamPeer(Peer):
    name = "shmdriver"
    claims = True
    counts: ClassVar = {
        "single": 2_000_000,
        "iterate": 3_000_000,
        "batch": 60_000_000,
        "roundtrip": 200_000,
        "frames": 10_000,
        "claim": 100_000,
    }

    def __init__(self, *, instance: str, tag: str, bytes_each: int) -> None:
        super().__init__(instance=instance, tag=tag, bytes_each=bytes_each)
        self._client = Client(instance)
        self._open: Any = None

    def _producer(self, **options: Any) -> Any:
        if self.bytes_each >= 4096:
            options |= {"slots": 8, "max_message": self.bytes_each}
        elif "dtype" not in options:
            options |= {"slots": 16384, "max_message": self.bytes_each}
        else:
            options |= {"slots": 16384}
        self._open = self._client.producer(self.tag, min_consumers=1, **options)
        return self._open

    def _consumer(self, **options: Any) -> Any:
        self._open = self._client.consumer(self.tag, **options)
        return self._open

    def sender(self) -> Callable[[bytes], object]:
        publish: Callable[[bytes], object] = self._producer().publish
        return publish

    def receiver(self) -> Callable[[], Buffer]:
        read: Callable[[], Buffer] = self._consumer().read
        return read

    def iterator(self) -> Iterator[Buffer]:
        return iter(self._consumer())

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        publish: Callable[[Array], object] = self._producer(dtype=dtype).publish
        return publish

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        read: Callable[[], Array] = self._consumer(dtype=dtype).read_batch
        return read

    def claim_sender(self) -> Callable[[int], object]:
        out, size = self._producer(), self.bytes_each

        def send(number: int) -> None:
            with out.claim(size) as claim:
                view = claim.view
                view[0] = view[-1] = number & 0xFF

        return send

    def close(self) -> int:
        lost = int(getattr(self._open, "lost", 0))
        self._client.close()
        return lost
