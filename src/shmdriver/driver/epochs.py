"""One producer's tenure of a stream: its record, its memory, its wiring, its seal.

    FREE -> OPEN -> (SEALING ->) SEALED -> RETIRED -> FREE

Who may read it is a bit in ``wired_mask``; who holds its producer back, a bit in ``gate_mask``; who may
sleep, a bit in ``sleep_mask``. Only the driver writes them: ``Stream.fill_epoch`` before the epoch is open,
and this module from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import put_text, text_of
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.geometry import Geometry
from shmdriver.driver.leases import Lease
from shmdriver.driver.memory import EpochMemory, Provision
from shmdriver.driver.shm import unlink_segment
from shmdriver.errors import Reason

__all__ = ["COUNTERS", "Epoch", "fill_record", "free_record", "retire_record"]

COUNTERS = 5  # of the numbers of Epoch.activity
# An end after which the producer is known to write no more: it said so itself, or is dead.
PROVED_ENDS = frozenset((Reason.CLOSED, Reason.ABORTED, Reason.DIED))


class Epoch:
    """An epoch in use, with the driver's private geometry and mappings."""

    __slots__ = ("blocked", "geometry", "hot", "memory", "native", "number", "record", "slot", "watch")

    def __init__(self, record: Any, slot: int, number: int, native: Any, memory: EpochMemory) -> None:
        self.record = record
        self.slot = slot  # which of the stream's records
        self.hot = ffi.addressof(record, "hot")
        self.number = number
        self.native = native  # shmd_geometry_t *, private
        self.geometry = Geometry.of_record(record)
        self.memory = memory
        self.watch = self._new_watch()  # shmd_epoch_watch_t *, private: where the driver last saw each gate
        self.blocked: tuple[int, int, int] | None = None  # gate, since (producer's), since (the driver's own)

    # -- state

    @property
    def state(self) -> int:
        """``SHMD_EPOCH_*``."""
        return int(self.hot.state) & 0xFF

    @property
    def is_open(self) -> bool:
        """Its producer may publish."""
        return self.state == lib.SHMD_EPOCH_OPEN

    @property
    def is_sealed(self) -> bool:
        """Its end is fixed."""
        return self.state == lib.SHMD_EPOCH_SEALED

    @property
    def ended_cleanly(self) -> bool:
        """Sealed by its producer's close()."""
        return self.is_sealed and bool(self.record.end_reason == Reason.CLOSED)

    @property
    def schema(self) -> str:
        """Canonical text of its records; "" for bytes. The stream's is that of its newest epoch."""
        return text_of(self.memory.data.schema)

    @property
    def sealed_ns(self) -> int:
        """When it was sealed."""
        return int(self.record.sealed_ns)

    @property
    def head(self) -> int:
        """The producer's head: a claim, never used as an index."""
        return int(lib.shmd_data_head(self.memory.data))

    @property
    def allows_sleep(self) -> bool:
        """Whether the producer wakes sleepers."""
        return not self.geometry.flags & lib.SHMD_ATTACH_NO_WAKEUPS

    def _new_watch(self) -> Any:
        watch = ffi.new("shmd_epoch_watch_t *")
        watch.hot, watch.data, watch.gates = self.hot, self.memory.data, self.memory.gates
        watch.slots, watch.gate_count = self.geometry.slots, self.geometry.gate_count
        return watch

    # -- wiring

    def join(self, lease: Lease, *, oldest: bool, peers: Iterable[Lease] = ()) -> tuple[int, int]:
        """Wires a consumer into this epoch; (first seq it reads, seq from which on it is lossless).

        The latter is where the slowest of its ``peers`` stands, without any the head.
        """
        cursor = ffi.new("uint64_t *")
        joined = lib.shmd_epoch_join(
            self.hot,
            self.memory.data,
            self.memory.gates,
            self.native,
            lease.gate,
            int(lease.is_reliable),
            int(self.may_sleep(lease)),
            lease.lease_id,
            int(oldest),
            sum(1 << peer.gate for peer in peers),
            cursor,
        )
        self.watch.positions[lease.gate] = joined
        return int(cursor[0]), int(joined)

    def may_sleep(self, lease: Lease) -> bool:
        """Whether this consumer may ever sleep on the producer's word."""
        return self.allows_sleep and bool(lease.record.wait != lib.SHMD_WAIT_SPIN)

    def leave(self, gate: int) -> None:
        """Clears a consumer's bits; its producer may be waiting for just that."""
        lib.shmd_epoch_leave(self.hot, gate)
        self.watch.positions[gate] = 0
        if gate < self.geometry.gate_count:
            lib.shmd_futex_wake(ffi.addressof(lib.shmd_gates_gate(self.memory.gates, gate), "room_word"))
        lib.shmd_futex_wake(ffi.addressof(self.memory.data, "wake_word"))

    def is_wired(self, gate: int) -> bool:
        """Whether this gate's consumer may read this epoch."""
        return bool(int(self.hot.wired_mask) >> gate & 1)

    def _wired_gates(self) -> list[int]:
        return [gate for gate in _gates_of(int(self.hot.wired_mask)) if gate < self.geometry.gate_count]

    def has_left(self, lease: Lease) -> bool:
        """Whether this consumer says that it has drained this epoch."""
        return int(lib.shmd_gate_left(self.memory.gates, lease.gate)) == lease.lease_id

    def has_part(self, lease: Lease) -> bool:
        """Whether it writes this epoch, or may read it."""
        if lease.is_producer:
            return int(self.record.producer_lease_id) == lease.lease_id
        return self.is_wired(lease.gate) and lease.gate < self.geometry.gate_count

    def activity(self, lease: Lease) -> tuple[int, ...]:
        """What only the owner of a lease that has a part in this epoch moves here.

        The first COUNTERS numbers are 0 until it has begun. A reader in C stores only the last two, its place
        and its gate, while messages keep coming; the driver has put them somewhere first. All are claims, as
        everything that a client writes: they can show that the owner lives, and nothing else.
        """
        if lease.is_producer:
            return (self.head,)
        gate = lib.shmd_gates_gate(self.memory.gates, lease.gate)
        return (
            int(gate.consumed),
            int(gate.last_read_ns),
            int(gate.skipped),
            int(gate.lost),
            int(gate.sleeping),
            int(gate.cursor),
            int(gate.position),
        )

    def note_left(self) -> None:
        """Remembers who has left it, before this is acted on: the difference shows who leaves later."""
        for gate in self._wired_gates():
            self.watch.left[gate] = lib.shmd_gate_left(self.memory.gates, gate)

    def keep_only(self, live: int) -> None:
        """Clears every bit without a live lease (after an adoption); ``live``: mask of their gates."""
        bits = int(self.hot.wired_mask) | int(self.hot.gate_mask) | int(self.hot.sleep_mask)
        stale = bits & ~live
        for gate in _gates_of(stale):
            self.leave(gate)

    # -- the end

    def seal(self, reason: Reason, now_ns: int) -> int:
        """Fixes ``sealed_seq`` and returns it; idempotent. Data (why, when, how sure), then state."""
        if self.is_open:  # a seal that a killed driver began keeps the reason that it gave
            self.record.end_reason = reason
            self.record.unproven = int(reason not in PROVED_ENDS)
            self.record.sealed_ns = now_ns
        failpoint("seal.reason")
        sealed = lib.shmd_epoch_seal(
            self.hot,
            self.memory.data,
            self.memory.ring,
            self.native,
            int(self.record.end_reason == Reason.CLOSED),
            int(not self.record.unproven),
        )
        self.wake()
        return int(sealed)

    def wake(self) -> None:
        """Wakes the consumers and the producer that sleep in this epoch."""
        lib.shmd_futex_wake(ffi.addressof(self.memory.data, "wake_word"))
        for gate in self._wired_gates():
            lib.shmd_futex_wake(ffi.addressof(lib.shmd_gates_gate(self.memory.gates, gate), "room_word"))


def fill_record(record: Any, job: Provision, *, lease_id: int, pid: int) -> None:
    """All of a new epoch's record but its masks. From here on it says nothing of the epoch before."""
    lib.shmd_record_rewrite(ffi.addressof(record.hot, "state"), lib.SHMD_EPOCH_FREE)  # nobody's: number 0
    record.producer_lease_id = lease_id
    record.producer_pid = pid
    record.opened_ns = job.now_ns
    record.sealed_ns = record.end_reason = record.unproven = 0
    record.arena_bytes = job.geometry.arena_bytes
    record.data_bytes, record.gates_bytes = job.geometry.data_bytes, job.geometry.gates_bytes
    record.slots, record.slot_bytes = job.geometry.slots, job.geometry.slot_bytes
    record.gate_count = job.geometry.gate_count
    record.flags = job.geometry.flags | (lib.SHMD_ATTACH_PREFAULT if job.modes.prefault else 0)
    record.stream_id, record.epoch = job.stream_id, job.epoch
    put_text(record.data_name, job.data_name)
    put_text(record.gates_name, job.gates_name)
    record.hot.sealed_seq = 0


def _gates_of(mask: int) -> list[int]:
    return [gate for gate in range(mask.bit_length()) if mask >> gate & 1]


def retire_record(record: Any) -> None:
    """Unlinks an epoch's segments and frees its record; mappings live on. State, names, then free."""
    number = int(record.hot.state) >> 8
    lib.shmd_word_store_seq_cst(ffi.addressof(record.hot, "state"), number << 8 | lib.SHMD_EPOCH_RETIRED)
    failpoint("retire.marked")
    free_record(record)


def free_record(record: Any) -> None:
    """The last steps of retiring, also those that a killed driver left to do. It keeps how it ended."""
    unlink_segment(text_of(record.data_name))
    failpoint("retire.data_unlinked")
    unlink_segment(text_of(record.gates_name))
    failpoint("retire.unlinked")
    hot = record.hot
    for mask in ("gate_mask", "sleep_mask", "wired_mask"):
        lib.shmd_word_store(ffi.addressof(hot, mask), 0)
    failpoint("retire.masks")
    number = int(hot.state) >> 8
    lib.shmd_word_store_seq_cst(ffi.addressof(hot, "state"), number << 8 | lib.SHMD_EPOCH_FREE)
