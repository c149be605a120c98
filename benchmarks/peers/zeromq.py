"""pyzmq: PUSH and PULL over ipc://."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zmq

from benchmarks.peers.base import Array, Buffer, Peer


class ZeromqPeer(Peer):
    name = "pyzmq"
    counts: ClassVar = {
        "single": 400_000,
        "iterate": 400_000,
        "batch": 15_000_000,
        "roundtrip": 8_000,
        "frames": 2_000,
    }

    def __init__(self, *, instance: str, tag: str, bytes_each: int) -> None:
        super().__init__(instance=instance, tag=tag, bytes_each=bytes_each)
        self._path = Path(tempfile.gettempdir(), f"{tag}.zmq")
        self._context: zmq.Context[Any] | None = None
        self._socket: Any = None

    def _opened(self, kind: int) -> Any:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        if kind == zmq.PULL:
            self._socket.bind(f"ipc://{self._path}")
        else:
            self._socket.connect(f"ipc://{self._path}")
        return self._socket

    def sender(self) -> Callable[[bytes], object]:
        send: Callable[[bytes], object] = self._opened(zmq.PUSH).send
        return send

    def receiver(self) -> Callable[[], Buffer]:
        socket = self._opened(zmq.PULL)
        if self.bytes_each < 4096:
            receive: Callable[[], Buffer] = socket.recv
            return receive
        return lambda: socket.recv(copy=False).buffer

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        send = self._opened(zmq.PUSH).send
        return lambda records: send(records.view(np.uint8).data)

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        receive = self._opened(zmq.PULL).recv
        return lambda: np.frombuffer(receive(), dtype)

    def close(self) -> int:
        if self._socket is not None and self._context is not None:
            self._socket.close(linger=2000)
            self._context.term()
        return 0

    def destroy(self) -> None:
        self._path.unlink(missing_ok=True)
