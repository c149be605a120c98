"""multiprocessing.Queue: pickled objects, by way of a thread and a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel
from shmdriver.demo.processes import context

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


class QueueChannel(Channel):
    name = "Queue"
    skips: ClassVar = {"claim": "a queue has no memory to write into"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._queue: Queue[Any] = context.Queue(10_000 if self.bytes_each < 4096 else 16)

    def sender(self) -> Callable[[bytes], object]:
        return self._queue.put

    def receiver(self) -> Callable[[], Buffer]:
        return self._queue.get

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        put = self._queue.put
        return lambda records: put(records.copy())  # pickled later, by a thread

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        return self._queue.get

    def sent(self) -> None:
        self._queue.close()
        self._queue.join_thread()
