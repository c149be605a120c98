"""A queue's putting end, and what both ends know of lanes: streams ``queue.<name>.<number>``, one a putter.

A putter keeps what nobody has read (``shmd_producer_keep``), so that a getter that dies or leaves is replaced
by one that goes on where it was (``shmd_consumer_resume``). Whoever reads a queue, or holds it until somebody
does, is attached to its lanes before they have a producer: a putter's first message is delivered even when
the putter is gone a moment later.

A message is an object (its type says how it is encoded), a part of one that is too large for one message, or
a note that objects are lost.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from shmdriver import errors
from shmdriver._native import lib
from shmdriver.client import directory, pickling
from shmdriver.client._raise import raise_for
from shmdriver.client.link import Deadline
from shmdriver.client.reattach import ATTACH_S, OrphanLook, removed_error

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.message import Message
    from shmdriver.client.producer import Producer

__all__ = ["Inlet", "lane_name", "lanes_of", "loss", "stream_name"]

_T = TypeVar("_T")

PLAIN, BUFFERS = 0, 1  # a whole object
FIRST, MORE, LAST = 2, 3, 4  # a part of one; the first says how long it is, and how it is encoded
LOST = 5  # how many objects that came before are lost
PART_HEAD = struct.Struct("<QQ")
LOST_COUNT = struct.Struct("<Q")
NOT_KNOWN = 2**64 - 1
SLOT_BYTES = 256
INLINE_MAX = SLOT_BYTES - int(lib.SHMD_SLOT_HEADER_BYTES)  # a larger message lies in the arena
SLOTS_UNBOUNDED = 1024
SLOTS_BOUNDED_MAX = 65536
WIRED_S = 1.0  # whoever holds the queue notices a new lane long before this
LOOK_S = 1.0  # between two looks of one that waits for room
_TAKEN = (errors.Reason.PRODUCER_EXISTS, errors.Reason.UNDRAINED)
_UNKNOWN_SEAL = 2**64 - 1
_REVOKED = int(lib.SHMD_E_REVOKED)


def stream_name(queue: str, part: str) -> str:
    """Of a stream that belongs to a queue."""
    return f"queue.{queue}.{part}"


def lane_name(queue: str, number: int) -> str:
    """Of a lane's stream."""
    return stream_name(queue, str(number))


def lanes_of(client: Client, queue: str) -> dict[int, directory.StreamSlot]:
    """The lanes that exist, by number."""
    prefix = stream_name(queue, "")
    found = directory.streams_with_prefix(client._connected().authority, prefix)
    return {int(slot.name[len(prefix) :]): slot for slot in found if slot.name[len(prefix) :].isdecimal()}


def loss(queue: str, lost: int | None, why: str) -> errors.ObjectsLost:
    """The error that tells of it."""
    count = "an unknown number of" if lost is None else lost
    return errors.ObjectsLost(
        f"queue {queue!r}: {count} objects were put and not got, and are lost: {why}",
        lost=lost,
        stream=stream_name(queue, "*"),
    )


class _AnewError(Exception):
    """The lane is another one by now: what goes in parts begins again."""


class Inlet:
    """The putting end in one process: the producer of one lane, or of the one that follows it."""

    __slots__ = ("_bound", "_client", "_encoder", "_look", "_max_bytes", "_number", "_queue", "look_at",
                 "max_part", "producer")  # fmt: skip

    def __init__(self, client: Client, queue: str, maxsize: int, max_bytes: int, deadline: Deadline) -> None:
        """Takes a free lane, or makes one. Raises AttachRejected, AttachTimeout, DriverUnavailable."""
        self._client = client
        self._queue = queue
        self._bound = maxsize
        self._max_bytes = max_bytes
        self._number = -1
        self._encoder = pickling.Encoder()
        self._look = OrphanLook(client)
        self.look_at = time.monotonic() if client.reconnect else math.inf  # when look() is due
        self.producer: Producer
        self._take_lane(deadline, attach_s=5.0)

    # ---- putting

    def encode(self, obj: object) -> tuple[bytes, list[memoryview]]:
        """As it is put; the buffers are the object's own memory."""
        return self._encoder.encode(obj)

    def put_small(self, head: bytes) -> bool:
        """Puts a pickle without buffers, if it fits and there is room at once."""
        try:
            return len(head) <= self.max_part and self.producer.try_publish(head) == 1
        except errors.ShmDriverError:
            if self._client.closed:
                raise
            return False  # its lane has ended: put() says so, or has another one

    def put(self, head: bytes, buffers: list[memoryview], deadline: Deadline) -> None:
        """Puts an object, by another lane when this one has ended and the client reconnects.

        Raises BackPressured when there was no room in time (parts of the object that went in are void),
        LeaseRevoked, ObjectsLost (the object was not put), DriverUnavailable.
        """
        while True:
            try:
                if self.producer.closed:
                    self._come_back(deadline)
                self._put(head, buffers, deadline)
                return
            except _AnewError:
                pass
            except errors.LeaseRevoked as error:
                self._leave(error)

    def note_lost(self, count: int | None) -> None:
        """Tells the getter that so many objects are lost."""
        told = LOST_COUNT.pack(NOT_KNOWN if count is None else count)
        self._when_there_is_room(lambda wait_s: self.producer.publish(told, LOST, wait_s), Deadline(None))

    def forward(self, message: Message) -> None:
        """Puts a message of another lane as it is."""
        kind = message.type
        self._when_there_is_room(lambda wait_s: self.producer.publish(message, kind, wait_s), Deadline(None))

    def leave_if_over(self) -> None:
        """Notices the end of its lane. Raises LeaseRevoked, or ObjectsLost."""
        handle = self.producer._handle
        if handle is not None and lib.shmd_guarded_wait_room(handle, 1, 0) == _REVOKED:
            self._leave(self.producer._failure(_REVOKED, 0))

    def has_room(self, length: int = 1) -> bool:
        """Whether an object of this size would go in now, or the first part of one that goes in parts."""
        handle = self.producer._handle
        length = min(length, self.max_part)
        return handle is not None and lib.shmd_guarded_wait_room(handle, length, 0) == 0

    def look(self) -> None:
        """Goes over to the next driver when this one's segments were removed; looks once a second.

        What it has put stays where it is, and a getter that is attached to it reads that to the end.
        """
        if not self._client.reconnect:
            return
        self.look_at = time.monotonic() + LOOK_S
        if not self.producer.closed and self._look.is_orphan(self.producer._link):
            self.producer.close()

    def close(self) -> None:
        """Its lane ends, when all of it was read."""
        self.producer.close()

    # ---- inside

    def _put(self, head: bytes, buffers: list[memoryview], deadline: Deadline) -> None:
        size = pickling.size_of(head, buffers)
        if size > self.max_part:
            self._put_parts(head, buffers, size, deadline)
        elif not buffers:
            self._when_there_is_room(lambda wait_s: self.producer.publish(head, PLAIN, wait_s), deadline)
        else:
            with self._claim(size, BUFFERS, deadline) as claim:
                at = 0
                for chunk in pickling.chunks_of(head, buffers):
                    claim.view[at : at + len(chunk)] = chunk
                    at += len(chunk)

    def _put_parts(self, head: bytes, buffers: list[memoryview], size: int, deadline: Deadline) -> None:
        chunks = pickling.chunks_of(head, buffers)
        chunk = memoryview(b"")
        prefix = PART_HEAD.pack(size, BUFFERS if buffers else PLAIN)
        left = size
        kind = FIRST
        while left:
            length = min(left, self.max_part - len(prefix))
            left -= length
            kind = kind if left else LAST
            with self._claim(len(prefix) + length, kind, deadline) as claim:
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

    def _claim(self, length: int, kind: int, deadline: Deadline) -> Any:
        return self._when_there_is_room(
            lambda wait_s: self.producer.claim(length, type=kind, timeout=wait_s), deadline
        )

    def _when_there_is_room(self, act: Callable[[float], _T], deadline: Deadline) -> _T:
        """``act(seconds to wait)``, and a look at the driver now and then while there is no room."""
        while True:
            rest_ns = deadline.rest_ns()
            wait_s = LOOK_S if rest_ns is None else min(LOOK_S, rest_ns / 1e9)
            try:
                return act(wait_s)
            except errors.BackPressured:
                if deadline.rest_ns() == 0:
                    raise
            self.look()
            if self.producer.closed:
                raise _AnewError
            if not self._client.reconnect and self._look.is_orphan(self.producer._link):
                raise removed_error(self.producer._link, f"queue {self._queue!r}")

    def _leave(self, error: Exception) -> None:
        """After its lease has ended: leaves the lane. Raises ``error`` when it is not to take another one."""
        if not self._client.reconnect:
            raise error
        info = self.producer._info()
        sealed = int(info.sealed_seq)
        beyond = 0 if sealed == _UNKNOWN_SEAL else max(0, int(info.seq) - sealed)
        self.producer.close()
        if beyond:
            raise loss(
                self._queue, beyond, "this process was putting when its lane was sealed; put again"
            ) from error

    def _come_back(self, deadline: Deadline) -> None:
        """Takes a lane again. Raises DriverUnavailable when that could not be in time."""
        while True:
            try:
                self._take_lane(deadline, attach_s=ATTACH_S)
                return
            except (errors.DriverUnavailable, errors.AttachTimeout) as error:
                if deadline.rest_ns() == 0:
                    raise errors.DriverUnavailable(str(error), instance=self._client.instance) from error

    def _take_lane(self, deadline: Deadline, attach_s: float) -> None:
        self.producer = producer = self._free_lane(attach_s)
        producer._comeback = None  # a lane of the same name may be another process's by then
        bound = min(self._bound, producer.slots) if self._bound else producer.slots
        code = lib.shmd_producer_keep(producer._handle, bound)
        if code != 0:
            raise_for(code, stream=producer.stream)
        self.max_part = min(producer.max_message, self._max_bytes // 4)
        wait = Deadline(WIRED_S)
        while lib.shmd_guarded_wait_room(producer._handle, 1, min(wait.slice_ns(), 5_000_000)) != 0:
            if wait.slice_ns() == 0 and deadline.slice_ns() == 0:
                break  # nobody reads this queue or holds it: there is no room
            if wait.slice_ns() == 0:
                wait = Deadline(WIRED_S)

    def _free_lane(self, attach_s: float) -> Producer:
        """Its own one again, if it is free: then a getter has it all in order. Else one that is read."""
        slots = min(self._bound, SLOTS_BOUNDED_MAX) if self._bound else SLOTS_UNBOUNDED
        tried: set[int] = set()
        while True:
            lanes = lanes_of(self._client, self._queue)
            free = [n for n, slot in sorted(lanes.items()) if n not in tried and not slot.producer]
            read = [n for n in free if lanes[n].consumers]
            own = [self._number] if self._number in free else []
            number = (own or read or free or [max(lanes.keys() | tried, default=-1) + 1])[0]
            try:
                made = self._client.producer(
                    lane_name(self._queue, number),
                    slots=slots, slot_bytes=SLOT_BYTES, arena=self._max_bytes, min_consumers=1,
                    attach_timeout=attach_s,
                )  # fmt: skip
            except errors.AttachRejected as error:
                if error.reason not in _TAKEN:
                    raise
                tried.add(number)
            else:
                self._number = number
                return made
