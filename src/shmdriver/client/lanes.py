"""A queue's two ends. A lane is a stream ``queue.<name>.<number>``, written by one putting process.

A putter keeps what nobody has read (``shmd_producer_keep``), so that a getter that dies or leaves is replaced
by one that goes on where it was (``shmd_consumer_resume``). Whoever reads a queue, or holds it until somebody
does, is attached to its lanes before they have a producer: a putter's first message is delivered even when
the putter is gone a moment later.

A message is an object (its type says how it is encoded), or a part of one that is too large for one message.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from shmdriver import errors
from shmdriver._native import ffi, lib
from shmdriver.client import directory, pickling
from shmdriver.client._raise import raise_for
from shmdriver.client.link import Deadline

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.consumer import Consumer
    from shmdriver.client.message import Message
    from shmdriver.client.producer import Producer

__all__ = ["NOTHING", "Inlet", "Outlet", "lane_name", "stream_name"]

PLAIN, BUFFERS = 0, 1  # a whole object
FIRST, MORE, LAST = 2, 3, 4  # a part of one; the first says how long it is, and how it is encoded
_PART_HEAD = struct.Struct("<QQ")
SPARE_LANES = 2
SLOT_BYTES = 256
SLOTS_UNBOUNDED = 1024
SLOTS_BOUNDED_MAX = 65536
WIRED_S = 1.0  # whoever holds the queue notices a new lane long before this
BURST = 64  # objects from one lane before the others have their turn
NOTHING: Any = object()
_publish = lib.shmd_guarded_publish
_TAKEN = (errors.Reason.PRODUCER_EXISTS, errors.Reason.UNDRAINED)


def stream_name(queue: str, part: str) -> str:
    """Of a stream that belongs to a queue."""
    return f"queue.{queue}.{part}"


def lane_name(queue: str, number: int) -> str:
    """Of a lane's stream."""
    return stream_name(queue, str(number))


def _lanes(client: Client, queue: str) -> dict[int, directory.StreamSlot]:
    """The lanes that exist, by number."""
    prefix = stream_name(queue, "")
    found = directory.streams_with_prefix(client._connected().authority, prefix)
    return {int(slot.name[len(prefix) :]): slot for slot in found if slot.name[len(prefix) :].isdecimal()}


class Inlet:
    """The putting end in one process: the producer of one lane."""

    __slots__ = ("_encoder", "max_part", "producer")

    def __init__(self, client: Client, queue: str, maxsize: int, max_bytes: int, deadline: Deadline) -> None:
        """Takes a free lane, or makes one. Raises AttachRejected, AttachTimeout, DriverUnavailable."""
        self.producer: Producer = _take_lane(client, queue, maxsize, max_bytes)
        bound = min(maxsize, self.producer.slots) if maxsize else self.producer.slots
        code = lib.shmd_producer_keep(self.producer._handle, bound)
        if code != 0:
            raise_for(code, stream=self.producer.stream)
        self.max_part = min(self.producer.max_message, max_bytes // 4)
        self._encoder = pickling.Encoder()
        wait = Deadline(WIRED_S)
        while lib.shmd_guarded_wait_room(self.producer._handle, 1, min(wait.slice_ns(), 5_000_000)) != 0:
            if wait.slice_ns() == 0 and deadline.slice_ns() == 0:
                break  # nobody reads this queue or holds it: there is no room
            if wait.slice_ns() == 0:
                wait = Deadline(WIRED_S)

    def encode(self, obj: object) -> tuple[bytes, list[memoryview]]:
        """As it is put; the buffers are the object's own memory."""
        return self._encoder.encode(obj)

    def put(self, head: bytes, buffers: list[memoryview], deadline: Deadline) -> None:
        """Raises BackPressured when there was no room in time; parts of the object that went in are void."""
        producer = self.producer
        size = pickling.size_of(head, buffers)
        if size <= self.max_part:
            if not buffers:
                producer.publish(head, PLAIN, _rest_s(deadline))
                return
            with producer.claim(size, type=BUFFERS, timeout=_rest_s(deadline)) as claim:
                at = 0
                for chunk in pickling.chunks_of(head, buffers):
                    claim.view[at : at + len(chunk)] = chunk
                    at += len(chunk)
            return
        self._put_parts(head, buffers, size, deadline)

    def _put_parts(self, head: bytes, buffers: list[memoryview], size: int, deadline: Deadline) -> None:
        chunks = pickling.chunks_of(head, buffers)
        chunk = memoryview(b"")
        prefix = _PART_HEAD.pack(size, BUFFERS if buffers else PLAIN)
        left = size
        kind = FIRST
        while left:
            length = min(left, self.max_part - len(prefix))
            left -= length
            kind = kind if left else LAST
            with self.producer.claim(len(prefix) + length, type=kind, timeout=_rest_s(deadline)) as claim:
                claim.view[: len(prefix)] = prefix
                at = len(prefix)
                while at < len(claim.view):
                    if not chunk:
                        chunk = next(chunks)
                    some = min(len(chunk), len(claim.view) - at)
                    claim.view[at : at + some] = chunk[:some]
                    chunk = chunk[some:]
                    at += some
            prefix = b""
            kind = MORE

    def forward(self, message: Message, deadline: Deadline) -> None:
        """Puts a message of another lane as it is."""
        self.producer.publish(message, message.type, _rest_s(deadline))

    def put_small(self, head: bytes) -> bool:
        """Puts a pickle without buffers, if it fits and there is room at once."""
        length = len(head)
        try:
            return length <= self.max_part and _publish(self.producer._handle, head, length, PLAIN) == 0
        except TypeError:
            self.producer._check_open()
            raise

    def has_room(self, length: int = 1) -> bool:
        """Whether an object of this size would go in now, or the first part of one that goes in parts."""
        length = min(length, self.max_part)
        return bool(lib.shmd_guarded_wait_room(self.producer._handle, length, 0) == 0)

    def close(self) -> None:
        """Its lane ends, when all of it was read."""
        self.producer.close()


def _rest_s(deadline: Deadline) -> float | None:
    rest_ns = deadline.rest_ns()
    return None if rest_ns is None else rest_ns / 1e9


def _take_lane(client: Client, queue: str, maxsize: int, max_bytes: int) -> Producer:
    slots = min(maxsize, SLOTS_BOUNDED_MAX) if maxsize else SLOTS_UNBOUNDED
    tried: set[int] = set()
    while True:
        lanes = _lanes(client, queue)
        free = [number for number, slot in sorted(lanes.items()) if number not in tried and not slot.producer]
        read = [number for number in free if lanes[number].consumers]
        number = (read or free or [max(lanes.keys() | tried, default=-1) + 1])[0]
        try:
            return client.producer(
                lane_name(queue, number), slots=slots, slot_bytes=SLOT_BYTES, arena=max_bytes, min_consumers=1
            )
        except errors.AttachRejected as error:
            if error.reason not in _TAKEN:
                raise
            tried.add(number)


class _Lane:
    """One lane as it is read: its consumer, and the object of which some parts have come."""

    __slots__ = ("consumer", "done", "encoding", "parts")

    def __init__(self, client: Client, queue: str, number: int) -> None:
        self.consumer: Consumer = client.consumer(lane_name(queue, number), start="oldest", follow=True)
        self.consumer._run_limit = 1  # a getter that is killed takes one object with it, not a run of them
        lib.shmd_consumer_resume(self.consumer._handle)
        self.parts: bytearray | None = None
        self.done = 0
        self.encoding = PLAIN

    def take(self) -> Any:
        """The next object, or NOTHING."""
        consumer = self.consumer
        while True:
            message = consumer._fetch(0)
            if message is None:
                return NOTHING
            is_placed = message._mapping is not None
            try:
                found = self._object_of(message.type, message.data)
            finally:
                if is_placed:
                    del message
                    consumer.release()  # its putter has that room at once
            if found is not NOTHING:
                return found

    def _object_of(self, kind: int, payload: Any) -> Any:
        """The object that is complete with this message, or NOTHING."""
        if kind == PLAIN:
            self.parts = None  # of an object that its putter gave up, or died over
            return pickling.decode(payload)
        if kind == BUFFERS:
            self.parts = None
            return pickling.decode_with_buffers(bytearray(payload))
        if not self._add(kind, memoryview(payload)):
            return NOTHING
        whole, self.parts = self.parts, None
        assert whole is not None
        return pickling.decode_with_buffers(whole) if self.encoding == BUFFERS else pickling.decode(whole)

    def _add(self, kind: int, payload: memoryview) -> bool:
        """Whether the object is complete with this part."""
        if kind == FIRST:
            size, self.encoding = _PART_HEAD.unpack_from(payload)
            payload = payload[_PART_HEAD.size :]
            self.parts, self.done = bytearray(size), 0
        if self.parts is None or self.done + len(payload) > len(self.parts):
            self.parts = None  # the rest of an object whose begin went with another getter
            return False
        self.parts[self.done : self.done + len(payload)] = payload
        self.done += len(payload)
        return kind == LAST and self.done == len(self.parts)


class Outlet:
    """The getting end: consumers of all lanes, also of some that have no producer yet."""

    __slots__ = ("_array", "_at", "_burst", "_client", "_events_seen", "_lanes", "_queue")

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._lanes: dict[int, _Lane] = {}
        self._array: list[_Lane] = []
        self._at = 0
        self._burst = 0
        self._events_seen = -1
        self.discover()

    def discover(self) -> None:
        """Attaches to lanes that are new, and keeps some ready for putters to come."""
        authority = self._client._connected().authority
        events = int(lib.shmd_word_load(ffi.addressof(authority, "event_head")))
        if events == self._events_seen:
            return
        self._events_seen = events
        known = _lanes(self._client, self._queue)
        for number in sorted(known.keys() - self._lanes.keys()):
            self._lanes[number] = _Lane(self._client, self._queue, number)
        spare = sum(number not in known or not known[number].producer for number in self._lanes)
        for number in range(
            max(self._lanes, default=-1) + 1, max(self._lanes, default=-1) + 1 + SPARE_LANES - spare
        ):
            self._lanes[number] = _Lane(self._client, self._queue, number)
        self._array = list(self._lanes.values())

    def take(self) -> Any:
        """The next object of any lane, or NOTHING."""
        lanes = self._array
        count = len(lanes)
        for turn in range(count):
            index = (self._at + turn) % count
            found = lanes[index].take()
            if found is not NOTHING:
                self._burst = self._burst + 1 if turn == 0 else 1
                self._at = index
                if self._burst >= BURST:
                    self._at, self._burst = (index + 1) % count, 0
                return found
        return NOTHING

    def wait(self, slice_ns: int) -> None:
        """Sleeps until a lane has something, at most ``slice_ns``. Raises what ended a lane."""
        handles = ffi.new("shmd_consumer *[]", [lane.consumer._handle for lane in self._array])
        code = lib.shmd_guarded_wait_many(handles, len(handles), slice_ns)
        if code < 0 and code != lib.SHMD_E_INTERRUPTED:
            raise_for(code, stream=stream_name(self._queue, "*"))

    def waiting(self) -> list[int]:
        """How many messages each lane has."""
        return [lane.consumer.lag for lane in self._array]

    def drain_what_only_this_one_has(self, inlet: Any) -> None:
        """Puts anew what putters left behind that have gone, unless another reader is wired to it."""
        for lane in self._array:
            consumer = lane.consumer
            while _is_alone_on_a_sealed_epoch(consumer):
                lib.shmd_consumer_resume(consumer._handle)
                message = consumer._fetch(0)
                if message is not None:
                    inlet().forward(message, Deadline(None))

    def close(self) -> None:
        """Detaches from all lanes."""
        for lane in self._array:
            lane.consumer.close()


def _is_alone_on_a_sealed_epoch(consumer: Consumer) -> bool:
    consumer._look()
    info = consumer._info()
    authority, index, epoch = consumer._link.authority, int(info.stream_index), int(info.epoch)
    return (
        int(info.slots) > 0
        and epoch in directory.sealed_epochs(authority, index)
        and directory.reliable_consumers(authority, index, epoch) == 1
    )
