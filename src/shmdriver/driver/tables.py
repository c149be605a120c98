"""All tables of one instance with what acts on them, put together in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shmdriver._native import lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.clients import ClientTable
from shmdriver.driver.config import Config
from shmdriver.driver.events import EventLog
from shmdriver.driver.leases import LeaseTable
from shmdriver.driver.memory import InlineMemory
from shmdriver.driver.streams import StreamDirectory
from shmdriver.driver.tenure import Tenure

__all__ = ["Tables"]

MILLISECOND_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Tables:
    """The Python side of an authority's tables; empty until they are loaded (adoption.py)."""

    authority: Authority
    clients: ClientTable
    leases: LeaseTable
    streams: StreamDirectory
    events: EventLog
    tenure: Tenure

    @classmethod
    def of(
        cls, authority: Authority, config: Config, memory: InlineMemory, clock: Callable[[], int]
    ) -> Tables:
        """For an authority that this process holds the lock of."""
        limits = config.policies.limits
        clients = ClientTable(authority, limit=limits.clients)
        leases = LeaseTable(authority, limit=limits.leases)
        streams = StreamDirectory(authority, limit=limits.streams, release=memory.submit)
        events = EventLog(authority, clock)
        grace_ns = config.policies.grace_ms * MILLISECOND_NS
        tenure = Tenure(authority, clients, leases, streams, events, grace_ns=grace_ns)
        return cls(authority, clients, leases, streams, events, tenure)

    def announce_all(self) -> None:
        """Says how every stream stands."""
        self.announce(0, self.authority.sizes.streams)

    def announce(self, first: int, count: int) -> int:
        """Says how ``count`` streams stand, from number ``first`` on (past all: from 0); where to go on."""
        streams = list(self.streams)
        first = first if first < len(streams) else 0
        for stream in streams[first : first + count]:
            newest = stream.newest
            self.events.stream_announce(stream.record, newest.record if newest else None)
        return first + count

    def summary(self) -> str:
        """How much there is of everything, in a line."""
        return (
            f"{len(self.clients)} clients, {len(self.leases)} leases, {len(list(self.streams))} streams, "
            f"{self.streams.segment_bytes} bytes in epochs"
        )

    def counters_text(self) -> str:
        """The counters that tell most, in a line."""
        shown = {
            "requests": lib.SHMD_COUNTER_REQUESTS,
            "attaches": lib.SHMD_COUNTER_ATTACHES,
            "detaches": lib.SHMD_COUNTER_DETACHES,
            "died": lib.SHMD_COUNTER_CLIENTS_DIED,
            "errors": lib.SHMD_COUNTER_ERRORS,
        }
        return ", ".join(f"{name} {self.authority.counter(counter)}" for name, counter in shown.items())

    def close(self) -> None:
        """Lets go of everything that this process has of them; segments and records stay."""
        self.events.close()
        self.clients.close()
        self.streams.close()
        self.authority.close()
