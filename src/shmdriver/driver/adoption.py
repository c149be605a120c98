"""Taking over what another driver process left: the tables are loaded and their last step is redone.

A driver may be killed between any two stores. Every transition is written in the order data, state, event,
so what can be found half done is a short list. Each step below is idempotent:

* a client or lease record that was filled and not published: free, as its word says;
* a producer's lease without its epoch: undone (its segments are orphans, its attach is repeated);
* an open epoch that the stream's words do not name yet: the words are stored;
* an ended lease whose bits, gate or epoch are as before: bits cleared, epoch sealed;
* an epoch that was being sealed or retired: sealed, retired;
* a client whose control segment is lost: it alone is expelled;
* what a client has noted of its leases while no driver lived: heard;
* an ended lease whose owner can have no epoch mapped any more: its record and gate are free;
* an epoch whose segments are lost: leases of who has not drained it end, and only then its record is free;
* segments of this instance that no record names: unlinked.

Events that were lost with the old driver are not repeated: clients repeat what was not answered, and every
stream is announced afresh.

Nobody is served meanwhile. So each table is read a fixed number of times, and never once for each
row of another table: thousands of streams and leases are taken over within a second or two.
"""

from __future__ import annotations

from collections.abc import Mapping

from shmdriver._native import lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.clients import Client, ClientTable
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.leases import LeaseTable
from shmdriver.driver.segment_names import own_segments
from shmdriver.driver.shm import unlink_segment
from shmdriver.driver.streams import Stream, StreamDirectory
from shmdriver.driver.tenure import Tenure
from shmdriver.errors import Reason

__all__ = ["adopt_tables", "load_tables", "remove_orphans"]


def load_tables(
    clients: ClientTable, leases: LeaseTable, streams: StreamDirectory, now_ns: int
) -> tuple[list[Client], Mapping[Client, str], Mapping[int, int], list[str]]:
    """Reads all tables as they stand.

    Returns the clients that are dead, those whose control segments are lost (why), the reasons of ended
    leases by lease id, and texts about what was amiss.
    """
    dead, lost = clients.load(now_ns)
    ends = leases.load()
    return dead, lost, ends, streams.load(list(leases), leases.all_quarantined)


def adopt_tables(
    authority: Authority,
    clients: ClientTable,
    leases: LeaseTable,
    streams: StreamDirectory,
    tenure: Tenure,
    now_ns: int,
) -> list[str]:
    """Loads all tables and redoes last steps; texts as of ``load_tables``."""
    dead, lost, ends, problems = load_tables(clients, leases, streams, now_ns)
    failpoint("adopt.loaded")
    for lease in leases:
        if lease.state == lib.SHMD_LEASE_STALLED:  # the silence that counted was seen by another driver
            leases.mark(lease, lib.SHMD_LEASE_ACTIVE)
    for stream in streams:
        _undo_unopened(stream, leases, now_ns)
        failpoint("adopt.undone")
        _finish_epochs(stream, ends, now_ns)
        failpoint("adopt.epochs")
        _finish_wiring(stream)
    for stream in streams:
        for epoch in stream.given_up:
            wired, number = int(epoch.record.hot.wired_mask), int(epoch.record.hot.state) >> 8
            for lease in [lease for lease in stream.consumers if wired >> lease.gate & 1]:
                if lease.lease_id not in epoch.left and not stream.has_read_on(lease, number):
                    tenure.revoke(lease, Reason.TRUNCATED, epoch.text, now_ns)  # what it had not read is gone
                elif not lease.follows:
                    tenure.deliver(stream, lease, now_ns)
    failpoint("adopt.revoked")
    streams.retire_given_up()  # X2; and until then a successor finds these epochs, and the leases to end
    for lease in leases:  # clients that died in a way that left no record of theirs
        if clients.by_id(lease.client_id) is None:
            tenure.end(lease, lib.SHMD_LEASE_EXPIRED, Reason.DIED, now_ns, quarantine=False)
    for client in clients:
        if client.state == lib.SHMD_CLIENT_GONE:
            tenure.end_expired(client, f"{client.label} had expired when its driver died", now_ns)
    failpoint("adopt.wired")
    for client in dead:
        tenure.client_died(client, now_ns)
    for client, text in lost.items():
        if clients.by_id(client.client_id) is client:
            problems.append(tenure.expel(client, text, now_ns))
    failpoint("adopt.expelled")
    for client in clients:
        tenure.hear(client, now_ns)
    for stream in streams:
        tenure.settle(stream, now_ns)
        tenure.release_unmapped(stream)
    for client in clients:
        tenure.remove_gone(client)
    failpoint("adopt.settled")
    return problems + authority.tell_links(*sorted(streams.segment_names()), *clients.segment_names())


def remove_orphans(authority: Authority, clients: ClientTable, streams: StreamDirectory) -> list[str]:
    """Removes segments of this instance that no table names, once nobody else has any; texts about them."""
    known = {*streams.segment_names(), *clients.segment_names()}
    return [
        f"{name} belonged to no epoch and no client: removed"
        for name in own_segments(authority.instance, "control", "data", "gates")
        if name not in known and unlink_segment(name)
    ]


def _undo_unopened(stream: Stream, leases: LeaseTable, now_ns: int) -> None:
    for lease in [lease for lease in stream.leases.values() if lease.is_producer]:
        if not any(int(epoch.record.producer_lease_id) == lease.lease_id for epoch in stream.in_order):
            is_given_up = any(
                int(epoch.record.producer_lease_id) == lease.lease_id for epoch in stream.given_up
            )
            reason = Reason.TRUNCATED if is_given_up else Reason.ABORTED
            leases.end(lease, lib.SHMD_LEASE_DETACHED, reason, now_ns, quarantine=False)
            leases.forget_attach(lease)
            del stream.leases[lease.lease_id]


def _finish_epochs(stream: Stream, ends: Mapping[int, int], now_ns: int) -> None:
    named = int(stream.record.producer_lease_id)
    for epoch in stream.in_order:
        producer = stream.leases.get(int(epoch.record.producer_lease_id))
        if epoch.is_open and producer is not None:
            stream.note_producer(epoch)
            named = 0
        elif not epoch.is_sealed:
            # A record used anew tells nothing: then the end is not proved, and it is sealed in two phases.
            reason = ends.get(int(epoch.record.producer_lease_id), Reason.EXPIRED)
            epoch.seal(Reason(reason), now_ns)
    if named and named not in stream.leases:
        stream.clear_producer()


def _finish_wiring(stream: Stream) -> None:
    live = sum(1 << gate for gate in {lease.gate for lease in stream.consumers})
    stream.note_gates()
    for epoch in stream.in_order:
        epoch.keep_only(live)
        for lease in stream.consumers:
            if epoch.is_wired(lease.gate):
                epoch.watch.positions[lease.gate] = 0  # what it claims next is where the watch begins
    for lease in stream.consumers:
        if int(lease.record.first_epoch) > int(stream.record.epoch_count):
            lease.record.first_epoch = 0  # wired into an epoch that was never published
