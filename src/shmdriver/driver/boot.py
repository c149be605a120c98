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
from functools import partial

from shmdriver._native import lib
from shmdriver.driver.adoption import adopt_tables, load_tables, remove_orphans
from shmdriver.driver.authority import Authority, TableSizes
from shmdriver.driver.authority_file import AuthorityFile
from shmdriver.driver.claim import Claim, claimed
from shmdriver.driver.config import Config
from shmdriver.driver.creation import adopt_authority, create_authority, segment_names_of
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.instance_lock import InstanceLock
from shmdriver.driver.memory import InlineMemory
from shmdriver.driver.segment_names import own_segments
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
    LayoutMismatch, ShmSpaceError, ShmDriverError, OSError.
    """
    begin = partial(_begin, config=config, modes=modes, memory=memory, clock=clock, log=log)
    return claimed(config.driver.instance, begin, for_group=modes.gid is not None)


def _begin(
    claim: Claim,
    config: Config,
    modes: Modes,
    memory: InlineMemory,
    clock: Callable[[], int],
    log: Callable[[str], None],
) -> tuple[Tables, bool]:
    failpoint("boot.locked")
    if claim.notes:
        log(f"passed over: {claim.notes}")
    with ExitStack() as undo:
        adopted = None
        for file in list(claim.former):  # the newest first; whatever else is there is ended
            former = _former(file, fresh=config.driver.boot == "fresh" or adopted is not None)
            if former is _Former.LEFT:
                adopted = file
            else:
                _clear(claim.lock, file, config, modes, clock, log, former)
        if adopted is not None:
            claim.take(adopted)
            undo.callback(adopted.close)
            tables = _adopt(undo, claim.lock, adopted, config, modes, memory, clock, log)
        else:
            authority = _create(claim, config, modes, clock, log)
            undo.callback(authority.file.close)
            undo.callback(authority.unlink)
            undo.callback(authority.unmap)
            _store_config(authority, config, log)
            tables = Tables.of(authority, config, memory, clock)
        claim.settle()
        undo.pop_all()
    return tables, adopted is not None


def _create(
    claim: Claim, config: Config, modes: Modes, clock: Callable[[], int], log: Callable[[str], None]
) -> Authority:
    def check(file: AuthorityFile) -> None:
        claim.check_rivals(file)
        for name in own_segments(claim.instance, "control", "data", "gates"):
            unlink_segment(name)  # of boots whose authority is gone; nobody can find them any more

    limits, policies = config.policies.limits, config.policies
    return create_authority(
        claim.lock,
        TableSizes(limits.clients, limits.leases, limits.streams),
        modes,
        now_ns=clock(),
        heartbeat_interval_ns=policies.heartbeat_interval_ms * MILLISECOND_NS,
        lease_timeout_ns=policies.lease_timeout_ms * MILLISECOND_NS,
        config_bytes=len(config.effective_text().encode()),
        check=check,
        tell=log,
    )


def _adopt(
    undo: ExitStack,
    lock: InstanceLock,
    file: AuthorityFile,
    config: Config,
    modes: Modes,
    memory: InlineMemory,
    clock: Callable[[], int],
    log: Callable[[str], None],
) -> Tables:
    authority = adopt_authority(lock, file, modes)
    undo.callback(authority.unmap)
    failpoint("adopt.mapped")
    tables = Tables.of(authority, config, memory, clock)
    for table in (tables.streams, tables.clients, tables.events):
        undo.callback(table.close)
    for problem in adopt_tables(
        authority, tables.clients, tables.leases, tables.streams, tables.tenure, clock()
    ):
        log(f"adopt: {problem}")
    for problem in remove_orphans(authority, tables.clients, tables.streams):
        log(f"adopt: {problem}")
    policies = config.policies
    interval_ns = policies.heartbeat_interval_ms * MILLISECOND_NS
    former_ns = int(authority.base.heartbeat_interval_ns)
    if former_ns > interval_ns:  # a client reads it after each beat only
        tables.clients.await_beats(clock() + min(former_ns, BEAT_NS_MAX))
    authority.store("heartbeat_interval_ns", interval_ns)
    authority.store("lease_timeout_ns", policies.lease_timeout_ms * MILLISECOND_NS)
    _apply_modes(tables, modes, log)
    failpoint("adopt.done")
    authority.store("adoptions", int(authority.base.adoptions) + 1)
    authority.count(lib.SHMD_COUNTER_ADOPTIONS)
    failpoint("adopt.counted")
    _store_config(authority, config, log)
    return tables


def _has_modes(authority: Authority, wanted: Modes) -> bool:
    """Whether the authority has these modes and this group already; it gets them last of all segments."""
    found = os.fstat(authority.file.fd)
    return (stat.S_IMODE(found.st_mode), found.st_gid) == (wanted.bits & ~stat.S_IWGRP, wanted.gid)


def _apply_modes(tables: Tables, modes: Modes, log: Callable[[str], None]) -> None:
    """Gives adopted segments the modes and the group that are configured now, where they differ."""
    authority = tables.authority
    wanted = replace(modes, gid=os.getegid() if modes.gid is None else modes.gid)
    if _has_modes(authority, wanted):
        return
    # The authority is the last: the successor of a driver that was killed in between finds it as it was, and
    # does all of it again. Control segments stay private to this user.
    for name in sorted(tables.streams.segment_names()):
        try:
            fd, _ = open_segment(name, writable=False)
        except FileNotFoundError:
            continue  # without its name nobody can open it; the watch of segments says so
        try:
            set_modes(fd, name, wanted, write_group=True)
        finally:
            os.close(fd)
    failpoint("adopt.modes")
    set_modes(authority.file.fd, authority.file.name, wanted, write_group=False)
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


def _former(file: AuthorityFile, *, fresh: bool) -> _Former:
    mapped = file.mapping(file.size, writable=False)
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
    file: AuthorityFile,
    config: Config,
    modes: Modes,
    clock: Callable[[], int],
    log: Callable[[str], None],
    former: _Former,
) -> None:
    """Removes what an earlier boot left; unless it had ended its epochs are sealed and its clients told."""
    if former is not _Former.ENDED:
        try:
            _end_former(lock, file, config, modes, clock, superseded=former is _Former.UNWANTED)
        except LayoutMismatch as error:
            log(f"{former.value}: {error}")
    for name in segment_names_of(file):
        failpoint("boot.clearing")
        if text := told_links(name):
            log(f"{former.value}: {text}")
        unlink_segment(name)
    file.remove()


def _end_former(
    lock: InstanceLock,
    file: AuthorityFile,
    config: Config,
    modes: Modes,
    clock: Callable[[], int],
    *,
    superseded: bool,
) -> None:
    reason, text = Reason.SHUTDOWN, "the driver was shut down, and killed in its last steps: attach again"
    if superseded:
        reason, text = Reason.SUPERSEDED, "another driver starts afresh in place of this one: attach again"
    with ExitStack() as undo:
        authority = adopt_authority(lock, file, modes)
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
