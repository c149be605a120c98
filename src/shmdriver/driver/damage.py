"""Notices what other processes do to the files of segments: they truncate, overwrite or remove them.

A stream whose segments are damaged is ended. A client whose control segment is damaged is expelled: it did
that itself. Other damage is said once. Only a truncated authority ends the driver, because its tables are
lost.
"""

from __future__ import annotations

from collections.abc import Callable

from shmdriver._native import lib
from shmdriver.driver.instance_lock import LOCK_NAME, Standing
from shmdriver.driver.oversight import StreamWatch
from shmdriver.driver.tables import Tables
from shmdriver.errors import ShmDriverError
from shmdriver.truncation import damaged_addresses

__all__ = ["DamageWatch"]


class DamageWatch:
    """Looks after the files of one instance. The driver calls it in its ticks."""

    def __init__(
        self,
        tables: Tables,
        streams: StreamWatch,
        log: Callable[[str], None],
        furnish: Callable[[], None],
    ) -> None:
        """``furnish`` puts into a runtime folder that was made anew what has to be there."""
        self._furnish = furnish
        self._tables = tables
        self._streams = streams
        self._log = log
        self._bus_errors = 0
        self._is_lock_lost = False

    @property
    def is_new(self) -> bool:
        """Whether this process has met missing pages since ``end_damaged``."""
        return bool(lib.shmd_bus_errors() != self._bus_errors)

    def end_damaged(self, now_ns: int) -> bool:
        """Ends the epochs and clients that the missing pages belong to. True: the authority's are missing."""
        self._bus_errors = int(lib.shmd_bus_errors())
        addresses, authority = damaged_addresses(), self._tables.authority
        if authority.map.address in addresses:
            authority.give_up()
            self._log(
                f"a process of this user truncated the authority of instance {authority.instance!r}: the "
                "tables are lost, and this driver ends. Start it again; clients connect anew"
            )
            return True
        for text in self._streams.end_damaged(addresses, now_ns):
            self._complain(text, now_ns)
        for client in self._tables.clients.damaged(addresses):
            if client.control is not None:
                self._log(self._tables.tenure.expel(client, f"it truncated {client.control.name}", now_ns))
        return False

    def check_files(self, now_ns: int) -> None:
        """Complains of files that were truncated, removed or replaced; ends truncated epochs."""
        ended, missing = self._streams.check_segments(now_ns)
        for text in ended:
            self._complain(text, now_ns)
        for name in missing:
            self._complain(
                f"{name} was removed while it is in use: whoever has it mapped goes on, nobody else can "
                "attach to it. Find who cleans /dev/shm (RemoveIPC?)",
                now_ns,
            )

    def check_lock(self, now_ns: int, *, for_group: bool) -> bool:
        """Makes anew what is missing of the runtime folder; whether another one stands there now.

        What cannot be told is taken for what it was the last time.
        """
        lock = self._tables.authority.lock
        try:
            standing = lock.look()
            if standing is Standing.MISSING and lock.renew(for_group=for_group):
                self._tables.authority.note_folder()
                self._furnish()
                text = f"its runtime folder or its lock was removed: made anew in {lock.folder.path}"
                self._complain(f"{text}. Find who cleans up there", now_ns)
                standing = Standing.WHOLE
            elif standing is Standing.MISSING:
                standing = lock.look()
        except (OSError, ShmDriverError) as error:
            text = f"its lock {lock.folder.path}/{LOCK_NAME} cannot be looked at or made anew: "
            self._tables.authority.log_error(text + str(error), now_ns)
            return self._is_lock_lost
        is_lost = standing is not Standing.WHOLE
        if is_lost and not self._is_lock_lost:  # said once; attached clients go on
            self._complain(
                f"{lock.folder.path}/{LOCK_NAME} was replaced while this driver holds its lock: a second "
                f"driver of instance {lock.instance!r} may start. Stop this one, and find who did that",
                now_ns,
            )
        self._is_lock_lost = is_lost
        return is_lost

    def _complain(self, text: str, now_ns: int) -> None:
        self._tables.authority.log_error(text, now_ns)
        self._tables.events.error(text)
        self._log(text)
