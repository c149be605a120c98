"""The authority's tables as anybody reads them: one snapshot of all records, unpacked from the shared bytes."""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.driver.segments import authority_name, control_name

_CLIENT = struct.Struct("<4Qq4QII176x")
_LEASE = struct.Struct("<10Q17I108x")
_STREAM = struct.Struct("<4QIIQQII64s")
_EPOCH = struct.Struct("<5Q88x6Q8Iq40x96s96s64x")
EPOCHS_OFFSET = 1792
LIVE = (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE, lib.SHMD_LEASE_STALLED)
EVENT_FIELDS = ("kind", "code", "reason", "correlation_id", "client_id", "lease_id", "client_index", "lease_index",
                "stream_index", "stream_id", "epoch", "gate", "state", "start_seq", "value")  # fmt: skip


class ClientRecord(NamedTuple):
    word: int
    client_id: int
    correlation_id: int
    nonce: int
    pid: int
    start_time: int
    pid_namespace: int
    attached_ns: int
    seen_ns: int
    provable: int
    index: int


class LeaseRecord(NamedTuple):
    word: int
    lease_id: int
    client_id: int
    correlation_id: int
    start_seq: int
    joined_seq: int
    attached_ns: int
    deadline_ns: int
    ended_ns: int
    schema_hash: int
    client_index: int
    stream_index: int
    stream_id: int
    role: int
    delivery: int
    start: int
    wait: int
    flags: int
    gate: int
    first_epoch: int
    epoch: int
    record: int
    end_reason: int
    quarantined: int
    slow_consumer: int
    min_consumers: int
    index: int

    @property
    def state(self) -> int:
        return self.word & 0xFF

    @property
    def is_live(self) -> bool:
        return self.word & 0xFF in LIVE

    @property
    def is_producer(self) -> bool:
        return bool(self.role == lib.SHMD_ROLE_PRODUCER)


class EpochRecord(NamedTuple):
    hot: int
    gate_mask: int
    sleep_mask: int
    sealed_seq: int
    wired_mask: int
    producer_lease_id: int
    opened_ns: int
    sealed_ns: int
    arena_bytes: int
    data_bytes: int
    gates_bytes: int
    slots: int
    slot_bytes: int
    gate_count: int
    end_reason: int
    unproven: int
    flags: int
    stream_id: int
    epoch: int
    producer_pid: int
    data_name: bytes
    gates_name: bytes

    @property
    def state(self) -> int:
        return self.hot & 0xFF

    @property
    def number(self) -> int:
        return self.hot >> 8


class StreamRecord(NamedTuple):
    word: int
    epoch_count: int
    producer_lease_id: int
    gates_used: int
    stream_id: int
    schema_bytes: int
    schema_hash: int
    created_ns: int
    index: int
    max_consumers: int
    name: bytes
    epochs: tuple[EpochRecord, ...]


class Event(NamedTuple):
    kind: int
    code: int
    reason: int
    correlation_id: int
    client_id: int
    lease_id: int
    client_index: int
    lease_index: int
    stream_index: int
    stream_id: int
    epoch: int
    gate: int
    state: int
    start_seq: int
    value: int
    raw: bytes
    text: str


class Snapshot(NamedTuple):
    clients: list[ClientRecord]
    leases: list[LeaseRecord]
    streams: list[StreamRecord]  # those in use


class View:
    """The two segments of one boot, mapped as clients map them; outlives its drivers and its names."""

    def __init__(self, instance: str) -> None:
        self._mapped = [_map(authority_name(instance), False), _map(control_name(instance), True)]
        self.authority = ffi.cast("shmd_authority_t *", self._mapped[0][0])
        self.control = ffi.cast("shmd_control_t *", self._mapped[1][0])
        base = ffi.cast("unsigned char *", self.authority)
        self.boot_id = int(self.authority.header.boot_id)
        self._clients = ffi.buffer(base + self.authority.clients_offset, self.authority.client_max * _CLIENT.size)
        self._leases = ffi.buffer(base + self.authority.leases_offset, self.authority.lease_max * _LEASE.size)
        self._streams = ffi.buffer(base + self.authority.streams_offset, self.authority.stream_max * 4096)
        self._cursor = ffi.new("uint64_t *", 0)
        self._lost = ffi.new("uint64_t *")
        self._event = ffi.new("shmd_event_t *")

    def close(self) -> None:
        for base, size in self._mapped:
            lib.shmd_segment_unmap(base, size)

    def snapshot(self) -> Snapshot:
        streams = bytes(self._streams)
        return Snapshot(
            [ClientRecord._make(found) for found in _CLIENT.iter_unpack(self._clients)],
            [LeaseRecord._make(found) for found in _LEASE.iter_unpack(self._leases)],
            [_stream(streams, at) for at in range(0, len(streams), 4096) if streams[at] == lib.SHMD_RECORD_USED],
        )

    def events(self) -> tuple[list[Event], int]:
        """What was published since the last call, and how many events were missed."""
        found = []
        event = self._event
        self._lost[0] = 0
        while lib.shmd_event_poll(self.authority, self._cursor, event, self._lost) == 1:
            values = [int(getattr(event, name)) for name in EVENT_FIELDS]
            text = bytes(ffi.string(event.text)).decode()
            found.append(Event(*values, raw=bytes(ffi.buffer(event)), text=text))
        return found, int(self._lost[0])


def _stream(data: bytes, at: int) -> StreamRecord:
    end = at + EPOCHS_OFFSET + 4 * _EPOCH.size
    epochs = tuple(EpochRecord._make(found) for found in _EPOCH.iter_unpack(data[at + EPOCHS_OFFSET : end]))
    return StreamRecord._make((*_STREAM.unpack_from(data, at), epochs))


def _map(name: str, writable: bool) -> tuple[Any, int]:
    size, out = ffi.new("uint64_t *"), ffi.new("void **")
    fd = lib.shmd_segment_open(name.encode(), int(writable), size)
    assert fd >= 0, f"{name} cannot be opened"
    assert lib.shmd_segment_map(fd, 0, size[0], int(writable), 0, out) == 0
    os.close(fd)
    return out[0], int(size[0])
