"""faster-fifo: a byte queue with a lock, by its fastest way: raw bytes in place of its pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import faster_fifo
import faster_fifo_reduction  # noqa: F401  makes the queue picklable
import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel

_SMALL_QUEUE_BYTES, _LARGE_QUEUE_BYTES = 1 << 20, 16 << 20
_LARGEST_BYTES = 4 << 20
_TIMEOUT_S = 60


def _as_it_is(payload: Buffer) -> Buffer:
    return payload


class FasterFifoChannel(Channel):
    name = "faster-fifo"
    skips: ClassVar = {"claim": "it copies what it is given"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        size = _SMALL_QUEUE_BYTES if self.bytes_each < 4096 else _LARGE_QUEUE_BYTES
        self._queue = faster_fifo.Queue(max_size_bytes=size, loads=bytes, dumps=_as_it_is)

    def sender(self) -> Callable[[bytes], object]:
        put = self._queue.put
        return lambda payload: put(payload, timeout=_TIMEOUT_S)

    def receiver(self) -> Callable[[], Buffer]:
        self._queue.reallocate_msg_buffer(_LARGEST_BYTES)
        get = self._queue.get
        return lambda: get(timeout=_TIMEOUT_S)

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        put = self._queue.put
        return lambda records: put(records.tobytes(), timeout=_TIMEOUT_S)

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        receive = self.receiver()
        return lambda: np.frombuffer(receive(), dtype)

    def destroy(self) -> None:
        self._queue.close()
