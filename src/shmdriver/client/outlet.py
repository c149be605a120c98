"""A queue's getting end: consumers of all lanes (lanes.py), also of some that have no producer yet.

Each call takes one message: a getter that is killed takes one object with it, not a run of them.

When leases of it end, a client that reconnects attaches anew, and what could not be read any more is told
(ObjectsLost); another one has the rest of what its lanes are mapped to, then the error. When its driver was
killed and its segments were removed, nobody tells it anything: it looks. The lanes of such a driver are read
on beside those of the next one, because their putters may not have noticed yet.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client import directory, pickling
from shmdriver.client._raise import raise_for
from shmdriver.client.lanes import (
    BUFFERS,
    FIRST,
    LAST,
    LOST,
    LOST_COUNT,
    NOT_KNOWN,
    PART_HEAD,
    PLAIN,
    Inlet,
    lane_name,
    lanes_of,
    loss,
    stream_name,
)
from shmdriver.client.reattach import OrphanLook, epoch_before, left_behind, removed_error

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.consumer import Consumer
    from shmdriver.client.link import Link
    from shmdriver.client.producer import Producer

__all__ = ["NOTHING", "Outlet", "come_back"]

NOTHING: Any = object()
SPARE_LANES = 2
BURST = 64  # objects from one lane before the others have their turn
TRY_AGAIN_NS = 20_000_000  # while a lane waits for a driver
_next = lib.shmd_guarded_next
_loads = pickling.decode
_LENGTH_SHIFT = int(lib.SHMD_RUN_LENGTH_SHIFT)
_IN_PLACE = 2**63 - 1
_NONE_HELD = -1
_NOTHING_HELD = 2**64 - 1
_HEAD_BYTES = 20  # of a message in the buffer: seq, timestamp, type, flags
_TYPE_AT = 8  # in units of 16 bits
_BUFFER_BYTES = 65536 + _HEAD_BYTES
_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)
_TOO_LARGE = int(lib.SHMD_E_TOO_LARGE)
_REVOKED = int(lib.SHMD_E_REVOKED)
_CLOSED = int(lib.SHMD_E_CLOSED)
_nothing = ffi.new("uint32_t *")


class _Place:
    """Where the C core puts the next message of any lane."""

    __slots__ = ("area", "buffer", "has_news", "payload", "types")

    def __init__(self) -> None:
        self.has_news = False  # a lane has ended
        self.area = ffi.new("shmd_run_t *")
        self.area.limit = 1
        self.use(_BUFFER_BYTES)

    def use(self, size: int) -> None:
        """Another buffer, of ``size`` bytes."""
        size += size % 2
        self.buffer = ffi.new("uint8_t[]", size)
        self.area.out = self.buffer
        self.area.out_bytes = size
        whole = memoryview(ffi.buffer(self.buffer, size))
        self.payload = whole[_HEAD_BYTES:]
        self.types = whole.cast("B").cast("H")


class _Lane:
    """One lane as it is read: its consumer, and the object of which some parts have come."""

    __slots__ = ("_base_epoch", "_code", "_losses", "_place", "_queue", "_retry_ns", "consumer", "done",
                 "encoding", "error", "parts")  # fmt: skip

    def __init__(
        self, client: Client, queue: str, number: int, place: _Place, losses: list[errors.ObjectsLost]
    ) -> None:
        self.consumer: Consumer = client.consumer(lane_name(queue, number), start="oldest", follow=True)
        resume = lib.shmd_consumer_resume
        resume(self.consumer._handle)
        comeback = self.consumer._comeback
        if comeback is not None:
            comeback.prepare = resume
        self._base_epoch = epoch_before(self.consumer)
        self._queue = queue
        self._place = place
        self._losses = losses
        self._code = 0  # what the last call said of its end
        self._retry_ns = 0
        self.error: Exception | None = None  # it has ended for good
        self.parts: bytearray | None = None
        self.done = 0
        self.encoding = PLAIN

    # ---- reading

    def take(self) -> Any:
        """The next object, or NOTHING."""
        place = self._place
        while True:
            try:
                found = _next(self.consumer._handle, _NONE_HELD, 0, place.area)
            except TypeError:
                self.consumer._check_open()
                raise
            if found <= 0:
                if found == 0 or not self._goes_on(found):
                    return NOTHING  # an end is the outlet's to look at
            elif found == _IN_PLACE:
                taken = self._take_in_place()
                if taken is not NOTHING:
                    return taken
            elif (kind := place.types[_TYPE_AT]) == PLAIN:
                self.parts = None  # of an object that its putter gave up, or died over
                return _loads(place.payload)
            else:
                taken = self._object_of(kind, place.payload[: found >> _LENGTH_SHIFT])
                if taken is not NOTHING:
                    return taken

    def forward(self, inlet: Callable[[], Inlet]) -> bool:
        """Puts the next message by another lane, as it is. False: there was none."""
        place = self._place
        found = _next(self.consumer._handle, _NONE_HELD, 0, place.area)
        if found <= 0:
            return bool(found != 0 and self._goes_on(found))
        batch = place.area.batch
        if found == _IN_PLACE:
            inlet().forward(int(batch.type), memoryview(ffi.buffer(batch.data, batch.length)))
            lib.shmd_guarded_release(self.consumer._handle, _NOTHING_HELD)
        else:
            inlet().forward(place.types[_TYPE_AT], place.payload[: found >> _LENGTH_SHIFT])
        return True

    def is_ready(self) -> bool:
        """Whether it has a message, or has ended."""
        return self.error is None and bool(lib.shmd_guarded_wait(self.consumer._handle, 0))

    def _take_in_place(self) -> Any:
        batch = self._place.area.batch
        try:
            return self._object_of(int(batch.type), memoryview(ffi.buffer(batch.data, batch.length)))
        finally:
            # its putter has that room at once
            lib.shmd_guarded_release(self.consumer._handle, _NOTHING_HELD)

    def _object_of(self, kind: int, payload: memoryview) -> Any:
        """The object that is complete with this message, or NOTHING."""
        if kind == PLAIN:
            self.parts = None
            return _loads(payload)
        if kind == BUFFERS:
            self.parts = None
            return pickling.decode_with_buffers(bytearray(payload))
        if kind == LOST:
            (count,) = LOST_COUNT.unpack(payload)
            self._tell(None if count == NOT_KNOWN else count, "leases of this queue had ended")
            return NOTHING
        if not self._add(kind, payload):
            return NOTHING
        whole, self.parts = self.parts, None
        assert whole is not None
        return pickling.decode_with_buffers(whole) if self.encoding == BUFFERS else _loads(whole)

    def _add(self, kind: int, payload: memoryview) -> bool:
        """Whether the object is complete with this part."""
        if kind == FIRST:
            size, self.encoding = PART_HEAD.unpack_from(payload)
            payload = payload[PART_HEAD.size :]
            self.parts, self.done = bytearray(size), 0
        if self.parts is None or self.done + len(payload) > len(self.parts):
            self.parts = None  # the rest of an object whose begin went with another getter
            return False
        self.parts[self.done : self.done + len(payload)] = payload
        self.done += len(payload)
        return kind == LAST and self.done == len(self.parts)

    # ---- ends, and attaching anew

    @property
    def is_away(self) -> bool:
        """It has left, and waits for a driver that admits it again."""
        return self.consumer._is_away

    @property
    def waits_for_driver(self) -> bool:
        """It has left, or is to leave once this process is known to be the getter yet."""
        return self._code != 0 or self.is_away

    def look(self) -> None:
        """Notices an end, without reading."""
        code = self.consumer._look()
        if code < 0:
            self._goes_on(code)

    def mend(self) -> None:
        """Attaches anew after an end, where that is wanted (one try); else it has an error from now on."""
        code, consumer = self._code, self.consumer
        if code == 0 or self.error is not None:
            return
        comeback = consumer._comeback
        if comeback is None or not comeback.covers(consumer._failure(code)):
            self._end(consumer._failure(code))
            return
        now_ns = time.monotonic_ns()
        if self.is_away and now_ns < self._retry_ns:
            return
        self._retry_ns = now_ns + TRY_AGAIN_NS
        consumer._recover(code, 0)
        if self.is_away:
            return
        self._code = 0
        self.parts = None
        again = comeback.history[-1]
        if again.lost != 0:
            self._tell(again.lost, errors.Reason.describe(again.reason))

    def _goes_on(self, code: int) -> bool:
        """After a call that found none: whether to call again at once. Notes an end."""
        if code == _TOO_LARGE:
            self._place.use(2 * (int(self._place.area.batch.length) + _HEAD_BYTES))
            return True
        if code != _INTERRUPTED and self.error is None:
            self._code = code
            self._place.has_news = True
        return False

    def _end(self, error: Exception) -> None:
        self.error = error
        self._code = 0
        lost = left_behind(self.consumer, self._base_epoch)
        if lost != 0:
            reason = getattr(error, "reason", 0)
            self._tell(lost, errors.Reason.describe(reason) if reason else str(error))

    def _tell(self, lost: int | None, why: str) -> None:
        self._losses.append(loss(self._queue, lost, why))


class Outlet:
    """The getting end in one process, or what holds the lanes until somebody gets."""

    __slots__ = ("_array", "_at", "_burst", "_client", "_events_seen", "_lanes", "_link", "_look", "_losses",
                 "_old", "_place", "_queue", "getter")  # fmt: skip

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._place = _Place()
        self._losses: list[errors.ObjectsLost] = []
        self._lanes: dict[int, _Lane] = {}
        self._array: list[_Lane] = []
        self._old: list[_Lane] = []  # of drivers whose segments were removed
        self._at = 0
        self._burst = 0
        self._events_seen = -1
        self._link: Link = client._connected()
        self._look = OrphanLook(client)
        self.getter: Producer | None = None  # its lease makes this process the only one that gets
        self.discover()

    def begin_getting(self) -> None:
        """Becomes the one getter. Attached to the lanes before: whoever sees the getter knows that it is."""
        try:
            self.getter = self._client.producer(stream_name(self._queue, "get"), slots=2)
        except errors.AttachRejected as error:
            raise self._refused(error) from None

    def discover(self) -> None:
        """Attaches to lanes that are new, and keeps some ready for putters to come.

        Raises AttachRejected when another process gets by now.
        """
        if self._client._link is not self._link:
            link = self._client._connected()
            if not self._is_the_getter():
                return
            if link.boot_id != self._link.boot_id:
                self._leave_lanes()
            self._link = link
            self._events_seen = -1
        events = self._link.event_head()
        if events == self._events_seen or not self._is_the_getter():
            return
        known = lanes_of(self._client, self._queue)
        lanes = self._lanes
        for number in sorted(known.keys() - lanes.keys()):
            self._attach(number)
        spare = sum(number not in known or not known[number].producer for number in lanes)
        first = max(lanes, default=-1) + 1
        for number in range(first, first + SPARE_LANES - spare):
            self._attach(number)
        self._events_seen = events

    # ---- reading

    def take(self) -> Any:
        """The next object of any lane, or NOTHING. Raises ObjectsLost, once for each loss."""
        if self._losses:
            raise self._losses.pop(0)
        if self._old or not self._array:
            return self._take_old_first()
        if self._burst >= BURST:
            self._turn((self._at + 1) % len(self._array))
            self.discover()  # a new lane has its turn, too, while the others are never empty
        found = self._array[self._at].take()
        if found is NOTHING:
            return self._take_elsewhere()
        self._burst += 1
        return found

    def wait(self, slice_ns: int) -> None:
        """Sleeps until a lane has something, at most ``slice_ns``. Raises as idle()."""
        lanes = [*self._old, *self._array]
        there = []  # none is freed meanwhile
        for lane in lanes:
            handle = lane.consumer._handle
            if handle is None:
                lane.consumer._check_open()
            if not lane.waits_for_driver:
                there.append(handle)
        if len(there) < len(lanes):
            slice_ns = min(slice_ns, TRY_AGAIN_NS)
        if not there:
            lib.shmd_futex_wait(_nothing, 0, slice_ns)
            return
        code = lib.shmd_guarded_wait_many(ffi.new("shmd_consumer *[]", there), len(there), slice_ns)
        if code < 0 and code != _INTERRUPTED:
            raise_for(code, stream=stream_name(self._queue, "*"))
        if code == 0 or any(lane.error is not None for lane in lanes):
            self.idle()

    def waiting(self) -> list[int]:
        """How many messages each lane has."""
        return [lane.consumer.lag for lane in [*self._old, *self._array]]

    def _take_elsewhere(self) -> Any:
        lanes = self._array
        count = len(lanes)
        for turn in range(1, count):
            index = (self._at + turn) % count
            found = lanes[index].take()
            if found is not NOTHING:
                self._turn(index)
                return found
        return self._mend() if self._place.has_news else NOTHING

    def _take_old_first(self) -> Any:
        """A putter that has gone over put nothing by its old lane any more: that one first, for its order."""
        for lane in self._array:
            if not lane.is_ready():
                continue
            found = _any_of(self._old)  # looked at after what came later was seen
            found = lane.take() if found is NOTHING else found
            if found is not NOTHING:
                return found
        found = _any_of(self._old)
        return self._mend() if found is NOTHING and self._place.has_news else found

    def _turn(self, index: int) -> None:
        self._at = index
        self._burst = 0

    # ---- ends

    def look(self) -> None:
        """For who holds it and reads nothing: notices ends, of the driver too."""
        for lane in self._array:
            lane.look()
        self._mend()
        self.leave_a_dead_driver()

    def leave_a_dead_driver(self) -> None:
        """Goes over to the next one when this one's segments were removed; looks once a second.

        Raises DriverUnavailable when it is not to.
        """
        if self._look.is_orphan(self._link):
            if not self._client.reconnect:
                raise removed_error(self._link, f"queue {self._queue!r}")
            self.discover()

    def idle(self) -> None:
        """When nothing came. Raises what has ended a lane for good, the getter's lease, or the driver."""
        for lane in self._array:
            if lane.error is not None:
                raise lane.error
        self.leave_a_dead_driver()
        getter = self.getter
        if getter is not None and getter._comeback is None and has_ended(getter):
            raise getter._failure(_REVOKED, 0)
        self._is_the_getter()

    def _mend(self) -> Any:
        """Attaches lanes anew that have ended, or says so. NOTHING; raises ObjectsLost."""
        if not self._is_the_getter():
            return NOTHING
        self._place.has_news = False
        for lane in [*self._old, *self._array]:
            lane.mend()
            self._place.has_news = self._place.has_news or lane.is_away
        self._old = [lane for lane in self._old if lane.error is None]
        if self._losses and self.getter is not None:
            raise self._losses.pop(0)
        return NOTHING

    def _leave_lanes(self) -> None:
        """Another driver serves: those that are mapped are read to their end, for as long as that takes."""
        stay: dict[int, _Lane] = {}
        for number, lane in self._lanes.items():
            lane.look()
            lane.mend()
            if lane.is_away or lane.consumer._link is not self._link:
                stay[number] = lane
            elif lane.error is None and lane.consumer._info().slots:
                lane.consumer._comeback = None
                self._old.append(lane)
            else:
                lane.consumer.close()
        self._lanes = stay
        self._array = list(stay.values())
        self._turn(0)

    def _is_the_getter(self) -> bool:
        """Whether it may read: it holds lanes for others only, or its getter's lease stands, perhaps anew.

        Raises AttachRejected when another process gets by now.
        """
        getter = self.getter
        if getter is None or getter._comeback is None:
            return True  # a client that does not reconnect reads the rest
        link = self._client._link
        if not has_ended(getter) and link is not None and link.boot_id == getter._link.boot_id:
            return True
        try:
            return come_back(getter)
        except errors.AttachRejected as error:
            raise self._refused(error) from None

    def _refused(self, error: errors.AttachRejected) -> errors.AttachRejected:
        if error.reason != errors.Reason.PRODUCER_EXISTS:
            return error
        stream = stream_name(self._queue, "get")
        with self._client._connected().mapped() as authority:
            pid = directory.producer_pid(authority, stream)
        return errors.AttachRejected(
            f"queue {self._queue!r}: process {pid} gets from it, and a queue has one getter; to share work "
            "among processes make it a stream and give each its part: client.consumer(stream, shard=(k, n))",
            code=error.code,
            reason=error.reason,
            stream=stream,
        )

    def _attach(self, number: int) -> None:
        self._lanes[number] = _Lane(self._client, self._queue, number, self._place, self._losses)
        self._array = list(self._lanes.values())

    # ---- letting go

    def hand_over(self, inlet: Callable[[], Inlet]) -> bool:
        """Puts anew what only this one has: what ended putters left, and what is known to be lost.

        Then it leaves the lanes to who gets. Whether it has lanes yet that nobody else can read.
        """
        for lane in self._old:
            while lane.error is None and lane.forward(inlet):
                pass
        for lane in self._array:
            while lane.error is None and _is_alone_on_a_sealed_epoch(lane.consumer) and lane.forward(inlet):
                pass
            lane.consumer.close()
        self._lanes.clear()
        self._array = []
        self._events_seen = -1
        for told in self._losses:
            inlet().note_lost(told.lost)
        self._losses.clear()
        return bool(self._old)

    def stop_getting(self) -> None:
        """Another process may get."""
        getter, self.getter = self.getter, None
        if getter is not None:
            getter.close()

    def close(self) -> None:
        """Detaches from all lanes."""
        self.stop_getting()
        for lane in [*self._old, *self._array]:
            lane.consumer.close()


def come_back(handle: Producer) -> bool:
    """One try to attach a producer anew that only stands for its process. Raises AttachRejected."""
    comeback = handle._comeback
    assert comeback is not None
    comeback.come_back(handle, errors.Reason.SUPERSEDED, 0)
    return comeback.left is None


def has_ended(handle: Producer) -> bool:
    """Whether its lease has."""
    return lib.shmd_guarded_wait_room(handle._handle, 1, 0) in (_REVOKED, _CLOSED)


def _any_of(lanes: list[_Lane]) -> Any:
    for lane in lanes:
        found = lane.take()
        if found is not NOTHING:
            return found
    return NOTHING


def _is_alone_on_a_sealed_epoch(consumer: Consumer) -> bool:
    if consumer._look() < 0:
        return False
    info = consumer._info()
    index, epoch = int(info.stream_index), int(info.epoch)
    lib.shmd_consumer_resume(consumer._handle)
    with consumer._link.mapped() as authority:
        return (
            int(info.slots) > 0
            and epoch in directory.sealed_epochs(authority, index)
            and directory.reliable_consumers(authority, index, epoch) == 1
        )
