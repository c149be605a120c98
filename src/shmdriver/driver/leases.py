"""Permissions: lease records and who holds them. Plain enums and procedural code, no machine each.

    ATTACHED -> ACTIVE <-> STALLED      live
    DETACHED | EXPIRED | REVOKED        ended, with a reason

A record whose lease has ended stays readable until it is used again. When its client has neither detached it
nor is proved dead, it is set aside (quarantined): a stopped process that wakes still writes to its old lines,
in the epochs that it may have mapped. It is used again when the client says so or is proved dead, or none of
those epochs is in use any more.

The table is indexed by client and by attach. So what a lookup costs does not grow with the number of leases,
and the end of many clients costs as much as they have leases.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, clear_record, publish_word, record_state, room_advice
from shmdriver.driver.clients import Client
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.rejection import Rejection
from shmdriver.errors import Reason

__all__ = ["LIVE", "Activity", "Lease", "LeaseTable"]

LIVE = frozenset((lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE, lib.SHMD_LEASE_STALLED))
ENDS_REMEMBERED = 1024
FINDINGS = 512


Activity = dict[int, tuple[int, ...]]  # by epoch number: what only the owner of a lease moves there


class Lease:
    """One lease record. ``schema`` is what a consumer declared, as long as this driver remembers it."""

    __slots__ = ("activity", "index", "lease_id", "record", "schema")

    def __init__(self, record: Any, index: int) -> None:
        self.record = record
        self.index = index
        self.lease_id = int(record.lease_id)
        self.schema: str | None = None
        self.activity: Activity | None = None  # while it waits for a confirmation: at the lease check before

    @property
    def state(self) -> int:
        """``SHMD_LEASE_*``."""
        return record_state(self.record)

    @property
    def is_live(self) -> bool:
        """Whether the permission holds."""
        return record_state(self.record) in LIVE and int(self.record.lease_id) == self.lease_id

    @property
    def client_id(self) -> int:
        """Whose it is."""
        return int(self.record.client_id)

    @property
    def is_producer(self) -> bool:
        """Role."""
        return bool(self.record.role == lib.SHMD_ROLE_PRODUCER)

    @property
    def is_reliable(self) -> bool:
        """A consumer whose gate holds the producer back."""
        return bool(self.record.delivery == lib.SHMD_DELIVERY_RELIABLE) and not self.is_producer

    @property
    def follows(self) -> bool:
        """A consumer that goes on with the next epoch."""
        return bool(self.record.flags & lib.SHMD_ATTACH_FOLLOW)

    def shares_with(self, other: Lease) -> bool:
        """Whether both are reliable consumers among as many that share a stream's messages out."""
        mine, others = int(self.record.shards), int(other.record.shards)
        return mine == others > 1 and self.is_reliable and other.is_reliable

    @property
    def gate(self) -> int:
        """Index of a consumer's gate and mask bit, the same in every epoch."""
        return int(self.record.gate)

    @property
    def last_epoch(self) -> int:
        """Of an ended lease: the newest epoch that its owner may have mapped. A producer has one epoch."""
        return int(self.record.epoch)


class LeaseTable:
    """The leases of one instance."""

    def __init__(self, authority: Authority, *, limit: int) -> None:
        self._authority = authority
        self._limit = min(limit, authority.sizes.leases)
        self._live: dict[int, Lease] = {}
        self._quarantined: dict[int, Lease] = {}
        # Both kinds: by the attach that made it, and for each client by lease id.
        self._by_correlation: dict[int, Lease] = {}
        self._by_client: defaultdict[int, dict[int, Lease]] = defaultdict(dict)
        self._ends: OrderedDict[int, Reason] = OrderedDict()
        # The oldest end is used again first: tools and late clients see it as long as possible.
        self._free: deque[int] = deque(range(authority.sizes.leases))
        self._findings = ffi.new("shmd_check_t[]", FINDINGS)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    @property
    def has_room(self) -> bool:
        """Whether one more fits."""
        return len(self._live) + len(self._quarantined) < self._limit

    @property
    def all_quarantined(self) -> list[Lease]:
        """Ended leases whose owners may still write."""
        return list(self._quarantined.values())

    def live(self, lease_id: int) -> Lease | None:
        """The live lease with this id."""
        return self._live.get(lease_id)

    def quarantined(self, lease_id: int) -> Lease | None:
        """The ended lease with this id whose owner may still write."""
        return self._quarantined.get(lease_id)

    def quarantined_by_correlation(self, correlation_id: int) -> Lease | None:
        """The quarantined lease that this attach made."""
        lease = self._by_correlation.get(correlation_id)
        return lease if lease is not None and lease.lease_id in self._quarantined else None

    def by_correlation(self, correlation_id: int) -> Lease | None:
        """The live lease that this attach made."""
        lease = self._by_correlation.get(correlation_id)
        return lease if lease is not None and lease.lease_id in self._live else None

    def end_of_attach(self, correlation_id: int) -> Reason | None:
        """How the lease that this attach made has ended, as long as it is remembered."""
        return self._ends.get(correlation_id)

    def owned_by(self, client_id: int) -> list[Lease]:
        """A client's leases, the live ones and those that are set aside."""
        return self._of(client_id)

    def of_client(self, client_id: int) -> list[Lease]:
        """A client's live leases."""
        return [lease for lease in self._of(client_id) if lease.lease_id in self._live]

    def quarantined_of_client(self, client_id: int) -> list[Lease]:
        """A client's ended leases that wait for a proof."""
        return [lease for lease in self._of(client_id) if lease.lease_id in self._quarantined]

    def fill(self, request: Any, client: Client, stream: Any, now_ns: int, *, deadline_ns: int) -> Lease:
        """A new record with all that is known before the wiring; not published. Raises Rejection.

        ``request`` is a checked private copy, ``stream`` the stream's record.
        """
        if not self.has_room:
            raise Rejection(
                Reason.LIMIT,
                f"{len(self._live)} leases are live and {len(self._quarantined)} wait for proof that their "
                f"owners are gone, of {self._limit}: "
                + room_advice(
                    "policies.limits.leases",
                    self._limit,
                    self._authority.sizes.leases,
                    self._authority.instance,
                ),
            )
        record = self._authority.lease(self._free[0])
        clear_record(record)
        record.index = self._free[0]
        record.lease_id = self._authority.take_id("next_lease_id")
        record.client_id, record.client_index = client.client_id, client.index
        record.correlation_id = request.correlation_id
        record.stream_index, record.stream_id = stream.index, stream.stream_id
        record.role, record.flags = request.role, request.flags
        record.delivery, record.start, record.wait = request.delivery, request.start, request.wait
        record.slow_consumer, record.min_consumers = request.slow_consumer, request.min_consumers
        record.shards = request.shards
        record.entry = self._free_entry(client)
        record.attached_ns, record.deadline_ns = now_ns, deadline_ns
        if request.schema_bytes:
            record.schema_hash = lib.shmd_hash(request.schema, request.schema_bytes, 0)
        lease = Lease(record, self._free[0])
        if request.schema_bytes:
            lease.schema = bytes(ffi.string(request.schema)).decode()
        return lease

    def _free_entry(self, client: Client) -> int:
        """Where in its control segment the client speaks of the new lease. Raises Rejection."""
        used = {int(lease.record.entry) for lease in self._of(client.client_id)}
        entry = next((entry for entry in range(lib.SHMD_CLIENT_LEASES) if entry not in used), None)
        if entry is None:
            raise Rejection(
                Reason.LIMIT,
                f"{client.label} has {len(used)} leases, and one client can have {lib.SHMD_CLIENT_LEASES} at "
                "a time: close some, or connect once more",
            )
        return entry

    def publish(self, lease: Lease) -> None:
        """Makes a filled lease the client's (state ATTACHED)."""
        assert self._free[0] == lease.index, "the record that fill() chose is the next free one"
        self._free.popleft()
        failpoint("lease.filled")
        publish_word(lease.record, lib.SHMD_LEASE_ATTACHED, reuse=True)
        failpoint("lease.published")
        self._enter(lease, self._live)

    def withdraw(self, lease: Lease) -> None:
        """Undoes ``publish``, however far it came: the record is the next free one again."""
        publish_word(lease.record, lib.SHMD_LEASE_FREE)
        self._live.pop(lease.lease_id, None)
        self._forget(lease)
        if lease.index not in self._free:
            self._free.appendleft(lease.index)

    def mark(self, lease: Lease, state: int) -> None:
        """ATTACHED, ACTIVE or STALLED."""
        failpoint("lease.marking")
        publish_word(lease.record, state)

    def end(self, lease: Lease, state: int, reason: Reason, now_ns: int, *, quarantine: bool) -> None:
        """Ends a live lease; what it meant for its stream is the caller's to undo.

        ``quarantine``: the owner may still write to its lines. Data, then state.
        """
        record = lease.record
        record.end_reason = reason
        record.ended_ns = now_ns
        record.quarantined = int(quarantine)
        failpoint("lease.ending")
        publish_word(record, state)
        failpoint("lease.ended")
        self._live.pop(lease.lease_id, None)
        self._ends[int(record.correlation_id)] = reason
        while len(self._ends) > ENDS_REMEMBERED:
            self._ends.popitem(last=False)
        if quarantine:
            self._quarantined[lease.lease_id] = lease
        else:
            self._forget(lease)
            self._free.append(lease.index)

    def release(self, lease: Lease) -> None:
        """The owner of a quarantined lease detached or is proved dead: its record is free."""
        if self._quarantined.pop(lease.lease_id, None) is not None:
            lease.record.quarantined = 0
            self._forget(lease)
            failpoint("lease.released")
            self._free.append(lease.index)

    def load(self) -> dict[int, int]:
        """Takes over what the tables show; by lease id, the ends (``SHMD_REASON_*``) that they tell."""
        ends: dict[int, int] = {}
        self._free.clear()
        records = [self._authority.lease(index) for index in range(self._authority.sizes.leases)]
        for index in sorted(range(len(records)), key=lambda i: int(records[i].ended_ns)):
            record = records[index]
            state = record_state(record)
            if record.end_reason:
                ends[int(record.lease_id)] = int(record.end_reason)
            if state in LIVE:
                self._enter(Lease(record, index), self._live)
            elif state != lib.SHMD_LEASE_FREE and record.quarantined:
                self._enter(Lease(record, index), self._quarantined)
            else:
                self._free.append(index)
        return ends

    def forget_attach(self, lease: Lease) -> None:
        """An attach that is undone may be repeated: its end is not remembered."""
        self._ends.pop(int(lease.record.correlation_id), None)

    def check(
        self, watches: Any, now_ns: int, stalled_ns: int, timeout_ns: int
    ) -> list[tuple[int, int, int]]:
        """Renews everything from the heartbeats in one C call; findings as (what, index, silent_ns)."""
        count = lib.shmd_lease_check(
            self._authority.base,
            watches,
            now_ns,
            stalled_ns,
            timeout_ns,
            self._findings,
            FINDINGS,
        )
        return [
            (int(found.what), int(found.index), int(found.silent_ns))
            for found in self._findings[0 : int(count)]
        ]

    def at(self, index: int) -> Lease | None:
        """The live lease in a record that this driver itself named."""
        return self._live.get(int(self._authority.lease(index).lease_id))

    def _enter(self, lease: Lease, kind: dict[int, Lease]) -> None:
        kind[lease.lease_id] = lease
        self._by_correlation[int(lease.record.correlation_id)] = lease
        self._by_client[lease.client_id][lease.lease_id] = lease

    def _of(self, client_id: int) -> list[Lease]:
        found = self._by_client.get(client_id)
        return list(found.values()) if found else []

    def _forget(self, lease: Lease) -> None:
        """It is neither live nor quarantined any more."""
        correlation_id = int(lease.record.correlation_id)
        if self._by_correlation.get(correlation_id) is lease:
            del self._by_correlation[correlation_id]
        own = self._by_client[lease.client_id]
        own.pop(lease.lease_id, None)
        if not own:
            del self._by_client[lease.client_id]
