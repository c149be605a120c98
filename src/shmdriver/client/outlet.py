"""A queue's getting end: consumers of all lanes (lanes.py), also of some that have no producer yet.

Each call takes one message, the oldest of all lanes (csrc/core/shmd_lanes.c), and hands out a private copy.
A getter that is killed takes with it what it had taken: the object of this call, and in each lane the parts
of a very large one of which some have not come yet.

When leases of it end, a client that reconnects attaches anew, and what could not be read any more is told
(ObjectsLost); another one has the rest of what its lanes are mapped to, then the error. When its driver was
killed and its segments were removed, nobody tells it anything: it looks. The lanes of such a driver are read
on beside those of the next one, because their putters may not have noticed yet.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.client.lanes import (
    BUFFERS,
    FIRST,
    INLINE_MAX,
    LAST,
    LOST,
    LOST_COUNT,
    MORE_WAITS,
    NOT_KNOWN,
    PART_HEAD,
    PLAIN,
    WAITING,
    WHOLE_OBJECTS,
    Inlet,
    is_to_go_over,
    lane_name,
    lanes_of,
    loss,
    stream_name,
)
from shmdriver.client.link import Deadline, nap
from shmdriver.client.reattach import OrphanLook, epoch_before, left_behind
from shmdriver.client.waiting import wait_for_any

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.consumer import Consumer
    from shmdriver.client.link import Link
    from shmdriver.client.message import Message
    from shmdriver.client.producer import Producer

__all__ = ["NOTHING", "Outlet", "come_back"]

NOTHING: Any = object()
SPARE_LANES = 2
SPARES_AGAIN_NS = 1_000_000_000  # after a refusal
BURST = 64  # objects from one lane before the others are looked at again
LOOKS_AT_EVENTS = 8  # a lane that is attached is news itself
HANDED_OVER_S = 1.0  # how long a new getter waits for what the holder hands over: that comes first
_oldest = lib.shmd_guarded_oldest
_REVOKED = int(lib.SHMD_E_REVOKED)
_CLOSED = int(lib.SHMD_E_CLOSED)
_NO_LATER = 2**32 - 1
_NO_ENDS = (errors.HandleClosed, errors.ConcurrentUseError, errors.ForkedHandleError)


class _News:
    """What lanes have to tell their outlet."""

    __slots__ = ("losses", "of_ends")

    def __init__(self) -> None:
        self.losses: list[errors.ObjectsLost] = []
        self.of_ends = False  # a lane has ended


class _Lane:
    """One lane as it is read: its consumer, and the object of which some parts have come."""

    __slots__ = ("_base_epoch", "_comeback", "_ended", "_news", "_queue", "_spoilt", "consumer",
                 "done", "encoding", "error", "fetch", "parts", "waits_in")  # fmt: skip

    def __init__(self, client: Client, queue: str, number: int, news: _News) -> None:
        self.consumer: Consumer = client.consumer(lane_name(queue, number), start="oldest", follow=True)
        self.consumer._run_limit = 1
        self.fetch = self.consumer._fetch
        resume = lib.shmd_consumer_resume
        resume(self.consumer._open_handle)
        # The outlet attaches it anew, after it has made sure that this process is the getter yet.
        self._comeback, self.consumer._comeback = self.consumer._comeback, None
        if self._comeback is not None:
            self._comeback.prepare = resume
        self._base_epoch = epoch_before(self.consumer)
        self._queue = queue
        self._news = news
        self._ended: Exception | None = None  # until it is mended
        self._spoilt = 0  # 1: its lease ended while the last message was copied
        self.error: Exception | None = None  # it has ended for good
        self.parts: bytearray | None = None
        self.done = 0
        self.encoding = PLAIN
        self.waits_in = 0  # the epoch whose putter has objects in its memory, as it has told

    # ---- reading

    def forward(self, inlet: Inlet) -> bool:
        """Puts the next message by another lane, as it is. False: there was none, or no room for it."""
        lib.shmd_consumer_resume(self.consumer._open_handle)  # behind what a getter has had by now
        if not inlet.has_room(inlet.max_part):
            return False
        try:
            message = self.fetch(0)
        except errors.ShmDriverError as error:
            self.note_end(error)
            return False
        if message is None:
            return False
        try:
            copy = bytes(message)
            if self._is_spoilt(message):
                return False
            self._note_waiting(message.type)
            return message.type == WAITING or inlet.forward(copy, message.type & ~MORE_WAITS)
        finally:
            del message
            self.consumer.release()

    def payload_of(self, message: Message) -> Any:
        """A copy of what is complete with this message, for pickling.decode(); a bytearray: with buffers.

        NOTHING: it was a part, or no object, or its lease has ended. Its place is to be released then.
        """
        found = self._copy_of(message)
        if not self._is_spoilt(message):
            return found
        self.parts = None
        return NOTHING

    def _is_spoilt(self, message: Message) -> bool:
        """Asked after the last byte was copied: whether it may have been overwritten before (C1)."""
        is_drained = self._base_epoch == _NO_LATER  # nobody writes there
        if is_drained or message.valid():
            return False
        self._spoilt = 1
        self.look()
        if self._ended is None:
            self.note_end(self.consumer._failure(_REVOKED))
        return True

    def _copy_of(self, message: Message) -> Any:
        kind = message.type & ~MORE_WAITS
        self._note_waiting(message.type)
        if kind == PLAIN:
            return bytes(message)
        if kind == BUFFERS:
            return bytearray(message)
        if kind == LOST:
            (count,) = LOST_COUNT.unpack(message)
            self._tell(None if count == NOT_KNOWN else count, "leases of this queue had ended")
            return NOTHING
        return NOTHING if kind == WAITING else self._add(kind, message.data)

    def _note_waiting(self, kind: int) -> None:
        if kind == WAITING:
            self.waits_in = self.consumer.epoch
        elif kind in (PLAIN, BUFFERS, LAST):
            self.waits_in = 0

    def _add(self, kind: int, payload: memoryview) -> Any:
        """The object, if it is complete with this part."""
        if kind == FIRST:
            size, self.encoding = PART_HEAD.unpack_from(payload)
            payload = payload[PART_HEAD.size :]
            self.parts, self.done = bytearray(size), 0  # those of one that its putter gave up are over
        if self.parts is None or self.done + len(payload) > len(self.parts):
            self.parts = None  # the rest of an object whose begin went with another getter
            return NOTHING
        self.parts[self.done : self.done + len(payload)] = payload
        self.done += len(payload)
        if kind != LAST or self.done != len(self.parts):
            return NOTHING
        whole, self.parts = self.parts, None
        return whole if self.encoding == BUFFERS else memoryview(whole)

    # ---- ends, and attaching anew

    @property
    def is_away(self) -> bool:
        """It has left, and waits for a driver that admits it again."""
        return self._comeback is not None and self._comeback.left is not None

    @property
    def is_readable(self) -> bool:
        """Whether a fetch is to be tried."""
        return self.error is None and not self.waits_for_driver

    @property
    def has_ended(self) -> bool:
        """Its lease has, or its stream."""
        return self._ended is not None

    @property
    def waits_for_driver(self) -> bool:
        """It has left, or is to leave once this process is known to be the getter yet."""
        return self._ended is not None or self.is_away

    def look(self) -> None:
        """Notices an end, without reading."""
        code = self.consumer._look()
        if code < 0:
            self.note_end(self.consumer._failure(code))

    def mend(self) -> None:
        """Attaches anew after an end, where that is wanted (one try); else it has an error from now on."""
        ended, comeback = self._ended, self._comeback
        if ended is None or self.error is not None:
            return
        if comeback is None or not comeback.covers(ended):
            self._end(ended)
            return
        comeback.come_back(self.consumer, getattr(ended, "reason", 0), 0, self._spoilt)
        self._spoilt = 0
        if self.is_away:
            return
        self._ended = None
        self.parts = None
        again = comeback.history[-1]
        if again.lost != 0:
            self._tell(again.lost, again.reason.words)

    def tell_waiting_lost(self) -> None:
        """When nothing came: tells what had waited in the memory of a putter that is gone."""
        if self.waits_in == 0:
            return
        info = self.consumer._info()
        ended = directory.end_of_epoch(self.consumer._link.authority, int(info.stream_index), self.waits_in)
        if ended is None or (int(info.epoch) == self.waits_in and int(info.position) < ended.seq):
            return
        self.waits_in = 0
        if ended.reason != errors.Reason.CLOSED:
            self._tell(None, "they waited in the memory of their putter, which is gone")

    def stay(self) -> None:
        """Reads on where it is, to the end, whatever comes."""
        self._comeback = None

    def drains(self) -> bool:
        """Whether its lease has ended, and it reads on in an epoch that nobody else can read any more."""
        if self.error is not None or not isinstance(self._ended, errors.LeaseRevoked):
            return False
        if lib.shmd_guarded_drain(self.consumer._last_handle) != 1:
            return False
        self._ended = None
        self._base_epoch = _NO_LATER  # those are others' to read
        if self._spoilt:
            self._tell(self._spoilt, errors.Reason.REVOKED.words)
            self._spoilt = 0
        return True

    def note_end(self, error: Exception) -> None:
        """What a fetch raised: an end is mended later, anything else is raised."""
        if isinstance(error, _NO_ENDS) and not self.is_away:
            raise error
        if self.error is None:
            self._ended = error
            self._news.of_ends = True

    def _end(self, error: Exception) -> None:
        self.error = error
        self._ended = None
        lost = left_behind(self.consumer, self._base_epoch)
        lost = None if lost is None else lost + self._spoilt
        if lost != 0:
            reason = getattr(error, "reason", 0)
            self._tell(lost, errors.Reason(reason).words if reason else str(error))

    def _tell(self, lost: int | None, why: str) -> None:
        self._news.losses.append(loss(self._queue, lost, why))


class _Looked:
    """What is looked at for the oldest object, as long as nothing changes."""

    __slots__ = ("_handles", "arguments", "lanes")

    def __init__(self, outlet: Outlet) -> None:
        self.lanes = [lane for lane in [*outlet._old, *outlet._array] if lane.is_readable]
        self._handles = [lane.consumer._open_handle for lane in self.lanes]  # none is freed meanwhile
        array = ffi.new("shmd_consumer *[]", self._handles)
        # Unless it waits for its driver: then it looks at what it has.
        head = ffi.NULL if outlet._events_seen < 0 else ffi.addressof(outlet._link.authority, "event_head")
        self.arguments = (array, len(self._handles), BURST, head, max(0, outlet._events_seen))


class Outlet:
    """The getting end in one process, or what holds the lanes until somebody gets."""

    __slots__ = ("_array", "_client", "_events_seen", "_lane", "_lanes", "_left", "_link", "_look",
                 "_looked_at", "_news", "_old", "_queue", "_spares_from_ns", "getter")  # fmt: skip

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._news = _News()
        self._lanes: dict[int, _Lane] = {}
        self._array: list[_Lane] = []
        self._old: list[_Lane] = []  # of drivers whose segments were removed
        self._lane: _Lane  # which has the oldest object
        self._left = 0  # and how many that are older than those of the others
        self._looked_at: _Looked | None = None
        self._events_seen = -1
        self._spares_from_ns = 0
        self._link: Link = client._connected()
        self._look = OrphanLook(client)
        self.getter: Producer | None = None  # its lease makes this process the only one that gets
        self.discover()

    def begin_getting(self, *, holds: bool) -> None:
        """Becomes the one getter. Attached to the lanes before: whoever sees the getter knows that it is.

        ``holds``: these lanes are held by nobody else, so that nothing is handed over.
        """
        try:
            self.getter = self._client.producer(stream_name(self._queue, "get"), slots=2, arena=0)
        except errors.AttachRejected as error:
            raise self._refused(error) from None
        if not holds:
            self._await_what_is_handed_over()

    def _await_what_is_handed_over(self) -> None:
        """The holder leaves the lanes when it has put on what nobody else could read."""
        authority = self._client._connected().authority
        deadline = Deadline(HANDED_OVER_S)
        while (slice_ns := deadline.slice_ns()) > 0:
            is_held = directory.has_producer(authority, stream_name(self._queue, "keep"))
            lanes = lanes_of(self._client, self._queue).values()
            if not is_held or all(lane.consumers < 2 for lane in lanes):
                break
            nap(min(slice_ns, 1_000_000))

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
        try:
            if not self._lanes or self._link.driver_alive():
                self._attach_new_lanes()
        except (errors.DriverUnavailable, errors.AttachTimeout, errors.LeaseRevoked):
            if not self._lanes:
                raise
            # The lanes that are attached are read first. A driver that serves again publishes events, which
            # brings the next try; idle() raises what has ended for good.
        self._events_seen = events

    def _attach_new_lanes(self) -> None:
        known = lanes_of(self._client, self._queue)
        lanes = self._lanes
        for number in sorted(known.keys() - lanes.keys()):
            self._attach(number)
        spare = sum(number not in known or not known[number].producer for number in lanes)
        first = max(lanes, default=-1) + 1
        wanted = SPARE_LANES - spare if time.monotonic_ns() >= self._spares_from_ns else 0
        for number in range(first, first + wanted):
            try:
                self._attach(number)
            except errors.AttachRejected:
                if not lanes:
                    raise
                # No more streams: a putter that needs one is told why.
                self._spares_from_ns = time.monotonic_ns() + SPARES_AGAIN_NS
                break

    # ---- reading

    def take(self) -> Any:
        """The oldest object, as payload_of(), or NOTHING. Raises ObjectsLost, once for each loss."""
        while True:
            lane = None if self._news.losses else self._next_lane()
            if lane is not None:
                try:
                    message = lane.fetch(0)
                except errors.ShmDriverError as error:
                    lane.note_end(error)
                    message = None
                if message is not None:
                    if message.type == PLAIN and len(message) <= INLINE_MAX:  # a private copy already
                        lane.waits_in = 0
                        return message
                    try:
                        found = lane.payload_of(message)
                    finally:
                        del message  # no frame of an exception keeps its place
                        lane.consumer.release()  # its putter has that room at once
                    if found is not NOTHING:
                        return found
            elif self._news.losses:
                raise self._news.losses.pop(0)
            elif not self._news.of_ends:
                return NOTHING
            if self._news.of_ends:
                self._left = 0
                self._mend()
                if self._news.of_ends:  # a lane waits for its driver
                    return NOTHING

    def wait(self, slice_ns: int, words: Sequence[tuple[Any, int]]) -> bool:
        """Sleeps until a lane has something (True), at most ``slice_ns``; ``words`` as wait_for_any().

        One of these is that of attempts.news(), for lanes that wait for their driver. Raises as idle().
        """
        lanes = [lane for lane in [*self._old, *self._array] if lane.error is None]
        for lane in lanes:
            lane.consumer._check_open()
        there = [lane.consumer for lane in lanes if not lane.waits_for_driver]
        if len(lanes) < len(self._old) + len(self._array):
            slice_ns = 0  # one has ended for good: what the others have comes first, then that is said
        found = wait_for_any(there, slice_ns, words, stream=stream_name(self._queue, "*"))
        if found == 0:
            self.idle()
        return found > 0

    def waiting(self) -> dict[str, tuple[int, int]]:
        """By lane: the epoch that is read, and how many objects of it are to be got. Any thread may ask."""
        found = {}
        for lane in [*self._old, *self._array]:
            info = lane.consumer._info()
            count = lib.shmd_consumer_count(lane.consumer._open_handle, WHOLE_OBJECTS)
            found[lane.consumer.stream] = (int(info.epoch), int(count))
        return found

    def is_behind(self, known: dict[str, tuple[int, int]]) -> bool:
        """Whether there are epochs beyond those that ``known``, from waiting(), counts."""
        lanes = lanes_of(self._client, self._queue).values()
        return any(known.get(lane.name, (0, 0))[0] < lane.epochs for lane in lanes)

    def _next_lane(self) -> _Lane | None:
        """The one that has the oldest object; None: there is none."""
        if self._left:
            self._left -= 1
            return self._lane
        looked_at = self._looked_at
        for _ in range(LOOKS_AT_EVENTS):
            if looked_at is None or self._link.successor is not None:
                self.discover()
                looked_at = self._looked_at = _Looked(self)
            found = _oldest(*looked_at.arguments)
            if found >= 0:
                self._left = (found >> 32) - 1
                self._lane = lane = looked_at.lanes[found & 0xFFFFFFFF]
                return lane
            if found == -1:
                break
            looked_at = None  # something has changed: a new lane may have older ones
        if self._events_seen < 0:
            self._looked_at = None
        return None

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
        if is_to_go_over(self._look, self._link, self._queue):
            self.discover()

    def idle(self) -> None:
        """When nothing came. Raises what has ended a lane for good, the getter's lease, or the driver."""
        for lane in self._array:
            if lane.error is not None:
                raise lane.error
        for lane in [*self._old, *self._array]:
            lane.tell_waiting_lost()
        if self._news.losses:
            raise self._news.losses.pop(0)
        self.leave_a_dead_driver()
        getter = self.getter
        if getter is not None and getter._comeback is None and has_ended(getter):
            raise getter._failure(_REVOKED, 0)
        self._is_the_getter()

    def _mend(self) -> None:
        """Attaches lanes anew that have ended, or says so. Raises ObjectsLost."""
        self._looked_at = None
        if not self._is_the_getter():
            return
        self._news.of_ends = False
        for lane in self._old:
            lane.mend()
            if lane.error is not None:
                lane.consumer.close()
        self._old = [lane for lane in self._old if lane.error is None]
        for number, lane in list(self._lanes.items()):
            if lane.drains():
                self._set_aside(number)
            else:
                lane.mend()
            self._news.of_ends = self._news.of_ends or lane.is_away
        if self._news.losses and self.getter is not None:
            raise self._news.losses.pop(0)

    def _set_aside(self, number: int) -> None:
        """To be read to its end; with ``reconnect`` another consumer takes its place."""
        if not self._client.reconnect:
            return
        lane = self._lanes.pop(number)
        lane.stay()
        self._old.append(lane)
        self._note_lanes()
        self._events_seen = -1  # discover() attaches it anew

    def _leave_lanes(self) -> None:
        """Another driver serves: those that are mapped are read to their end, for as long as that takes."""
        stay: dict[int, _Lane] = {}
        for number, lane in self._lanes.items():
            lane.look()
            if not lane.drains():
                lane.mend()
            if lane.is_away or lane.consumer._link is not self._link:
                stay[number] = lane
            elif lane.error is None and lane.consumer._info().slots:
                lane.stay()
                self._old.append(lane)
            else:
                lane.consumer.close()
        self._lanes = stay
        self._note_lanes()

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
        holder = directory.holder_of_stream(self._client._connected().authority, stream)
        who = "another process" if holder is None else f"{holder.name!r} ({holder.label})"
        return errors.AttachRejected(
            f"queue {self._queue!r}: {who} gets from it, and a queue has one getter; to share work "
            "among processes make it a stream and give each its part: client.consumer(stream, shard=(k, n))",
            code=error.code,
            reason=error.reason,
            stream=stream,
        )

    def _attach(self, number: int) -> None:
        if number not in self._lanes:  # by a signal's handler, meanwhile
            self._lanes[number] = _Lane(self._client, self._queue, number, self._news)
        self._note_lanes()

    def _note_lanes(self) -> None:
        """Other lanes, or other handles of them: they are to be looked at anew."""
        self._array = list(self._lanes.values())
        self._looked_at = None
        self._left = 0

    # ---- letting go

    def hand_over(self, inlet: Callable[[], Inlet]) -> bool:
        """Puts anew what only this one has: what ended putters left, and what is known to be lost.

        Then it leaves the lanes to the getter. False: there is more, for which there is no room now.
        """
        while lanes := self._lanes_of_its_own():
            handles = [lane.consumer._open_handle for lane in lanes]
            native = ffi.new("shmd_consumer *[]", handles)
            found = int(_oldest(native, len(handles), BURST, ffi.NULL, 0))
            if found < 0:
                break
            lane = lanes[found & 0xFFFFFFFF]
            for _ in range(found >> 32):
                if not lane.forward(inlet()):
                    if not lane.has_ended:
                        return False
                    lane.mend()
                    break
        for lane in [*self._old, *self._array]:
            lane.tell_waiting_lost()
        while self._news.losses:
            if not inlet().note_lost(self._news.losses[0].lost):
                return False
            self._news.losses.pop(0)
        for lane in [*self._old, *self._array]:
            lane.consumer.close()
        self._old = []
        self._lanes.clear()
        self._note_lanes()
        self._events_seen = -1
        return True

    def _lanes_of_its_own(self) -> list[_Lane]:
        """Those from which nobody else can read what comes next."""
        there = [lane for lane in self._array if _is_alone_on_a_sealed_epoch(lane.consumer)]
        return [lane for lane in [*self._old, *there] if lane.error is None]

    def stop_getting(self) -> None:
        """Another process may get."""
        getter, self.getter = self.getter, None
        if getter is not None:
            getter.close()

    def abandon(self) -> None:
        """As close(), without a wait."""
        if self.getter is not None:
            self.getter._abandon()
        for lane in [*self._old, *self._array]:
            lane.consumer._abandon()

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
    """Whether its lease has; so it has when another thread has closed it."""
    return lib.shmd_guarded_wait_room(handle._last_handle, 1, 0) in (_REVOKED, _CLOSED)


def _is_alone_on_a_sealed_epoch(consumer: Consumer) -> bool:
    if consumer._look() < 0:
        return False
    info = consumer._info()
    index, epoch = int(info.stream_index), int(info.epoch)
    authority = consumer._link.authority
    return (
        int(info.slots) > 0
        and epoch in directory.sealed_epochs(authority, index)
        and directory.reliable_consumers(authority, index, epoch) == 1
    )
