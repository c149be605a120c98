"""Watching running streams: slow consumers, impossible gates, and why the driver is degraded.

What a producer or a consumer says in its own segment is a claim. It is compared with the driver's
private memory and with the driver's clock; nothing here uses it as an index or a length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from shmdriver._native import lib
from shmdriver.driver.authority import Authority, text_of
from shmdriver.driver.clients import ClientTable, describe
from shmdriver.driver.config import Config
from shmdriver.driver.epochs import Epoch
from shmdriver.driver.leases import Lease
from shmdriver.driver.shm import ShmSpace, is_absent
from shmdriver.driver.streams import Stream
from shmdriver.driver.tables import Tables
from shmdriver.errors import Reason

__all__ = ["GATE_CHECK_NS", "HealthWatch", "StreamWatch", "evicts_slow_consumers"]

MILLISECOND_NS = 1_000_000
GATE_CHECK_NS = 500 * MILLISECOND_NS
LOW_MEMORY_SHARE = 0.05  # of the mount; recovered at twice that
OVERRUN_HOLD_NS = 10_000_000_000
STALLED_HOLD_NS = 1_000_000_000
EVENTS_HOLD_NS = 10_000_000_000


def evicts_slow_consumers(config: Config, stream: Stream) -> bool:
    """Whether who holds its producer back for too long is evicted: as the producer, else the profile says."""
    producer = stream.producer
    asked = int(producer.record.slow_consumer) if producer else lib.SHMD_SLOW_DEFAULT
    if asked != lib.SHMD_SLOW_DEFAULT:
        return bool(asked == lib.SHMD_SLOW_EVICT)
    return config.profile_of(stream.name).slow_consumer == "evict"


class StreamWatch:
    """Evicts consumers that hold a producer back for too long, revokes impossible gates, settles ends."""

    def __init__(self, config: Config, tables: Tables) -> None:
        self._config = config
        self._authority = tables.authority
        self._clients = tables.clients
        self._streams = tables.streams
        self._tenure = tables.tenure
        self._gates_ns = 0
        self._missing: set[str] = set()

    def check_segments(self, now_ns: int) -> tuple[list[str], list[str]]:
        """Looks once at the file of each segment in use.

        Returns what to say of open epochs of which somebody took pages away (touched or not), which
        are ended; and the names (of open epochs, control segments, the authority) that somebody removed, each
        told once.
        """
        found = list(self._look_at_segments())
        missing = {name for _, _, name, is_gone in found if is_gone}
        names = [self._authority.file.name, *self._clients.segment_names()]
        missing |= {name for name in names if is_absent(name)}
        told, self._missing = self._missing, missing
        ended = [
            self._end_damaged(stream, epoch, name, now_ns)
            for stream, epoch, name, is_gone in found
            if not is_gone and epoch.is_open
        ]
        return ended, sorted(missing - told)

    def end_damaged(self, addresses: Collection[int], now_ns: int) -> list[str]:
        """Ends epochs whose mappings begin at these addresses, because pages of theirs are missing."""
        texts = []
        for stream in self._streams:
            for epoch in stream.in_order:
                kind = epoch.memory.damage(addresses)
                if kind and (epoch.is_open or stream.holders(epoch, reliable_only=False)):
                    record = epoch.record
                    name = text_of(record.data_name if kind == "data" else record.gates_name)
                    texts.append(self._end_damaged(stream, epoch, name, now_ns))
        return texts

    def _look_at_segments(self) -> Iterator[tuple[Stream, Epoch, str, bool]]:
        for stream in self._streams:
            epoch = stream.open_epoch
            if epoch is not None:
                names = text_of(epoch.record.data_name), text_of(epoch.record.gates_name)
                for name, is_gone in epoch.memory.missing(*names):
                    yield stream, epoch, name, is_gone

    def _end_damaged(self, stream: Stream, epoch: Epoch, name: str, now_ns: int) -> str:
        text = f"another process truncated {name}: epoch {epoch.number} of stream {stream.name!r} has ended"
        # Consumers first: what they have not read is gone, and the seal that follows must look like no end.
        for lease in [lease for lease in stream.consumers if epoch.is_wired(lease.gate)]:
            if stream.has_read_on(lease, epoch.number):
                epoch.leave(lease.gate)  # its own mark may be lost with the gates
            elif not (epoch.is_sealed and epoch.has_left(lease)):
                self._tenure.revoke(lease, Reason.TRUNCATED, text, now_ns)
        producer = stream.leases.get(int(epoch.record.producer_lease_id))
        if producer is not None:
            self._tenure.revoke(producer, Reason.TRUNCATED, text, now_ns)
        return text

    def check(self, now_ns: int) -> None:
        """One look at every stream; at every single gate less often, so that many cost little."""
        gates_due = now_ns - self._gates_ns >= GATE_CHECK_NS
        self._gates_ns = now_ns if gates_due else self._gates_ns
        for stream in self._streams:
            epoch = stream.open_epoch
            if epoch is not None and stream.leases:
                if gates_due:
                    self._check_gates(stream, epoch, now_ns)
                self._check_blocked(stream, epoch, now_ns)
            if epoch is None or len(stream.epochs) > 1:
                self._tenure.settle(stream, now_ns)

    def _check_gates(self, stream: Stream, epoch: Epoch, now_ns: int) -> None:
        positions = epoch.watch.positions
        for lease in stream.consumers:
            if not lease.is_reliable or not epoch.is_wired(lease.gate):
                continue
            # Gate before head: a reader follows commit words past a head that is stored once a call.
            position = int(lib.shmd_gate_position(epoch.memory.gates, lease.gate))
            last = int(positions[lease.gate])
            limit = epoch.head + epoch.geometry.slots
            if last <= position <= limit:
                positions[lease.gate] = position
                continue
            self._authority.count(lib.SHMD_COUNTER_BAD_GATES)
            found = (
                f"went back from {last} to {position}" if position < last else f"is {position}, past {limit}"
            )
            who = describe(self._clients.by_id(lease.client_id))
            self._tenure.revoke(lease, Reason.BAD_GATE, f"the gate of {who} {found}: impossible", now_ns)

    def _check_blocked(self, stream: Stream, epoch: Epoch, now_ns: int) -> None:
        evicts = evicts_slow_consumers(self._config, stream)
        gate = int(epoch.memory.data.blocked_gate) - 1 if evicts else -1
        lease = self._reliable_at(stream, epoch, gate)
        if lease is None:
            epoch.blocked = None
            return
        since_ns = int(epoch.memory.data.blocked_since_ns)
        if epoch.blocked is None or epoch.blocked[:2] != (gate, since_ns):
            epoch.blocked = (gate, since_ns, now_ns)  # a new wait; from here on the driver's own clock counts
        blocked_ns = now_ns - epoch.blocked[2]
        if blocked_ns < self._config.profile_of(stream.name).evict_after_ms * MILLISECOND_NS:
            return
        epoch.blocked = None
        self._authority.count(lib.SHMD_COUNTER_EVICTIONS)
        who = describe(self._clients.by_id(lease.client_id))
        text = f"{who} held the producer back for {blocked_ns // MILLISECOND_NS} ms (slow_consumer='evict')"
        self._tenure.revoke(lease, Reason.EVICTED, text, now_ns)

    @staticmethod
    def _reliable_at(stream: Stream, epoch: Epoch, gate: int) -> Lease | None:
        if not 0 <= gate < epoch.geometry.gate_count or not epoch.is_wired(gate):
            return None
        return next((lease for lease in stream.consumers if lease.gate == gate and lease.is_reliable), None)


class HealthWatch:
    """Why the driver is degraded, with hysteresis: a reason goes only when it has been gone for a while."""

    def __init__(
        self, authority: Authority, clients: ClientTable, set_reason: Callable[[str, bool], None]
    ) -> None:
        self._authority = authority
        self._clients = clients
        self._events = int(authority.base.event_head)
        self._set = set_reason
        self._last_ns: dict[str, int] = {}
        self._low_memory = False

    def tick_took(self, duration_ns: int, allowed_ns: int, now_ns: int) -> bool:
        """Notes how long a tick took; whether it was too long."""
        overrun = duration_ns > allowed_ns
        self._hold("tick_overrun", overrun, OVERRUN_HOLD_NS, now_ns)
        return overrun

    def check_clients(self, now_ns: int) -> None:
        """Stalled clients."""
        stalled = any(client.state == lib.SHMD_CLIENT_STALLED for client in self._clients)
        self._hold("stalled_clients", stalled, STALLED_HOLD_NS, now_ns)

    def check_events(self, now_ns: int) -> None:
        """More events since the last look than their ring keeps: whoever slept meanwhile missed some."""
        events = int(self._authority.base.event_head)
        lost = events - self._events > int(self._authority.base.event_slots)
        self._events = events
        self._hold("lost_events", lost, EVENTS_HOLD_NS, now_ns)

    @property
    def has_seen_all_events(self) -> bool:
        """Whether none was published since the last look."""
        return int(self._authority.base.event_head) == self._events

    def check_lock(self, *, is_lost: bool) -> None:
        """Another lock file stands where this driver's was: nothing keeps a second driver away."""
        self._set("lost_lock", is_lost)

    def check_memory(self) -> None:
        """Looks at the free share of the mount. While it cannot be looked at, the last answer holds."""
        space = ShmSpace.known()
        if space is None:
            return
        share = LOW_MEMORY_SHARE * (2 if self._low_memory else 1)
        self._low_memory = space.total > 0 and space.free < space.total * share
        self._set("low_memory", self._low_memory)

    def _hold(self, reason: str, present: bool, hold_ns: int, now_ns: int) -> None:
        if present:
            self._last_ns[reason] = now_ns
            self._set(reason, True)
        elif reason in self._last_ns and now_ns - self._last_ns[reason] >= hold_ns:
            del self._last_ns[reason]
            self._set(reason, False)
