"""How leases end, and what follows: seals, cleared bits, freed gates, retired epochs, events.

A lease ends by :meth:`Tenure.end`, in the order data, state, consequences, event. Three ends differ
in their consequences and have steps of their own: of a consumer that has read its only epoch to the
end (``settle``), of all leases when the driver goes for good (``seal_all``), and of a lease that an
adopting driver undoes (adoption.py). A driver that is killed between two steps leaves an ended
lease whose consequences are missing; the adopting driver applies them again, and all of them are
idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmdriver._native import lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.clients import Client, ClientTable, describe
from shmdriver.driver.epochs import Epoch
from shmdriver.driver.events import EventLog
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.leases import Lease, LeaseTable
from shmdriver.driver.streams import Stream, StreamDirectory
from shmdriver.errors import Reason

__all__ = ["ClientDied", "ClientExpired", "Tenure", "Unconfirmed"]


@dataclass(frozen=True, slots=True)
class ClientDied:
    """A client's process is proved dead."""

    client: Client


@dataclass(frozen=True, slots=True)
class ClientExpired:
    """A client's heartbeat stood still past its deadline, and its death is not proved."""

    client: Client
    silent_ns: int


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """An attach was answered, and its client did not confirm it in time."""

    lease: Lease


class Tenure:
    """Ends leases and what hangs on them, for all tables of one instance."""

    def __init__(
        self,
        authority: Authority,
        clients: ClientTable,
        leases: LeaseTable,
        streams: StreamDirectory,
        events: EventLog,
        *,
        grace_ns: int,
    ) -> None:
        self._authority = authority
        self._clients = clients
        self._leases = leases
        self._streams = streams
        self._events = events
        self._grace_ns = grace_ns
        streams.on_retired = self.release_unmapped

    # -- leases

    def detach(self, lease: Lease, reason: Reason, now_ns: int, *, correlation_id: int = 0) -> None:
        """Its owner gives a lease up (CLOSED, ABORTED): its lines are free at once."""
        self.end(
            lease, lib.SHMD_LEASE_DETACHED, reason, now_ns, quarantine=False, correlation_id=correlation_id
        )

    def revoke(self, lease: Lease, reason: Reason, text: str, now_ns: int) -> None:
        """The driver takes a lease away; its owner lives and may still write to its lines."""
        self._authority.count(lib.SHMD_COUNTER_LEASES_REVOKED)
        self.end(lease, lib.SHMD_LEASE_REVOKED, reason, now_ns, quarantine=True, text=text)

    def end(
        self,
        lease: Lease,
        state: int,
        reason: Reason,
        now_ns: int,
        *,
        quarantine: bool,
        text: str = "",
        correlation_id: int = 0,
    ) -> None:
        """Ends a live lease in ``state`` (``SHMD_LEASE_*``) with all that follows from it.

        ``quarantine``: its owner may still write. It is set aside as long as it can have an epoch mapped.
        """
        stream = self._streams.of(lease)
        if not lease.is_live:  # delivered meanwhile, because another lease of its client has ended
            if not quarantine and lease.lease_id in stream.set_aside:
                self.release(lease)
            return
        self._end_record(stream, lease, state, reason, now_ns, quarantine=quarantine)
        epoch = self._stop_producing(stream, lease, reason, now_ns) if lease.is_producer else None
        failpoint("end.sealed")
        if not lease.is_producer:
            stream.unwire(lease.gate)
            stream.note_gates()
        failpoint("end.unwired")
        if state == lib.SHMD_LEASE_DETACHED:
            self._authority.count(lib.SHMD_COUNTER_DETACHES)
            self._events.detach_response(lease.record, stream.name, correlation_id)
        else:
            self._events.lease_revoked(lease.record, stream.name, text)
        if lease.is_producer:
            self._events.stream_changed(stream.record, epoch.record if epoch else None)
        elif lease.is_reliable and stream.open_epoch is not None and not stream.open_epoch.hot.gate_mask:
            self._events.consumers_left(stream.record, stream.open_epoch.record)
        failpoint("end.told")
        self.settle(stream, now_ns)

    def deliver(self, stream: Stream, lease: Lease, now_ns: int) -> None:
        """Ends the lease of a consumer that has read its only epoch to the end.

        Its handle is open yet, so its gate stays its own until it detaches.
        """
        state = lib.SHMD_LEASE_DETACHED
        self._end_record(stream, lease, state, Reason.DELIVERED, now_ns, quarantine=True)
        stream.unwire(lease.gate)
        stream.note_gates()
        self._events.detach_response(lease.record, stream.name)

    def release(self, lease: Lease) -> None:
        """The owner of a lease that is set aside has detached itself, is dead, or has nothing mapped."""
        stream = self._streams.of(lease)
        del stream.set_aside[lease.lease_id]
        if not lease.is_producer:
            stream.note_gates()
        self._leases.release(lease)

    def _end_record(
        self, stream: Stream, lease: Lease, state: int, reason: Reason, now_ns: int, *, quarantine: bool
    ) -> None:
        if not lease.is_producer:
            lease.record.epoch = int(stream.record.epoch_count)  # data, before the state
        is_kept = quarantine and stream.keeps(lease)
        self._leases.end(lease, state, reason, now_ns, quarantine=is_kept)
        stream.leases.pop(lease.lease_id, None)
        if is_kept:
            stream.set_aside[lease.lease_id] = lease

    def release_unmapped(self, stream: Stream) -> None:
        """After an epoch was retired: leases whose owners can have none mapped any more are nobody's."""
        for lease in [lease for lease in stream.set_aside.values() if not stream.keeps(lease)]:
            self.release(lease)
            client = self._clients.by_id(lease.client_id)
            if client is not None:
                self.remove_gone(client)

    def remove_gone(self, client: Client) -> None:
        """A client that is GONE, and for which nothing is set aside any more, is forgotten."""
        if client.state == lib.SHMD_CLIENT_GONE and not self._leases.owned_by(client.client_id):
            self._clients.remove(client)

    # -- clients

    def hear(self, client: Client, now_ns: int) -> None:
        """Looks at which leases a client has noted as left. (Confirmations wait for a lease check.)"""
        for lease in self._leases.owned_by(client.client_id):
            if client.control is not None:
                said = client.control.look(int(lease.record.entry), lease.lease_id)
                if said != lib.SHMD_ENTRY_CONFIRMED:
                    self.note(lease, said, now_ns)

    def note(self, lease: Lease, what: int, now_ns: int) -> None:
        """What its client says of a lease: ``SHMD_ENTRY_*``. Anything else says nothing."""
        if what == lib.SHMD_ENTRY_CONFIRMED and lease.state == lib.SHMD_LEASE_ATTACHED:
            self._leases.mark(lease, lib.SHMD_LEASE_ACTIVE)
        elif what in (lib.SHMD_ENTRY_DETACHED, lib.SHMD_ENTRY_ABORTED):
            reason = Reason.CLOSED if what == lib.SHMD_ENTRY_DETACHED else Reason.ABORTED
            if lease.is_live:
                self.detach(lease, reason, now_ns)
            elif self._leases.quarantined(lease.lease_id) is lease:
                self.release(lease)

    def client_left(self, client: Client, now_ns: int) -> None:
        """Goodbye: what it has not closed ends as aborted."""
        for lease in self._leases.of_client(client.client_id):
            self.detach(lease, Reason.ABORTED, now_ns)
        self._forget(client)

    def client_died(self, client: Client, now_ns: int, how: str = "it has died") -> None:
        """Proved: its leases end, as it had noted itself or as died; its lines are free."""
        self.hear(client, now_ns)
        self._authority.count(lib.SHMD_COUNTER_CLIENTS_DIED)
        for lease in self._leases.of_client(client.client_id):
            text = f"{describe(client)}: {how}"
            self.end(lease, lib.SHMD_LEASE_EXPIRED, Reason.DIED, now_ns, quarantine=False, text=text)
        self._forget(client)

    def client_expired(self, client: Client, silent_ns: int, now_ns: int) -> None:
        """Silent past the deadline, not proved dead: its permission ends, its lines stay its own."""
        self._clients.mark(client, lib.SHMD_CLIENT_GONE)
        text = f"{describe(client)} was silent for {silent_ns // 1_000_000} ms; its death is not proved"
        self.end_expired(client, text, now_ns)

    def end_expired(self, client: Client, text: str, now_ns: int) -> None:
        """Ends the leases of a client that is GONE already, perhaps for a driver that was killed in it."""
        for lease in self._leases.of_client(client.client_id):
            self._authority.count(lib.SHMD_COUNTER_LEASES_EXPIRED)
            self.end(lease, lib.SHMD_LEASE_EXPIRED, Reason.EXPIRED, now_ns, quarantine=True, text=text)
        self.remove_gone(client)

    def expel(self, client: Client, text: str, now_ns: int) -> str:
        """What it writes to the driver cannot be read any more. It is told, and its lines stay its own.

        Returns what to say of it.
        """
        said = f"client {describe(client)}, uid {client.record.uid}, is expelled: {text}"
        self._clients.mark(client, lib.SHMD_CLIENT_GONE)
        self._authority.log_error(said, now_ns)
        self._events.error(said)
        for lease in self._leases.of_client(client.client_id):
            self.revoke(lease, Reason.EXPELLED, said, now_ns)
        self.remove_gone(client)
        return said

    def client_stalled(self, client: Client) -> None:
        """Silent, not overdue yet: shown, nothing ends."""
        self._authority.count(lib.SHMD_COUNTER_CLIENTS_STALLED)
        self._clients.mark(client, lib.SHMD_CLIENT_STALLED)
        for lease in self._leases.of_client(client.client_id):
            if lease.state == lib.SHMD_LEASE_ACTIVE:
                self._leases.mark(lease, lib.SHMD_LEASE_STALLED)

    def client_recovered(self, client: Client) -> None:
        """Its heart beats again, unless the same check has found it dead and freed its record."""
        if self._clients.by_id(client.client_id) is not client:
            return
        self._clients.mark(client, lib.SHMD_CLIENT_ALIVE)
        for lease in self._leases.of_client(client.client_id):
            if lease.state == lib.SHMD_LEASE_STALLED:
                self._leases.mark(lease, lib.SHMD_LEASE_ACTIVE)

    def reap_dead(self, now_ns: int) -> int:
        """Ends everything of clients that are proved dead; how many there were."""
        dead = self._clients.deaths()
        for client in dead:
            self.client_died(client, now_ns)
        return len(dead)

    # -- epochs

    def settle(self, stream: Stream, now_ns: int) -> None:
        """Detaches consumers that have delivered their only epoch; retires epochs that nobody needs."""
        for epoch in stream.in_order:
            if not epoch.is_sealed:
                continue
            epoch.note_left()
            delivered = [
                lease
                for lease in stream.consumers
                if not lease.follows and epoch.is_wired(lease.gate) and epoch.has_left(lease)
            ]
            for lease in delivered:
                self.deliver(stream, lease, now_ns)
            if self.may_retire(stream, epoch, now_ns):
                self._streams.retire(stream, epoch)

    @property
    def grace_ns(self) -> int:
        """For how long an end can still be joined or looked up."""
        return self._grace_ns

    def may_retire(self, stream: Stream, epoch: Epoch, now_ns: int, *, needed: bool = False) -> bool:
        """Whether a sealed epoch can go. ``needed``: for its record or memory, so grace does not count.

        Reliable consumers that have not left hold it as long as they live. Others, late joiners of a clean
        end, and a revoked producer that wants to know its seal, have the grace time.
        """
        if not epoch.is_sealed or stream.holders(epoch, reliable_only=True):
            return False
        if needed or now_ns - epoch.sealed_ns >= self._grace_ns:
            return True
        gone = epoch.record.end_reason in (Reason.ABORTED, Reason.DIED)
        return gone and not stream.holders(epoch, reliable_only=False)

    def retire_needed(self, now_ns: int) -> int:
        """Retires whatever nobody reliable holds, because memory is short; how many epochs went."""
        retired = 0
        for stream in self._streams:
            for epoch in stream.in_order:
                if self.may_retire(stream, epoch, now_ns, needed=True):
                    self._streams.retire(stream, epoch)
                    retired += 1
        return retired

    def give_up_ended(self, now_ns: int) -> None:
        """Retires what one stream keeps of its past, so that its record can be another stream's.

        The one that ended first, of those that nobody is attached to and that are drained: only the grace
        time of late joiners keeps them.
        """
        ended = [
            stream
            for stream in self._streams
            if stream.is_left
            and all(self.may_retire(stream, epoch, now_ns, needed=True) for epoch in stream.in_order)
        ]
        if ended:
            oldest = min(ended, key=lambda stream: max((e.sealed_ns for e in stream.in_order), default=0))
            for epoch in oldest.in_order:
                self._streams.retire(oldest, epoch)

    def seal_all(self, reason: Reason, text: str, now_ns: int) -> None:
        """Seals every epoch and ends every lease, because the driver goes for good.

        Consumers keep their bits: what was committed below the seals can be drained when no driver is left.
        """
        for stream in self._streams:
            for epoch in stream.in_order:
                if not epoch.is_sealed:
                    self._seal(epoch, reason, now_ns)
        failpoint("stop.sealed")
        for lease in self._leases:
            stream = self._streams.of(lease)
            failpoint("stop.lease")
            self._end_record(stream, lease, lib.SHMD_LEASE_REVOKED, reason, now_ns, quarantine=True)
            self._events.lease_revoked(lease.record, stream.name, text)
        for stream in self._streams:
            for epoch in stream.in_order:
                epoch.wake()

    # -- consequences

    def _stop_producing(self, stream: Stream, lease: Lease, reason: Reason, now_ns: int) -> Epoch | None:
        epoch = next((e for e in stream.in_order if int(e.record.producer_lease_id) == lease.lease_id), None)
        if epoch is not None:
            self._seal(epoch, reason, now_ns)
        if int(stream.record.producer_lease_id) == lease.lease_id:
            stream.clear_producer()
        return epoch

    def _seal(self, epoch: Epoch, reason: Reason, now_ns: int) -> None:
        epoch.seal(reason, now_ns)
        self._authority.count(lib.SHMD_COUNTER_EPOCHS_SEALED)
        self._authority.count(lib.SHMD_COUNTER_EPOCHS_UNPROVEN, int(epoch.record.unproven))

    def _forget(self, client: Client) -> None:
        for lease in self._leases.quarantined_of_client(client.client_id):
            self.release(lease)
        self._clients.remove(client)
