"""Rows of an authority's tables: which are in use, a consistent copy of one, a lease's row in words.

Used by instance.py. A row that is being rewritten is left out, never waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from shmdriver._native import ffi, lib
from shmdriver.observe import names
from shmdriver.observe.names import word
from shmdriver.observe.process import process_status
from shmdriver.observe.records import ClientStatus, LeaseStatus

__all__ = ["COPY_ATTEMPTS", "copied", "indexes_in", "lease_status"]

COPY_ATTEMPTS: Final = 8
_FOLLOW = int(lib.SHMD_ATTACH_FOLLOW)


def indexes_in(authority: Any, table: int, states: Iterable[int]) -> Iterator[int]:
    """Indexes of the records of a table whose state is one of these."""
    bits = sum(1 << state for state in states)
    index = lib.shmd_authority_next(authority, table, bits, 0)
    while index >= 0:
        yield int(index)
        index = lib.shmd_authority_next(authority, table, bits, index + 1)


def copied(out: Any, record: Any) -> bool:
    """A consistent copy of a record that is in use."""
    size = ffi.sizeof(out[0])
    is_whole = any(lib.shmd_record_copy(out, record, size) == 1 for _ in range(COPY_ATTEMPTS))
    return is_whole and int(out.word) & 0xFF != lib.SHMD_RECORD_FREE


def lease_status(copy: Any, index: int, stream: str, client: ClientStatus | None) -> LeaseStatus:
    return LeaseStatus(
        index=index,
        lease_id=int(copy.lease_id),
        state=word(names.LEASE_STATES, int(copy.word) & 0xFF),
        role=word(names.ROLES, int(copy.role)),
        stream=stream,
        stream_index=int(copy.stream_index),
        stream_id=int(copy.stream_id),
        client_id=int(copy.client_id),
        client_name=client.name if client else "",
        pid=client.pid if client else 0,
        process=client.process if client else process_status(0),
        delivery=word(names.DELIVERIES, int(copy.delivery)),
        start=word(names.STARTS, int(copy.start)),
        wait=word(names.WAITS, int(copy.wait)),
        follow=bool(int(copy.flags) & _FOLLOW),
        gate=int(copy.gate),
        first_epoch=int(copy.first_epoch),
        epoch=int(copy.epoch),
        start_seq=int(copy.start_seq),
        slow_consumer=word(names.SLOW_CONSUMERS, int(copy.slow_consumer)),
        min_consumers=int(copy.min_consumers),
        attached_ns=int(copy.attached_ns),
        ended_ns=int(copy.ended_ns),
        end_reason=word(names.REASONS, int(copy.end_reason)),
        quarantined=bool(copy.quarantined),
    )
