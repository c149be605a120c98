"""How a driver comes to its tables: it takes the lock, then adopts, supersedes or makes them.

Some of the configuration is built into segments. An adopting driver changes what it can: modes and
group, timeouts, the text of the configuration. Tables keep their size, because clients have them
mapped; then the log says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from enum import Enum

from shmdriver._native import lib
from shmdriver.driver.adoption import adopt_tables, load_tables
from shmdriver.driver.authority import Authority, TableSizes
from shmdriver.driver.config import Config
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.memory import InlineMemory
from shmdriver.driver.segments import (
    InstanceLock,
    control_name,
    epoch_objects,
    lock_authority,
    refuse_foreign,
)
from shmdriver.driver.shm import Modes, open_segment, set_modes, told_links, unlink_segment
from shmdriver.driver.tables import Tables
from shmdriver.errors import LayoutMismatch, Reason
from shmdriver.hints import command

__all__ = ["boot"]

MILLISECOND_NS = 1_000_000
BEAT_NS_MAX = 10_000 * MILLISECOND_NS  # no client sleeps longer than that between two beats


def boot(
    config: Config, modes: Modes, memory: InlineMemory, clock: Callable[[], int], log: Callable[[str], None]
) -> tuple[Tables, bool]:
    """The instance's tables, locked, and whether they were adopted.

    New tables have no magic yet: ``Authority.complete`` lets clients in. Raises DriverAlreadyRunning,
    LayoutMismatch, ShmSpaceError, ShmDriverError.
    """
    lock = lock_authority(config.driver.instance, modes)
    undo = ExitStack()
    try:
        failpoint("boot.locked")
        if refuse_foreign(lock):
            former = _former(lock, fresh=config.driver.boot == "fresh")
            if former is _Former.LEFT:
                return _adopt(undo, lock, config, modes, memory, clock, log), True
            _clear(lock, config, modes, clock, log, former)
            lock.release()
            lock = lock_authority(config.driver.instance, modes)
            if refuse_foreign(lock):
                raise LayoutMismatch(
                    f"{lock.name} appeared again while it was replaced: start once more", segment=lock.name
                )
        undo.callback(_remove_unfinished, lock)
        authority = _create(lock, config, modes, clock)
        undo.callback(authority.unmap)
        _store_config(authority, config, log)
        return Tables.of(authority, config, memory, clock), False
    except BaseException:
        undo.close()
        lock.release()
        raise


def _remove_unfinished(lock: InstanceLock) -> None:
    """What was made for a driver that does not start: nobody was let in, nothing half made stays."""
    if lock.fd >= 0 and lock.still_named():
        for name in (control_name(lock.instance), lock.name):
            unlink_segment(name)


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
        config_bytes=len(config.effective_text().encode()),
    )


def _adopt(
    undo: ExitStack,
    lock: InstanceLock,
    config: Config,
    modes: Modes,
    memory: InlineMemory,
    clock: Callable[[], int],
    log: Callable[[str], None],
) -> Tables:
    authority = Authority.adopt(lock, modes)
    undo.callback(authority.close)
    for name in epoch_objects(lock.instance):
        if f".{authority.boot_id:016x}." not in name:
            unlink_segment(name)
    failpoint("adopt.mapped")
    tables = Tables.of(authority, config, memory, clock)
    undo.callback(tables.close)
    for problem in adopt_tables(
        authority, tables.clients, tables.leases, tables.streams, tables.tenure, clock()
    ):
        log(f"adopt: {problem}")
    policies = config.policies
    interval_ns = policies.heartbeat_interval_ms * MILLISECOND_NS
    former_ns = int(authority.base.heartbeat_interval_ns)
    if former_ns > interval_ns:  # a client reads it after each beat only
        tables.clients.await_beats(clock() + min(former_ns, BEAT_NS_MAX))
    authority.store("heartbeat_interval_ns", interval_ns)
    authority.store("lease_timeout_ns", policies.lease_timeout_ms * MILLISECOND_NS)
    _apply_modes(lock, tables, modes, log)
    failpoint("adopt.done")
    authority.store("adoptions", int(authority.base.adoptions) + 1)
    authority.count(lib.SHMD_COUNTER_ADOPTIONS)
    failpoint("adopt.counted")
    _store_config(authority, config, log)
    return tables


def _has_modes(lock: InstanceLock, wanted: Modes) -> bool:
    """Whether the control segment and the authority have these modes and this group already."""
    authority = os.fstat(lock.fd)
    try:
        fd, _ = open_segment(control_name(lock.instance), writable=False)
    except FileNotFoundError:
        return False  # the watch of segments says so; whatever else is there is given its modes
    try:
        control = os.fstat(fd)
    finally:
        os.close(fd)
    return (stat.S_IMODE(control.st_mode), control.st_gid) == (wanted.bits, wanted.gid) and (
        stat.S_IMODE(authority.st_mode), authority.st_gid,
    ) == (wanted.bits & ~stat.S_IWGRP, wanted.gid)  # fmt: skip


def _apply_modes(lock: InstanceLock, tables: Tables, modes: Modes, log: Callable[[str], None]) -> None:
    """Gives adopted segments the modes and the group that are configured now, where they differ."""
    wanted = replace(modes, gid=os.getegid() if modes.gid is None else modes.gid)
    if _has_modes(lock, wanted):
        return
    # The control segment is the first, the authority the last: a successor of a driver that was killed in
    # between finds that the two differ from what either of them was told, and does all of it again.
    for name in (control_name(lock.instance), *sorted(tables.streams.segment_names())):
        try:
            fd, _ = open_segment(name, writable=False)
        except FileNotFoundError:
            continue  # without its name nobody can open it; the watch of segments says so
        try:
            set_modes(fd, name, wanted, write_group=True)
        finally:
            os.close(fd)
    failpoint("adopt.modes")
    set_modes(lock.fd, lock.name, wanted, write_group=False)
    log(f"adopt: segments have mode {wanted.bits:04o} and gid {wanted.gid} now; who has them open keeps them")


def _store_config(authority: Authority, config: Config, log: Callable[[str], None]) -> None:
    """Publishes the configuration that holds, and says what of it does not."""
    room, instance = asdict(authority.sizes), authority.instance
    end, begin = command("shutdown", instance=instance), command("run", instance=instance)
    fresh, shown = command("run", "--fresh", instance=instance), command("config", instance=instance)
    for name, asked in config.limits_above(room).items():
        log(
            f"policies.limits.{name} is {asked}, but {room[name]} holds: the tables of this instance were "
            f"made with room for so many, and clients have them mapped. For more make it anew: {end}, then "
            f"{begin}; or {fresh}, which ends its clients"
        )
    if cut := authority.store_config(config.with_limits(room).effective_text()):
        log(f"{cut} lines of the configuration do not fit into the authority: {shown} lacks them")


class _Former(Enum):
    """What the boot before this one is."""

    LEFT = "its driver was killed, or handed over: adopt"
    ENDING = "its driver was killed in its last steps: finish them, and begin anew"
    ENDED = "its driver ended it, and was killed before the names were gone: remove them, and begin anew"
    UNWANTED = "--fresh: supersede it, and begin anew"


def _former(lock: InstanceLock, *, fresh: bool) -> _Former:
    mapped = lock.mapping(lock.size, writable=False)
    try:
        base = mapped.view("shmd_authority_t *")
        exit_kind, lifecycle = int(base.exit_kind), int(base.lifecycle)
    finally:
        mapped.close()
    is_stopped = lifecycle == lib.SHMD_LIFECYCLE_STOPPED
    if exit_kind == lib.SHMD_EXIT_CLEAN or (exit_kind == lib.SHMD_EXIT_SUPERSEDED and is_stopped):
        return _Former.ENDED  # all seals stand: loading it again would give up epochs whose names are gone
    if is_stopped:
        return _Former.ENDING
    return _Former.UNWANTED if fresh or exit_kind == lib.SHMD_EXIT_SUPERSEDED else _Former.LEFT


def _clear(
    lock: InstanceLock,
    config: Config,
    modes: Modes,
    clock: Callable[[], int],
    log: Callable[[str], None],
    former: _Former,
) -> None:
    """Removes what an earlier boot left; unless it had ended its epochs are sealed and its clients told."""
    if former is not _Former.ENDED:
        try:
            _end_former(lock, config, modes, clock, superseded=former is _Former.UNWANTED)
        except LayoutMismatch as error:
            log(f"{former.value}: {error}")
    for name in [*epoch_objects(lock.instance), control_name(lock.instance)]:
        failpoint("boot.clearing")
        if text := told_links(name):
            log(f"{former.value}: {text}")
        unlink_segment(name)
    if lock.still_named():
        unlink_segment(lock.name)


def _end_former(
    lock: InstanceLock, config: Config, modes: Modes, clock: Callable[[], int], *, superseded: bool
) -> None:
    reason, text = Reason.SHUTDOWN, "the driver was shut down, and killed in its last steps: attach again"
    if superseded:
        reason, text = Reason.SUPERSEDED, "another driver starts afresh in place of this one: attach again"
    with ExitStack() as undo:
        authority = Authority.adopt(lock, modes)
        undo.callback(authority.unmap)
        tables = Tables.of(authority, config, InlineMemory(), clock)
        for table in (tables.streams, tables.clients, tables.events):
            undo.callback(table.close)
        now_ns = clock()
        if int(authority.base.exit_kind) == lib.SHMD_EXIT_SUPERSEDED or not superseded:
            # It was ending already: a consumer whose lease has ended keeps its bits, and drains to the seal.
            load_tables(tables.clients, tables.leases, tables.streams, now_ns)
        else:
            adopt_tables(authority, tables.clients, tables.leases, tables.streams, tables.tenure, now_ns)
        if superseded:  # before the first seal: a successor must not adopt what is half superseded
            authority.store("exit_kind", lib.SHMD_EXIT_SUPERSEDED)
        failpoint("supersede.marked")
        tables.tenure.seal_all(reason, text, now_ns)
        tables.streams.retire_given_up()
        failpoint("supersede.sealed")
        tables.events.driver_shutdown(lib.SHMD_SHUTDOWN_END, reason, text)
        authority.store("lifecycle", lib.SHMD_LIFECYCLE_STOPPED)
        if not superseded:  # after the last seal: whoever finds this seals no more
            authority.store("exit_kind", lib.SHMD_EXIT_CLEAN)
        authority.wake_everybody()
