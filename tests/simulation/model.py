"""What must hold. One :class:`Boot` remembers what it saw of one boot id's tables and events, and compares.

A violation names the rule; world.py adds the seed and the way there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.driver.work import DEATHS_MAX
from shmdriver.errors import Code, Reason
from tests.simulation.registry import Registry
from tests.simulation.rules import demand, is_alive, key_of, text_of
from tests.simulation.tables import Snapshot, View, is_live, is_producer, phase, text_in

if TYPE_CHECKING:
    from tests.simulation.actors import Process
    from tests.simulation.kernel import Kernel

OPEN, SEALING, SEALED, RETIRED = (
    lib.SHMD_EPOCH_OPEN,
    lib.SHMD_EPOCH_SEALING,
    lib.SHMD_EPOCH_SEALED,
    lib.SHMD_EPOCH_RETIRED,
)
NO_CHANGE = ("client_id", "role", "stream_id", "correlation_id", "index")  # of a live lease's record


class LeaseModel:
    """A lease as it was first seen live, and what its owner did with it."""

    def __init__(self, record: Any, owner: Process | None) -> None:
        self.record = record
        self.lease_id = int(record.lease_id)
        self.owner = owner
        self.answered = self.confirmed = False
        self.done = False  # its owner sent a detach or a goodbye
        self.liar = False  # its gate holds nonsense
        self.revoke_asked = False
        self.noted_ns = 0  # when its owner noted in its control segment that it has ended
        self.live = True
        self.reason = 0

    @property
    def released(self) -> bool:
        """Whether its lines may be used again."""
        return self.done or not self.answered or self.owner is None or self.owner.gone

    def __str__(self) -> str:
        role = "producer" if is_producer(self.record) else "consumer"
        return f"{role} lease {self.lease_id} of {self.owner}"


class EpochModel:
    """What a producer committed, and what the tables said about its end."""

    def __init__(self) -> None:
        self.committed = 0
        self.state = OPEN
        self.sealed: int | None = None
        self.reason = 0
        self.retired = False


class Boot(Registry):
    """One boot id: its view, its processes, and all that was ever seen of its tables."""

    def __init__(self, view: View, kernel: Kernel, lease_timeout_ns: int, check_interval_ns: int) -> None:
        super().__init__(view, kernel)
        self.lease_timeout_ns = lease_timeout_ns
        self.check_interval_ns = check_interval_ns
        self.leases: dict[int, LeaseModel] = {}
        self.epochs: dict[tuple[int, int], EpochModel] = {}  # (stream id, number)
        self.stream_names: dict[int, bytes] = {}
        self.given_up: set[int] = set()  # correlation ids
        self.deaths: Counter[int] = Counter()  # of drivers, by what was in work, or just before
        self.poisons: set[int] = set()  # attaches that a driver that died was deciding, making or granting
        self.suspects: set[object] = set()  # attaches in work, or just before or after; by client and stream
        self.settled = False  # the driver is between two ticks, or was when it was killed
        self.end_asked = self.fresh_asked = False
        self.driver_since_ns = 0
        self.has_waiting = False  # the driver knows of requests, or of damage, that it has not looked at yet
        self._unread: dict[Process, tuple[int, int]] = {}  # without a connection: how many, and since when
        self.inherited = 0  # SHMD_LIFECYCLE_* that the present driver found
        self.retired_unread = 0
        self._max_lease_id = 0
        self._of_gate: dict[tuple[int, int, int], LeaseModel] = {}  # by stream id, epoch and gate
        self._told: set[int] = set()  # leases whose end was an event
        self._untold: set[int] = set()  # leases whose end may have lost its event
        self._sealed_told: set[tuple[int, int]] = set()

    @property
    def lifecycle(self) -> int:
        """``SHMD_LIFECYCLE_*``, as published."""
        return int(self.view.authority.lifecycle)

    @property
    def ending(self) -> bool:
        """A driver has begun, or has done, what ends this boot for good."""
        exit_kind = int(self.view.authority.exit_kind)
        over = self.lifecycle == lib.SHMD_LIFECYCLE_STOPPED or exit_kind == lib.SHMD_EXIT_CLEAN
        superseded = exit_kind == lib.SHMD_EXIT_SUPERSEDED
        demand(not over or self.end_asked or superseded, "a boot ends only when it is asked to", exit_kind)
        demand(not superseded or self.fresh_asked, "a boot is superseded only by a fresh start", exit_kind)
        return over or superseded

    # -- events

    def observe(self) -> list[Any]:
        """Reads and checks what the driver said since the last look."""
        events, lost = self.view.events()
        if lost:  # the ring was overrun, by this time: what is live now is told of later
            live = {int(record.lease_id) for record in self.view.snapshot().leases if is_live(record)}
            self._untold |= set(range(int(self.view.authority.next_lease_id))) - live
        for event in events:
            expelled = " is expelled: " in text_of(event) and any(p.is_liar for p in self.processes)
            failed = event.code == Code.INTERNAL_ERROR and not expelled
            demand(not failed, "no request makes the driver fail", text_of(event))
            if event.reason == Reason.DRIVER_DIED:
                rule = "a request is refused for a driver's death only when it was in work then"
                is_sent_once = event.kind in (lib.SHMD_EVENT_DETACH_RESPONSE, lib.SHMD_EVENT_ERROR)
                died = self.deaths[int(event.correlation_id)] >= (DEATHS_MAX if is_sent_once else 1)
                like = (int(event.client_id), ffi.string(event.stream).decode())
                demand(died or (like in self.suspects and not is_sent_once), rule, text_of(event))
            if event.kind in (lib.SHMD_EVENT_LEASE_REVOKED, lib.SHMD_EVENT_DETACH_RESPONSE):
                self._told.add(int(event.lease_id))
            elif event.kind == lib.SHMD_EVENT_STREAM_ANNOUNCE and event.state in (SEALING, SEALED):
                key = (int(event.stream_id), int(event.epoch))
                told = event.lease_id in self._told or event.lease_id in self._untold or self.ending
                demand(
                    told or key in self._sealed_told,
                    "a revoke is announced before the announce it causes",
                    f"stream {key[0]} epoch {key[1]} lease {event.lease_id}",
                )
                self._sealed_told.add(key)
                if event.state == SEALED and key in self.epochs:
                    self._sealed(key, int(event.value), int(event.reason))
        return events

    def note_answers(self, events: Iterable[Any]) -> None:
        """After :meth:`scan`: answers tell of leases that the tables show."""
        live = {int(record.correlation_id) for record in self.now.leases if is_live(record)}
        for event in events:
            if event.reason == Reason.DRIVER_DIED and event.kind == lib.SHMD_EVENT_ATTACH_RESPONSE:
                correlation = int(event.correlation_id)
                over = self.deaths[correlation] >= DEATHS_MAX or correlation not in live
                demand(over, "an attach that was granted is answered", text_of(event))
            if event.kind == lib.SHMD_EVENT_ATTACH_RESPONSE and event.code == Code.OK:
                model = self.leases.get(int(event.lease_id))
                if model is not None:
                    model.answered = True
                else:  # begun and ended within one tick
                    known = any(record.lease_id == event.lease_id for record in self.now.leases)
                    demand(known, "an answered attach stands in the tables", f"lease {event.lease_id}")

    def died_at(self, request: Any) -> None:
        """A driver was killed while this request was in work, or just before or after."""
        self.deaths[request.correlation_id] += 1
        if request.kind == lib.SHMD_REQUEST_ATTACH:
            self.suspects.add((request.client_id, request.stream))

    def driver_killed(self) -> None:
        """After :meth:`observe` and :meth:`scan`: ends that stand in the tables may have lost their event.

        Also of leases that began and ended within the killed tick, which no scan saw live. A lease that is
        live is not excused: whoever ends it later tells so, unless adoption undoes a producer's lease that
        was granted only half.
        """
        ended = {m.lease_id for m in self.leases.values() if not m.live}
        ended |= {int(r.lease_id) for r in self.now.leases if phase(r) and not is_live(r)}
        begun = {int(e.producer_lease_id) for _, epochs in self.now.streams for e in epochs}
        undone = {int(r.lease_id) for r in self.now.leases if is_live(r) and is_producer(r)} - begun
        self._untold |= (ended - self._told) | undone

    # -- tables

    def scan(self, now_ns: int, *, settled: bool) -> None:
        """Reads all tables and checks them against what was seen before."""
        self.now = now = self.view.snapshot()
        self.settled = settled
        self.scan_clients(now)
        for record in sorted(filter(is_live, now.leases), key=lambda record: int(record.lease_id)):
            self._live_lease(record)
        self._scan_ended(now, now_ns)
        for stream, epochs in now.streams:
            self.stream_names[stream.stream_id] = text_in(stream.name).encode()
            self._scan_epochs(stream, epochs)
            producers = [
                r.lease_id
                for r in now.leases
                if is_live(r) and is_producer(r) and r.stream_id == stream.stream_id
            ]
            demand(len(producers) <= 1, "one live producer a stream", producers)
            if settled:
                self._settled_stream(stream, epochs, now)
        if settled:
            self._settled_leases(now, now_ns)

    def _live_lease(self, record: Any) -> None:
        model = self.leases.get(record.lease_id)
        if model is not None:
            same = all(getattr(record, name) == getattr(model.record, name) for name in NO_CHANGE)
            demand(same and model.live, "lease ids are unique and never reused", model)
            model.record = record
            return
        demand(record.lease_id > self._max_lease_id, "lease ids are never reused", record.lease_id)
        self._max_lease_id = record.lease_id
        owner = self.owner_at(record.client_index)
        model = self.leases[record.lease_id] = LeaseModel(record, owner)
        model.done = record.correlation_id in self.given_up or (owner is not None and owner.left)

    def _scan_ended(self, now: Snapshot, now_ns: int) -> None:
        records = {record.lease_id: record for record in now.leases}
        for model in self.leases.values():
            record = records.get(model.lease_id)
            if not model.live or (record is not None and is_live(record)):
                continue
            model.live = False
            if record is not None and phase(record) != lib.SHMD_LEASE_FREE:
                model.record = record
                model.reason = record.end_reason
                self._justify(model, record, now_ns)

    def _justify(self, model: LeaseModel, record: Any, now_ns: int) -> None:
        owner, reason = model.owner, Reason(record.end_reason)
        if owner is None:
            return
        reliable = not is_producer(record) and record.delivery == lib.SHMD_DELIVERY_RELIABLE
        why = {
            Reason.DIED: not owner.task.alive or owner.is_succeeded,
            Reason.CLOSED: model.done,
            Reason.ABORTED: model.done or (not model.answered and is_producer(record)),
            Reason.EXPIRED: owner.is_liar
            or owner.is_silent(record.client_id, now_ns - self.lease_timeout_ns),
            Reason.UNCONFIRMED: not model.confirmed and now_ns >= record.deadline_ns,
            Reason.DELIVERED: not is_producer(record) and not record.flags & lib.SHMD_ATTACH_FOLLOW,
            Reason.EVICTED: reliable,
            Reason.BAD_GATE: model.liar,
            Reason.REVOKED: model.revoke_asked,
            Reason.EXPELLED: owner.is_liar,
            Reason.SHUTDOWN: self.ending,
            Reason.SUPERSEDED: self.ending and self.fresh_asked,
        }.get(reason, False)
        demand(bool(why), "a lease ends only for its reason", model, reason.name)

    def _scan_epochs(self, stream: Any, epochs: list[Any]) -> None:
        shown = set()
        for record in epochs:
            key = (stream.stream_id, record.state >> 8)
            state = record.state & 0xFF
            shown.add(key)
            epoch = self.epochs.setdefault(key, EpochModel())
            demand(not epoch.retired, "a retired epoch does not come back", key)
            demand(state >= epoch.state, "an epoch's state only grows", key, epoch.state, state)
            epoch.state = state
            self._scan_gates(stream.stream_id, record)
            if state == SEALED:
                self._sealed(key, record.sealed_seq, record.end_reason)
        for key, epoch in self.epochs.items():
            if key[0] == stream.stream_id and key not in shown and not epoch.retired:
                epoch.retired, epoch.state = True, RETIRED
                if (
                    epoch.sealed is None
                ):  # sealed and retired at one go by an adopting driver: nobody needed it
                    epoch.sealed = epoch.committed

    def _scan_gates(self, stream_id: int, epoch: Any) -> None:
        """Nobody is given a gate that another one may still write in an epoch that both have mapped."""
        for model in self.leases.values():
            record = model.record
            if not (model.live and record.stream_id == stream_id and not is_producer(record)):
                continue
            if epoch.wired_mask >> record.gate & 1:
                key = (stream_id, epoch.state >> 8, record.gate)
                before = self._of_gate.setdefault(key, model)
                rule = "a gate of an epoch is reused only after its owner"
                demand(before is model or before.released, rule, model, "after", before)
                self._of_gate[key] = model

    def _sealed(self, key: tuple[int, int], sealed_seq: int, reason: int) -> None:
        epoch = self.epochs[key]
        if epoch.sealed is None:
            epoch.sealed, epoch.reason = sealed_seq, reason
            demand(
                sealed_seq == epoch.committed,
                "the seal is after the last committed message",
                f"stream {key[0]} epoch {key[1]}: sealed {sealed_seq}, committed {epoch.committed}",
                Reason(reason).name,
            )
        demand((epoch.sealed, epoch.reason) == (sealed_seq, reason), "sealed_seq is final", key)

    # -- between two ticks

    def _settled_stream(self, stream: Any, epochs: list[Any], now: Snapshot) -> None:
        if self.ending:
            return
        mine = [r for r in now.leases if r.stream_id == stream.stream_id and not is_producer(r)]
        live = [r for r in mine if is_live(r)]
        gates = [r.gate for r in live]
        demand(len(gates) == len(set(gates)), "one owner a gate", stream.stream_id, gates)
        held = gates + [r.gate for r in mine if phase(r) and not is_live(r) and r.quarantined]
        used = sum(1 << gate for gate in set(held))
        demand(
            stream.gates_used == used,
            "gates_used is what leases hold",
            stream.stream_id,
            f"{stream.gates_used:b} {used:b}",
        )
        bits = sum(1 << r.gate for r in live)
        reliable = sum(1 << r.gate for r in live if r.delivery == lib.SHMD_DELIVERY_RELIABLE)
        opened = [record for record in epochs if record.state & 0xFF == OPEN]
        demand(len(opened) <= 1, "one open epoch a stream", stream.stream_id)
        for record in epochs:
            number, state, wired = record.state >> 8, record.state & 0xFF, record.wired_mask
            demand(state in (OPEN, SEALED), "no epoch stays between two states", number, state)
            demand(wired & ~bits == 0, "wired bits belong to live leases", f"{wired:b} {bits:b}")
            demand(
                record.gate_mask == wired & reliable,
                "gate bits are the wired reliable ones",
                f"epoch {number}: {record.gate_mask:b} {wired:b} {reliable:b}",
            )
        if opened:
            producer = self.leases.get(opened[0].producer_lease_id)
            demand(
                producer is not None and producer.live, "an open epoch has a live producer", opened[0].epoch
            )
            demand(stream.producer_lease_id == opened[0].producer_lease_id, "the stream names its producer")
            demand(stream.epoch_count == opened[0].state >> 8, "epoch_count is the newest epoch's number")
            wanted = sum(
                1 << r.gate
                for r in live
                if r.flags & lib.SHMD_ATTACH_FOLLOW or r.first_epoch == opened[0].epoch
            )
            demand(
                opened[0].wired_mask == wanted,
                "whoever waits for the open epoch is wired to it",
                f"epoch {opened[0].epoch}: {opened[0].wired_mask:b} {wanted:b}",
            )
        else:
            demand(
                stream.producer_lease_id == 0, "no producer without an open epoch", stream.producer_lease_id
            )

    def _settled_leases(self, now: Snapshot, now_ns: int) -> None:
        clients = {r.client_id for r in now.clients if phase(r) != lib.SHMD_CLIENT_FREE}
        provable = {r.client_id for r in now.clients if r.provable}
        hidden = {r.client_id for r in now.clients if self.is_hidden(r)}
        opened = {e.producer_lease_id for _, epochs in now.streams for e in epochs if e.state & 0xFF == OPEN}
        entries: set[tuple[int, int]] = set()
        for record in now.leases:
            if phase(record) and (is_live(record) or record.quarantined):
                self._settled_note(self.leases.get(record.lease_id), now_ns)
            if not is_live(record):
                continue
            demand(record.client_id in clients, "a live lease has a client", record.lease_id)
            entry = (record.client_id, record.entry)
            demand(entry not in entries, "each of a client's leases has an entry of its own", entry)
            entries.add(entry)
            if is_producer(record):
                demand(record.lease_id in opened, "a live producer has an open epoch", record.lease_id)
            owner = self.leases[record.lease_id].owner
            if owner is not None and not owner.task.alive and record.client_id not in hidden:
                since = max(owner.died_ns, self.driver_since_ns)
                if record.client_id not in provable:  # found once there are descriptors for looks again
                    since = max(since, self.kernel.seeing_since_ns)
                demand(
                    now_ns < since + self.check_interval_ns,
                    "a proved death ends leases within one lease check",
                    self.leases[record.lease_id],
                )
        self._settled_rings(now, now_ns)
        for model in self.leases.values():
            if not model.live and model.lease_id not in self._told:
                demand(model.lease_id in self._untold, "every end of a lease is told", model, model.reason)

    def _settled_note(self, model: LeaseModel | None, now_ns: int) -> None:
        """What its owner has noted as ended ends, and is set aside no more, within one lease check."""
        if model is None or not model.noted_ns or model.owner is None:
            return
        has_rung = not model.owner.stopped or model.owner.session.connection is None
        due_ns = max(model.noted_ns, self.driver_since_ns) + self.check_interval_ns
        rule = "what a client has noted as ended ends within one lease check"
        demand(not has_rung or model.owner.is_liar or now_ns < due_ns, rule, model)

    def _settled_rings(self, now: Snapshot, now_ns: int) -> None:
        """A lease check finds requests of clients without a connection, and rings that are none."""
        alive = {key_of(record): record for record in now.clients if is_alive(record)}
        for process in self.processes:
            record = alive.get(process.session.key)
            is_watched = record is not None and (not record.connected or process.is_liar)
            count = process.unread if is_watched else 0
            is_ruined = not 0 <= count <= lib.SHMD_CLIENT_REQUESTS
            before, since_ns = self._unread.get(process, (0, 0))
            if count == 0 or count < before or since_ns == 0:
                since_ns = now_ns
            self._unread[process] = (count, since_ns)
            due_ns = max(since_ns, self.driver_since_ns) + self.check_interval_ns
            rule = "who ruins its ring is expelled" if is_ruined else "a ring without a doorbell is read"
            demand(count == 0 or now_ns < due_ns or self.has_waiting, rule, process, count)

    def expected_segments(self) -> set[str]:
        """Names below the mount that the tables account for."""
        epochs = [record for _, found in self.now.streams for record in found]
        names = [name for record in epochs for name in (record.data_name, record.gates_name)]
        names += [record.control_name for record in self.now.clients if is_alive(record)]
        return {text_in(name).lstrip("/") for name in names}

    def optional_segments(self) -> set[str]:
        """Control segments of clients that are gone: an adopting driver that finds one damaged removes it."""
        gone = [record for record in self.now.clients if phase(record) and not is_alive(record)]
        return {text_in(record.control_name).lstrip("/") for record in gone}
