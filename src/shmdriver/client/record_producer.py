"""RecordProducer: the producer of a stream of numpy records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmdriver.client.boundary import public
from shmdriver.client.link import Deadline, Link
from shmdriver.client.producer import WAIT_AGAIN, Producer
from shmdriver.client.record_values import records_of

if TYPE_CHECKING:
    from shmdriver.client.claim import Claim
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
        """Publishes records: an array of this stream's dtype, a list of tuples of exactly its fields, bytes.

        Nothing is converted that could become something else: TypeError and ValueError say what was found,
        and how to make records of it. Waits up to ``timeout`` seconds for room (None: for ever, 0: not at
        all) and raises BackPressured, whose ``published`` says how many went in. Records have no ``type``.
        """
        records = self._records(data, type)
        done, total = self._put(records, 0), len(records)
        deadline = Deadline(timeout)
        while done < total:
            slice_ns = deadline.slice_ns()
            if slice_ns == 0:
                raise self._unavailable() if self._waits_for_driver else self._back_pressured(done)
            done += self._put(records[done:], slice_ns)

    def try_publish(self, data: Publishable | Sequence[Any], type: int = 0) -> int:  # noqa: A002
        """Publishes the records that there is room for now. How many went in."""
        return self._put(self._records(data, type), 0)

    def claim(self, length: int, *, type: int = 0, timeout: float | None = None) -> Claim:  # noqa: A002
        """A place for the bytes of one record. ValueError for any other ``length``."""
        self._check_no_type(type)
        if length != self.dtype.itemsize:
            raise ValueError(
                f"stream {self.stream!r}: claim of {length} bytes, where a record has {self.dtype.itemsize}"
            )
        return super().claim(length, timeout=timeout)

    def publish_array(self, *_: Any, **__: Any) -> NoReturn:
        """Refused (TypeError): this stream carries records."""
        raise TypeError(
            f"stream {self.stream!r} carries records, no arrays with shapes of their own: publish(records), "
            "or make a producer without dtype="
        )

    claim_array = publish_array

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

    def _records(self, data: Any, type: int) -> np.ndarray[Any, Any]:  # noqa: A002
        """``data`` as a one-dimensional array of this dtype whose stride C can walk."""
        self._check_no_type(type)
        try:
            array = records_of(data, self.dtype)
        except TypeError as error:
            raise TypeError(f"stream {self.stream!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"stream {self.stream!r}: {error}") from None
        if len(array) > 1 and array.strides[0] < self.dtype.itemsize:
            array = np.ascontiguousarray(array)
        return array

    def _check_no_type(self, type: int) -> None:  # noqa: A002
        if type:
            raise ValueError(f"stream {self.stream!r}: records carry no message type, found type={type}")
