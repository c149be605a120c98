"""Record batches: runs of messages as arrays, in place where the consumer's gate protects them."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmdriver._native import ffi, lib
from shmdriver.client.boundary import public
from shmdriver.client.records import as_dtype, difference, dtype_of, schema_of
from shmdriver.errors import EndOfStream, SchemaMismatch
from shmdriver.os_errors import last_error

if TYPE_CHECKING:
    from shmdriver.client.consumer import Consumer

__all__ = ["Batch", "Batches", "RecordReader"]


Batch = np.ndarray[Any, np.dtype[Any]]

_ALIGN = 64
_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)
_TENSOR = int(lib.SHMD_FLAG_TENSOR)
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

    What records are is a matter of each epoch: its producer's schema lies in its memory. The consumer owns
    this and passes itself: no cycle, so that a dropped consumer's lease ends at once.
    """

    __slots__ = (
        "_address", "_copied_bytes", "_copies", "_declared", "_dtype", "_half", "_serial",
    )  # fmt: skip

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self._declared = dtype
        self._copies: Batch | None = None
        self._address = self._copied_bytes = 0  # of the copies
        self._serial = 0  # which mapping, and so which epoch, these are of:
        self._dtype: np.dtype[Any] | None = None  # None: none is known yet
        self._half = 0

    def known_dtype(self, consumer: Consumer) -> np.dtype[Any] | None:
        """The dtype as passed, else of what was read last or comes first; None: bytes, or not known yet."""
        if self._declared is not None:
            return self._declared
        if consumer._found_serial:
            return self._dtype_in(consumer, consumer._found_serial)
        consumer._look()
        info = consumer._info()
        return self._dtype_in(consumer, int(info.mapping_serial)) if info.slots else None

    def fetch(self, consumer: Consumer, limit: int | None, timeout_ns: int) -> Batch | None:
        """The next batch, None when none came in time."""
        while self._dtype is not None or self._learn(consumer, timeout_ns):
            dtype = self._dtype
            assert dtype is not None
            most = self._half if limit is None or limit > self._half else limit
            copies = self._copies_for(most, dtype)
            found = consumer._fetch_records(
                most, dtype.itemsize, timeout_ns, self._address, self._copied_bytes, self._serial
            )
            if found is None:  # the next producer's
                self._dtype = None
            elif found.__class__ is not int:
                # By way of frombuffer: it keeps the read-only view, so that the array stays so.
                place = np.frombuffer(found.data, np.uint8)
                return np.ndarray((consumer._found_count,), dtype, place, strides=(consumer._found_stride,))
            elif self._count(consumer, found, timeout_ns) == 0:
                break
            else:
                self._copies = None
                return _read_only(copies)[:found]
        return None

    def from_rows(self, consumer: Consumer, limit: int | None) -> Batch:
        """Messages that were fetched one by one and not handed out, as records (copied)."""
        dtype = self._dtype_in(consumer, consumer._found_serial)
        if dtype is None:
            self._raise_bytes(consumer)
        count = consumer.buffered if limit is None else min(limit, consumer.buffered)
        messages = [consumer._take() for _ in range(count)]
        rows = [(bytes(message), message.flags) for message in messages if message is not None]
        odd = next((row for row in rows if len(row[0]) != dtype.itemsize or row[1] & _TENSOR), None)
        if odd is not None:
            kind, size = "an array" if odd[1] & _TENSOR else "a message", dtype.itemsize
            raise SchemaMismatch(
                f"stream {consumer.stream!r}: {kind} of {len(odd[0])} bytes, where a record has {size}",
                stream=consumer.stream,
            )
        batch = _aligned(len(rows), dtype)
        batch.view(np.uint8)[:] = np.frombuffer(b"".join(row[0] for row in rows), np.uint8)
        return _read_only(batch)[:]

    def _learn(self, consumer: Consumer, timeout_ns: int) -> bool:
        """Waits for a message, and takes notice of its epoch; whether there is one."""
        # That a wait is over says only that there is something to see: perhaps an end. A fetch says what.
        if self._count(consumer, consumer._fetch_records(0, 0, timeout_ns, 0, 0, 0), timeout_ns) == 0:
            return False
        serial, info = consumer._found_serial, consumer._info()
        if info.mapping_serial != serial:
            return False  # a signal's handler has read on
        dtype = self._dtype_in(consumer, serial)
        if dtype is None:
            self._raise_bytes(consumer)
        self._serial = serial
        self._half = max(int(info.slots) // 2 // consumer.shard[1], 1)
        self._copies = None
        self._dtype = dtype  # from here on the three go together
        return True

    def _dtype_in(self, consumer: Consumer, serial: int) -> np.dtype[Any] | None:
        """Of the records in the mapping with that number; None: bytes. Raises SchemaMismatch."""
        if serial == self._serial and self._dtype is not None:
            return self._dtype
        stream, declared = consumer.stream, self._declared
        text = ffi.new("char[]", int(lib.SHMD_SCHEMA_BYTES))
        length = int(lib.shmd_guarded_schema(consumer._open_handle, serial, text, ffi.sizeof(text)))
        if length in (lib.SHMD_E_LAYOUT, lib.SHMD_E_CORRUPT):
            raise SchemaMismatch(f"{last_error()}: what was read cannot be taken for records", stream=stream)
        if length < 0:
            raise consumer._failure(length)
        schema = bytes(ffi.buffer(text, length)).decode("utf-8", "replace")
        found = as_dtype(dtype_of(schema)) if schema else None
        if declared is not None and schema != schema_of(declared):
            words = difference(found, declared) if found is not None else "found bytes"
            raise SchemaMismatch(f"stream {stream!r}: {words}", stream=stream, found=schema)
        return found

    def _copies_for(self, most: int, dtype: np.dtype[Any]) -> Batch:
        """Private memory for records that the gate does not protect; handed out when it was used."""
        copies = self._copies
        if copies is None or len(copies) < min(most, _COPIED_MAX):
            copies = self._copies = _aligned(min(most, _COPIED_MAX), dtype)
            self._address, self._copied_bytes = copies.ctypes.data, copies.nbytes
        return copies

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


def _aligned(n: int, dtype: np.dtype[Any]) -> Batch:
    """Memory for ``n`` records that begins at a multiple of 64."""
    memory = np.empty(n * dtype.itemsize + _ALIGN - 1, np.uint8)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + n * dtype.itemsize].view(dtype)


def _read_only(batch: Batch) -> Batch:
    """``batch`` of :func:`_aligned`, from which on no view of it can be made writable."""
    memory = batch.base
    assert isinstance(memory, np.ndarray)
    memory.flags.writeable = batch.flags.writeable = False
    return batch
