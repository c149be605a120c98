"""What the authority segment says about streams: for error texts, and for the schema of a stream.

Reads the directory in place, as any tool may; no driver is needed. Every record is copied once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from shmdriver import names
from shmdriver._native import ffi, lib
from shmdriver.liveness import pid_text

__all__ = [
    "EpochEnd",
    "Holder",
    "StreamSlot",
    "end_of_epoch",
    "epoch_count",
    "epoch_hot",
    "epochs_before",
    "first_wired_epoch",
    "has_producer",
    "holder_of_gate",
    "holder_of_stream",
    "nearest_stream",
    "reliable_consumers",
    "schema_by_name",
    "schema_of_stream",
    "sealed_epochs",
    "streams_with_prefix",
    "wired_consumers",
]

_COPY_TRIES = 1000
_EPOCH_TRIES = 8
_READABLE = (lib.SHMD_EPOCH_OPEN, lib.SHMD_EPOCH_SEALING, lib.SHMD_EPOCH_SEALED)


class Holder(NamedTuple):
    """The client of a lease. ``pid`` is 0 in another PID namespace; ``label`` has the number all the same."""

    name: str
    pid: int
    label: str


class EpochEnd(NamedTuple):
    """Why an epoch has ended, and how many messages it has."""

    reason: int
    seq: int


class StreamSlot(NamedTuple):
    """A stream as the directory shows it: whether it has a producer, how many consumers and epochs."""

    name: str
    producer: bool
    consumers: int
    epochs: int


def streams_with_prefix(authority: Any, prefix: str) -> list[StreamSlot]:
    """The streams whose name begins with ``prefix``."""
    found = []
    for index in _indexes(authority, prefix):
        stream = _stream(authority, index)
        if stream is not None and (name := _text(stream.name)).startswith(prefix):
            has_producer = stream.producer_lease_id != 0
            consumers = int(stream.gates_used).bit_count()
            found.append(StreamSlot(name, has_producer, consumers, int(stream.epoch_count)))
    return found


def schema_of_stream(authority: Any, stream_index: int) -> str | None:
    """The canonical schema text of a stream, None when it carries bytes."""
    record = _stream(authority, stream_index)
    if record is None or record.schema_bytes == 0 or record.schema_bytes >= lib.SHMD_SCHEMA_BYTES:
        return None
    return bytes(ffi.buffer(record.schema, record.schema_bytes)).decode("utf-8", "replace")


def schema_by_name(authority: Any, stream: str) -> str | None:
    """Likewise by name; None also when there is no such stream."""
    for index in _indexes(authority, stream):
        if _stream_name(authority, index) == stream:
            return schema_of_stream(authority, index)
    return None


def nearest_stream(authority: Any, stream: str) -> str | None:
    """The name of the existing stream that ``stream`` may stand for."""
    known = (_stream_name(authority, index) for index in _indexes(authority, ""))
    return names.nearest(stream, (name for name in known if name and name != stream))


def holder_of_gate(authority: Any, stream_index: int, gate: int) -> Holder | None:
    """The client whose consumer has a gate of a stream, None when it has just left."""
    consumer = lib.SHMD_ROLE_CONSUMER
    return _holder(authority, stream_index, lambda lease: lease.gate == gate and lease.role == consumer)


def holder_of_stream(authority: Any, stream: str) -> Holder | None:
    """The client that produces a stream, None when there is none."""
    role = lib.SHMD_ROLE_PRODUCER
    index = next((i for i in _indexes(authority, stream) if _stream_name(authority, i) == stream), None)
    return None if index is None else _holder(authority, index, lambda lease: lease.role == role)


def _holder(authority: Any, stream_index: int, is_wanted: Callable[[Any], bool]) -> Holder | None:
    """The client of the live lease of a stream that is wanted."""
    live = (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE, lib.SHMD_LEASE_STALLED)
    states, index = sum(1 << state for state in live), -1
    while (index := lib.shmd_authority_next(authority, lib.SHMD_TABLE_LEASES, states, index + 1)) >= 0:
        record = lib.shmd_authority_lease(authority, index)
        if record.stream_index != stream_index:
            continue  # not copied: there may be thousands
        lease = _copy("shmd_lease_record_t *", record)
        is_whole = lease is not None and lease.stream_index == stream_index
        if is_whole and is_wanted(lease) and lease.client_index < authority.client_max:
            client = _copy("shmd_client_record_t *", lib.shmd_authority_client(authority, lease.client_index))
            if client is not None and client.client_id == lease.client_id:
                pid, namespace = int(client.pid), int(client.pid_namespace)
                is_ours = namespace == lib.shmd_pid_namespace()
                return Holder(_text(client.name), pid if is_ours else 0, pid_text(pid, namespace))
    return None


def wired_consumers(authority: Any, stream_index: int, epoch: int) -> int:
    """How many consumers, of any delivery, are wired to an epoch of a stream."""
    return sum(int(record.hot.wired_mask).bit_count() for record in _epochs(authority, stream_index, epoch))


def reliable_consumers(authority: Any, stream_index: int, epoch: int) -> int:
    """How many consumers an epoch of a stream is kept for."""
    return sum(int(record.hot.gate_mask).bit_count() for record in _epochs(authority, stream_index, epoch))


def has_producer(authority: Any, stream: str) -> bool:
    """Whether a stream has one now."""
    return any(slot.name == stream and slot.producer for slot in streams_with_prefix(authority, stream))


def epoch_count(authority: Any, stream_index: int) -> int:
    """The number of a stream's newest epoch; before its first, that of its record's last one."""
    record = lib.shmd_authority_stream(authority, stream_index)
    count = int(lib.shmd_word_load(ffi.addressof(record, "epoch_count")))
    return count or epochs_before(authority, stream_index)


def epochs_before(authority: Any, stream_index: int) -> int:
    """The number that a stream's first epoch follows: 0, or the last in its record of streams before it."""
    return int(lib.shmd_authority_stream(authority, stream_index).epochs_before)


def first_wired_epoch(authority: Any, stream_index: int, gate: int) -> int:
    """The oldest epoch that the consumer at ``gate`` may read; the next one to come when that is none yet."""
    after = epoch_count(authority, stream_index) + 1
    wired = [
        int(record.epoch)
        for record in _epochs(authority, stream_index)
        if int(record.hot.state) & 0xFF in _READABLE and int(record.hot.wired_mask) >> gate & 1
    ]
    return min(wired, default=after)


def sealed_epochs(authority: Any, stream_index: int) -> dict[int, int]:
    """How many messages each sealed epoch of a stream has, of those that are still in the directory."""
    return {
        int(record.epoch): int(record.hot.sealed_seq)
        for record in _epochs(authority, stream_index)
        if int(record.hot.state) & 0xFF == lib.SHMD_EPOCH_SEALED
    }


def end_of_epoch(authority: Any, stream_index: int, epoch: int) -> EpochEnd | None:
    """How an epoch has ended: None while it has not; reason 0, seq 0 when that is not known any more."""
    for record in _epochs(authority, stream_index, epoch):
        if int(record.hot.state) & 0xFF in (lib.SHMD_EPOCH_OPEN, lib.SHMD_EPOCH_SEALING):
            return None
        return EpochEnd(int(record.end_reason), int(record.hot.sealed_seq))
    is_reused = epoch_count(authority, stream_index) >= epoch + int(lib.SHMD_EPOCH_RECORDS)
    return EpochEnd(0, 0) if is_reused else None  # it is being written just now


def epoch_hot(authority: Any, stream_index: int, epoch: int) -> Any:
    """The words of an epoch that change; None when its record serves another by now."""
    record = lib.shmd_authority_stream(authority, stream_index)
    for slot in range(int(lib.SHMD_EPOCH_RECORDS)):
        hot = ffi.addressof(record.epochs[slot], "hot")
        if lib.shmd_word_load(ffi.addressof(hot, "state")) >> 8 == epoch:
            return hot
    return None


def _epochs(authority: Any, stream_index: int, number: int | None = None) -> list[Any]:
    """Copies of the epoch records of a stream, or of the one of that number."""
    stream = lib.shmd_authority_stream(authority, stream_index)
    found = []
    for slot in range(int(lib.SHMD_EPOCH_RECORDS)):
        out = ffi.new("shmd_epoch_record_t *")
        # one that is rewritten serves no epoch yet: no reason to wait
        tries = (lib.shmd_epoch_copy(out, ffi.addressof(stream.epochs[slot])) for _ in range(_EPOCH_TRIES))
        if any(tries) and number in (None, int(out.epoch)):
            found.append(out)
    return found


def _indexes(authority: Any, prefix: str) -> list[int]:
    """Where the streams stand whose name begins with ``prefix``."""
    most = int(authority.stream_max)
    out = ffi.new("uint32_t[]", most)
    return list(ffi.unpack(out, lib.shmd_streams_named(authority, prefix.encode(), out, most)))


def _stream_name(authority: Any, index: int) -> str:
    record = _stream(authority, index)
    return "" if record is None else _text(record.name)


def _stream(authority: Any, index: int) -> Any:
    """A copy of the record of a stream; None when it serves none."""
    record = _copy("shmd_stream_record_t *", lib.shmd_authority_stream(authority, index))
    return record if record is not None and int(record.word) & 0xFF == lib.SHMD_RECORD_USED else None


def _copy(kind: str, record: Any) -> Any:
    """A consistent copy of a record; None when it kept changing, or a driver was killed that rewrote it."""
    out = ffi.new(kind)
    for _ in range(_COPY_TRIES):
        if lib.shmd_record_copy(out, record, ffi.sizeof(out[0])):
            return out
        os.sched_yield()
    return None


def _text(field: Any) -> str:
    return str(ffi.string(field).decode("utf-8", "replace"))
