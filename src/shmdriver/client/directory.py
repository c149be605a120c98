"""What the authority segment says about streams: for error texts, and for the schema of a stream.

Reads the directory in place, as any tool may; no driver is needed. Every record is copied once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shmdriver import names
from shmdriver._native import ffi, lib

__all__ = [
    "Blocker",
    "StreamSlot",
    "blocker_of",
    "epoch_count",
    "epoch_hot",
    "first_wired_epoch",
    "nearest_stream",
    "producer_pid",
    "reliable_consumers",
    "schema_by_name",
    "schema_of_stream",
    "sealed_epochs",
    "streams_with_prefix",
    "wired_consumers",
]

_COPY_TRIES = 100
_READABLE = (lib.SHMD_EPOCH_OPEN, lib.SHMD_EPOCH_SEALING, lib.SHMD_EPOCH_SEALED)


class Blocker(NamedTuple):
    """The client behind a gate."""

    name: str
    pid: int


class StreamSlot(NamedTuple):
    """A stream as the directory shows it: whether it has a producer, and how many consumers are attached."""

    name: str
    producer: bool
    consumers: int


def streams_with_prefix(authority: Any, prefix: str) -> list[StreamSlot]:
    """The streams whose name begins with ``prefix``."""
    found = []
    for index in _indexes(authority, prefix):
        record = lib.shmd_authority_stream(authority, index)
        producer = lib.shmd_word_load(ffi.addressof(record, "producer_lease_id"))
        gates = int(lib.shmd_word_load(ffi.addressof(record, "gates_used")))
        name = _name_of(record)
        if name.startswith(prefix):
            found.append(StreamSlot(name, producer != 0, gates.bit_count()))
    return found


def schema_of_stream(authority: Any, stream_index: int) -> str | None:
    """The canonical schema text of a stream, None when it carries bytes."""
    record = _copy("shmd_stream_record_t *", lib.shmd_authority_stream(authority, stream_index))
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


def blocker_of(authority: Any, stream_index: int, gate: int) -> Blocker | None:
    """Who holds the gate of a stream; None when that cannot be told any more."""
    live = (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE, lib.SHMD_LEASE_STALLED)
    for index in range(authority.lease_max):
        record = lib.shmd_authority_lease(authority, index)
        if lib.shmd_word_load(ffi.addressof(record, "word")) & 0xFF not in live:
            continue
        lease = _copy("shmd_lease_record_t *", record)
        if (
            lease is not None
            and lease.stream_index == stream_index
            and lease.gate == gate
            and lease.role == lib.SHMD_ROLE_CONSUMER
            and lease.client_index < authority.client_max
        ):
            client = _copy("shmd_client_record_t *", lib.shmd_authority_client(authority, lease.client_index))
            if client is not None:
                return Blocker(_text(client.name), int(client.pid))
    return None


def wired_consumers(authority: Any, stream_index: int, epoch: int) -> int:
    """How many consumers, of any delivery, are wired to an epoch of a stream."""
    hot = epoch_hot(authority, stream_index, epoch)
    return 0 if hot is None else int(lib.shmd_word_load(ffi.addressof(hot, "wired_mask"))).bit_count()


def reliable_consumers(authority: Any, stream_index: int, epoch: int) -> int:
    """How many consumers an epoch of a stream is kept for."""
    hot = epoch_hot(authority, stream_index, epoch)
    return 0 if hot is None else int(lib.shmd_word_load(ffi.addressof(hot, "gate_mask"))).bit_count()


def producer_pid(authority: Any, stream: str) -> int:
    """Of the process that produces a stream, as it said; 0 when there is none."""
    for index in _indexes(authority, stream):
        if _stream_name(authority, index) == stream:
            record = lib.shmd_authority_stream(authority, index)
            if lib.shmd_word_load(ffi.addressof(record, "producer_lease_id")) == 0:
                return 0
            newest = epoch_count(authority, index)
            pids = [int(epoch.producer_pid) for epoch in record.epochs if int(epoch.epoch) == newest]
            return pids[0] if pids else 0
    return 0


def epoch_count(authority: Any, stream_index: int) -> int:
    """The number of a stream's newest epoch."""
    record = lib.shmd_authority_stream(authority, stream_index)
    return int(lib.shmd_word_load(ffi.addressof(record, "epoch_count")))


def first_wired_epoch(authority: Any, stream_index: int, gate: int) -> int:
    """The oldest epoch that the consumer at ``gate`` may read; the next one to come when that is none yet."""
    after = epoch_count(authority, stream_index) + 1
    record = lib.shmd_authority_stream(authority, stream_index)
    wired = []
    for slot in range(int(lib.SHMD_EPOCH_RECORDS)):
        hot = ffi.addressof(record.epochs[slot], "hot")
        state = int(lib.shmd_word_load(ffi.addressof(hot, "state")))
        if state & 0xFF in _READABLE and lib.shmd_word_load(ffi.addressof(hot, "wired_mask")) >> gate & 1:
            wired.append(state >> 8)
    return min(wired, default=after)


def sealed_epochs(authority: Any, stream_index: int) -> dict[int, int]:
    """How many messages each sealed epoch of a stream has, of those that are still in the directory."""
    record = lib.shmd_authority_stream(authority, stream_index)
    found = {}
    for slot in range(int(lib.SHMD_EPOCH_RECORDS)):
        hot = ffi.addressof(record.epochs[slot], "hot")
        state = int(lib.shmd_word_load(ffi.addressof(hot, "state")))
        sealed = int(lib.shmd_word_load(ffi.addressof(hot, "sealed_seq")))
        unchanged = lib.shmd_word_load(ffi.addressof(hot, "state")) == state
        if unchanged and state & 0xFF == lib.SHMD_EPOCH_SEALED:
            found[state >> 8] = sealed
    return found


def epoch_hot(authority: Any, stream_index: int, epoch: int) -> Any:
    """The words of an epoch that change; None when its record serves another by now."""
    record = lib.shmd_authority_stream(authority, stream_index)
    for slot in range(int(lib.SHMD_EPOCH_RECORDS)):
        hot = ffi.addressof(record.epochs[slot], "hot")
        if lib.shmd_word_load(ffi.addressof(hot, "state")) >> 8 == epoch:
            return hot
    return None


def _indexes(authority: Any, prefix: str) -> list[int]:
    """Where the streams stand whose name begins with ``prefix``."""
    most = int(authority.stream_max)
    out = ffi.new("uint32_t[]", most)
    return list(ffi.unpack(out, lib.shmd_streams_named(authority, prefix.encode(), out, most)))


def _stream_name(authority: Any, index: int) -> str:
    return _name_of(lib.shmd_authority_stream(authority, index))


def _name_of(record: Any) -> str:
    if lib.shmd_word_load(ffi.addressof(record, "word")) & 0xFF != lib.SHMD_RECORD_USED:
        return ""
    return _text(record.name)


def _copy(kind: str, record: Any) -> Any:
    """A consistent copy of a record; None when it kept changing."""
    out = ffi.new(kind)
    for _ in range(_COPY_TRIES):
        if lib.shmd_record_copy(out, record, ffi.sizeof(out[0])):
            return out
    return None


def _text(field: Any) -> str:
    return str(ffi.string(field).decode("utf-8", "replace"))
