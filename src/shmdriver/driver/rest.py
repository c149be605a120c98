"""The sleep of a driver that has nothing to do: an idle check in C takes the place of each lease check.

A tick in Python that is woken into cold caches takes a core for half a millisecond, and that five
times a second; the idle check takes microseconds. Beside producers and consumers that spin on every
core, messages are late by just that. The idle check decides nothing and dispatches nothing: what a
lease check would find, or only might, ends the rest, and the tick that follows finds it by itself.
So an idle check that lets the driver sleep on is right: a lease check at that moment would find
nothing but what its client rings for in the next moment.

The authority counts idle checks apart from ticks (``idle_checks``, ``ticks``); both store the
driver's heartbeat. ``policies.tickless_idle = false`` switches the rest off.
"""

from __future__ import annotations

from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.config import Config
from shmdriver.driver.leasewatch import stalled_after_ns
from shmdriver.driver.oversight import GATE_CHECK_NS, evicts_slow_consumers
from shmdriver.driver.tables import Tables
from shmdriver.driver.timers import PolledTimer

__all__ = ["Rest"]


class Rest:
    """What an idle check reads. It is noted anew after each tick, because only ticks change the tables.

    ``native`` (``shmd_rest_t *``) is the driver's own memory. ``gap_ns``: when neither an idle check nor a
    tick has run for so long, the sleep ends and a tick follows.
    """

    def __init__(self, config: Config, tables: Tables, *, gap_ns: int) -> None:
        self._config = config
        self._tables = tables
        self._epochs: Any = None  # the native struct points into it
        self._is_checked = self._is_noted = self._is_possible = False
        self._retire_ns: list[int] = []  # when sealed epochs will have had their grace
        self.native = ffi.new("shmd_rest_t *")
        self.native.authority, self.native.clients = tables.authority.base, tables.clients.watches
        self.native.stalled_ns, self.native.gap_ns = stalled_after_ns(config), gap_ns
        self.native.gates_interval_ns = GATE_CHECK_NS

    def end(self) -> None:
        """A tick begins: it may change what was noted."""
        self._is_noted = self._is_checked = False

    def checked(self) -> None:
        """The tick has checked everything: only then can a rest begin."""
        self._is_checked = True

    @property
    def is_possible(self) -> bool:
        """Whether the tick has checked everything, and nothing is under way in the tables."""
        if self._is_checked and not self._is_noted:
            self._note()
        return self._is_noted and self._is_possible

    def begin(self, check: PolledTimer, looked_ns: int) -> None:
        """Looks are due when ``check`` is; ``looked_ns``: the time of the last one, or of the tick."""
        self.native.check_interval_ns, self.native.check_due_ns = check.interval_ns, check.deadline_ns
        self.native.looked_ns = looked_ns

    def looked(self, check: PolledTimer) -> int:
        """The time of the last look; ``check`` moves on to the next one."""
        check.start_at(int(self.native.check_due_ns))
        return int(self.native.looked_ns)

    def until_ns(self, deadline_ns: int) -> int:
        """``deadline_ns``, or an earlier end of an epoch's grace that was to come at the last look."""
        looked_ns = int(self.native.looked_ns)
        return min((deadline_ns, *(due_ns for due_ns in self._retire_ns if due_ns > looked_ns)))

    def _note(self) -> None:
        self._is_noted = True
        self.native.bus_errors = lib.shmd_bus_errors()
        tables = self._tables
        epochs = [(stream, epoch) for stream in tables.streams for epoch in stream.epochs.values()]
        owners = {tables.clients.by_id(lease.client_id) for lease in tables.leases.all_quarantined}
        # Who has expired may still say that it is done, and has no connection to ring by.
        may_leave = any(owner is not None and not owner.record.connected for owner in owners)
        self._is_possible = (
            all(epoch.is_sealed or (epoch.is_open and epoch.blocked is None) for _, epoch in epochs)
            and not lib.shmd_lease_unconfirmed(tables.authority.base)
            and not may_leave
            and not tables.clients.is_short_of_descriptors
        )
        watches = []
        for stream, epoch in epochs:
            if epoch.is_open:
                epoch.watch.evicts = evicts_slow_consumers(self._config, stream)
            if epoch.is_sealed or stream.leases:
                watches.append(epoch.watch)
        grace_ns = tables.tenure.grace_ns
        self._retire_ns = [epoch.sealed_ns + grace_ns for _, epoch in epochs if epoch.is_sealed]
        self._epochs = ffi.new("shmd_epoch_watch_t *[]", watches)
        self.native.epochs, self.native.epoch_count = self._epochs, len(watches)
