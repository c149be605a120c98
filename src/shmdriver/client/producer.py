"""Producer: the one writer of a stream.

What is published is C (csrc/python/shmd_py_producer.c), which alone refers to the caller's memory and to
claims. It calls ``_make_room`` when a message does not go in at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.client._raise import failure_of, raise_for
from shmdriver.client.arguments import choice, extents_of, meta_of, whole
from shmdriver.client.boundary import public
from shmdriver.client.claim import ArrayClaim
from shmdriver.client.handle import StreamHandle
from shmdriver.client.hotpath import ProducerCore
from shmdriver.client.link import Deadline, Link, open_handles, register
from shmdriver.client.message import tensor_module
from shmdriver.hints import command
from shmdriver.stopping import ends_in_order

if TYPE_CHECKING:
    import numpy as np

    from shmdriver.client.message import Message
    from shmdriver.client.reattach import ProducerComeback, Reattachment

    Publishable: TypeAlias = bytes | bytearray | memoryview | Message | np.ndarray[Any, Any] | np.void

__all__ = ["WAIT_AGAIN", "Producer"]

WAIT_AGAIN = (int(lib.SHMD_BACK_PRESSURED), int(lib.SHMD_E_TIMEOUT), int(lib.SHMD_E_INTERRUPTED))
_NO_CONSUMER_YET = 65
_UNKNOWN = 2**64 - 1


@public
class Producer(ProducerCore, StreamHandle):
    """The producer of one stream, made by :meth:`Client.producer`. It belongs to one thread at a time.

    Only :meth:`close`, or a ``with`` block left without an exception or by ``sys.exit(0)``, ends the stream
    cleanly; any other exception, a dropped object and an exiting interpreter end it as aborted.
    """

    __slots__ = (
        "__weakref__",
        "_comeback",
        "_link",
        "stream",
    )

    stream: str

    def __init__(self, handle: Any, link: Link, stream: str) -> None:
        self._link: Link = link
        self._handle = handle
        self._comeback: ProducerComeback | None = None  # of a client with reconnect=True
        self.stream = stream
        register(self)

    publish = ProducerCore.publish
    try_publish = ProducerCore.try_publish
    claim = ProducerCore.claim

    def publish_array(
        self,
        array: np.ndarray[Any, Any],
        *,
        type: int = 0,  # noqa: A002
        meta: bytes | bytearray | memoryview = b"",
        timeout: float | None = None,
    ) -> None:
        """Publishes an array; its shape and dtype travel with it, and up to 256 bytes of ``meta``.

        C and Fortran order arrive as they were. An array in another order (channels last, a slice) is copied
        and arrives C-contiguous. Raises as :meth:`publish`, and TypeError for what numpy cannot describe.
        """
        tensor = tensor_module()
        import numpy as np

        array = np.asanyarray(array)
        tensor.check_unmasked(array)
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        if not (array.flags.c_contiguous or fortran):
            with self.claim_array(array.shape, array.dtype, type=type, meta=meta, timeout=timeout) as place:
                place[...] = array
            return
        head = tensor.head_of(array.shape, array.dtype, fortran, meta_of(meta))
        self._publish_array(head, array, tensor.FLAG, type, timeout)

    def claim_array(
        self,
        shape: int | Sequence[int],
        dtype: Any = "u1",
        *,
        type: int = 0,  # noqa: A002
        meta: bytes | bytearray | memoryview = b"",
        order: str = "C",
        timeout: float | None = None,
    ) -> ArrayClaim:
        """A place for an array in shared memory: ``with out.claim_array((1080, 1920, 3)) as array: ...``.

        The array's elements are what the place last held; commits on exit, aborts on an exception.
        ``order``: "C" or "F". ValueError for any other, and for negative extents.
        """
        tensor = tensor_module()
        import numpy as np

        kind, extents = np.dtype(dtype), extents_of(shape)
        is_fortran = bool(choice("order", order, {"C": 0, "F": 1}))
        layout: Literal["C", "F"] = "F" if is_fortran else "C"
        head = tensor.head_of(extents, kind, is_fortran, meta_of(meta))
        size = kind.itemsize * prod(extents)
        start = len(head)

        def make(place: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
            elements = np.ndarray((start + size,), "u1", place)
            return np.ndarray(extents, kind, elements, start, None, layout), elements

        return self._claim_array(head, start + size, make, tensor.FLAG, type, timeout)

    def wait_for_consumers(self, n: int = 1, timeout: float | None = None) -> int:
        """Waits until ``n`` consumers of any delivery are attached. How many are: fewer at the timeout."""
        n = whole("n", n)
        deadline = Deadline(timeout)
        word = ffi.addressof(self._link.authority, "event_word")
        while True:
            seen = lib.shmd_futex_load(word)
            handle = self._open_handle
            info = self._info()
            if info.end_reason:
                raise self._failure(lib.SHMD_E_REVOKED, 0)
            count = directory.wired_consumers(self._link.authority, info.stream_index, info.epoch)
            slice_ns = deadline.slice_ns()
            if count >= n or slice_ns == 0:
                return count
            if lib.shmd_producer_sleep(handle, word, seen, slice_ns) == lib.SHMD_E_CLOSED:
                raise_for(lib.SHMD_E_CLOSED, stream=self.stream)

    @property
    def seq(self) -> int:
        """The next message's number."""
        return int(self._info().seq)

    @property
    def max_message(self) -> int:
        """The largest message that fits, in bytes."""
        return int(self._info().max_message)

    @property
    def consumers(self) -> int:
        """How many reliable consumers hold this producer back if they are slow.

        0: what is published now may be overwritten before anybody reads it. ``min_consumers`` guards only the
        start. When the last one leaves, the driver tells :meth:`Client.on_event` ("consumers_left").
        """
        return int(self._info().consumers)

    @property
    def epoch(self) -> int:
        """The number of this producer's tenure of the stream."""
        return int(self._info().epoch)

    @property
    def slots(self) -> int:
        """How many messages the ring has room for."""
        return int(self._info().slots)

    @property
    def blocked_total_ns(self) -> int:
        """For how long consumers have held this producer back, in all."""
        return int(self._info().blocked_total_ns)

    @property
    def reattachments(self) -> tuple[Reattachment, ...]:
        """The last 64 times that it was attached anew (``reconnect=True``), oldest first."""
        return () if self._comeback is None else tuple(self._comeback.history)

    @property
    def closed(self) -> bool:
        """Whether it was closed or aborted."""
        return self._handle is None

    def close(self) -> None:
        """Ends the stream cleanly: consumers get everything, then the end. Twice is once."""
        self._end(aborted=False)

    def abort(self) -> None:
        """Ends the stream as aborted: consumers get what was committed, then ProducerLost."""
        self._end(aborted=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._link.usable:  # a forked child leaves its parent's blocks without an effect
            self._end(aborted=not ends_in_order(kind, error))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Producer cannot be pickled: pass its Client, and make a producer in the other process"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"seq {self.seq}"
        return f"<{type(self).__name__} of {self.stream!r}, {state}>"

    def __del__(self) -> None:
        if self._handle is not None and self._link.usable:
            warnings.warn(
                f"{self!r} was dropped without close(): its stream ends as aborted",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self._abandon()

    # ---- the slow paths

    def _make_room(
        self, code: int, length: int, timeout: float | None, deadline: Deadline | None
    ) -> Deadline:
        """Waits for room after a call that found none; raises at the timeout, and for every other code."""
        deadline = deadline or Deadline(timeout)
        while True:
            slice_ns = deadline.slice_ns()
            if code not in WAIT_AGAIN:
                self._recover(code, length, slice_ns)
                if slice_ns == 0 and self._waits_for_driver:
                    raise self._unavailable()
                return deadline
            if slice_ns == 0:
                raise self._back_pressured(0)
            code = lib.shmd_guarded_wait_room(self._open_handle, min(length, 0xFFFFFFFF), slice_ns)
            if code == 0:
                return deadline
            comeback = self._comeback
            if comeback is not None and code in WAIT_AGAIN and comeback.is_orphan(self._link):
                comeback.come_back(self, errors.Reason.SUPERSEDED, 0)
                return deadline

    def _recover(self, code: int, length: int, wait_ns: int) -> None:
        """What follows a call that failed: raises, or attaches anew where that was asked for (one try)."""
        error = self._failure(code, length)
        if self._comeback is None or not self._comeback.covers(error):
            raise error
        self._comeback.come_back(self, getattr(error, "reason", 0), wait_ns)

    @property
    def _waits_for_driver(self) -> bool:
        return self._comeback is not None and self._comeback.left is not None

    def _unavailable(self) -> errors.DriverUnavailable:
        instance = self._link.instance
        return errors.DriverUnavailable(
            f"stream {self.stream!r}: its driver has gone, and none of instance {instance!r} has admitted "
            "this producer again in time",
            instance=instance,
        )

    def _back_pressured(self, published: int) -> errors.BackPressured:
        """Why there is no room: who holds this producer back, and whether a driver lives to help."""
        info = self._info()
        blocker: directory.Holder | None = None
        lag = 0
        if info.blocked_gate == _NO_CONSUMER_YET:
            why = "no consumer yet (min_consumers): start one, or lower min_consumers"
        elif info.blocked_gate:
            gate = int(info.blocked_gate) - 1
            blocker = directory.holder_of_gate(self._link.authority, info.stream_index, gate)
            lag = max(0, int(info.seq - info.blocked_position))
            who = (
                f"consumer {blocker.name!r} ({blocker.label})" if blocker else f"the consumer at gate {gate}"
            )
            look = command("why", self.stream, instance=self._link.instance)
            why = f"held back by {who}, {lag} messages behind; {look} shows it"
            held = self._views_of_this_process(info, gate)
            if held:
                why = (
                    f"held back by this process, {held} views: views of messages that it still refers to "
                    f"hold their places, and its own consumer is {lag} messages behind; drop them or copy "
                    "them (array.copy(), bytes(message))"
                )
        else:
            why = "the ring is full"
        if not self._link.driver_alive():
            why += "; the driver is down, so a dead consumer's place is not freed before one starts again"
        went_in = f" after {published} messages" if published else ""
        return errors.BackPressured(
            f"stream {self.stream!r}: no room{went_in}: {why}",
            stream=self.stream,
            published=published,
            consumer=blocker.name if blocker else None,
            pid=blocker.pid if blocker else 0,
            lag=lag,
        )

    def _views_of_this_process(self, info: Any, gate: int) -> int:
        """How many views hold places at that gate of its stream, if the consumer there is in this process."""
        place = (self._link.boot_id, int(info.stream_id), gate)
        return sum(handle._held_at(place) for handle in open_handles() if hasattr(handle, "_held_at"))  # noqa: SLF001

    def _info(self) -> Any:
        """Its figures as they are, or as they were when it was closed."""
        info = ffi.new("shmd_producer_info_t *")
        lib.shmd_producer_info(self._last_handle, info)
        return info

    def _failure(self, code: int, length: int) -> Exception:
        self._check_open()
        info = self._info()
        sealed_seq = int(info.sealed_seq)
        return failure_of(
            code,
            stream=self.stream,
            doing="publishing",
            length=length,
            limit=int(info.max_message),
            reason=int(info.end_reason),
            lease_id=int(info.lease_id),
            sealed_seq=sealed_seq if code == lib.SHMD_E_REVOKED and sealed_seq != _UNKNOWN else None,
        )

    def _end(self, *, aborted: bool) -> None:
        handle = self._handle
        if handle is None:
            return
        if not self._link.usable:
            raise_for(lib.SHMD_E_FORKED, stream=self.stream)
        self._let_go_of_memory()  # what a claim's view still refers to stays mapped
        code = lib.shmd_guarded_producer_close(handle, aborted)
        if code == lib.SHMD_E_CONCURRENT:
            raise_for(code, stream=self.stream)
        self._handle = None
        if self._comeback is not None:
            self._comeback.give_up()

    def _leave(self) -> None:
        """Detaches without waiting, and stays as a handle without a lease."""
        self._let_go_of_memory()
        lib.shmd_guarded_producer_abandon(self._last_handle)  # the detach goes before what attaches it anew

    def _abandon(self) -> None:
        """Aborts it without waiting, for finalisers. A thread that is inside keeps the handle until then."""
        handle = self._handle
        if handle is not None and self._link.usable:
            self._handle = None
            lib.shmd_guarded_producer_abandon(handle)

    def _forked(self) -> None:
        pass  # the C core's guard refuses every call in the child
