"""Consumer: one reader of a stream.

Small messages are fetched in runs: one C call copies up to a few hundred messages of equal length
into a private buffer, from which ``struct`` makes them one by one; read() and iteration take from the
same run. A reliable consumer's arena messages and record batches are views in place (views.py). The
gate follows with the next call into C, so that the last run counts as read when it is used up.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client._raise import failure_of, raise_for
from shmdriver.client.aio import EventLoopReading, settling
from shmdriver.client.link import FOREVER_SLICE_NS, Deadline, Link, register
from shmdriver.client.message import LostRange, Message, PlacedMessage, PrivateMessage
from shmdriver.client.views import NOTHING_HELD, Mapping, SpareBuffers
from shmdriver.client.waiting import Patience, check_limit

if TYPE_CHECKING:
    import numpy as np

    from shmdriver.client.batches import RecordReader
    from shmdriver.client.reattach import ConsumerComeback, Reattachment

__all__ = ["Consumer"]

_fetch = lib.shmd_guarded_fetch
_next = lib.shmd_guarded_next
_LENGTH_SHIFT = int(lib.SHMD_RUN_LENGTH_SHIFT)
_COUNT_MASK = (1 << _LENGTH_SHIFT) - 1
_RUN_MAX = 256  # messages fetched ahead, into private memory
_PLACED = struct.Struct("<8xQQ8xI4xHH4xQ")  # of shmd_batch_t: one unpack costs less than its attributes
_IN_PLACE = 2**63 - 1
_NONE_HELD = -1
_HEAD = struct.Struct("<QQHH")
_BUFFER_BYTES = 65536 + _HEAD.size
_PRIVATE_FROM_BYTES = 4096  # larger copies are handed out as they are, not copied again
_PACKED_MAX = 256  # lengths whose Struct is kept
_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)
_TOO_LARGE = int(lib.SHMD_E_TOO_LARGE)
_ENDS = (int(lib.SHMD_E_END), int(lib.SHMD_E_PRODUCER_LOST))
_new_exporter = ffi.buffer
_reference = weakref.ref
_new_buffer: Any = ffi.new_allocator(should_clear_after_alloc=False)


class Consumer(EventLoopReading):
    """A consumer of one stream, made by :meth:`Client.consumer`. It belongs to one thread at a time.

    Iterating yields messages up to the stream's clean end; an aborted end raises ProducerLost.
    """

    __slots__ = (
        "__weakref__", "_area", "_batch", "_batch_view", "_buffer", "_buffer_bytes", "_buffer_view",
        "_comeback", "_dtype", "_handle", "_link", "_mapping",
        "_packed", "_patience", "_reader", "_rows", "_run", "_spare", "delivery", "shard", "stream",
    )  # fmt: skip

    stream: str
    delivery: str
    shard: tuple[int, int]

    def __init__(
        self,
        handle: Any,
        link: Link,
        stream: str,
        delivery: str,
        dtype: np.dtype[Any] | None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._handle = handle
        self._link: Link = link
        self.stream = stream
        self.delivery = delivery
        self.shard = shard or (0, 1)
        self._dtype = dtype
        self._comeback: ConsumerComeback | None = None  # of a client with reconnect=True
        self._reader: RecordReader | None = None
        self._area = ffi.new("shmd_run_t *")  # what the C core finds, and where it puts it
        self._area.limit = 1 if delivery == "latest" else _RUN_MAX
        self._batch = ffi.addressof(self._area, "batch")
        self._batch_view = memoryview(ffi.buffer(self._batch))
        self._packed: dict[int, struct.Struct] = {}
        self._mapping: Mapping | None = None
        self._spare = SpareBuffers()
        self._patience = Patience()
        super().__init__()
        self._run: Any = iter(())  # the unpack iterator behind _rows: it knows how many are left
        self._rows: Iterator[Message] = iter(())
        self._use_buffer(_BUFFER_BYTES)
        register(self)

    # ---- messages

    @overload
    def read(self, timeout: None = None) -> Message: ...

    @overload
    def read(self, timeout: float) -> Message | None: ...

    def read(self, timeout: float | None = None) -> Message | None:
        """The next message; None when none came within ``timeout`` seconds (None: for ever, 0: no waiting).

        Raises EndOfStream at the clean end, ProducerLost at an aborted one, LeaseRevoked, ViewsHeld.
        """
        for message in self._rows:
            return message
        if timeout is None:
            first = self._fetch(FOREVER_SLICE_NS)
            if first is not None:
                return first
        return self._wait_and_fetch(timeout)

    def __iter__(self) -> Iterator[Message]:
        return chain.from_iterable(iter(self._next_run, None))

    @property
    def buffered(self) -> int:
        """How many messages were fetched and not handed out yet."""
        left = getattr(self._run, "__length_hint__", None)
        return int(left()) if left else 0

    # ---- records

    @overload
    def read_batch(self, limit: int | None = None, timeout: None = None) -> np.ndarray[Any, Any]: ...

    @overload
    def read_batch(self, limit: int | None = None, timeout: float = ...) -> np.ndarray[Any, Any] | None: ...

    def read_batch(
        self, limit: int | None = None, timeout: float | None = None
    ) -> np.ndarray[Any, Any] | None:
        """The next records as one array, read-only; None when none came within ``timeout`` seconds.

        At most ``limit``, and at most half the ring. In place for a reliable consumer (the array's
        memory holds its place in the ring while anything refers to it), else copied. Raises as :meth:`read`.
        """
        check_limit(limit)
        reader = self._record_reader()
        if self.buffered:
            return reader.from_rows(limit)
        self._check_open()
        deadline = Deadline(timeout)
        while True:
            slice_ns = deadline.slice_ns()
            batch = reader.fetch(limit, slice_ns)
            if batch is not None or slice_ns == 0:
                return batch
            self._idle()

    def batches(self, limit: int | None = None) -> Iterator[np.ndarray[Any, Any]]:
        """Arrays of records as they come, up to the clean end. What :meth:`read_batch` says of them holds."""
        check_limit(limit)
        from shmdriver.client.batches import Batches

        return Batches(self, limit)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the records, as passed or as a producer declared; None: bytes, or not known yet."""
        return self._record_reader().known_dtype()

    # ---- state

    @property
    def lost(self) -> int:
        """How many messages this consumer never saw, in all epochs."""
        own = int(self._info().lost)
        comeback = self._comeback
        return own if comeback is None else comeback.lost + (own if comeback.left is None else 0)

    @property
    def lost_ranges(self) -> list[LostRange]:
        """The last 64 gaps, oldest first."""
        comeback = self._comeback
        if comeback is None:
            return self._own_lost_ranges()
        own = self._own_lost_ranges() if comeback.left is None else []
        return [*comeback.ranges, *own][-int(lib.SHMD_LOST_RANGES) :]

    @property
    def skipped(self) -> int:
        """How many messages a ``latest`` consumer passed over by intent."""
        own = int(self._info().skipped)
        comeback = self._comeback
        return own if comeback is None else comeback.skipped + (own if comeback.left is None else 0)

    @property
    def reattachments(self) -> tuple[Reattachment, ...]:
        """The last 64 times that it was attached anew (``reconnect=True``), oldest first."""
        return () if self._comeback is None else tuple(self._comeback.history)

    @property
    def lag(self) -> int:
        """How many published messages (of its shard) it has not handed out yet."""
        self._look()
        info = self._info()
        return max(0, -((int(info.position) - int(info.head)) // self.shard[1])) + self.buffered

    @property
    def epoch(self) -> int:
        """The number of the producer's tenure that it reads; 0 before the first and after an end."""
        return int(self._info().epoch)

    @property
    def held(self) -> int:
        """How many views of it are alive and hold their places."""
        return self._mapping.held() if self._mapping else 0

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def release(self) -> None:
        """Advances the gate past all that was handed out and is referred to no more, without reading on.

        A consumer that stops reading for a while lets the producer have that room.
        """
        self._check_open()
        code = lib.shmd_guarded_release(self._handle, self._hold_seq())
        if code < 0:
            raise self._failure(code)

    def close(self) -> None:
        """Detaches. Views that are alive stay readable, but are protected no more. Twice is once."""
        handle = self._handle
        if handle is None:
            return
        if not self._link.usable:
            raise_for(lib.SHMD_E_FORKED, stream=self.stream)
        self._handle = None  # before its memory goes: views in other threads look at it
        code = lib.shmd_guarded_consumer_close(handle)
        if code == lib.SHMD_E_CONCURRENT:
            self._handle = handle
            raise_for(code, stream=self.stream)
        self._run = self._rows = iter(())
        if self._mapping is not None:
            self._mapping.expose()
            self._drop_mapping()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._link.usable:  # a forked child leaves its parent's blocks without an effect
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Consumer cannot be pickled: pass its Client, and make one in the other process")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"lag {self.lag}"
        return f"<Consumer of {self.stream!r}, {self.delivery}, {state}>"

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._abandon()
        if getattr(self, "_fd", -1) >= 0 and self._handle is None:
            self._close_fd()

    # ---- inside

    def _next_run(self) -> Iterable[Message] | None:
        """The next messages for iteration: the rest of the present run, or a new one; None at the end."""
        for message in self._rows:
            return chain((message,), self._rows)
        try:
            fetched = self._fetch(FOREVER_SLICE_NS)
            if fetched is None:
                fetched = self._wait_and_fetch(None)
        except errors.EndOfStream:
            return None
        return chain((fetched,), self._rows) if fetched is not None else None

    def _wait_and_fetch(self, timeout: float | None) -> Message | None:
        deadline = Deadline(timeout)
        while True:
            slice_ns = deadline.slice_ns()
            message = self._fetch(slice_ns)
            if message is not None or slice_ns == 0:
                return message
            self._idle()

    def _fetch(self, timeout_ns: int) -> Message | None:
        """The first message of a new run, the rest of which is in _rows; None when none came in time."""
        mapping = self._mapping
        hold_seq = _NONE_HELD
        if mapping is not None:
            live = mapping.live
            while live:  # Mapping.hold_seq, without the call
                seq, reference = live[0]
                if reference() is not None:
                    hold_seq = seq
                    break
                live.popleft()
        try:
            found = _next(self._handle, hold_seq, timeout_ns, self._area)
        except TypeError:
            self._check_open()
            raise
        if mapping is not None and found == _IN_PLACE:  # _in_place, without the call
            seq, timestamp_ns, length, kind, flags, serial = _PLACED.unpack_from(self._batch_view)
            if mapping.serial == serial:
                exporter = _new_exporter(self._batch.data, length)
                mapping.live.append((seq, _reference(exporter)))
                return PlacedMessage((seq, timestamp_ns, kind, flags, exporter, mapping))
        packed = self._packed.get(found >> _LENGTH_SHIFT) if found > 0 else None
        if packed is None:
            return self._unusual(found, timeout_ns)
        if mapping is not None and mapping.serial != self._batch.mapping_serial:
            self._drop_mapping()  # another epoch: views of the one before hold nothing in this one
        count = found & _COUNT_MASK
        if count == 1:
            return Message(packed.unpack_from(self._buffer_view))
        self._run = run = packed.iter_unpack(self._buffer_view[: count * packed.size])
        self._rows = rows = map(Message, run) if self._fd < 0 else settling(run, self._handle)
        return next(rows)

    def _unusual(self, found: int, timeout_ns: int) -> Message | None:
        """_fetch found nothing, an error, a message in place, a large copy, or a new length."""
        batch = self._batch
        if found <= 0:
            if found in (0, _INTERRUPTED):
                return None
            if found == _TOO_LARGE:
                self._use_buffer(2 * (int(batch.length) + _HEAD.size))
                return self._fetch(timeout_ns)
            self._recover(found, timeout_ns)
            return None
        if not batch.copied:
            return self._in_place(batch)
        mapping = self._mapping
        if mapping is not None and mapping.serial != batch.mapping_serial:
            self._drop_mapping()
        length = batch.length
        count = found & _COUNT_MASK
        if length >= _PRIVATE_FROM_BYTES and count == 1:
            return self._private(length)
        packed = self._pack(length)
        self._run = run = packed.iter_unpack(self._buffer_view[: count * packed.size])
        self._rows = rows = map(Message, run) if self._fd < 0 or count == 1 else settling(run, self._handle)
        return next(rows)

    def _idle(self) -> None:
        """After every slice of a wait in which nothing came."""
        self._patience.look(self)
        self._leave_a_dead_driver()

    def _leave_a_dead_driver(self) -> None:
        """Goes over to the driver that found nothing of this handle's one, if there is such a driver."""
        comeback = self._comeback
        if comeback is not None and comeback.is_orphan(self._link):
            comeback.come_back(self, errors.Reason.SUPERSEDED, 0)

    def _recover(self, code: int, wait_ns: int) -> None:
        """What follows a call that failed: raises, or attaches anew where that was asked for (one try)."""
        if not self._comes_back(code, wait_ns):
            raise self._failure(code)

    def _comes_back(self, code: int, wait_ns: int = 0) -> bool:
        """Tries to attach anew where that was asked for; False: it was not, or ``code`` is no reason to."""
        comeback = self._comeback
        error = self._failure(code) if comeback is not None else None
        if comeback is None or error is None or not comeback.covers(error):
            return False
        comeback.come_back(self, getattr(error, "reason", 0), wait_ns)
        return True

    @property
    def _is_away(self) -> bool:
        """It has left, and waits for a driver that admits it again."""
        return self._comeback is not None and self._comeback.left is not None

    def _leave(self) -> None:
        """Detaches, and stays as a handle without a lease; what was handed out is protected no more."""
        if self._mapping is not None:
            self._mapping.expose()
            self._drop_mapping()
        lib.shmd_guarded_consumer_close(self._handle)

    def _own_lost_ranges(self) -> list[LostRange]:
        limit = int(lib.SHMD_LOST_RANGES)
        self._info()
        out = ffi.new("shmd_lost_range_t[]", limit)
        count = int(lib.shmd_consumer_lost_ranges(self._handle, out, limit))
        return [LostRange(int(gap.epoch), int(gap.first), int(gap.last)) for gap in out[0:count]]

    def _pack(self, length: int) -> struct.Struct:
        if len(self._packed) >= _PACKED_MAX:
            self._packed.clear()
        packed = struct.Struct(f"<QQHH{length}s")
        if length < _PRIVATE_FROM_BYTES:  # of larger ones, a single one goes another way
            self._packed[length] = packed
        return packed

    def _in_place(self, batch: Any) -> Message:
        seq, timestamp_ns, length, kind, flags, serial = _PLACED.unpack_from(self._batch_view)
        mapping = self._current_mapping(serial)
        return PlacedMessage(
            (seq, timestamp_ns, kind, flags, mapping.place(seq, batch.data, length), mapping)
        )

    def _private(self, length: int) -> Message:
        """The large copy in the buffer as a message; the buffer goes with it, and another takes its place."""
        whole = ffi.buffer(self._buffer, self._buffer_bytes)
        seq, timestamp_ns, kind, flags = _HEAD.unpack_from(whole)
        payload = memoryview(whole)[_HEAD.size : _HEAD.size + length].toreadonly()
        self._use_buffer(self._buffer_bytes, self._spare.exchange(self._buffer, whole))
        return PrivateMessage((seq, timestamp_ns, kind, flags, payload))

    def _use_buffer(self, size: int, buffer: Any = None) -> None:
        self._buffer = _new_buffer("uint8_t[]", size) if buffer is None else buffer
        self._buffer_bytes = size
        self._area.out = self._buffer
        self._area.out_bytes = size
        self._buffer_view = memoryview(ffi.buffer(self._buffer, size))

    def _current_mapping(self, serial: int) -> Mapping:
        mapping = self._mapping
        if mapping is None or mapping.serial != serial:
            self._drop_mapping()
            self._mapping = mapping = Mapping(self, serial)
        return mapping

    def _drop_mapping(self) -> None:
        """On to another epoch. The one before is sealed: nobody writes there, so its views stay protected."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.let_go()

    def _hold_seq(self) -> int:
        return NOTHING_HELD if self._mapping is None else self._mapping.hold_seq()

    def _record_reader(self) -> RecordReader:
        if self._reader is None:
            from shmdriver.client.batches import RecordReader  # numpy: only who reads records pays for it

            self._reader = RecordReader(self, self._dtype)
        return self._reader

    def _look(self) -> int:
        """Takes notice of a new epoch or an end, without reading: a negative code when reading is over."""
        self._check_open()
        return int(_fetch(self._handle, self._hold_seq(), 0, 0, ffi.NULL, 0, self._batch))

    def _check_open(self) -> None:
        if self._handle is None:
            raise_for(lib.SHMD_E_CLOSED, stream=self.stream)

    def _info(self) -> Any:
        self._check_open()
        info = ffi.new("shmd_consumer_info_t *")
        lib.shmd_consumer_info(self._handle, info)
        return info

    def _failure(self, code: int) -> Exception:
        info = self._info()
        if code == lib.SHMD_E_REVOKED and self._mapping is not None:
            self._mapping.expose()
        return failure_of(
            code,
            stream=self.stream,
            doing="reading",
            reason=int(info.end_reason),
            lease_id=int(info.lease_id),
            epoch=int(info.epoch),
            sealed_seq=int(info.sealed_seq) if code in _ENDS else None,
            held=self.held,
        )

    def _abandon(self) -> None:
        if self._handle is not None and self._link.usable:
            self.close()

    def _forked(self) -> None:
        self._run = self._rows = iter(())  # the parent hands them out; the next fetch is refused
        self._close_fd()  # this process's copy: the parent's selectors keep theirs
