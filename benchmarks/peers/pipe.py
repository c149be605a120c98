"""multiprocessing.Pipe: raw bytes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel
from shmdriver.demo.processes import context


class PipeChannel(Channel):
    name = "Pipe"
    skips: ClassVar = {"claim": "a pipe has no memory to write into"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._in: Connection
        self._out: Connection
        self._in, self._out = context.Pipe(duplex=False)

    def sender(self) -> Callable[[bytes], object]:
        return self._out.send_bytes

    def receiver(self) -> Callable[[], Buffer]:
        return self._in.recv_bytes

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        send = self._out.send_bytes
        return lambda records: send(records.view(np.uint8).data)

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        receive = self._in.recv_bytes
        return lambda: np.frombuffer(receive(), dtype)
