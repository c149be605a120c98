"""Watching clients and leases: proofs of death, heartbeats, confirmations.

A heartbeat or a confirmation that is missing in a client's control segment ends nothing while the lease's own
memory moves: its data head, its place, or its gate's line.

The driver's own lateness is charged to nobody: all deadlines of clients are put off by it (``excuse``).

A check finds, and dispatches what it finds into the lifecycle; what is still true when the lifecycle
comes to it is carried out. So an end is always an event of the machine, in order with all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shmdriver._native import lib
from shmdriver.driver.clients import Client
from shmdriver.driver.config import Config
from shmdriver.driver.epochs import COUNTERS
from shmdriver.driver.leases import Activity
from shmdriver.driver.lifecycle import Event
from shmdriver.driver.tables import Tables
from shmdriver.driver.tenure import ClientDied, ClientExpired, Unconfirmed
from shmdriver.errors import Reason

__all__ = ["LeaseWatch", "stalled_after_ns"]

MILLISECOND_NS = 1_000_000
ENTRIES = {  # what a check finds in a client's segment
    int(lib.SHMD_CHECK_CONFIRMED): int(lib.SHMD_ENTRY_CONFIRMED),
    int(lib.SHMD_CHECK_DETACHED): int(lib.SHMD_ENTRY_DETACHED),
    int(lib.SHMD_CHECK_ABORTED): int(lib.SHMD_ENTRY_ABORTED),
}
MISSED_BEATS = 3  # so many heartbeats late, and a client is shown as stalled


def stalled_after_ns(config: Config) -> int:
    """For how long a client is silent until it is shown as stalled."""
    beats_ns = MISSED_BEATS * config.policies.heartbeat_interval_ms * MILLISECOND_NS
    return min(beats_ns, config.policies.lease_timeout_ms * MILLISECOND_NS // 2)


def _has_moved(before: Activity, now: Activity) -> bool:
    """Whether the owner moved in an epoch that it already had: a new epoch is the driver's doing."""
    return any(before[number] != now[number] for number in before.keys() & now.keys())


class _Dispatch(Protocol):
    def __call__(self, event: Event, now_ns: int, *, subject: object) -> None: ...


class LeaseWatch:
    """Finds what is over, and ends it when the lifecycle says so."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        dispatch: _Dispatch,
        log: Callable[[str], None],
        ring: Callable[[Client], None],
    ) -> None:
        """``ring`` is told of clients in whose rings something stands."""
        self._ring = ring
        self._tables = tables
        self._dispatch = dispatch
        self._log = log
        self._timeout_ns = config.policies.lease_timeout_ms * MILLISECOND_NS
        self._stalled_ns = stalled_after_ns(config)

    def check(self, now_ns: int) -> None:
        """Deaths first; then one C call over all heartbeats and confirmations."""
        self.look_for_deaths(now_ns)
        tables = self._tables
        findings = tables.leases.check(tables.clients.watches, now_ns, self._stalled_ns, self._timeout_ns)
        for what, index, silent_ns in findings:
            if what in ENTRIES:
                lease = tables.leases.at(index)
                if lease is not None:
                    tables.tenure.note(lease, ENTRIES[what], now_ns)
            elif what == lib.SHMD_CHECK_UNCONFIRMED:
                self._note_unconfirmed(index, now_ns)
            else:
                self._note_client(what, index, silent_ns, now_ns)
        for lease in tables.leases.all_quarantined:  # who has detached itself after all
            client = tables.clients.by_id(lease.client_id)
            if client is not None and client.control is not None:
                said = client.control.look(int(lease.record.entry), lease.lease_id)
                tables.tenure.note(lease, said, now_ns)
                tables.tenure.remove_gone(client)

    def excuse(self, late_ns: int, now_ns: int) -> None:
        """The driver was late by so much: puts off silences, confirmations and evictions that it counts."""
        tables = self._tables
        tables.clients.excuse(late_ns, now_ns)
        for lease in tables.leases:
            if lease.state == lib.SHMD_LEASE_ATTACHED:
                lease.record.deadline_ns += late_ns
        for stream in tables.streams:
            for epoch in stream.epochs.values():
                if epoch.blocked is not None:
                    gate, since_ns, seen_ns = epoch.blocked
                    epoch.blocked = (gate, since_ns, min(seen_ns + late_ns, now_ns))

    def look_for_deaths(self, now_ns: int) -> None:
        """Dispatches an expiry for each client that is proved dead."""
        self._tables.clients.look_again(now_ns)
        for client in self._tables.clients.deaths():
            self._dispatch(Event.EXPIRY, now_ns, subject=ClientDied(client))

    def expire(self, subject: ClientDied | ClientExpired | Unconfirmed, now_ns: int) -> None:
        """Ends what was found to be over, unless it has ended meanwhile."""
        tenure = self._tables.tenure
        if isinstance(subject, Unconfirmed):
            if subject.lease.is_live:
                state, reason = lib.SHMD_LEASE_DETACHED, Reason.UNCONFIRMED
                tenure.end(subject.lease, state, reason, now_ns, quarantine=True)
            return
        client = subject.client
        if self._tables.clients.by_id(client.client_id) is not client:
            return
        if isinstance(subject, ClientDied):
            self._log(f"client {client.label} has died")
            tenure.client_died(client, now_ns)
        else:
            self._log(f"client {client.label} has expired after {subject.silent_ns // MILLISECOND_NS} ms")
            tenure.client_expired(client, subject.silent_ns, now_ns)

    def _note_unconfirmed(self, index: int, now_ns: int) -> None:
        lease = self._tables.leases.at(index)
        if lease is None:
            return
        before, lease.activity = lease.activity, self._tables.streams.of(lease).activity(lease)
        has_begun = any(any(numbers[:COUNTERS]) for numbers in lease.activity.values())
        has_moved = before is not None and _has_moved(before, lease.activity)
        if has_begun or has_moved:  # it uses what it has mapped
            self._tables.leases.mark(lease, lib.SHMD_LEASE_ACTIVE)
        elif before is not None:  # it has stood still since the check before
            self._dispatch(Event.EXPIRY, now_ns, subject=Unconfirmed(lease))

    def _note_client(self, what: int, index: int, silent_ns: int, now_ns: int) -> None:
        client = self._tables.clients.by_index(index)
        if client is None:
            return
        if what == lib.SHMD_CHECK_REQUESTS:
            self._ring(client)
        elif what == lib.SHMD_CHECK_CLIENT_RECOVERED:
            self._dispatch(Event.KEEPALIVE, now_ns, subject=client)
        elif self._is_active(client, now_ns):
            if client.state == lib.SHMD_CLIENT_STALLED:
                self._dispatch(Event.KEEPALIVE, now_ns, subject=client)
        elif what == lib.SHMD_CHECK_CLIENT_STALLED:
            self._log(f"client {client.label} is stalled: silent for {silent_ns // MILLISECOND_NS} ms")
            self._tables.tenure.client_stalled(client)
        else:
            self._dispatch(Event.EXPIRY, now_ns, subject=ClientExpired(client, silent_ns))

    def _is_active(self, client: Client, now_ns: int) -> bool:
        """Whether a silent client's leases moved since the look before; also so at the first look."""
        tables = self._tables
        seen_ns = int(tables.clients.watches[client.index].seen_ns)
        leases = tables.leases.of_client(client.client_id)
        found = {lease.lease_id: tables.streams.of(lease).activity(lease) for lease in leases}
        before, client.activity = client.activity, (seen_ns, found)
        if before is None or before[0] != seen_ns:
            return True
        noted = before[1]
        is_same = found.keys() <= noted.keys()  # what the driver itself has ended is no sign of life
        if is_same and not any(_has_moved(noted[lease_id], found[lease_id]) for lease_id in found):
            return False
        tables.clients.seen(client, now_ns)
        client.activity = (now_ns, found)
        return True
