"""What an instance looked like at one moment: frozen copies of its shared tables.

Times are nanoseconds. Points in time are CLOCK_MONOTONIC: ``attached_ns``, ``created_ns``,
``opened_ns``, ``ended_ns``, ``shutdown_deadline_ns``. All other ``*_ns`` are spans. Numbers that a
client writes (heads, gates, counters) are claims: they are shown, clamped where needed, and never
used to find memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmdriver.observe.latency import LatencyStatus
from shmdriver.observe.process import ProcessStatus


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The driver of an instance, alive or not.

    ``status`` is one of running, starting, paused (SIGSTOP, a debugger, a frozen cgroup), hung (alive, ticks
    no more), silent (cannot be proved alive or dead, ticks no more), dead (killed or crashed; a new one
    adopts), stopped (clean end), handover (clean end that left everything to its successor), superseded.
    """

    instance: str
    status: str
    explanation: str
    advice: str
    boot_id: int
    lifecycle: str
    degraded: tuple[str, ...]
    exit_kind: str
    process: ProcessStatus
    heartbeat_age_ns: int
    uptime_ns: int
    adoptions: int
    shutdown_mode: str
    shutdown_deadline_ns: int
    last_nonce: int
    heartbeat_interval_ns: int
    lease_timeout_ns: int

    @property
    def alive(self) -> bool:
        """Whether a driver process serves (or will, once it is let run). Unknown counts as alive."""
        return self.status in ("running", "starting", "paused", "hung", "silent")

    @property
    def serving(self) -> bool:
        """Whether requests are answered now."""
        return self.status == "running" and self.lifecycle in ("healthy", "degraded", "maintenance")


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One connection to the driver."""

    index: int
    client_id: int
    name: str
    pid: int
    state: str
    process: ProcessStatus
    attached_ns: int
    seen_age_ns: int
    provable: bool


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Permission of one client to use one stream in one role."""

    index: int
    lease_id: int
    state: str
    role: str
    stream: str
    stream_index: int
    stream_id: int
    client_id: int
    client_name: str
    pid: int
    process: ProcessStatus
    delivery: str
    start: str
    wait: str
    follow: bool
    gate: int
    first_epoch: int
    epoch: int
    start_seq: int
    slow_consumer: str
    min_consumers: int
    attached_ns: int
    ended_ns: int
    end_reason: str
    quarantined: bool

    @property
    def live(self) -> bool:
        """Whether the lease still permits anything."""
        return self.state in ("attached", "active", "stalled")


@dataclass(frozen=True, slots=True)
class GateStatus:
    """Where one consumer stands in one epoch.

    ``lag`` counts messages that are published and not read; ``held`` counts messages that were read
    and whose place is still taken (views that live Python objects refer to, or a batch in work).
    ``behind`` is their sum: what separates the gate from the producer. ``latency`` is there when the
    stream has timestamps.
    """

    gate: int
    lease_id: int
    client_name: str
    pid: int
    process: ProcessStatus
    lease_state: str
    delivery: str
    reliable: bool
    position: int
    cursor: int
    lag: int
    held: int
    behind: int
    left: bool
    sleeping: bool
    consumed: int
    lost: int
    skipped: int
    last_read_age_ns: int
    latency: LatencyStatus | None = None


@dataclass(frozen=True, slots=True)
class BackPressure:
    """What a producer says about having no room.

    ``gate`` is the index of the gate that holds it back, -1 for "no consumer yet"; ``for_ns`` is how
    long already.
    """

    gate: int
    for_ns: int
    position: int

    @property
    def no_consumer(self) -> bool:
        """Whether the producer waits for its first consumers, not for a slow one."""
        return self.gate < 0


@dataclass(frozen=True, slots=True)
class EpochStatus:
    """One producer's tenure of a stream. ``head`` and below come from the producer's own memory.

    ``problem`` says why the epoch's segments could not be read; the numbers are 0 then.
    """

    epoch: int
    state: str
    slots: int
    slot_bytes: int
    arena_bytes: int
    data_bytes: int
    gates_bytes: int
    producer_pid: int
    producer_lease_id: int
    opened_ns: int
    sealed_seq: int
    end_reason: str
    unproven: bool
    wakeups: bool
    gate_mask: int
    wired_mask: int
    data_name: str
    gates_name: str
    head: int
    bytes: int
    arena_used: int
    blocked: BackPressure | None
    blocked_total_ns: int
    blocked_count: int
    wakes: int
    aborted_claims: int
    gates: tuple[GateStatus, ...]
    problem: str

    @property
    def shm_bytes(self) -> int:
        """Shared memory that this epoch takes."""
        return self.data_bytes + self.gates_bytes

    @property
    def slowest(self) -> GateStatus | None:
        """The reliable consumer that is furthest behind, if there is any."""
        gates = [gate for gate in self.gates if gate.reliable and not gate.left]
        return max(gates, key=lambda gate: gate.behind, default=None)


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream of the directory with the epochs that still exist, oldest first."""

    name: str
    index: int
    stream_id: int
    schema: str
    max_consumers: int
    created_ns: int
    epoch_count: int
    producer: LeaseStatus | None
    consumers: tuple[LeaseStatus, ...]
    epochs: tuple[EpochStatus, ...]

    @property
    def current(self) -> EpochStatus | None:
        """The newest epoch that still exists, open or sealed."""
        return self.epochs[-1] if self.epochs else None

    @property
    def state(self) -> str:
        """open, sealing, sealed, or "no producer yet" / "ended"."""
        if self.current is not None:
            return self.current.state
        return "ended" if self.epoch_count else "waiting"

    @property
    def shm_bytes(self) -> int:
        """Shared memory that the stream's epochs take."""
        return sum(epoch.shm_bytes for epoch in self.epochs)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One entry of the event ring."""

    seq: int
    kind: str
    code: str
    reason: str
    stream: str
    text: str
    client_id: int
    lease_id: int
    epoch: int
    state: int
    value: int
    age_ns: int


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One distinct error of the driver, counted."""

    text: str
    count: int
    first_age_ns: int
    last_age_ns: int
