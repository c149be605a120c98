"""Record batches: runs of messages as arrays, in place where the consumer's gate protects them."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmdriver._native import lib
from shmdriver.client import directory
from shmdriver.client.boundary import public
from shmdriver.client.records import as_dtype, dtype_of
from shmdriver.errors import EndOfStream, SchemaMismatch

if TYPE_CHECKING:
    from shmdriver.client.consumer import Consumer

__all__ = ["Batch", "Batches", "RecordReader"]


Batch = np.ndarray[Any, np.dtype[Any]]

_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)
_COPIED_MAX = 65536  # records that a batch copies at most


@public
class Batches:
    """The iterator behind :meth:`Consumer.batches`. It keeps no batch: none holds its place longer."""

    __slots__ = ("_consumer", "_limit")

    def __init__(self, consumer: Consumer, limit: int | None) -> None:
        self._consumer = consumer
        self._limit = limit

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch = self._consumer._wait_for_records(self._limit, None)
        except EndOfStream:
            raise StopIteration from None
        assert batch is not None
        self._consumer._pending = 0
        return batch


class RecordReader:
    """Fetches batches for one consumer, at most half the ring each: the producer has the other half.

    The consumer owns it and passes itself: no cycle, so that a dropped consumer's lease ends at once.
    """

    __slots__ = ("_address", "_copied_bytes", "_copies", "_half", "_serial", "dtype")

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self.dtype = dtype
        self._copies: Batch | None = None
        self._address = self._copied_bytes = 0  # of the copies
        self._half = 0  # of the mapped ring; 0: not known yet
        self._serial = 0

    def known_dtype(self, consumer: Consumer) -> np.dtype[Any] | None:
        """The dtype as passed, else as in the directory; None for bytes, or before the first producer."""
        if self.dtype is None:
            schema = directory.schema_of_stream(consumer._link.authority, consumer._info().stream_index)
            if schema is not None:
                self.dtype = as_dtype(dtype_of(schema))
        return self.dtype

    def fetch(self, consumer: Consumer, limit: int | None, timeout_ns: int) -> Batch | None:
        """The next batch, None when none came in time."""
        dtype = self.dtype or self._await_dtype(consumer, timeout_ns)
        if dtype is None:
            return None
        size = dtype.itemsize
        if not self._half and not self._learn_ring(consumer, size, timeout_ns):
            return None
        most = self._half if limit is None or limit > self._half else limit
        copies = self._copies_for(most, dtype)
        found = consumer._fetch_records(most, size, timeout_ns, self._address, self._copied_bytes)
        if found.__class__ is not int:
            count = consumer._found_count
        elif (count := self._count(consumer, found, timeout_ns)) == 0:
            return None
        changed = consumer._found_serial != self._serial
        if changed:
            self._half = 0
            self._learn_ring(consumer, size, 0)
        if found.__class__ is int:
            self._copies = None
            copies.flags.writeable = False
            return copies[:count]
        # By way of frombuffer: it keeps the read-only view, so that the array cannot be made writable.
        place = np.frombuffer(found.data, np.uint8)
        placed = np.ndarray((count,), dtype, place, strides=(consumer._found_stride,))
        if not changed or count <= self._half:
            return placed
        # A run of the ring before may be more than half of this one: kept in place, it would hold all of it.
        copied = placed.copy()
        if consumer.valid():  # asked after the last byte
            return copied
        del placed, place, found
        consumer._pending = 0
        self._count(consumer, consumer._look(), timeout_ns)
        return None

    def from_rows(self, consumer: Consumer, limit: int | None) -> Batch:
        """Messages that were fetched one by one and not handed out, as records (copied)."""
        dtype = self.known_dtype(consumer)
        if dtype is None:
            self._raise_bytes(consumer)
        count = consumer.buffered if limit is None else min(limit, consumer.buffered)
        messages = [consumer._take() for _ in range(count)]
        payloads = [bytes(message) for message in messages if message is not None]
        odd = next((len(payload) for payload in payloads if len(payload) != dtype.itemsize), None)
        if odd is not None:
            raise SchemaMismatch(
                f"stream {consumer.stream!r}: a message of {odd} bytes, where a record has {dtype.itemsize}",
                stream=consumer.stream,
            )
        return np.frombuffer(b"".join(payloads), dtype)

    def _learn_ring(self, consumer: Consumer, size: int, timeout_ns: int) -> bool:
        """Half the ring that is mapped, waiting for a first message when none is; whether it is known now."""
        slots = int(consumer._info().slots)
        if not slots:
            self._count(consumer, consumer._fetch_records(0, size, timeout_ns, 0, 0), timeout_ns)
            slots = int(consumer._info().slots)
        self._half = max(slots // 2 // consumer.shard[1], 1) if slots else 0
        self._serial = int(consumer._info().mapping_serial)
        return slots > 0

    def _copies_for(self, most: int, dtype: np.dtype[Any]) -> Batch:
        """Private memory for records that the gate does not protect; handed out when it was used."""
        copies = self._copies
        if copies is None or len(copies) < min(most, _COPIED_MAX):
            copies = self._copies = np.empty(min(most, _COPIED_MAX), dtype)
            self._address, self._copied_bytes = copies.ctypes.data, copies.nbytes
        return copies

    def _await_dtype(self, consumer: Consumer, timeout_ns: int) -> np.dtype[Any] | None:
        if self.known_dtype(consumer) is None:
            code = lib.shmd_guarded_wait(consumer._open_handle, timeout_ns)
            self._count(consumer, code, timeout_ns)
            if self.known_dtype(consumer) is None and code > 0:
                self._raise_bytes(consumer)
        return self.dtype

    def _count(self, consumer: Consumer, code: int, wait_ns: int) -> int:
        if code >= 0:
            return int(code)
        if code != _INTERRUPTED:
            consumer._recover(code, wait_ns)
        return 0

    def _raise_bytes(self, consumer: Consumer) -> NoReturn:
        raise TypeError(
            f"stream {consumer.stream!r} carries bytes, not records: read messages, "
            "or make its producer with dtype="
        )
