"""tachyon-ipc: a ring of one producer and one consumer, by its own send() and iterator; frames in place."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tachyon

from shmdriver.bench.channel import Array, Buffer, Channel

_SMALL_BYTES = 4096
_SMALL_RING_BYTES = 1 << 20
_LARGE_RING_BYTES = 1 << 26  # with 16 MiB it jams at 1 MiB frames: room is given back 32 messages at a time
_TRIES, _RETRY_S = 5000, 0.001


class TachyonChannel(Channel):
    name = "tachyon"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._path = Path(tempfile.gettempdir(), f"{self.tag}.tachyon")
        self._bus: Any = None
        self._guard: Any = None
        self._view: memoryview | None = None

    def _connected(self) -> Any:
        for attempt in range(_TRIES):  # the consumer makes the socket
            try:
                self._bus = tachyon.Bus.connect(str(self._path))
                break
            except Exception:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_RETRY_S)
        return self._bus

    def _listening(self, *, large: bool) -> Any:
        self._bus = tachyon.Bus.listen(str(self._path), _LARGE_RING_BYTES if large else _SMALL_RING_BYTES)
        return self._bus

    def sender(self) -> Callable[[bytes], object]:
        send, full = self._connected().send, tachyon.TachyonError

        def put(payload: bytes) -> None:
            while True:  # it is said to block, and raises when the ring is full
                try:
                    send(payload)
                except full:
                    continue
                return

        return put

    def receiver(self) -> Callable[[], Buffer]:
        large = self.bytes_each >= _SMALL_BYTES
        bus = self._listening(large=large)
        if large:
            return self._next_view
        payloads = (message.data for message in bus)
        return payloads.__next__

    def _next_view(self) -> memoryview:
        self._give_back()
        self._guard = self._bus.recv_zero_copy().__enter__()
        self._view = memoryview(self._guard)
        return self._view

    def _give_back(self) -> None:
        if self._guard is not None and self._view is not None:
            self._view.release()
            self._guard.__exit__(None, None, None)
            self._guard = None

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        send = self.sender()
        return lambda records: send(records.tobytes())

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        messages = iter(self._listening(large=True))
        return lambda: np.frombuffer(next(messages).data, dtype)

    def claim_sender(self) -> Callable[[int], object]:
        bus, size, full = self._connected(), self.bytes_each, tachyon.TachyonError

        def send(number: int) -> None:
            while True:
                try:
                    with bus.send_zero_copy(size) as place:
                        with memoryview(place) as view:
                            view[0] = view[size - 1] = number & 0xFF
                        place.actual_size = size
                except full:
                    continue
                return

        return send

    def close(self) -> int:
        self._give_back()
        if self._bus is not None:
            self._bus.__exit__(None, None, None)
        return 0

    def destroy(self) -> None:
        self._path.unlink(missing_ok=True)
