"""How a driver comes to its tables: it takes the lock, then adopts, supersedes or makes them."""

from __future__ import annotations

from collections.abc import Callable

from shmdriver._native import lib
from shmdriver.driver.adoption import adopt_tables
from shmdriver.driver.authority import Authority, TableSizes
from shmdriver.driver.config import Config
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.memory import InlineMemory, MemoryWorker
from shmdriver.driver.segments import (
    InstanceLock,
    control_name,
    epoch_objects,
    lock_authority,
    refuse_foreign,
)
from shmdriver.driver.shm import Modes, SegmentMap, unlink_segment
from shmdriver.driver.tables import Tables
from shmdriver.errors import LayoutMismatch, Reason

__all__ = ["boot"]

MILLISECOND_NS = 1_000_000


def boot(
    config: Config, modes: Modes, memory: MemoryWorker, clock: Callable[[], int], log: Callable[[str], None]
) -> tuple[Tables, bool]:
    """The instance's tables, locked, and whether they were adopted.

    New tables have no magic yet: ``Authority.complete`` lets clients in. Raises DriverAlreadyRunning,
    LayoutMismatch, ShmSpaceError, ShmDriverError.
    """
    lock = lock_authority(config.driver.instance, modes)
    try:
        failpoint("boot.locked")
        if refuse_foreign(lock):
            fresh = config.driver.boot == "fresh"
            exit_kind = _exit_kind(lock)
            if not fresh and exit_kind in (lib.SHMD_EXIT_NONE, lib.SHMD_EXIT_HANDOVER):
                return _adopt(lock, config, modes, memory, clock, log), True
            _clear(lock, config, modes, clock, log, supersede=exit_kind != lib.SHMD_EXIT_CLEAN)
            lock.release()
            lock = lock_authority(config.driver.instance, modes)
            if refuse_foreign(lock):
                raise LayoutMismatch(
                    f"{lock.name} appeared again while it was replaced: start once more", segment=lock.name
                )
        return Tables.of(_create(lock, config, modes, clock), config, memory, clock), False
    except BaseException:
        lock.release()
        raise


def _create(lock: InstanceLock, config: Config, modes: Modes, clock: Callable[[], int]) -> Authority:
    for name in epoch_objects(lock.instance):
        unlink_segment(name)  # of boots whose authority is gone; nobody can find them any more
    limits, policies = config.policies.limits, config.policies
    return Authority.create(
        lock,
        TableSizes(limits.clients, limits.leases, limits.streams),
        modes,
        now_ns=clock(),
        heartbeat_interval_ns=policies.heartbeat_interval_ms * MILLISECOND_NS,
        lease_timeout_ns=policies.lease_timeout_ms * MILLISECOND_NS,
        config_text=config.effective_text(),
    )


def _adopt(
    lock: InstanceLock,
    config: Config,
    modes: Modes,
    memory: MemoryWorker,
    clock: Callable[[], int],
    log: Callable[[str], None],
) -> Tables:
    authority = Authority.adopt(lock, modes)
    for name in epoch_objects(lock.instance):
        if f".{authority.boot_id:016x}." not in name:
            unlink_segment(name)
    failpoint("adopt.mapped")
    tables = Tables.of(authority, config, memory, clock)
    for problem in adopt_tables(
        authority, tables.clients, tables.leases, tables.streams, tables.tenure, clock()
    ):
        log(f"adopt: {problem}")
    policies = config.policies
    authority.store("heartbeat_interval_ns", policies.heartbeat_interval_ms * MILLISECOND_NS)
    authority.store("lease_timeout_ns", policies.lease_timeout_ms * MILLISECOND_NS)
    failpoint("adopt.done")
    authority.store("adoptions", int(authority.base.adoptions) + 1)
    authority.count(lib.SHMD_COUNTER_ADOPTIONS)
    authority.store_config(config.effective_text())
    return tables


def _exit_kind(lock: InstanceLock) -> int:
    mapped = SegmentMap.of(lock.fd, lock.size, writable=False)
    try:
        return int(mapped.view("shmd_authority_t *").exit_kind)
    finally:
        mapped.close()


def _clear(
    lock: InstanceLock,
    config: Config,
    modes: Modes,
    clock: Callable[[], int],
    log: Callable[[str], None],
    *,
    supersede: bool,
) -> None:
    """Removes what an earlier boot left; ``supersede``: its clients are told, its epochs sealed first."""
    if supersede:
        try:
            _supersede(lock, config, modes, clock)
        except LayoutMismatch as error:
            log(f"fresh: {error}")
    for name in [*epoch_objects(lock.instance), control_name(lock.instance)]:
        unlink_segment(name)
    if lock.still_named():
        unlink_segment(lock.name)


def _supersede(lock: InstanceLock, config: Config, modes: Modes, clock: Callable[[], int]) -> None:
    authority = Authority.adopt(lock, modes)
    tables = Tables.of(authority, config, InlineMemory(), clock)
    text = "another driver starts afresh in place of this one: attach again"
    try:
        now_ns = clock()
        adopt_tables(authority, tables.clients, tables.leases, tables.streams, tables.tenure, now_ns)
        authority.store("exit_kind", lib.SHMD_EXIT_SUPERSEDED)
        tables.tenure.seal_all(Reason.SUPERSEDED, text, now_ns)
        tables.events.driver_shutdown(lib.SHMD_SHUTDOWN_END, Reason.SUPERSEDED, text)
        authority.store("lifecycle", lib.SHMD_LIFECYCLE_STOPPED)
        authority.wake_everybody()
    finally:
        tables.events.close()
        tables.clients.close()
        tables.streams.close()
        authority.map.close()
        authority.control_map.close()
