"""Consumer: one reader of a stream.

Small messages are fetched in runs, from which read() and iteration take (csrc/python/shmd_py_consumer.c).
A reliable consumer's arena messages and record batches are views in place (views.py). The gate follows
with the next fetch, so that the last run counts as read when it is used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client._raise import failure_of, raise_for
from shmdriver.client.aio import EventLoopReading
from shmdriver.client.arguments import limit_of
from shmdriver.client.boundary import PACKAGES, public
from shmdriver.client.claim import ArrayClaim, Claim
from shmdriver.client.handle import StreamHandle
from shmdriver.client.hotpath import ConsumerCore, setup
from shmdriver.client.link import Deadline, Link, register
from shmdriver.client.log import tell_of
from shmdriver.client.message import LostRange, Message
from shmdriver.client.views import Mapping
from shmdriver.client.waiting import Patience
from shmdriver.late import LATE_IMPORT

if TYPE_CHECKING:
    import numpy as np

    from shmdriver.client.batches import RecordReader
    from shmdriver.client.reattach import ConsumerComeback, Reattachment

__all__ = ["Consumer"]

_ENDS = (int(lib.SHMD_E_END), int(lib.SHMD_E_PRODUCER_LOST))
_UNKNOWN = 2**64 - 1


def _address_of(handle: Any, kind: str) -> int:
    if ffi.typeof(handle).cname != kind:
        raise TypeError(f"a handle of type {ffi.typeof(handle).cname!r}: expected {kind!r}")
    return int(ffi.cast("uintptr_t", handle))


setup(Message, Claim, ArrayClaim, errors.EndOfStream, _address_of, MethodType, PACKAGES)


@public
class Consumer(EventLoopReading, StreamHandle):
    """A consumer of one stream, made by :meth:`Client.consumer`. It belongs to one thread at a time.

    Iterating yields messages up to the stream's clean end; an aborted end raises ProducerLost.
    """

    __slots__ = (
        "__weakref__", "_comeback", "_dtype", "_last_lag", "_link", "_patience", "_reader", "delivery",
        "shard", "stream",
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
        self._link: Link = link
        self._handle = handle
        self.stream = stream
        self.delivery = delivery
        self.shard = shard or (0, 1)
        self._dtype = dtype
        self._comeback: ConsumerComeback | None = None  # of a client with reconnect=True
        self._reader: RecordReader | None = None
        self._last_lag = 0  # when it was closed
        if delivery == "latest":
            self._run_limit = 1
        self._patience = Patience()
        super().__init__()
        register(self)

    # ---- messages

    read = ConsumerCore.read
    if not TYPE_CHECKING:  # named here, so that the reference has it
        buffered = ConsumerCore.buffered

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
        batch = self._wait_for_records(limit, timeout)
        self._pending = 0
        return batch

    def _wait_for_records(self, limit: int | None, timeout: float | None) -> np.ndarray[Any, Any] | None:
        """As read_batch(). Whoever hands them on sets ``_pending`` to 0 just before, with no call between."""
        limit = limit_of(limit)
        reader = self._reader or self._record_reader()
        if self.buffered:
            return reader.from_rows(self, limit)
        self._check_open()
        batch = reader.fetch(self, limit, 0)
        if batch is not None:
            return batch
        if timeout == 0:
            self._idle()
            return None
        deadline = Deadline(timeout)
        while True:
            slice_ns = deadline.slice_ns()
            batch = reader.fetch(self, limit, slice_ns)
            if batch is not None or slice_ns == 0:
                return batch
            self._idle()

    def batches(self, limit: int | None = None) -> Iterator[np.ndarray[Any, Any]]:
        """Arrays of records as they come, up to the clean end. What :meth:`read_batch` says of them holds."""
        limit = limit_of(limit)
        with LATE_IMPORT:
            from shmdriver.client.batches import Batches

        return Batches(self, limit)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the records, as passed or as a producer declared; None: bytes, or not known yet."""
        return self._record_reader().known_dtype(self)

    # ---- state

    @property
    def lost(self) -> int:
        """How many messages before the last one that was handed out this consumer never saw, in all epochs.

        A gap counts from the message on that follows it; once a read has found nothing more, or the end, all
        that is known counts. What was gone when it attached does not, nor what a consumer before it had not
        read: the first message's ``seq`` says how many messages of its epoch there were before.
        """
        told = self._lost_before
        own = int(self._info().lost) if told == _UNKNOWN else told
        comeback = self._comeback
        return own if comeback is None else comeback.lost + (own if comeback.left is None else 0)

    @property
    def lost_ranges(self) -> list[LostRange]:
        """The last 64 gaps of those that :attr:`lost` counts, oldest first."""
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
        if self._handle is None:
            return self._last_lag
        self._look()
        return self._unread()

    def _unread(self) -> int:
        info = self._info()
        return max(0, -((int(info.position) - int(info.head)) // self.shard[1])) + self.buffered

    @property
    def epoch(self) -> int:
        """The number of the producer's tenure that it reads; 0 before the first and after an end."""
        return int(self._info().epoch)

    @property
    def held(self) -> int:
        """How many views of it are alive and hold their places."""
        return self._mapping.held if self._mapping else 0

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def valid(self) -> bool:
        """Whether all that it handed out in place, batches above all, is still what was published.

        Ask after the use, as with :meth:`Message.valid`. False once the lease was revoked or the consumer
        closed; what a consumer that was attached anew (``reconnect=True``) says is of its present lease.
        """
        mapping = self._mapping
        return not self.closed and (mapping is None or bool(mapping.protected()))

    def release(self) -> None:
        """Advances the gate past all that was handed out and is referred to no more, without reading on.

        A consumer that stops reading for a while lets the producer have that room.
        """
        self._check_open()
        code = self._let_go()
        if code < 0:
            raise self._failure(code)

    def close(self) -> None:
        """Detaches. Views that are alive stay readable, but are protected no more. Twice is once."""
        handle = self._handle
        if handle is None:
            return
        if not self._link.usable:
            raise_for(lib.SHMD_E_FORKED, stream=self.stream)
        self._last_lag = self._unread()
        self._handle = None  # before its memory goes
        code = lib.shmd_guarded_consumer_close(handle)
        if code == lib.SHMD_E_CONCURRENT:
            self._handle = handle
            raise_for(code, stream=self.stream)
        if self._comeback is not None:
            self._comeback.give_up()
        self._drop_run()
        self._expose()
        lost = self.lost
        if lost:
            level = "WARNING" if self.delivery == "reliable" else "INFO"
            tell_of(self.stream, level, "closed, %d messages were lost to it", lost)

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
        if self._handle is not None:
            self._abandon()
        if self._handle is None:
            self._close_fd()

    # ---- inside

    def _idle(self) -> None:
        """After every slice of a wait in which nothing came, and after some reads that do not wait."""
        self._patience.look(self)
        self._leave_a_dead_driver()
        lib.shmd_guarded_idle(self._handle or ffi.NULL)

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
        """Detaches without waiting; it stays as a handle without a lease, whose views are not protected."""
        self._expose()
        lib.shmd_guarded_consumer_abandon(self._last_handle)  # the detach goes before what attaches it anew

    def _own_lost_ranges(self) -> list[LostRange]:
        limit = int(lib.SHMD_LOST_RANGES)
        out = ffi.new("shmd_lost_range_t[]", limit)
        count = int(lib.shmd_consumer_lost_ranges(self._last_handle, out, limit))
        if self._lost_before != _UNKNOWN:
            count = max(0, count - (int(self._info().lost_range_count) - self._gaps_before))
        return [LostRange(int(gap.epoch), int(gap.first), int(gap.last)) for gap in out[0:count]]

    def _map(self, serial: int) -> None:
        """On to another epoch. The one before is sealed: nobody writes there, so its views stay protected."""
        self._mapping = Mapping.of(self, serial)

    def _expose(self) -> None:
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.expose()

    def _record_reader(self) -> RecordReader:
        if self._reader is None:
            with LATE_IMPORT:  # numpy: only who reads records pays for it
                from shmdriver.client.batches import RecordReader

            self._reader = RecordReader(self._dtype)
        return self._reader

    def _info(self) -> Any:
        """Its figures as they are, or as they were when it was closed."""
        info = ffi.new("shmd_consumer_info_t *")
        lib.shmd_consumer_info(self._last_handle, info)
        return info

    def _held_at(self, place: tuple[int, int, int]) -> int:
        """How many views hold places at (boot id, stream id, gate): none, if its own gate is another one."""
        if not self.held:
            return 0
        info = self._info()
        own = (self._link.boot_id, int(info.stream_id), int(info.gate_index))
        return self.held if own == place else 0

    def _failure(self, code: int) -> Exception:
        self._check_open()
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
        """Closes it without waiting, for finalisers. A thread that is inside keeps the handle until then."""
        handle = self._handle
        if handle is not None and self._link.usable:
            self._handle = None
            lib.shmd_guarded_consumer_abandon(handle)
            self._drop_run()
            self._expose()

    def _forked(self) -> None:
        self._drop_run()  # the parent hands them out; the next fetch is refused
        self._close_fd()  # this process's copy: the parent's selectors keep theirs
