"""multiprocessing.Pipe: raw bytes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.base import Array, Buffer, Peer
from shmdriver.demo.processes import context


class PipePeer(Peer):
    name = "Pipe"
    counts: ClassVar = {
        "single": 250_000,
        "iterate": 250_000,
        "batch": 8_000_000,
        "roundtrip": 12_000,
        "frames": 600,
    }

    def __init__(self, *, instance: str, tag: str, bytes_each: int) -> None:
        super().__init__(instance=instance, tag=tag, bytes_each=bytes_each)
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
