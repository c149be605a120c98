"""Authority objects in /dev/shm: finding those of an instance, opening one, the sign of life on it.

The sign of life is a read lock on an open file description of the driver's own, which it holds for its life.
Whoever can read the object sees it, in any PID namespace. It keeps nobody out: that is the business of the
lock in the runtime folder (instance_lock.py). claim.py decides which authorities have a driver.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.driver.held import hold, let_go, no_fork
from shmdriver.driver.segment_names import draw
from shmdriver.driver.shm import (
    SegmentMap,
    allocate,
    check_space,
    is_same_object,
    make_object,
    unlink_segment,
)
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["AuthorityFile", "Found", "claim_mark", "find_authorities", "passed_over", "refuse_old_layout"]

_ROOM = 8


class Found(NamedTuple):
    """One authority of this user in /dev/shm. ``life``: 1 seen, 0 none, negative: cannot be told."""

    name: str
    inode: int
    layout_version: int
    life: int
    is_complete: bool
    native: Any  # shmd_found_t *


def find_authorities(instance: str) -> list[Found]:
    """This user's authorities of that instance: those with life first, then the newest.

    ``passed_over`` then says what else stands under such names. Raises ShmDriverError when /dev/shm cannot be
    listed.
    """
    room = _ROOM
    while True:
        out = ffi.new("shmd_found_t[]", room)
        count = int(lib.shmd_authorities_find(instance.encode(), os.geteuid(), out, room))
        if count < 0:
            raise ShmDriverError(last_error())
        if count <= room:
            break
        room = 2 * count
    return [
        Found(
            bytes(ffi.string(each.name)).decode(),
            int(each.inode),
            int(each.layout_version),
            int(each.life),
            bool(each.is_complete),
            ffi.new("shmd_found_t *", each),
        )
        for each in out[0:count]
    ]


def passed_over() -> str:
    """What this thread's last ``find_authorities`` has passed over, and why; "" for nothing."""
    return bytes(ffi.string(lib.shmd_authorities_notes())).decode(errors="replace")


def refuse_old_layout(instance: str) -> None:
    """Raises LayoutMismatch when this user or root has an authority of a layout with fixed names.

    Anybody else's object of that name says nothing, and is left alone. Raises ShmDriverError.
    """
    code = lib.shmd_old_layout(instance.encode())
    if code == lib.SHMD_E_LAYOUT:
        raise LayoutMismatch(last_error(), segment=f"/shmd.{instance}.authority")
    if code < 0:
        raise ShmDriverError(last_error())


def claim_mark(claim: int) -> int:
    """Of the lock under which an odd claim was made."""
    return claim >> 1 & 0xFFFFFFFF


class AuthorityFile:
    """An authority object of this user, open for writing. Children that are forked close it."""

    __slots__ = ("_claim", "_pid", "fd", "name")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.fd = -1
        self._pid = os.getpid()
        self._claim = (0, 0)  # as it was found, and as it is now

    @classmethod
    def create(cls, instance: str, size: int, tell: Callable[[str], None]) -> AuthorityFile:
        """A new object of ``size`` bytes, which shows life from its first moment on. It has no magic.

        Only this user can open it, until ``Authority.complete``. ``tell`` is told of names that were taken.
        Raises ShmSpaceError, ShmDriverError, FileExistsError.
        """
        check_space(f"the authority of instance {instance!r}", size)
        with ExitStack() as undo:
            made = cls()
            undo.callback(made.close)
            undo.callback(made.remove)
            with no_fork:
                made.name, made.fd = draw(instance, "authority", make_object, tell)
                hold(made.fd)
            made.show_life()
            allocate(made.fd, made.name, size)
            undo.pop_all()
        return made

    @classmethod
    def open(cls, found: Found) -> AuthorityFile | None:
        """None when it is gone, or something else stands there. Raises ShmDriverError."""
        with ExitStack() as undo:
            opened = cls(found.name)
            undo.callback(opened.close)
            with no_fork:
                opened.fd = lib.shmd_found_open(found.native, 1)
                error = ffi.errno
                if opened.fd >= 0:
                    hold(opened.fd)
            if opened.fd >= 0:
                undo.pop_all()
                return opened
            if opened.fd == lib.SHMD_E_LAYOUT or error == errno.ENOENT:
                return None
            raise ShmDriverError(last_error())

    @property
    def size(self) -> int:
        """Bytes of the object as it stands."""
        return os.fstat(self.fd).st_size

    def mapping(self, size: int, *, writable: bool, prefault: bool = False) -> SegmentMap:
        """Maps the object, by a file description of its own.

        A mapping holds its description, and with it the sign of life: one of this description would go on
        showing it in every child that the driver's process has forked, long after the driver's death.
        """
        keep_standard_descriptors()
        fd = os.open(f"/proc/self/fd/{self.fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            return SegmentMap.of(fd, size, writable=writable, prefault=prefault)
        finally:
            os.close(fd)

    def show_life(self) -> None:
        """From now on whoever looks sees that a driver lives, until :meth:`close`. Raises ShmDriverError."""
        if lib.shmd_life_show(self.fd) < 0:
            raise ShmDriverError(f"{self.name}: {last_error()}")

    def life_of_others(self) -> int:
        """Whether anybody but this object shows life: as ``Found.life``."""
        return int(lib.shmd_life_seen(self.fd))

    def claim(self, base: Any, found: int, mark: int) -> bool:
        """Claims a complete authority whose claim was ``found``. False: another one did, since then.

        ``mark``: of the lock that is held. Whoever gets that lock next knows that this claimant has died.
        """
        token = secrets.randbits(31) << 33 | mark << 1 | 1
        if not lib.shmd_word_swap(ffi.addressof(base, "claim"), found, token):
            return False
        self._claim = (found, token)
        return True

    def _give_back(self) -> None:
        """Ends a claim that came to nothing: no reader that shows life then bars others."""
        offset, (found, token) = ffi.offsetof("shmd_authority_t", "claim"), self._claim
        if token and os.pread(self.fd, 8, offset) == token.to_bytes(8, sys.byteorder):
            os.pwrite(self.fd, found.to_bytes(8, sys.byteorder), offset)

    def still_named(self) -> bool:
        """Whether the name still leads to this object."""
        return is_same_object(self.name, os.fstat(self.fd))

    def remove(self) -> None:
        """Takes its name away, if it still is its own."""
        if self.fd >= 0 and self.still_named():
            unlink_segment(self.name)

    def close(self) -> None:
        """Ends the sign of life, in the process that opened it; elsewhere and a second time nothing."""
        if self.fd >= 0 and os.getpid() == self._pid:
            self._give_back()
            let_go(self.fd)
        self.fd = -1
