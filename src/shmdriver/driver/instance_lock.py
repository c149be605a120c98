"""The lock of an instance, in its runtime folder, and what else a driver keeps there.

The lock is an ``flock`` on the file ``lock``, held for the driver's whole life. Whoever has it may build,
adopt or remove everything of the instance; nobody else makes, sizes or removes any of its segments.
Only this user can write in the folder. All files in it are opened by the folder's descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Final

from shmdriver import runtime_folder
from shmdriver._native import ffi, lib
from shmdriver.driver.held import hold, let_go, no_fork
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import errno_text, last_error
from shmdriver.runtime_folder import RuntimeFolder
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["HINT_NAME", "LOCK_NAME", "STAYS", "InstanceLock", "Standing", "try_lock", "write_aside"]

LOCK_NAME: Final = "lock"
HINT_NAME: Final = "instance.json"
_CONTENTS = re.compile(r"(?:lock|token|socket|instance\.json)(?:\.[0-9a-f]+)?")  # with those written aside
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
STAYS = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS)  # whoever made it for us removes it


class Standing(Enum):
    """What a look at the folder and the lock found."""

    WHOLE = "both stand where they were made"
    MISSING = "the folder or the lock was removed"
    OTHER = "another one stands there"


class InstanceLock:
    """The exclusive flock on an instance's lock file; the folder that it stands in."""

    __slots__ = ("_before", "_pid", "fd", "folder", "instance", "passed_over")

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.folder = RuntimeFolder()
        self.fd = -1
        self._before: list[str] | None = None  # what stood in the folder before this process made the lock
        self.passed_over = ""  # places that were not taken, and why
        self._pid = os.getpid()

    def open(self, *, make: bool) -> bool:
        """Opens the lock file in the folder. False: there is none, or the folder is gone.

        Raises ShmDriverError.
        """
        keep_standard_descriptors()
        path = self.folder.path / LOCK_NAME
        try:
            with no_fork:
                self._open(make=make)
                if self.fd < 0:
                    return False
                hold(self.fd)
        except (FileNotFoundError, FileExistsError):
            return False
        except OSError as error:
            text = errno_text(error, lib.SHMD_CALL_RUNTIME)
            raise ShmDriverError(f"cannot open {path} as uid {os.geteuid()}: {text}") from error
        found = os.fstat(self.fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            return True
        raise ShmDriverError(
            f"{path} has mode {found.st_mode:o} and belongs to uid {found.st_uid}; expected a regular "
            f"file of uid {os.geteuid()}: remove it, and start again"
        )

    def _open(self, *, make: bool) -> None:
        try:
            self.fd = self._open_former()
        except FileNotFoundError:
            if make:
                before, flags = self._contents(), os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
                self.fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=self.folder.fd)
                self._before = before

    def _open_former(self) -> int:
        try:
            return os.open(LOCK_NAME, os.O_RDWR | _FLAGS, dir_fd=self.folder.fd)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        return os.open(LOCK_NAME, os.O_RDONLY | _FLAGS, dir_fd=self.folder.fd)  # an flock asks for no more

    def take(self) -> None:
        """Raises BlockingIOError when somebody holds it."""
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def folder_id(self) -> tuple[int, int]:
        """Device and inode of the folder."""
        found = os.fstat(self.folder.fd)
        return found.st_dev, found.st_ino

    @property
    def identity(self) -> tuple[int, int, int]:
        """Of this lock, for as long as it stands: device and inode of its folder, its own inode."""
        return *self.folder_id, os.fstat(self.fd).st_ino

    @property
    def mark(self) -> int:
        """32 bits that tell this lock's identity from others'."""
        numbers = struct.pack("=3Q", *self.identity)
        return int(lib.shmd_hash(numbers, len(numbers), 0)) & 0xFFFFFFFF

    def look(self) -> Standing:
        """Whether folder and lock still stand where they were made. Raises OSError: that cannot be told."""
        try:
            folder = os.lstat(self.folder.path)
            if (folder.st_dev, folder.st_ino) != self.folder_id:
                return Standing.OTHER
            named = os.stat(LOCK_NAME, dir_fd=self.folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return Standing.MISSING
        except NotADirectoryError:
            return Standing.OTHER
        locked = os.fstat(self.fd)
        is_same = (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)
        return Standing.WHOLE if is_same else Standing.OTHER

    def renew(self, *, for_group: bool) -> bool:
        """Makes anew what is missing. False: another process was faster, or another one stands there now.

        The new lock is made aside and locked, and put in place by a link: nobody finds it free.
        Raises ShmDriverError, OSError; then all is as before.
        """
        folder = runtime_folder.make(self.instance, for_group=for_group)
        aside, fd = f"{LOCK_NAME}.{os.urandom(8).hex()}", -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
            with no_fork:
                fd = os.open(aside, flags, 0o600, dir_fd=folder.fd)
                hold(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(aside, LOCK_NAME, src_dir_fd=folder.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
        except BaseException as error:
            if fd >= 0:
                let_go(fd)
                _unlink(folder.fd, aside)
            folder.close()
            if isinstance(error, FileExistsError):
                return False
            raise
        _unlink(folder.fd, aside)
        former, self.folder = self.folder, folder
        let_go(self.fd)
        former.close()
        self.fd = fd
        return True

    def note(self, hint: Mapping[str, object]) -> None:
        """Writes ``instance.json``, which tells tools where to look; it proves nothing. Raises OSError."""
        data = json.dumps(hint).encode() + b"\n"
        write_aside(self.folder.fd, HINT_NAME, data, 0o644)

    def remove(self) -> None:
        """Empties the folder, the lock last, and removes it: at the end for good, under the lock.

        What is none of a driver's files stays, and the folder with it. So does one that only root can remove.
        Raises OSError.
        """
        self._remove(self._contents())

    def _contents(self) -> list[str]:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder.fd)
        try:
            listed = os.listdir(fd)  # noqa: PTH208 -- of a descriptor
            return [name for name in listed if _CONTENTS.fullmatch(name) and name != LOCK_NAME]
        finally:
            os.close(fd)

    def _remove(self, names: Iterable[str]) -> None:
        if self.look() is not Standing.WHOLE:
            return
        for name in [*names, LOCK_NAME]:
            _unlink(self.folder.fd, name)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if lib.shmd_folder_remove(self.folder.native) < 0 and ffi.errno not in STAYS:
            raise ShmDriverError(last_error())

    def withdraw(self) -> None:
        """Gives the lock up; what this process has made for it goes, too."""
        try:
            if self.fd >= 0 and self._before is not None and os.getpid() == self._pid:
                with suppress(BlockingIOError):  # then another one has it by now
                    self.take()
                    before = self._before
                    self._remove(name for name in self._contents() if name not in before)
            elif self.folder.fd >= 0:
                self._remove_folder()  # if it is empty
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock up, in the process that took it; elsewhere and a second time nothing."""
        if self.fd >= 0 and os.getpid() == self._pid:
            let_go(self.fd)
        self.fd = -1
        self.folder.close()


def try_lock(instance: str, *, for_group: bool) -> InstanceLock | None:
    """The lock, in a folder that is made if need be. None: it was removed meanwhile, so try again.

    Raises BlockingIOError when somebody holds it, ShmDriverError when no place is usable, OSError.
    """
    with ExitStack() as undo:
        lock = InstanceLock(instance)
        undo.callback(lock.withdraw)
        lock.folder = runtime_folder.make(instance, for_group=for_group)
        lock.passed_over = runtime_folder.notes()
        if lock.open(make=True):
            lock.take()
            if lock.look() is Standing.WHOLE:
                undo.pop_all()
                return lock
    return None


def write_aside(folder_fd: int, name: str, data: bytes, mode: int) -> None:
    """Replaces a file; whoever reads it sees the old one or the new one, whole. Raises OSError."""
    aside = f"{name}.{os.urandom(8).hex()}"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode, dir_fd=folder_fd)
    try:
        os.fchmod(fd, mode)
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        os.rename(aside, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    except BaseException:
        _unlink(folder_fd, aside)
        raise
    finally:
        os.close(fd)


def _unlink(folder_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        pass
