"""The authority's tables as anybody reads them: a snapshot of all records, unpacked from the shared bytes."""

from __future__ import annotations

import os
import struct
from collections import namedtuple
from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from tests.segments import path_of, segment_name

LIVE = (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE, lib.SHMD_LEASE_STALLED)
_CODES = {"uint64_t": "Q", "int64_t": "q", "uint32_t": "I"}


class _Layout:
    """A C record as Python sees it: offsets as cffi knows them, so that a layout may change."""

    def __init__(self, ctype: str) -> None:
        names: list[str] = []
        parts: list[str] = ["<"]
        self._describe(ffi.typeof(ctype), names, parts)
        self._struct = struct.Struct("".join(parts))
        self.size = self._struct.size
        assert self.size == ffi.sizeof(ctype), f"{ctype}: a kind of field that this does not know"
        fields: Any = namedtuple("Record", names)  # type: ignore[misc]  # noqa: PYI024 -- the core's
        self._make = fields._make

    def _describe(self, ctype: Any, names: list[str], parts: list[str]) -> None:
        end = 0
        for name, field in ctype.fields:
            parts.append(f"{field.offset - end}x")
            end = field.offset + ffi.sizeof(field.type)
            if field.type.kind == "struct":
                self._describe(field.type, names, parts)
            elif field.type.cname in _CODES:
                names.append(name)
                parts.append(_CODES[field.type.cname])
            elif name.endswith(("name", "sha256")):
                names.append(name)
                parts.append(f"{ffi.sizeof(field.type)}s")
            else:
                parts.append(f"{ffi.sizeof(field.type)}x")
        parts.append(f"{ffi.sizeof(ctype) - end}x")

    def all_in(self, buffer: Any) -> list[Any]:
        return [self._make(found) for found in self._struct.iter_unpack(buffer)]


_CLIENT, _LEASE, _STREAM, _EPOCH = (
    _Layout(f"shmd_{noun}_record_t") for noun in ("client", "lease", "stream", "epoch")
)
_EPOCHS = ffi.offsetof("shmd_stream_record_t", "epochs")


class Snapshot(NamedTuple):
    """All records: fields as in shmd_abi.h; a stream's epochs, and an epoch record's hot line, flat."""

    clients: list[Any]
    leases: list[Any]
    streams: list[tuple[Any, list[Any]]]  # those in use, each with its epoch records that are not FREE


def phase(record: Any) -> int:
    """``SHMD_CLIENT_*``, ``SHMD_LEASE_*``."""
    return int(record.word) & 0xFF


def is_live(lease: Any) -> bool:
    return lease.word & 0xFF in LIVE


def is_producer(lease: Any) -> bool:
    return bool(lease.role == lib.SHMD_ROLE_PRODUCER)


class View:
    """The authority of one boot, mapped as clients map it; outlives its drivers and its name."""

    def __init__(self, instance: str) -> None:
        path = path_of(instance, "authority")
        base, size = map_segment(segment_name(path), writable=False)
        self._mapped: tuple[Any, int] | None = (base, size)
        self.authority = ffi.cast("shmd_authority_t *", base)
        self.boot_id = int(self.authority.header.boot_id)
        self.names = {path.name}
        base, header = ffi.cast("unsigned char *", base), self.authority
        self._clients = ffi.buffer(base + header.clients_offset, header.client_max * _CLIENT.size)
        self._leases = ffi.buffer(base + header.leases_offset, header.lease_max * _LEASE.size)
        self._streams = ffi.buffer(base + header.streams_offset, header.stream_max * _STREAM.size)
        self._cursor = ffi.new("uint64_t *", 0)
        self._lost = ffi.new("uint64_t *")
        self._event = ffi.new("shmd_event_t *")

    def close(self) -> None:
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            lib.shmd_segment_unmap(*mapped)

    def tables(self) -> dict[str, bytes]:
        """All that the driver tells, by where it stands; of its counters those of events and errors."""
        told = (lib.SHMD_COUNTER_EVENTS, lib.SHMD_COUNTER_ERRORS, lib.SHMD_COUNTER_REQUESTS)
        return {
            "header": bytes(ffi.buffer(self.authority, self.authority.clients_offset)),
            "clients": bytes(self._clients),
            "leases": bytes(self._leases),
            "streams": bytes(self._streams),
            "counters": repr([lib.shmd_counter_get(self.authority, counter) for counter in told]).encode(),
        }

    def snapshot(self) -> Snapshot:
        data = bytes(self._streams)
        streams = []
        for index, stream in enumerate(_STREAM.all_in(data)):
            if phase(stream) == lib.SHMD_RECORD_USED:
                at = index * _STREAM.size + _EPOCHS
                epochs = _EPOCH.all_in(data[at : at + lib.SHMD_EPOCH_RECORDS * _EPOCH.size])
                streams.append((stream, [e for e in epochs if e.state & 0xFF != lib.SHMD_EPOCH_FREE]))
        return Snapshot(_CLIENT.all_in(self._clients), _LEASE.all_in(self._leases), streams)

    def events(self) -> tuple[list[Any], int]:
        """What was published since the last call (``shmd_event_t *``), and how many events were missed."""
        found = []
        self._lost[0] = 0
        while lib.shmd_event_poll(self.authority, self._cursor, self._event, self._lost) == 1:
            found.append(ffi.new("shmd_event_t *", self._event[0]))
        return found, int(self._lost[0])


def text_in(field: bytes) -> str:
    """A char array of a record, as text."""
    return field.split(b"\0", 1)[0].decode()


def map_segment(name: str, *, writable: bool) -> tuple[Any, int]:
    """Where it is mapped, and its bytes."""
    size, out = ffi.new("uint64_t *"), ffi.new("void **")
    fd = lib.shmd_segment_open(name.encode(), int(writable), size)
    assert fd >= 0, f"{name} cannot be opened"
    assert lib.shmd_segment_map(fd, 0, size[0], int(writable), 0, out) == 0
    os.close(fd)
    return out[0], int(size[0])
