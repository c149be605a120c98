"""iceoryx2: publish-subscribe of byte slices, polled; no overflow, a publisher that retries: reliable."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import iceoryx2 as iox2
import numpy as np

from shmdriver.bench.channel import Array, Buffer, Channel

iox2.set_log_level(iox2.LogLevel.Fatal)
_BYTES = iox2.Slice[ctypes.c_uint8]
_SMALL_BYTES = 4096
_SMALL_DEPTH, _LARGE_DEPTH = 1024, 16
_BATCH_BYTES = 65536  # the 1,024 records of 64 bytes that a batch sends as one sample
_POLL_S = 0.001


class Iceoryx2Channel(Channel):
    name = "iceoryx2"
    consumers_max = 4

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kept: list[Any] = []  # whatever must live as long as the channel is open
        self._sample: Any = None

    def _service(self, largest: int) -> Any:
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        builder = node.service_builder(iox2.ServiceName.new(self.tag)).publish_subscribe(_BYTES)
        depth = _SMALL_DEPTH if largest < _SMALL_BYTES else _LARGE_DEPTH
        service = (
            builder.max_publishers(1)
            .max_subscribers(self.consumers_max)
            .history_size(0)
            .subscriber_max_buffer_size(depth)
            .subscriber_max_borrowed_samples(2)
            .enable_safe_overflow(False)
            .open_or_create()
        )
        self._kept += [node, service]
        return service

    def _publisher(self, largest: int) -> Any:
        service = self._service(largest)
        publisher = (
            service.publisher_builder()
            .initial_max_slice_len(largest)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._kept.append(publisher)
        while service.dynamic_config.number_of_subscribers < self.consumers:
            time.sleep(_POLL_S)
        publisher.update_connections()
        return publisher

    def _subscriber(self, largest: int) -> Callable[[], Any]:
        subscriber = self._service(largest).subscriber_builder().create()
        self._kept.append(subscriber)
        receive: Callable[[], Any] = subscriber.receive
        return receive

    def _send_bytes(self, size: int) -> Callable[[Any], object]:
        loan, move = self._publisher(size).loan_slice_uninit, ctypes.memmove

        def send(payload: Any) -> None:
            sample = loan(size)
            move(sample.payload_ptr, payload, size)
            sample.assume_init().send()

        return send

    def sender(self) -> Callable[[bytes], object]:
        return self._send_bytes(self.bytes_each)

    def receiver(self) -> Callable[[], Buffer]:
        receive, size, copy = self._subscriber(self.bytes_each), self.bytes_each, ctypes.string_at
        if size >= _SMALL_BYTES:
            return self._in_place(receive, size)

        def get() -> bytes:
            while (sample := receive()) is None:
                pass
            return copy(sample.payload_ptr, size)

        return get

    def _in_place(self, receive: Callable[[], Any], size: int) -> Callable[[], Buffer]:
        kind = ctypes.c_uint8 * size

        def get() -> Any:
            self._sample = None  # gives the last one back
            while (sample := receive()) is None:
                pass
            self._sample = sample
            return kind.from_address(sample.payload_ptr)

        return get

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        send = self._send_bytes(_BATCH_BYTES)
        return lambda records: send(records.ctypes.data)

    def record_receiver(self, dtype: np.dtype[Any]) -> Callable[[], Array]:
        get = self._in_place(self._subscriber(_BATCH_BYTES), _BATCH_BYTES)
        return lambda: np.frombuffer(get(), dtype)

    def claim_sender(self) -> Callable[[int], object]:
        size = self.bytes_each
        loan, kind = self._publisher(size).loan_slice_uninit, ctypes.c_uint8 * size

        def send(number: int) -> None:
            sample = loan(size)
            view = kind.from_address(sample.payload_ptr)
            view[0] = view[size - 1] = number & 0xFF
            sample.assume_init().send()

        return send

    def close(self) -> int:
        self._sample = None
        for kept in reversed(self._kept):
            if hasattr(kept, "delete"):
                kept.delete()
        self._kept.clear()
        return 0
