"""pyzmq: PUSH and PULL over ipc://."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zmq

from shmdriver.bench.channel import Array, Buffer, Channel


class ZeromqChannel(Channel):
    name = "pyzmq"
    skips: ClassVar = {"claim": "ZeroMQ sends what it is given"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._path = Path(tempfile.gettempdir(), f"{self.tag}.zmq")
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
