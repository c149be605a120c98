"""What must hold. One :class:`Boot` remembers what it saw of one boot id's tables and events, and compares.

A violation names the rule; world.py adds the seed and the way there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmdriver._native import lib
from shmdriver.errors import Code, Reason
from tests.simulation.tables import LIVE, Event, LeaseRecord, Snapshot, StreamRecord, View

if TYPE_CHECKING:
    from tests.simulation.actors import Process

OPEN, SEALING, SEALED, RETIRED = (
    lib.SHMD_EPOCH_OPEN, lib.SHMD_EPOCH_SEALING, lib.SHMD_EPOCH_SEALED, lib.SHMD_EPOCH_RETIRED)  # fmt: skip
MS = 1_000_000


class Violation(AssertionError):
    """A rule is broken."""


def demand(holds: bool, rule: str, *found: object) -> None:
    if not holds:
        raise Violation(f"{rule}: {' '.join(map(str, found))}")


class LeaseModel:
    """A lease as it was first seen live."""

    def __init__(self, record: LeaseRecord, owner: Process | None) -> None:
        self.record = record
        self.owner = owner
        self.answered = False
        self.done = False  # its owner sent a detach or a goodbye
        self.confirmed = False
        self.liar = False  # its gate holds nonsense
        self.revoke_asked = False
        self.live = True
        self.reason = 0

    @property
    def lease_id(self) -> int:
        return self.record.lease_id

    @property
    def released(self) -> bool:
        """Whether its lines may be used again."""
        return self.done or not self.answered or self.owner is None or self.owner.gone

    def __str__(self) -> str:
        role = "producer" if self.record.is_producer else "consumer"
        return f"{role} lease {self.lease_id} of {self.owner}"


class EpochModel:
    """What a producer committed, and what the tables said about its end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.committed = 0
        self.state = OPEN
        self.sealed: int | None = None
        self.reason = 0
        self.lease_id = 0
        self.retired = False


class Boot:
    """One boot id: its view, its processes, and all that was ever seen of its tables."""

    def __init__(self, view: View, lease_timeout_ns: int, check_interval_ns: int) -> None:
        self.view = view
        self.lease_timeout_ns = lease_timeout_ns
        self.check_interval_ns = check_interval_ns
        self.processes: list[Process] = []
        self.leases: dict[int, LeaseModel] = {}
        self.epochs: dict[tuple[int, int], EpochModel] = {}
        self.given_up: set[int] = set()  # correlation ids
        self.now = view.snapshot()
        self.settled = False  # the driver is between two ticks, or was when it was killed
        self.ending: Reason | None = None
        self.driver_since_ns = 0
        self.retired_unread = 0
        self._max_lease_id = self._max_client_id = 0
        self._of_index: dict[int, LeaseModel] = {}
        self._of_gate: dict[tuple[int, int], LeaseModel] = {}
        self._of_line: dict[int, tuple[int, Process | None]] = {}
        self._told: set[int] = set()  # leases whose end was an event
        self._untold: set[int] = set()  # live when a driver was killed: their end may have lost its event
        self._sealed_told: set[tuple[int, int]] = set()

    # -- events

    def observe(self) -> list[Event]:
        """Reads and checks what the driver said since the last look."""
        events, lost = self.view.events()
        if lost:
            self._untold |= set(self.leases)
        for event in events:
            demand(event.code != Code.INTERNAL_ERROR, "no request makes the driver fail", event.text)
            if event.kind in (lib.SHMD_EVENT_LEASE_REVOKED, lib.SHMD_EVENT_DETACH_RESPONSE):
                self._told.add(event.lease_id)
            elif event.kind == lib.SHMD_EVENT_STREAM_ANNOUNCE and event.state in (SEALING, SEALED):
                key = (event.stream_id, event.epoch)
                told = event.lease_id in self._told | self._untold or self.ending is not None
                demand(told or key in self._sealed_told, "a revoke is announced before the announce it causes",
                       f"stream {event.stream_id} epoch {event.epoch} lease {event.lease_id}")  # fmt: skip
                self._sealed_told.add(key)
                if event.state == SEALED and key in self.epochs:
                    self._sealed(key, event.value, event.reason)
        return events

    def note_answers(self, events: list[Event]) -> None:
        """After :meth:`scan`: answers tell of leases that the tables show."""
        for event in events:
            if event.kind == lib.SHMD_EVENT_ATTACH_RESPONSE and event.code == Code.OK:
                model = self.leases.get(event.lease_id)
                if model is not None:
                    model.answered = True
                else:  # begun and ended within one tick
                    known = any(record.lease_id == event.lease_id for record in self.now.leases)
                    demand(known, "an answered attach stands in the tables", f"lease {event.lease_id}")

    def driver_killed(self) -> None:
        self.settled = False
        self._untold |= {m.lease_id for m in self.leases.values() if m.live or m.lease_id not in self._told}

    def driver_started(self, now_ns: int) -> None:
        self.driver_since_ns = now_ns

    # -- tables

    def scan(self, now_ns: int, *, settled: bool) -> None:
        """Reads all tables and checks them against what was seen before."""
        self.now = now = self.view.snapshot()
        self.settled = settled
        self._scan_clients(now)
        for record in now.leases:
            if record.is_live:
                self._live_lease(record)
        self._scan_ended(now, now_ns)
        for stream in now.streams:
            self._scan_epochs(stream)
            producers = [r for r in now.leases if r.is_live and r.is_producer and r.stream_id == stream.stream_id]
            demand(len(producers) <= 1, "one live producer a stream", [r.lease_id for r in producers])
            if settled:
                self._settled_stream(stream, now)
        if settled:
            self._settled_leases(now, now_ns)

    def _scan_clients(self, now: Snapshot) -> None:
        for record in now.clients:
            if record.word & 0xFF == lib.SHMD_CLIENT_FREE:
                continue
            before = self._of_line.get(record.index)
            if before is not None and before[0] == record.client_id:
                continue
            owner = next((p for p in self.processes if p.task.pid == record.pid), None)
            demand(record.client_id > self._max_client_id, "client ids are never reused", record.client_id)
            demand(before is None or before[1] is None or before[1].gone, "a client line is reused only after its owner",
                   f"line {record.index}")  # fmt: skip
            self._max_client_id = record.client_id
            self._of_line[record.index] = (record.client_id, owner)

    def _live_lease(self, record: LeaseRecord) -> None:
        model = self.leases.get(record.lease_id)
        if model is not None:
            same = (record.client_id, record.role, record.stream_id, record.correlation_id, record.index) == (
                model.record.client_id, model.record.role, model.record.stream_id, model.record.correlation_id,
                model.record.index)  # fmt: skip
            demand(same and model.live, "lease ids are unique and never reused", model)
            model.record = record
            return
        demand(record.lease_id > self._max_lease_id, "lease ids are never reused", record.lease_id)
        self._max_lease_id = record.lease_id
        owner = self._of_line.get(record.client_index, (0, None))[1]
        model = self.leases[record.lease_id] = LeaseModel(record, owner)
        model.done = record.correlation_id in self.given_up or (owner is not None and owner.left)
        before = self._of_index.get(record.index)
        demand(before is None or before.released, "a lease line is reused only after its owner", model, "after", before)
        self._of_index[record.index] = model
        if not record.is_producer:
            gate = (record.stream_id, record.gate)
            before = self._of_gate.get(gate)
            demand(before is None or before.released, "a gate is reused only after its owner", model, "after", before)
            self._of_gate[gate] = model

    def _scan_ended(self, now: Snapshot, now_ns: int) -> None:
        live = {record.lease_id for record in now.leases if record.is_live}
        records = {record.lease_id: record for record in now.leases}
        for model in self.leases.values():
            if not model.live or model.lease_id in live:
                continue
            model.live = False
            record = records.get(model.lease_id)
            if record is not None and record.state not in (0, *LIVE):
                model.record = record
                model.reason = record.end_reason
                self._justify(model, record, now_ns)

    def _justify(self, model: LeaseModel, record: LeaseRecord, now_ns: int) -> None:
        owner, reason = model.owner, record.end_reason
        if owner is None:
            return
        why = {
            Reason.DIED: not owner.task.alive,
            Reason.CLOSED: model.done,
            Reason.ABORTED: model.done or (not model.answered and model.record.is_producer),
            Reason.EXPIRED: owner.is_silent(record.client_id, now_ns - self.lease_timeout_ns),
            Reason.UNCONFIRMED: not model.confirmed and now_ns >= record.deadline_ns,
            Reason.DELIVERED: not record.is_producer and not record.flags & lib.SHMD_ATTACH_FOLLOW,
            Reason.EVICTED: not record.is_producer and record.delivery == lib.SHMD_DELIVERY_RELIABLE,
            Reason.BAD_GATE: model.liar,
            Reason.REVOKED: model.revoke_asked,
            Reason.SHUTDOWN: self.ending is Reason.SHUTDOWN,
            Reason.SUPERSEDED: self.ending is Reason.SUPERSEDED,
        }.get(Reason(reason), False)
        demand(bool(why), "a lease ends only for its reason", model, Reason(reason).name)

    def _scan_epochs(self, stream: StreamRecord) -> None:
        shown = set()
        for record in stream.epochs:
            if record.state == lib.SHMD_EPOCH_FREE:
                continue
            key = (stream.stream_id, record.number)
            shown.add(key)
            epoch = self.epochs.setdefault(key, EpochModel(record.number))
            demand(not epoch.retired, "a retired epoch does not come back", key)
            demand(record.state >= epoch.state, "an epoch's state only grows", key, epoch.state, record.state)
            epoch.state, epoch.lease_id = record.state, record.producer_lease_id
            if record.state != SEALED:
                continue
            self._sealed(key, record.sealed_seq, record.end_reason)
        for key, epoch in self.epochs.items():
            if key[0] == stream.stream_id and key not in shown and not epoch.retired:
                epoch.retired, epoch.state = True, RETIRED
                if epoch.sealed is None:  # sealed and retired at one go by an adopting driver: nobody needed it
                    epoch.sealed = epoch.committed

    def _sealed(self, key: tuple[int, int], sealed_seq: int, reason: int) -> None:
        epoch = self.epochs[key]
        if epoch.sealed is None:
            epoch.sealed, epoch.reason = sealed_seq, reason
            demand(sealed_seq == epoch.committed, "the seal is after the last committed message",
                   f"stream {key[0]} epoch {key[1]}: sealed {sealed_seq}, committed {epoch.committed}",
                   Reason(reason).name)  # fmt: skip
        demand((epoch.sealed, epoch.reason) == (sealed_seq, reason), "sealed_seq is final", key)

    # -- between two ticks

    def _settled_stream(self, stream: StreamRecord, now: Snapshot) -> None:
        mine = [r for r in now.leases if r.stream_id == stream.stream_id and not r.is_producer]
        live = [r for r in mine if r.is_live]
        held = [r.gate for r in mine if r.is_live or (r.word & 0xFF and r.quarantined)]
        demand(len(held) == len(set(held)), "one owner a gate", stream.stream_id, held)
        if self.ending is None:
            used = sum(1 << gate for gate in set(held))
            demand(stream.gates_used == used, "gates_used is what leases hold", stream.stream_id,
                   f"{stream.gates_used:b} {used:b}")  # fmt: skip
        bits = sum(1 << r.gate for r in live)
        reliable = sum(1 << r.gate for r in live if r.delivery == lib.SHMD_DELIVERY_RELIABLE)
        opened = [record for record in stream.epochs if record.state == OPEN]
        demand(len(opened) <= 1, "one open epoch a stream", stream.stream_id)
        for record in stream.epochs:
            if record.state == lib.SHMD_EPOCH_FREE or self.ending is not None:
                continue
            demand(record.state in (OPEN, SEALED), "no epoch stays between two states", record.number, record.state)
            demand(record.wired_mask & ~bits == 0, "wired bits belong to live leases", f"{record.wired_mask:b} {bits:b}")
            demand(record.gate_mask == record.wired_mask & reliable, "gate bits are the wired reliable ones",
                   f"epoch {record.number}: {record.gate_mask:b} {record.wired_mask:b} {reliable:b}")  # fmt: skip
        if opened:
            producer = self.leases.get(opened[0].producer_lease_id)
            demand(producer is not None and producer.live, "an open epoch has a live producer", opened[0].number)
            demand(stream.producer_lease_id == opened[0].producer_lease_id, "the stream names its producer")
            demand(stream.epoch_count == opened[0].number, "epoch_count is the newest epoch's number")
        elif self.ending is None:
            demand(stream.producer_lease_id == 0, "no producer without an open epoch", stream.producer_lease_id)

    def _settled_leases(self, now: Snapshot, now_ns: int) -> None:
        clients = {r.client_id for r in now.clients if r.word & 0xFF != lib.SHMD_CLIENT_FREE}
        opened = {e.producer_lease_id for s in now.streams for e in s.epochs if e.state == OPEN}
        for record in now.leases:
            if not record.is_live:
                continue
            demand(record.client_id in clients, "a live lease has a client", record.lease_id)
            if record.is_producer:
                demand(record.lease_id in opened, "a live producer has an open epoch", record.lease_id)
            owner = self.leases[record.lease_id].owner
            if owner is not None and not owner.task.alive:
                since = max(owner.died_ns, self.driver_since_ns)
                demand(now_ns < since + self.check_interval_ns, "a proved death ends leases within one lease check",
                       self.leases[record.lease_id])  # fmt: skip
        for model in self.leases.values():
            if not model.live and model.lease_id not in self._told:
                demand(model.lease_id in self._untold, "every end of a lease is told", model, model.reason)

    def expected_segments(self) -> set[str]:
        """Names below the mount that the tables account for."""
        return {
            bytes(name).rstrip(b"\0").decode().lstrip("/")
            for stream in self.now.streams
            for record in stream.epochs
            if record.state != lib.SHMD_EPOCH_FREE
            for name in (record.data_name, record.gates_name)
        }
