"""Who may drive an instance: its lock is taken, and no authority of this user shows another driver.

Used by a start and by collect. What decides whether an authority has a driver, in this order:

* somebody is taking it over (its claim is odd): so it is while life is seen, else the claimant has died;
  it has died, too, when it claimed under the lock that is held now;
* it was driven under the lock that is held now: it has none, whoever shows life on it (a reader may);
* the lock in the folder that it records, if that folder can be opened: free is none, held is one;
* else the sign of life: none is none; some, or what cannot be told, is a driver unless its process is
  proved dead.

Then the claim is swapped for an odd one. Of several who have decided at the same time, with locks of which
none can see the other's, one succeeds. ``Authority.introduce`` ends that: the claim is even again.

Nobody waits with a lock in hand: who finds a driver lets go of all, waits a moment, and looks again.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from shmdriver import runtime_folder
from shmdriver._native import ffi, lib
from shmdriver.driver.authority_file import (
    AuthorityFile,
    Found,
    claim_mark,
    find_authorities,
    passed_over,
    refuse_old_layout,
)
from shmdriver.driver.held import hold, let_go, no_fork
from shmdriver.driver.instance_lock import LOCK_NAME, STAYS, InstanceLock, try_lock
from shmdriver.errors import DriverAlreadyRunning, LayoutMismatch, ShmDriverError
from shmdriver.hints import command
from shmdriver.liveness import Verdict, driver_of, look_at_driver, look_at_process, pid_text

__all__ = ["Claim", "Refused", "claimed", "text_of_path"]

LOCK_TURNS = 100
LOCK_TURN_S = 0.01
_Result = TypeVar("_Result")


class Refused(Exception):  # noqa: N818 -- no error: an answer
    """Somebody drives this instance, or may be about to. ``authority``: the object that says so."""

    def __init__(self, authority: str = "", life: str = "") -> None:
        super().__init__(authority, life)
        self.authority = authority
        self.life = life


class Claim:
    """An instance's lock, and the complete authorities that have no driver, newest first."""

    def __init__(self, lock: InstanceLock) -> None:
        self.lock = lock
        self.former: list[AuthorityFile] = []
        self.notes = lock.passed_over  # what the log is to be told
        self._stale: list[InstanceLock] = []  # other folders of this instance, their locks held
        self._recorded: list[int] = []  # locks in folders that authorities record

    @property
    def instance(self) -> str:
        """The instance's name."""
        return self.lock.instance

    def find(self) -> None:
        """Raises Refused, LayoutMismatch, ShmDriverError, OSError."""
        self._lock_other_folders()
        authorities = find_authorities(self.instance)
        self.notes = "; ".join(filter(None, (self.notes, passed_over())))
        for found in authorities:
            opened = AuthorityFile.open(found)
            if opened is None:
                continue
            with ExitStack() as undo:
                undo.callback(opened.close)
                if self._is_driverless(opened, found):
                    self.former.append(opened)
                    undo.pop_all()

    def check_rivals(self, own: AuthorityFile) -> None:
        """Raises Refused when others began at the same moment, or took what was made for a leftover."""
        former = {(file.name, os.fstat(file.fd).st_ino) for file in self.former}
        for found in find_authorities(self.instance):
            if found.name != own.name and found.life != 0 and (found.name, found.inode) not in former:
                raise Refused(found.name, "another driver begins at this moment")
        if not own.still_named():
            raise Refused(own.name, "another driver begins at this moment")

    def take(self, file: AuthorityFile) -> None:
        """The caller owns this authority's file from now on."""
        self.former.remove(file)

    def settle(self) -> None:
        """The instance is driven under the claim's lock from now on: its other folders go. Raises OSError."""
        for lock in self._stale:
            try:
                lock.remove()
            except OSError as error:
                if error.errno not in STAYS:
                    raise
        self.close()

    def close(self) -> None:
        """Lets go of all but the lock."""
        for file in self.former:
            file.close()
        self.former.clear()
        for lock in self._stale:
            lock.release()
        self._stale.clear()
        while self._recorded:
            let_go(self._recorded.pop())

    def _lock_other_folders(self) -> None:
        for folder in runtime_folder.find(self.instance, os.geteuid()):
            with ExitStack() as undo:
                undo.callback(folder.close)
                lock = InstanceLock(self.instance)
                undo.callback(lock.release)
                lock.folder = folder
                known = {each.folder_id for each in (self.lock, *self._stale)}  # two places may be one folder
                if lock.folder_id in known or not lock.open(make=False):
                    continue
                try:
                    lock.take()
                except BlockingIOError:
                    raise Refused("", f"it holds {folder.path / LOCK_NAME}") from None
                self._stale.append(lock)
                undo.pop_all()

    def _is_driverless(self, file: AuthorityFile, found: Found) -> bool:
        """False: nothing complete was left. Raises Refused when it has a driver."""
        if found.layout_version not in (0, lib.SHMD_LAYOUT_VERSION):
            raise LayoutMismatch(
                f"{file.name} has layout version {found.layout_version}, and this build speaks "
                f"{lib.SHMD_LAYOUT_VERSION}. It is left as it is: stop its clients and let the version that "
                "made it shut down or collect it",
                segment=file.name,
                found=found.layout_version,
                expected=int(lib.SHMD_LAYOUT_VERSION),
            )
        if not found.is_complete:
            if file.life_of_others() != 0:
                raise Refused(file.name, "another driver begins at this moment")
            file.remove()  # left half made, when nobody was let in; or truncated, and so its tables are lost
            return False
        mapped = file.mapping(ffi.sizeof("shmd_authority_t"), writable=True)
        try:
            self._seize(file, mapped.view("shmd_authority_t *"))
        finally:
            mapped.close()
        return file.still_named()  # who saw no life and no name has given it up for good

    def _seize(self, file: AuthorityFile, base: Any) -> None:
        claim = int(base.claim)
        file.show_life()
        if not claim & 1:
            self._decide(file, base)
        elif claim_mark(claim) != self.lock.mark and file.life_of_others() != 0:
            raise Refused(file.name, "another driver takes it over at this moment")
        if not file.claim(base, claim, self.lock.mark):
            raise Refused(file.name, "another driver takes it over at this moment")

    def _decide(self, file: AuthorityFile, base: Any) -> None:
        recorded = int(base.folder_device), int(base.folder_inode), int(base.lock_inode)
        if recorded == self.lock.identity:
            return
        held = self._lock_is_held(text_of_path(base.folder), recorded)
        if held:
            raise Refused(file.name, f"the lock in {text_of_path(base.folder)} is held")
        if held is not None:
            return
        life = file.life_of_others()
        if life != 0 and look_at_process(*driver_of(base)).verdict is not Verdict.DEAD:
            raise Refused(file.name, "it shows life" if life > 0 else "whether it shows life cannot be told")

    def _lock_is_held(self, path: str, recorded: tuple[int, int, int]) -> bool | None:
        """Whether somebody holds the lock there. None: that cannot be told. Else it is held from now on."""
        if any(lock.identity == recorded for lock in self._stale):
            return False
        if not path:
            return None
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = os.fstat(folder)
            if (found.st_dev, found.st_ino) != recorded[:2] or found.st_uid != os.geteuid():
                return None
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with no_fork:
                fd = hold(os.open(LOCK_NAME, flags, dir_fd=folder))
        except OSError:
            return None
        finally:
            os.close(folder)
        with ExitStack() as undo:
            undo.callback(let_go, fd)
            if os.fstat(fd).st_ino != recorded[2]:
                return None  # the driver's own was removed: this one proves nothing
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            self._recorded.append(fd)
            undo.pop_all()
        return False


def text_of_path(field: object) -> str:
    """A folder's path as an authority records it."""
    return os.fsdecode(bytes(ffi.string(field)))


def claimed(
    instance: str,
    begin: Callable[[Claim], _Result],
    *,
    for_group: bool = False,
    patience: int = LOCK_TURNS,
) -> _Result:
    """Claims the instance and calls ``begin``; its result.

    ``begin`` settles or closes the claim. Once it has returned, the claim's lock is its own.

    ``patience``: how often to try again while a holder whose driver is not proved alive has it. Raises
    DriverAlreadyRunning naming the holder, LayoutMismatch, ShmDriverError, OSError. Whoever is refused
    removes what was made for that.
    """
    for turn in range(LOCK_TURNS):  # each turn: others made or removed folder or lock meanwhile
        try:
            with ExitStack() as undo:
                lock = try_lock(instance, for_group=for_group)
                if lock is None:
                    continue
                undo.callback(lock.withdraw)
                refuse_old_layout(instance)
                claim = Claim(lock)
                undo.callback(claim.close)
                claim.find()
                result = begin(claim)
                undo.pop_all()
                return result
        except BlockingIOError:
            refused = Refused()
        except Refused as error:
            refused = error
        pid, told, look = _holder(instance, refused)
        # Unless a driver is proved alive: one begins, or what it left is collected. That takes milliseconds.
        if look is Verdict.ALIVE or turn >= (LOCK_TURNS if pid == 0 else patience) - 1:
            raise DriverAlreadyRunning(
                f"a driver of instance {instance!r} runs already"
                + (f" ({told})" if told else "")
                + f": use it, stop it with {command('shutdown', instance=instance)}, or choose another name",
                instance=instance,
                pid=pid,
            )
        threading.Event().wait(LOCK_TURN_S * (0.5 + random.random()))
    raise ShmDriverError(
        f"the runtime folder of instance {instance!r} was made and removed {LOCK_TURNS} times while locking "
        "it: other drivers are racing"
    )


def _holder(instance: str, refused: Refused) -> tuple[int, str, Verdict]:
    """Of the driver that an authority names: pid (else 0), the same in words, and a look at it."""
    for found in find_authorities(instance):
        if refused.authority not in ("", found.name) or not found.is_complete:
            continue
        file = AuthorityFile.open(found)
        if file is None:
            continue
        try:
            pid, told, verdict = _named_driver(file)
        finally:
            file.close()
        if verdict is not Verdict.DEAD:
            said = (told, f"authority {found.name}" if refused.authority else "", refused.life)
            return pid, ", ".join(filter(None, said)), verdict
    return 0, refused.life, Verdict.UNKNOWN


def _named_driver(file: AuthorityFile) -> tuple[int, str, Verdict]:
    if file.size < ffi.sizeof("shmd_authority_t"):
        return 0, "", Verdict.UNKNOWN
    mapped = file.mapping(ffi.sizeof("shmd_authority_t"), writable=False)
    try:
        authority = mapped.view("shmd_authority_t *")
        pid, namespace = int(authority.driver_pid), int(authority.driver_pid_namespace)
        return pid, pid_text(pid, namespace), look_at_driver(authority, file.fd).verdict
    finally:
        mapped.close()
