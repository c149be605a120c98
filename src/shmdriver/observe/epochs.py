"""What an epoch's own segments say: positions, back-pressure, sleepers. Read-only, for any state.

The data segment is written by the producer, the gates segment by its consumers (and by the driver
where it wires one): whatever stands there is a claim. Sizes and who holds which gate come from the
authority (the driver wrote them); of the data segment only the header page is mapped, and every
number read from it is shown, not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.observe.latency import latency_status
from shmdriver.observe.names import EPOCH_STATES, LIVE_LEASES, REASONS, word
from shmdriver.observe.records import BackPressure, EpochStatus, GateStatus, LeaseStatus
from shmdriver.observe.segment import Segment

_BLOCKED_NO_CONSUMER = 65  # shmd_data.blocked_gate: "no consumer yet"
_NO_WAKEUPS = int(lib.SHMD_ATTACH_NO_WAKEUPS)


class EpochSegments:
    """The read-only mappings of one epoch: header page of its data, all of its gates."""

    __slots__ = ("_data", "_gates", "data", "gate_count", "gates")

    def __init__(self, record: Any, owner: int, boot_id: int, stream_id: int, epoch: int) -> None:
        gate_count = int(record.gate_count)
        if gate_count > lib.SHMD_GATE_MAX:
            raise ShmDriverError(
                f"epoch {epoch} claims {gate_count} gates, at most {lib.SHMD_GATE_MAX} exist"
            )
        identity = {"owner": owner, "boot_id": boot_id, "stream_id": stream_id, "epoch": epoch}
        self._data = Segment(
            text(record.data_name),
            lib.SHMD_SEGMENT_DATA,
            **identity,
            expected_bytes=int(record.data_bytes),
            map_bytes=int(lib.SHMD_DATA_HEADER_BYTES),
        )
        try:
            self._gates = Segment(
                text(record.gates_name),
                lib.SHMD_SEGMENT_GATES,
                **identity,
                expected_bytes=int(record.gates_bytes),
            )
        except ShmDriverError:
            self._data.close()
            raise
        if self._gates.bytes < int(lib.shmd_gates_footprint(gate_count)):
            self.close()
            raise ShmDriverError(f"epoch {epoch}: its gates segment is too small for {gate_count} gates")
        self.gate_count = gate_count  # as it was checked: what the record says later is not
        self.data = ffi.cast("shmd_data_t *", self._data.base)
        self.gates = ffi.cast("shmd_gates_t *", self._gates.base)

    def close(self) -> None:
        """Unmap both."""
        self._data.close()
        self._gates.close()


def text(field: Any) -> str:
    """A NUL-terminated char array as text; undecodable bytes are replaced."""
    raw: bytes = ffi.string(field, len(field))
    return raw.decode("utf-8", "replace")


def epoch_status(
    record: Any,
    segments: EpochSegments | None,
    problem: str,
    consumers: Mapping[int, LeaseStatus],
    now_ns: int,
) -> EpochStatus:
    """The status of the epoch ``record`` (a private copy of the driver's record).

    ``consumers`` maps a gate's index to the lease that holds it; ``segments`` None means that they
    could not be opened, for the reason in ``problem``.
    """
    head = arena = total = blocked_total = blocked_count = wakes = aborted = 0
    blocked: BackPressure | None = None
    gates: tuple[GateStatus, ...] = ()
    state = word(EPOCH_STATES, int(record.hot.state) & 0xFF)
    wired = int(record.hot.wired_mask)
    if segments is not None:
        data = segments.data
        gates = _gate_statuses(record, segments, consumers, now_ns)
        head = int(lib.shmd_data_head(data))
        total, arena = int(data.bytes), int(data.arena_intent)
        blocked_total, blocked_count = int(data.blocked_total_ns), int(data.blocked_count)
        wakes, aborted = int(data.wakes), int(data.aborted_claims)
        blocked = _back_pressure(data, segments.gate_count, now_ns) if state == "open" else None
    return EpochStatus(
        epoch=int(record.epoch),
        state=state,
        slots=int(record.slots),
        slot_bytes=int(record.slot_bytes),
        arena_bytes=int(record.arena_bytes),
        data_bytes=int(record.data_bytes),
        gates_bytes=int(record.gates_bytes),
        producer_pid=int(record.producer_pid),
        producer_lease_id=int(record.producer_lease_id),
        opened_ns=int(record.opened_ns),
        sealed_seq=int(record.hot.sealed_seq),
        end_reason=word(REASONS, int(record.end_reason)),
        unproven=bool(record.unproven),
        wakeups=not int(record.flags) & _NO_WAKEUPS,
        gate_mask=int(record.hot.gate_mask),
        wired_mask=wired,
        data_name=text(record.data_name),
        gates_name=text(record.gates_name),
        head=head,
        bytes=total,
        arena_used=min(arena, int(record.arena_bytes)),
        blocked=blocked,
        blocked_total_ns=blocked_total + (blocked.for_ns if blocked else 0),
        blocked_count=blocked_count,
        wakes=wakes,
        aborted_claims=aborted,
        gates=gates,
        problem=problem,
    )


def _back_pressure(data: Any, gate_count: int, now_ns: int) -> BackPressure | None:
    gate, since_ns, position = int(data.blocked_gate), int(data.blocked_since_ns), int(data.blocked_position)
    if gate == _BLOCKED_NO_CONSUMER:
        return BackPressure(-1, max(0, now_ns - since_ns), position)
    if 1 <= gate <= gate_count:
        return BackPressure(gate - 1, max(0, now_ns - since_ns), position)
    return None


def _gate_statuses(
    record: Any, segments: EpochSegments, consumers: Mapping[int, LeaseStatus], now_ns: int
) -> tuple[GateStatus, ...]:
    reliable, wired = int(record.hot.gate_mask), int(record.hot.wired_mask)
    found = []
    for index in range(segments.gate_count):
        lease = consumers.get(index)
        if lease is None or not (wired | reliable) >> index & 1:
            continue
        gate = lib.shmd_gates_gate(segments.gates, index)
        position, cursor = int(lib.shmd_gate_position(segments.gates, index)), int(gate.cursor)
        # The head is read after the gate: what was published in between is lag, never a negative one.
        head = int(lib.shmd_data_head(segments.data))
        gated = bool(reliable >> index & 1)
        lag, held = max(0, head - cursor), max(0, min(cursor, head) - position) if gated else 0
        last_read_ns = int(gate.last_read_ns)
        found.append(
            GateStatus(
                gate=index,
                lease_id=lease.lease_id,
                client_name=lease.client_name,
                pid=lease.pid,
                process=lease.process,
                lease_state=lease.state,
                delivery=lease.delivery,
                reliable=gated,
                position=position if gated else cursor,
                cursor=cursor,
                lag=lag,
                held=held,
                behind=lag + held,
                left=int(lib.shmd_gate_left(segments.gates, index)) == lease.lease_id,
                sleeping=bool(gate.sleeping),
                consumed=int(gate.consumed),
                lost=int(gate.lost),
                skipped=int(gate.skipped),
                last_read_age_ns=max(0, now_ns - last_read_ns) if last_read_ns else -1,
                latency=latency_status(gate),
            )
        )
    return tuple(found)


def live_consumers(leases: tuple[LeaseStatus, ...]) -> dict[int, LeaseStatus]:
    """Which live consumer lease holds which gate of its stream."""
    return {lease.gate: lease for lease in leases if lease.role == "consumer" and lease.state in LIVE_LEASES}
