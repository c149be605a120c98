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

import struct
import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from shmdriver import errors, names
from shmdriver._native import ffi, lib
from shmdriver.client import directory, pickling
from shmdriver.client._raise import raise_for
from shmdriver.client.link import Deadline
from shmdriver.client.reattach import ATTACH_S, OrphanLook, removed_error

if TYPE_CHECKING:
    from shmdriver.client.client import Client
    from shmdriver.client.link import Link
    from shmdriver.client.producer import Producer

__all__ = ["Inlet", "lane_name", "lanes_of", "loss", "stream_name"]

PLAIN, BUFFERS = 0, 1  # a whole object
FIRST, MORE, LAST = 2, 3, 4  # a part of one; the first says how long it is, and how it is encoded
LOST = 5  # how many objects that came before are lost
WAITING = 6  # objects wait in their putter's memory, and die with it, up to one without this in its type:
MORE_WAITS = 0x100
WHOLE_OBJECTS = 1 << PLAIN | 1 << BUFFERS | 1 << LAST  # types, of which each message completes an object
PART_HEAD = struct.Struct("<QQ")
LOST_COUNT = struct.Struct("<Q")
NOT_KNOWN = 2**64 - 1
SLOT_BYTES = 256
INLINE_MAX = SLOT_BYTES - int(lib.SHMD_SLOT_HEADER_BYTES)  # a larger message lies in the arena
SLOTS_UNBOUNDED = 1024
SLOTS_BOUNDED_MIN, SLOTS_BOUNDED_MAX = 64, 65536
WIRED_S = 1.0  # the holder of the queue notices a new lane long before this
LOOK_S = 1.0  # between two looks of one that waits for room
_TAKEN = (errors.Reason.PRODUCER_EXISTS, errors.Reason.UNDRAINED)
_UNKNOWN_SEAL = 2**64 - 1
_REVOKED = int(lib.SHMD_E_REVOKED)
_MAY_GO_ON = (0, int(lib.SHMD_BACK_PRESSURED), int(lib.SHMD_E_INTERRUPTED))


def stream_name(queue: str, part: str) -> str:
    """Of a stream that belongs to a queue."""
    return f"{names.QUEUE_PREFIX}{queue}.{part}"


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


def is_to_go_over(look: OrphanLook, link: Link, queue: str) -> bool:
    """Whether another driver serves now; looks once a second.

    Raises DriverUnavailable when none will ever come that takes over what ``link`` is mapped to.
    """
    if look.is_due and not link.driver_alive() and lib.shmd_instance_is_embedded(link.instance.encode()):
        raise errors.DriverUnavailable(
            f"queue {queue!r}: the embedded driver of instance {link.instance} is dead, and nobody takes its "
            "queues over; connect to another instance",
            instance=link.instance,
        )
    if not look.is_orphan(link):
        return False
    if not look.reconnects:
        raise removed_error(link, f"queue {queue!r}")
    return True


class _Several:
    """Messages that are not one object each: the parts of one, or a note."""

    __slots__ = ("first", "is_open", "messages", "objects")

    def __init__(self, first: int) -> None:
        self.first = first  # seq
        self.messages = 0
        self.objects = 0  # 1 once the object is complete
        self.is_open = True  # more may come

    def is_read(self, seq: int) -> bool:
        """Whether nothing of it stands at ``seq`` or behind."""
        return not self.is_open and self.first + self.messages <= seq


class Inlet:
    """The putting end in one process: the producer of one lane, or of the one that follows it.

    Its user lets one thread in at a time. No call waits, but for a driver that answers.
    """

    __slots__ = ("_bound", "_client", "_is_stamped", "_look", "_max_bytes", "_number", "_queue",
                 "_several", "_slots", "_tells", "look_at", "max_part", "more_waits", "needs",
                 "producer")  # fmt: skip

    def __init__(
        self, client: Client, queue: str, maxsize: int, max_bytes: int, *, is_stamped: bool = True
    ) -> None:
        """Takes a free lane, or makes one. Raises AttachRejected, AttachTimeout, DriverUnavailable.

        What goes into a lane without stamps is read before all else: for objects of putters that have ended.
        """
        self._client = client
        self._queue = queue
        self._bound = maxsize
        self._max_bytes = max_bytes
        self._is_stamped = is_stamped
        self._number = -1
        self._tells = False  # the getter knows that objects wait in this process's memory
        self.more_waits = False  # in this process's memory, behind what is put now
        self.needs = 1  # how many bytes what was refused last needs
        self._look = OrphanLook(client)
        self.look_at = 0.0  # before this put_small() will do
        self.producer: Producer
        self._take_lane(attach_s=5.0)

    # ---- putting

    def put_small(self, head: bytes) -> bool:
        """Puts a pickle without buffers, if it fits and there is room at once. Only before ``look_at``."""
        try:
            return len(head) <= self.max_part and self.producer.try_publish(head) == 1
        except errors.ShmDriverError:
            if self._client.closed:
                raise
            return False  # its lane has ended: put() says so, or has another one

    def put(self, head: bytes, buffers: list[memoryview]) -> bool:
        """Puts an object now, or not: then parts of it that went in are void. Raises as steps()."""
        return next(self.steps(head, buffers), True)

    def steps(self, head: bytes, buffers: list[memoryview]) -> Iterator[bool]:
        """Puts an object, by another lane when this one has ended and the client reconnects.

        Yields False whenever there is no room. Raises LeaseRevoked, ObjectsLost (the object was not put),
        DriverUnavailable.
        """
        while True:
            try:
                while self.producer.closed and not self._came_back():
                    yield False
                yield from self._steps(head, buffers)
                return
            except _AnewError:
                pass
            except errors.LeaseRevoked as error:
                self._leave(error)

    def unread(self) -> int:
        """How many of its objects nobody has got. Sees to it that no more than the bound are put."""
        handle = self.producer._handle
        if handle is None:
            return 0
        messages = int(lib.shmd_guarded_unread(handle, self._bound or self._slots - 1))
        if messages < 0:
            return 0  # it has ended, as the next put says
        several = 0
        if self._several:
            read = self.producer.seq - messages
            while self._several and self._several[0].is_read(read):
                self._several.popleft()
            for some in self._several:
                several += some.first + some.messages - max(read, some.first) - some.objects
        if self._bound:
            if several:
                lib.shmd_guarded_unread(handle, min(self._bound + several, self._slots - 1))
            self._note_look()
        return messages - several

    @property
    def lane(self) -> str:
        """The stream that it puts into."""
        return lane_name(self._queue, self._number)

    def tell_waiting(self) -> None:
        """Tells the getter that objects wait in this process's memory. One more slot is kept for that."""
        handle = self.producer._handle
        if self._tells or handle is None:
            return
        lib.shmd_guarded_unread(handle, self._slots)
        note = _Several(self.producer.seq)
        try:
            if self.producer.try_publish(b"", WAITING) == 1:
                self._tells = True
                note.messages = 1
                note.is_open = False
                self._several.append(note)
            self.unread()
        except errors.ShmDriverError:
            pass  # its lane has ended, as the feeder says

    def note_lost(self, count: int | None) -> bool:
        """Tells the getter that so many objects are lost, if there is room for that."""
        told = LOST_COUNT.pack(NOT_KNOWN if count is None else count)
        return self.producer.try_publish(told, LOST) == 1

    def forward(self, message: bytes, kind: int) -> bool:
        """Puts a message of another lane, if there is room."""
        return self.producer.try_publish(message, kind) == 1

    def leave_if_over(self) -> None:
        """Notices the end of its lane. Raises LeaseRevoked, or ObjectsLost."""
        handle = self.producer._handle
        if handle is not None and lib.shmd_guarded_wait_room(handle, 1, 0) == _REVOKED:
            self._leave(self.producer._failure(_REVOKED, 0))

    def has_room(self, length: int) -> bool:
        """Whether an object of this size would go in now, or the first part of one that goes in parts."""
        handle = self.producer._handle
        return handle is not None and lib.shmd_guarded_wait_room(handle, min(length, self.max_part), 0) == 0

    def await_room(self, length: int, slice_ns: int, word: tuple[Any, int]) -> bool:
        """Waits for that, or until ``word``, a futex word and its value, is another. False: it has ended."""
        handle = self.producer._handle
        if handle is None:
            return False
        other = ffi.new("shmd_word_t *", word)
        length = min(length, self.max_part)
        return int(lib.shmd_guarded_wait_room_or(handle, length, slice_ns, other)) in _MAY_GO_ON

    def look(self) -> None:
        """Goes over to the next driver when this one's segments were removed; looks once a second.

        What it has put stays where it is, and a getter that is attached to it reads that to the end.
        Raises DriverUnavailable when it is not to go over.
        """
        self._note_look()
        if not self.producer.closed and is_to_go_over(self._look, self.producer._link, self._queue):
            self.producer.close()

    def close(self) -> None:
        """Its lane ends, when all of it was read."""
        self.producer.close()

    def abandon(self) -> None:
        """Likewise, but as aborted, and without a wait."""
        self.producer._abandon()

    # ---- inside

    def _note_look(self) -> None:
        if self._several and self._bound:
            self.look_at = 0.0  # the core counts messages, not objects
        else:
            self.look_at = time.monotonic() + LOOK_S

    def _steps(self, head: bytes, buffers: list[memoryview]) -> Iterator[bool]:
        size = pickling.size_of(head, buffers)
        if size > self.max_part:
            yield from self._part_steps(head, buffers, size)
        elif not buffers:
            while self.producer.try_publish(head, self._kind(PLAIN)) != 1:
                self.needs = size
                self._check_driver()
                yield False
        else:
            with (yield from self._claim(size, self._kind(BUFFERS))) as claim:
                at = 0
                for chunk in pickling.chunks_of(head, buffers):
                    claim.view[at : at + len(chunk)] = chunk
                    at += len(chunk)

    def _part_steps(self, head: bytes, buffers: list[memoryview], size: int) -> Iterator[bool]:
        chunks = pickling.chunks_of(head, buffers)
        chunk = memoryview(b"")
        prefix = PART_HEAD.pack(size, BUFFERS if buffers else PLAIN)
        left = size
        kind = FIRST
        several = _Several(self.producer.seq)
        self._several.append(several)
        try:
            while left:
                length = min(left, self.max_part - len(prefix))
                left -= length
                with (yield from self._claim(len(prefix) + length, kind if left else LAST)) as claim:
                    claim.view[: len(prefix)] = prefix
                    at = len(prefix)
                    while at < len(claim.view):
                        chunk = chunk or next(chunks)
                        some = min(len(chunk), len(claim.view) - at)
                        claim.view[at : at + some] = chunk[:some]
                        chunk = chunk[some:]
                        at += some
                several.messages += 1
                prefix = b""
                kind = MORE
            several.objects = 1
        finally:
            several.is_open = False
            self.unread()

    def _claim(self, length: int, kind: int) -> Generator[bool, None, Any]:
        while True:
            self.unread()  # the bound counts objects, and parts of one may be there
            try:
                return self.producer.claim(length, type=self._kind(kind), timeout=0)
            except errors.BackPressured:
                self.needs = length
                self._check_driver()
            yield False

    def _kind(self, kind: int) -> int:
        """Says with what completes an object whether more wait behind it."""
        if kind in (FIRST, MORE):
            return kind
        self._tells = self._tells and self.more_waits
        return kind | MORE_WAITS if self._tells else kind

    def _check_driver(self) -> None:
        """While there is no room: whether there will ever be."""
        self.look()
        if self.producer.closed:
            raise _AnewError

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

    def _came_back(self) -> bool:
        """Takes a lane again: one try. False: no driver admits it yet."""
        try:
            self._take_lane(attach_s=ATTACH_S)
        except (errors.DriverUnavailable, errors.AttachTimeout):
            return False
        return True

    def _take_lane(self, attach_s: float) -> None:
        self.producer = producer = self._free_lane(attach_s)
        producer._comeback = None  # a lane of the same name may be another process's by then
        self._slots = producer.slots
        self._several: deque[_Several] = deque()
        self._tells = False
        most = min(self._bound or self._slots - 1, self._slots - 1)
        code = lib.shmd_producer_keep(producer._open_handle, most)
        if code != 0:
            raise_for(code, stream=producer.stream)
        self._note_look()
        self.max_part = min(producer.max_message, self._max_bytes // 4)
        wired = Deadline(WIRED_S)
        while lib.shmd_guarded_wait_room(producer._open_handle, 1, wired.slice_ns()) != 0:
            if wired.slice_ns() == 0:
                break  # nobody reads this queue or holds it: there is no room

    def _free_lane(self, attach_s: float) -> Producer:
        """Its own one again, if it is free: then a getter has it all in order. Else one that is read."""
        slots = SLOTS_UNBOUNDED
        if self._bound:  # one slot more is for a note
            slots = min(max(self._bound + 1, SLOTS_BOUNDED_MIN), SLOTS_BOUNDED_MAX)
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
                    timestamps=self._is_stamped, attach_timeout=attach_s,
                )  # fmt: skip
            except errors.AttachRejected as error:
                if error.reason not in _TAKEN:
                    raise
                tried.add(number)
            else:
                self._number = number
                return made
