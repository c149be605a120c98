"""The stream directory: which streams there are, their epochs, who is attached to them.

A stream record is published by its word; its epochs by their state words, then ``epoch_count``. Every
function that changes a table does it in the order data, state; the caller emits the event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import (
    Authority,
    clear_record,
    is_rewritten,
    publish_word,
    put_text,
    record_state,
    rewrite_record,
    room_advice,
    text_of,
)
from shmdriver.driver.epochs import Epoch, fill_record, free_record, retire_record
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.geometry import Geometry
from shmdriver.driver.leases import Activity, Lease
from shmdriver.driver.memory import EpochMemory, Provision, Unmap, left_marks
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.shm import unlink_segment
from shmdriver.errors import LayoutMismatch, Reason

__all__ = ["Stream", "StreamDirectory"]


class GivenUp(NamedTuple):
    """An epoch whose segments a driver did not find as the directory has them."""

    record: Any  # as it was: it names its producer, and its consumers' gates
    left: frozenset[int]  # leases whose owners have drained it, as far as that is not lost, too
    text: str


class Stream:
    """One stream record with its epochs in use and its live leases."""

    __slots__ = ("epochs", "given_up", "index", "leases", "name", "provisioning", "record", "set_aside")

    def __init__(self, record: Any, index: int) -> None:
        self.record = record
        self.index = index
        self.name = text_of(record.name)
        self.epochs: dict[int, Epoch] = {}  # by record slot
        self.leases: dict[int, Lease] = {}  # by lease id
        self.set_aside: dict[int, Lease] = {}  # ended ones whose owners may still write in epochs in use
        self.provisioning: object | None = None  # the attach that waits for an epoch's memory
        self.given_up: list[GivenUp] = []  # by the load, until ``retire_given_up``

    @property
    def stream_id(self) -> int:
        """Never given twice in a boot."""
        return int(self.record.stream_id)

    @property
    def schema(self) -> str:
        """Canonical text; "" for bytes."""
        return text_of(self.record.schema) if self.record.schema_bytes else ""

    @property
    def producer(self) -> Lease | None:
        """The live producer lease."""
        return self.leases.get(int(self.record.producer_lease_id))

    @property
    def consumers(self) -> list[Lease]:
        """Live consumer leases."""
        return [lease for lease in self.leases.values() if not lease.is_producer]

    @property
    def in_order(self) -> list[Epoch]:
        """Epochs in use, oldest first."""
        return sorted(self.epochs.values(), key=lambda epoch: epoch.number)

    def activity(self, lease: Lease) -> Activity:
        """What only this lease's owner moves, in each epoch that it has a part in."""
        epochs = [epoch for epoch in self.epochs.values() if epoch.has_part(lease)]
        return {epoch.number: epoch.activity(lease) for epoch in epochs}

    @property
    def open_epoch(self) -> Epoch | None:
        """The epoch that a producer writes."""
        return next((epoch for epoch in self.epochs.values() if epoch.is_open), None)

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch in use."""
        return max(self.epochs.values(), key=lambda epoch: epoch.number, default=None)

    @property
    def next_epoch(self) -> int:
        """The number of the epoch to come: no epoch of any stream has had it in this record."""
        return max(int(self.record.epoch_count), int(self.record.epochs_before)) + 1

    @property
    def is_left(self) -> bool:
        """Nobody is attached."""
        return not (self.leases or self.provisioning)

    @property
    def is_idle(self) -> bool:
        """Nobody is attached, nothing is kept: its record may be used for another stream."""
        return self.is_left and not self.epochs

    # -- gates

    def fit_gates(self, configured: int) -> int:
        """How many gates the next epoch gets: as many as are configured now, and all that are in use."""
        count = max(configured, sum(1 << gate for gate in self._live_gates()).bit_length())
        self.record.max_consumers = count
        return count

    def take_gate(self, epoch: Epoch | None) -> int:
        """The lowest free gate index that all epochs in use have, marked used. Raises Rejection.

        ``epoch``: the first one that the consumer is wired to; None: the next one to come. A gate that an
        ended lease may still write is set aside in the epochs that its owner may have mapped, not in later
        ones.
        """
        counts = [epoch.geometry.gate_count for epoch in self.epochs.values()]
        limit = min([int(self.record.max_consumers), *counts])
        first = self.next_epoch if epoch is None else epoch.number
        aside = {lease.gate for lease in self.set_aside.values() if lease.last_epoch >= first}
        used = self._live_gates() | aside
        for gate in range(limit):
            if gate not in used:
                self._store("gates_used", int(self.record.gates_used) | 1 << gate)
                failpoint("gate.taken")
                return gate
        raise Rejection(
            Reason.LIMIT,
            f"stream {self.name!r} has {limit} consumers, live or not proved gone: close some, or set "
            f"profiles.<name>.max_consumers higher (at most {int(lib.SHMD_GATE_MAX)}), which holds from the "
            "stream's next producer on",
        )

    def _live_gates(self) -> set[int]:
        return {lease.gate for lease in self.consumers}

    def note_gates(self) -> None:
        """Publishes which gates are used: those of live leases, and those that are set aside."""
        failpoint("gate.freeing")
        aside = {lease.gate for lease in self.set_aside.values() if not lease.is_producer}
        self._store("gates_used", sum(1 << gate for gate in self._live_gates() | aside))

    def keeps(self, lease: Lease) -> bool:
        """Whether an epoch is in use that the owner of an ended lease may have mapped, and still write."""
        first = lease.last_epoch if lease.is_producer else int(lease.record.first_epoch)
        return first > 0 and any(first <= epoch.number <= lease.last_epoch for epoch in self.epochs.values())

    def unwire(self, gate: int) -> None:
        """Clears a gate's bits in all epochs that it is wired to."""
        for epoch in self.in_order:
            if epoch.is_wired(gate):
                epoch.leave(gate)

    def holders(self, epoch: Epoch, *, reliable_only: bool) -> list[Lease]:
        """Consumers that are wired to an epoch and have not left it."""
        return [
            lease
            for lease in self.consumers
            if (lease.is_reliable or not reliable_only)
            and epoch.is_wired(lease.gate)
            and not epoch.has_left(lease)
        ]

    def has_read_on(self, lease: Lease, number: int) -> bool:
        """Whether a consumer has begun an epoch after that one, as it does only once it has left that one."""
        return any(
            epoch.number > number and epoch.has_part(lease) and any(epoch.activity(lease))
            for epoch in self.epochs.values()
        )

    # -- schema

    def set_schema(self, text: str) -> None:
        """Replaces the schema."""
        if text == self.schema:
            return
        rewrite_record(self.record, lib.SHMD_RECORD_USED)
        data = text.encode()
        failpoint("schema.began")
        self.record.schema_bytes = 0
        put_text(self.record.schema, text)
        failpoint("schema.blank")
        self.record.schema_hash = lib.shmd_hash(data, len(data), 0) if data else 0
        self.record.schema_bytes = len(data)
        publish_word(self.record, lib.SHMD_RECORD_USED, reuse=True)

    # -- epochs

    def free_slot(self) -> int | None:
        """The epoch record that has been free for longest: late readers look there how their epoch ended."""
        free = (slot for slot in range(lib.SHMD_EPOCH_RECORDS) if slot not in self.epochs)
        return min(free, key=lambda slot: int(self.record.epochs[slot].epoch), default=None)

    def fill_epoch(self, slot: int, job: Provision, memory: EpochMemory, *, lease_id: int, pid: int) -> Epoch:
        """A new epoch's record and gates with all present consumers wired at seq 0; not published."""
        record = ffi.addressof(self.record.epochs[slot])
        fill_record(record, job, lease_id=lease_id, pid=pid)
        native = job.geometry.native(boot_id=job.boot_id, stream_id=job.stream_id, epoch=job.epoch)
        epoch = Epoch(record, slot, job.epoch, native, memory)
        failpoint("epoch.filled")
        masks = {"wired_mask": 0, "gate_mask": 0, "sleep_mask": 0}
        for lease in self.consumers:
            if not lease.follows and 0 < int(lease.record.first_epoch) < job.epoch:
                continue
            bit = 1 << lease.gate
            gate = lib.shmd_gates_gate(memory.gates, lease.gate)
            gate.lease_id = lease.lease_id
            masks["wired_mask"] |= bit
            masks["gate_mask"] |= bit if lease.is_reliable else 0
            masks["sleep_mask"] |= bit if epoch.may_sleep(lease) else 0
            if int(lease.record.first_epoch) == 0:
                lease.record.first_epoch = job.epoch
        for name, mask in masks.items():
            lib.shmd_word_store_seq_cst(ffi.addressof(epoch.hot, name), mask)
        failpoint("epoch.masks")
        return epoch

    def publish_epoch(self, epoch: Epoch) -> None:
        """Opens a filled epoch: its state, then the stream's words (an adopting driver redoes the latter)."""
        lib.shmd_word_store_seq_cst(
            ffi.addressof(epoch.hot, "state"), epoch.number << 8 | lib.SHMD_EPOCH_OPEN
        )
        failpoint("epoch.opened")
        self.epochs[epoch.slot] = epoch
        self.note_producer(epoch)

    def note_producer(self, epoch: Epoch) -> None:
        """The stream's words of an open epoch: who produces, and its number, which consumers poll."""
        self._store("producer_lease_id", int(epoch.record.producer_lease_id))
        failpoint("epoch.producer_noted")
        self._store("epoch_count", epoch.number)
        failpoint("epoch.counted")

    def withdraw_epoch(self, slot: int, number: int) -> None:
        """Undoes ``fill_epoch`` and ``publish_epoch``, however far they came. The memory is the caller's."""
        self.epochs.pop(slot, None)
        self.clear_producer()
        free_record(ffi.addressof(self.record.epochs[slot]))
        for lease in self.consumers:
            if int(lease.record.first_epoch) == number:
                lease.record.first_epoch = 0  # wired into an epoch that is none

    def clear_producer(self) -> None:
        """No producer now."""
        failpoint("producer.clearing")
        self._store("producer_lease_id", 0)
        failpoint("producer.cleared")

    def _store(self, field: str, value: int) -> None:
        lib.shmd_word_store(ffi.addressof(self.record, field), value)


class StreamDirectory:
    """All streams of one instance."""

    def __init__(self, authority: Authority, *, limit: int, release: Callable[[Unmap], None]) -> None:
        self._authority = authority
        self._limit = min(limit, authority.sizes.streams)
        self._release = release  # gives memory back, in its own time
        self._by_name: dict[str, Stream] = {}
        self._by_index: dict[int, Stream] = {}
        self._free = list(range(authority.sizes.streams - 1, -1, -1))
        self.segment_bytes = 0
        self.on_retired: Callable[[Stream], None] = lambda _stream: None

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._by_index.values()))

    def find(self, name: str) -> Stream | None:
        """By name."""
        return self._by_name.get(name)

    def of(self, lease: Lease) -> Stream:
        """A lease's stream."""
        return self._by_index[int(lease.record.stream_index)]

    def name_of(self, lease: Lease) -> str:
        """The name of a lease's stream, also of an ended lease; "" when the stream is gone."""
        stream = self._by_index.get(int(lease.record.stream_index))
        return stream.name if stream and stream.stream_id == int(lease.record.stream_id) else ""

    @property
    def names(self) -> list[str]:
        """Of all streams, for suggestions."""
        return list(self._by_name)

    @property
    def has_room(self) -> bool:
        """Whether one more fits; records of streams that keep nothing are freed at need."""
        if len(self._by_index) >= self._limit or not self._free:
            self._forget_idle()
        return len(self._by_index) < self._limit and bool(self._free)

    def create(self, name: str, *, max_consumers: int, schema: str, now_ns: int) -> Stream:
        """A new stream without an epoch. Raises Rejection when there are too many."""
        if not self.has_room:
            raise Rejection(
                Reason.LIMIT,
                f"{len(self._by_index)} of {self._limit} streams are in use: "
                + room_advice(
                    "policies.limits.streams",
                    self._limit,
                    self._authority.sizes.streams,
                    self._authority.instance,
                ),
            )
        index = self._free.pop()
        record = self._authority.stream(index)
        _clear(record)
        record.stream_id = self._authority.take_id("next_stream_id")
        record.index, record.max_consumers, record.created_ns = index, max_consumers, now_ns
        put_text(record.name, name)
        if schema:
            data = schema.encode()
            put_text(record.schema, schema)
            record.schema_hash, record.schema_bytes = lib.shmd_hash(data, len(data), 0), len(data)
        failpoint("stream.filled")
        publish_word(record, lib.SHMD_RECORD_USED, reuse=True)
        failpoint("stream.published")
        return self._enter(Stream(record, index))

    def add_epoch_bytes(self, size: int) -> None:
        """Accounts for segments made (positive) or given back (negative)."""
        self.segment_bytes += size
        lib.shmd_counter_set(self._authority.base, lib.SHMD_COUNTER_SEGMENT_BYTES, self.segment_bytes)

    def retire(self, stream: Stream, epoch: Epoch) -> None:
        """Takes a sealed epoch out of the directory, unlinks its segments, gives its memory back."""
        self._authority.tell_links(text_of(epoch.record.data_name), text_of(epoch.record.gates_name))
        retire_record(epoch.record)
        del stream.epochs[epoch.slot]
        self.add_epoch_bytes(-epoch.memory.size)
        self._authority.count(lib.SHMD_COUNTER_EPOCHS_RETIRED)
        self._authority.count(lib.SHMD_COUNTER_SEGMENTS_UNLINKED, 2)
        self._release(Unmap(epoch.memory))
        self.on_retired(stream)

    def unlink_all(self) -> None:
        """At the very end: no name is left. Sealed records stay, for whoever drains what it has mapped."""
        for name in self.segment_names():
            failpoint("stop.unlinking")
            if unlink_segment(name):
                self._authority.count(lib.SHMD_COUNTER_SEGMENTS_UNLINKED)

    def load(self, leases: Iterable[Lease], set_aside: Iterable[Lease]) -> list[str]:
        """Takes over what the tables show; texts about what could not be.

        ``leases`` are the live ones, ``set_aside`` ended ones whose owners may still write.

        Epochs whose segments are lost are in ``given_up``. Their records stay until the caller has told
        their readers, and calls ``retire_given_up``.
        """
        problems: list[str] = []
        self._free.clear()
        for index in range(self._authority.sizes.streams - 1, -1, -1):
            record = self._authority.stream(index)
            if record_state(record) != lib.SHMD_RECORD_USED:
                self._free.append(index)
                continue
            if is_rewritten(record):  # killed while it replaced the schema: the next attach says which
                publish_word(record, lib.SHMD_RECORD_USED, reuse=True)
            stream = self._enter(Stream(record, index))
            for slot in range(lib.SHMD_EPOCH_RECORDS):
                problems += self._load_epoch(stream, slot)
        for lease in leases:
            self.of(lease).leases[lease.lease_id] = lease
        for lease in set_aside:
            if self.name_of(lease):
                self.of(lease).set_aside[lease.lease_id] = lease
        return problems

    def retire_given_up(self) -> None:
        """Frees the records of epochs whose segments are lost. Nobody finds after that who read them."""
        for stream in self:
            for epoch in stream.given_up:
                retire_record(epoch.record)
            stream.given_up.clear()

    def segment_names(self) -> set[str]:
        """The names of all segments that records point to."""
        return {
            text_of(name)
            for stream in self
            for epoch in stream.epochs.values()
            for name in (epoch.record.data_name, epoch.record.gates_name)
        }

    def close(self) -> None:
        """Unmaps everything; names and records stay."""
        for stream in self:
            for epoch in stream.epochs.values():
                epoch.memory.close()
            stream.epochs.clear()

    def _load_epoch(self, stream: Stream, slot: int) -> list[str]:
        record = ffi.addressof(stream.record.epochs[slot])
        state, number = int(record.hot.state) & 0xFF, int(record.hot.state) >> 8
        if state == lib.SHMD_EPOCH_FREE:
            return []
        if state == lib.SHMD_EPOCH_RETIRED:
            free_record(record)  # its last step, once more
            return []
        native = Geometry.of_record(record).native(
            boot_id=self._authority.boot_id, stream_id=stream.stream_id, epoch=number
        )
        try:
            memory = EpochMemory.open(
                text_of(record.data_name),
                text_of(record.gates_name),
                int(record.data_bytes),
                int(record.gates_bytes),
            )
        except (FileNotFoundError, LayoutMismatch) as error:
            # Its segments are gone or are not what they were: nobody can attach to it any more. Any
            # other error (no descriptor, no memory) says nothing of them: this start fails, and a
            # later one adopts.
            text = f"epoch {number} of stream {stream.name!r} is lost: {error}"
            left = left_marks(text_of(record.gates_name), int(record.gates_bytes), int(record.gate_count))
            stream.given_up.append(GivenUp(record, left, text))
            return [text]
        with ExitStack() as undo:
            undo.callback(memory.close)
            stream.epochs[slot] = Epoch(record, slot, number, native, memory)
            undo.pop_all()
        self.add_epoch_bytes(memory.size)
        return []

    def _enter(self, stream: Stream) -> Stream:
        self._by_name[stream.name] = stream
        self._by_index[stream.index] = stream
        return stream

    def _forget_idle(self) -> None:
        for stream in self:
            if stream.is_idle:
                publish_word(stream.record, lib.SHMD_RECORD_FREE)
                failpoint("stream.forgotten")
                del self._by_name[stream.name], self._by_index[stream.index]
                self._free.append(stream.index)


def _clear(record: Any) -> None:
    """Begins to fill a stream's record. What was known of its epochs stays, and their numbers go on.

    Late users of the stream before look there: a producer compares its epoch's word with the one that it
    knows, whether or not it has been told that its lease has ended.
    """
    given = [int(epoch.hot.state) >> 8 for epoch in record.epochs]  # also those that were never counted
    record.epochs_before = max(int(record.epochs_before), int(record.epoch_count), *given)
    failpoint("stream.numbered")
    clear_record(record, size=ffi.offsetof("shmd_stream_record_t", "epochs"))
