"""RecordProducer: the producer of a stream of numpy records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmdriver.client.boundary import public
from shmdriver.client.link import Deadline, Link
from shmdriver.client.producer import WAIT_AGAIN, Producer
from shmdriver.client.records import difference

if TYPE_CHECKING:
    from shmdriver.client.producer import Publishable

__all__ = ["RecordProducer"]


@public
class RecordProducer(Producer):
    """The producer of a stream of records of one dtype: n records are n messages, in one C call."""

    __slots__ = ("dtype",)

    dtype: np.dtype[Any]

    def __init__(self, handle: Any, link: Link, stream: str, dtype: np.dtype[Any]) -> None:
        super().__init__(handle, link, stream)
        self.dtype = dtype

    def publish(self, data: Publishable | Sequence[Any], type: int = 0, timeout: float | None = None) -> None:  # noqa: A002
        """Publishes records: an ndarray of this stream's dtype, or what numpy makes one of.

        Waits up to ``timeout`` seconds for room (None: for ever, 0: not at all) and raises
        BackPressured, whose ``published`` says how many went in. Records have no ``type``.
        """
        if type:
            raise ValueError(f"stream {self.stream!r}: records carry no message type, found type={type}")
        records = self._records(data)
        total = len(records)
        done = self._put(records, 0)
        if done == total:
            return
        deadline = Deadline(timeout)
        while done < total:
            slice_ns = deadline.slice_ns()
            if slice_ns == 0:
                raise self._unavailable() if self._waits_for_driver else self._back_pressured(done)
            done += self._put(records[done:], slice_ns)

    def try_publish(self, data: Publishable | Sequence[Any], type: int = 0) -> int:  # noqa: A002
        """Publishes the records that there is room for now. How many went in."""
        if type:
            raise ValueError(f"stream {self.stream!r}: records carry no message type, found type={type}")
        return self._put(self._records(data), 0)

    def _put(self, records: np.ndarray[Any, Any], timeout_ns: int) -> int:
        n = len(records)
        if n == 0:
            self._check_open()
            return 0
        done = self._publish_records(records, timeout_ns)
        if done >= 0:
            return done
        if done not in WAIT_AGAIN:
            self._recover(done, self.dtype.itemsize, timeout_ns)
        return 0

    def _records(self, data: Any) -> np.ndarray[Any, Any]:
        """``data`` as a one-dimensional array of this dtype whose stride C can walk."""
        if isinstance(data, np.ndarray | np.void):
            if data.dtype != self.dtype:
                raise TypeError(
                    f"stream {self.stream!r} carries records of another dtype: "
                    f"{difference(data.dtype, self.dtype)}; convert with records.astype(producer.dtype)"
                )
            array = np.asarray(data)
        elif isinstance(data, bytes | bytearray | memoryview):
            if memoryview(data).nbytes % self.dtype.itemsize:
                raise ValueError(
                    f"{memoryview(data).nbytes} bytes are no whole number of records "
                    f"of {self.dtype.itemsize} bytes"
                )
            array = np.frombuffer(data, self.dtype)
        else:
            array = np.asarray(data, self.dtype)
        if array.ndim != 1:
            array = array.reshape(-1)
        if len(array) > 1 and array.strides[0] < self.dtype.itemsize:
            array = np.ascontiguousarray(array)
        return array
