"""All tables of one instance with what acts on them, put together in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shmdriver.driver.authority import Authority
from shmdriver.driver.clients import ClientTable
from shmdriver.driver.config import Config
from shmdriver.driver.events import EventLog
from shmdriver.driver.leases import LeaseTable
from shmdriver.driver.memory import MemoryWorker
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
        cls, authority: Authority, config: Config, memory: MemoryWorker, clock: Callable[[], int]
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

    def close(self) -> None:
        """Lets go of everything that this process has of them; segments and records stay."""
        self.events.close()
        self.clients.close()
        self.streams.close()
        self.authority.close()
