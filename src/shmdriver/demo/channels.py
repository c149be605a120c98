"""One way from a producer process to a consumer process: a stream of ours, a Pipe, a Queue.

A channel is made by the demo, travels to both processes, and is opened there. ``sender`` gives a
function that sends one payload (bytes), ``receiver`` one that waits for one, ``payloads`` all of
them; ``record_sender`` and ``record_batches`` move numpy records. ``arrays`` gives frames, which
the demo's frame producer (frames.py) sends. What a Pipe and a Queue get is the natural way to use
them: bytes over the Pipe, objects over the Queue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from shmdriver import Client
from shmdriver.demo.processes import context

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["Channel", "PipeChannel", "QueueChannel", "StreamChannel"]

Array = np.ndarray[Any, Any]
_QUEUE_MESSAGES = 10_000


class Channel(ABC):
    """One way, with one end in each of two processes."""

    @abstractmethod
    def sender(self) -> Callable[[bytes], object]:
        """Opens the sending end: a function that sends one payload."""

    @abstractmethod
    def receiver(self) -> Callable[[], bytes]:
        """Opens the receiving end: a function that waits for one payload."""

    @abstractmethod
    def payloads(self) -> Iterator[bytes]:
        """Opens the receiving end: all payloads up to the end."""

    @abstractmethod
    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        """Opens the sending end for records."""

    @abstractmethod
    def record_batches(self, dtype: np.dtype[Any]) -> Iterator[Array]:
        """Opens the receiving end for records: arrays up to the end."""

    @abstractmethod
    def arrays(self, shape: tuple[int, ...]) -> Iterator[Array]:
        """Opens the receiving end for frames."""

    @abstractmethod
    def end(self) -> None:
        """Ends the sending side: the receiver sees the end after everything that was sent."""

    def close(self) -> int:
        """Closes the receiving side; how many messages it knows to have missed."""
        return 0


class StreamChannel(Channel):
    """A reliable stream of ours. ``options`` are those of :meth:`shmdriver.Client.producer`."""

    def __init__(self, instance: str, stream: str, **options: Any) -> None:
        self._client = Client(instance)
        self._stream = stream
        self._options = {"min_consumers": 1, **options}
        self._open: Any = None

    def producer(self, **options: Any) -> Any:
        self._open = self._client.producer(self._stream, **self._options, **options)
        return self._open

    def consumer(self, **options: Any) -> Any:
        self._open = self._client.consumer(self._stream, **options)
        return self._open

    def sender(self) -> Callable[[bytes], object]:
        publish: Callable[[bytes], object] = self.producer().publish
        return publish

    def receiver(self) -> Callable[[], bytes]:
        read = self.consumer().read
        return lambda: bytes(read())

    def payloads(self) -> Iterator[bytes]:
        return map(bytes, self.consumer())

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:
        publish: Callable[[Array], object] = self.producer(dtype=dtype).publish
        return publish

    def record_batches(self, dtype: np.dtype[Any]) -> Iterator[Array]:
        batches: Iterator[Array] = self.consumer(dtype=dtype).batches()
        return batches

    def arrays(self, shape: tuple[int, ...]) -> Iterator[Array]:  # noqa: ARG002 - shapes travel with arrays
        return (message.array for message in self.consumer())

    def end(self) -> None:
        self._client.close()

    def close(self) -> int:
        lost = int(self._open.lost)
        self._client.close()
        return lost


class PipeChannel(Channel):
    """multiprocessing.Pipe, raw bytes (send_bytes, recv_bytes)."""

    def __init__(self) -> None:
        self._receive: Connection
        self._send: Connection
        self._receive, self._send = context.Pipe(duplex=False)

    def sender(self) -> Callable[[bytes], object]:
        return self._send.send_bytes

    def receiver(self) -> Callable[[], bytes]:
        return self._receive.recv_bytes

    def payloads(self) -> Iterator[bytes]:
        return iter(self._receive.recv_bytes, b"")

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:  # noqa: ARG002
        send = self._send.send_bytes
        return lambda records: send(records.view(np.uint8).data)

    def record_batches(self, dtype: np.dtype[Any]) -> Iterator[Array]:
        return (np.frombuffer(payload, dtype) for payload in self.payloads())

    def arrays(self, shape: tuple[int, ...]) -> Iterator[Array]:
        return (np.frombuffer(payload, np.uint8).reshape(shape) for payload in self.payloads())

    def end(self) -> None:
        self._send.send_bytes(b"")


class QueueChannel(Channel):
    """multiprocessing.Queue: pickled objects. What is put must not change: a thread pickles it later."""

    def __init__(self, limit: int = _QUEUE_MESSAGES) -> None:
        self._queue: Queue[Any] = context.Queue(limit)

    def sender(self) -> Callable[[bytes], object]:
        return self._queue.put

    def receiver(self) -> Callable[[], bytes]:
        receive: Callable[[], bytes] = self._queue.get
        return receive

    def payloads(self) -> Iterator[bytes]:
        return iter(self._queue.get, None)

    def record_sender(self, dtype: np.dtype[Any]) -> Callable[[Array], object]:  # noqa: ARG002
        put = self._queue.put
        return lambda records: put(records.copy())

    def record_batches(self, dtype: np.dtype[Any]) -> Iterator[Array]:  # noqa: ARG002
        return self._objects()

    def arrays(self, shape: tuple[int, ...]) -> Iterator[Array]:  # noqa: ARG002
        return self._objects()

    def _objects(self) -> Iterator[Array]:
        while (item := self._queue.get()) is not None:
            yield item

    def end(self) -> None:
        self._queue.put(None)
        self._queue.close()
        self._queue.join_thread()
