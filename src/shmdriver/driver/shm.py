"""One shared-memory object: making it with its memory really allocated, opening, mapping, removing it.

Only the driver makes, sizes and removes segments, and only by this module; what removes the segments of dead
drivers (collect.py) does so as a driver does, under the instance's lock. Memory is allocated with
``posix_fallocate`` before the object has a magic that lets anybody map it, so a full mount is a
:class:`ShmSpaceError` with numbers here and never a SIGBUS somewhere else.
"""

from __future__ import annotations

import errno
import grp
import os
import stat
from dataclasses import dataclass
from typing import Any

import posix_ipc

from shmdriver._native import ffi, lib
from shmdriver.driver.limits import MORE_INODES, MOUNT, SMALLER, ShmSpace
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.hints import command
from shmdriver.os_errors import errno_text, last_error
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = [
    "MOUNT",
    "Modes",
    "SegmentMap",
    "ShmSpace",
    "ShmSpaceError",
    "allocate",
    "check_space",
    "create_segment",
    "is_absent",
    "is_same_object",
    "is_whole",
    "lock_memory",
    "make_object",
    "make_whole",
    "object_path",
    "open_segment",
    "set_modes",
    "told_links",
    "unlink_segment",
]

BLOCK_BYTES = 512  # of st_blocks


class ShmSpaceError(ShmDriverError):
    """There is no memory for a segment: ``need`` in bytes, ``mount`` its path."""

    def __init__(self, text: str, *, need: int, mount: str = MOUNT) -> None:
        super().__init__(text)
        self.need = need
        self.mount = mount


@dataclass(frozen=True, slots=True)
class Modes:
    """How segments are made and mapped.

    ``bits``, ``gid``: who may open them, as permission bits and group (None: the driver's own).
    ``mlock``: the driver locks its mappings of them in memory. ``prefault``: it maps its tables
    with all pages present.
    """

    bits: int = 0o600
    gid: int | None = None
    mlock: bool = False
    prefault: bool = True

    @classmethod
    def of_group(cls, bits: int, group: str | None, *, mlock: bool = False, prefault: bool = True) -> Modes:
        """Raises ShmDriverError when there is no such group."""
        if group is None:
            return cls(bits, None, mlock, prefault)
        try:
            return cls(bits, grp.getgrnam(group).gr_gid, mlock, prefault)
        except KeyError:
            raise ShmDriverError(f"shm.group: there is no group {group!r} on this machine") from None


def object_path(name: str) -> str:
    """Where the mount shows a POSIX name."""
    return f"{MOUNT}{name}"


def _status(name: str) -> os.stat_result | None:
    """Of what has a POSIX name; None: nothing has it. Raises OSError when that cannot be told."""
    try:
        return os.lstat(object_path(name))
    except FileNotFoundError:
        return None


# ---- making ------------------------------------------------------------------------------------


def make_object(name: str) -> int:
    """A new object without bytes; its descriptor. Raises FileExistsError, ShmSpaceError, ShmDriverError."""
    keep_standard_descriptors()
    try:
        fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0).fd
    except posix_ipc.ExistentialError:
        raise FileExistsError(errno.EEXIST, "shared-memory object exists", name) from None
    except (posix_ipc.Error, OSError) as error:
        raise _not_made(name, _with_errno(error)) from error
    return fd


def _with_errno(error: Exception) -> OSError:
    """What posix_ipc raised, as an OSError; three of its errors have no errno."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, posix_ipc.PermissionsError):
        code = errno.EACCES
    else:
        code = errno.ENFILE if "system" in str(error) else errno.EMFILE
    return OSError(code, os.strerror(code))


def _not_made(name: str, error: OSError) -> ShmDriverError:
    if error.errno == errno.ENOSPC:  # an empty object takes no bytes
        space = ShmSpace.known()
        inodes = None if space is None else space.inodes
        left = "takes no more files" if inodes is None else f"has {inodes} inodes left"
        return ShmSpaceError(f"{MOUNT} {left}, so {name} cannot be made: {MORE_INODES}", need=0)
    text = errno_text(error, lib.SHMD_CALL_CREATE)
    return ShmDriverError(f"cannot make {object_path(name)} as uid {os.geteuid()}: {text}")


def create_segment(name: str, size: int, modes: Modes, *, write_group: bool = True) -> int:
    """A new object of ``size`` bytes, all of them really allocated; its descriptor.

    ``write_group=False`` takes the group's write permission away (authority: only the driver writes).
    The object has no magic yet. Raises ShmSpaceError when the mount cannot hold it, FileExistsError.
    """
    check_space(name, size)
    fd = make_object(name)
    try:
        allocate(fd, name, size)
        set_modes(fd, name, modes, write_group=write_group)
    except BaseException:
        os.close(fd)
        unlink_segment(name)
        raise
    return fd


def check_space(name: str, size: int) -> None:
    """Raises ShmSpaceError when the mount has less than ``size`` bytes free."""
    space = ShmSpace.known()
    if space is not None and size > space.free:
        raise _no_space(name, size, space)


def allocate(fd: int, name: str, size: int) -> None:
    """Gives an empty object its size and its memory. Raises ShmSpaceError, ShmDriverError."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.ftruncate(fd, 0)
        raise _not_allocated(name, size, error) from error


def _not_allocated(name: str, size: int, error: OSError) -> ShmDriverError:
    if error.errno == errno.ENOSPC:
        return _no_space(name, size, ShmSpace.known())
    text = f"posix_fallocate of {size} bytes for {name}: {errno_text(error, lib.SHMD_CALL_ALLOCATE)}"
    if error.errno in (errno.EFBIG, errno.ENOMEM):
        return ShmSpaceError(text, need=size)
    return ShmDriverError(text)


def set_modes(fd: int, name: str, modes: Modes, *, write_group: bool) -> None:
    """Applies permissions and group, whatever the umask was. Raises ShmDriverError."""
    try:
        if modes.gid is not None:
            os.fchown(fd, -1, modes.gid)
        os.fchmod(fd, modes.bits if write_group else modes.bits & ~0o020)
    except OSError as error:
        raise ShmDriverError(
            f"{name} cannot be given to group {modes.gid} with mode {modes.bits:04o} (shm.group, shm.mode) "
            f"by uid {os.geteuid()} with groups {sorted({os.getegid(), *os.getgroups()})}: "
            f"{errno_text(error, lib.SHMD_CALL_SHARE)}"
        ) from error


def unlink_segment(name: str) -> bool:
    """Removes a name of ours; mappings live on. False when there was none, or it is another's by now.

    Raises ShmDriverError when ours cannot be removed.
    """
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    except (posix_ipc.Error, OSError) as error:
        found = _status(name)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False
        text = errno_text(_with_errno(error), lib.SHMD_CALL_CREATE)
        raise ShmDriverError(f"cannot remove {object_path(name)} as uid {os.geteuid()}: {text}") from error
    return True


def told_links(name: str) -> str:
    """That a segment has hard links beside its name, in words; "" when it has none, or the name is gone."""
    found = _status(name)
    links = 0 if found is None or found.st_uid != os.geteuid() else found.st_nlink - 1
    if links < 1:
        return ""
    return (
        f"{name} has {links} hard link{'s' if links != 1 else ''} beside its name: it can be read through "
        "them, and takes memory after its end until they are removed; "
        f"{command('doctor', instance=None)} lists them"
    )


def _no_space(name: str, need: int, space: ShmSpace | None) -> ShmSpaceError:
    free = "" if space is None else f" and {space.free} are free"
    return ShmSpaceError(
        f"{MOUNT} is too small for {name}: it needs {need} bytes{free}; {SMALLER}, or make the "
        f"mount larger (mount -o remount,size=... {MOUNT}; containers: --shm-size)",
        need=need,
    )


# ---- mapping -----------------------------------------------------------------------------------


class SegmentMap:
    """One mapping of a segment in this process, until :meth:`close`."""

    __slots__ = ("base", "inode", "size")

    def __init__(self, base: Any, size: int, inode: int) -> None:
        self.base = base
        self.size = size
        self.inode = inode

    @property
    def address(self) -> int:
        """Where it begins; 0 once closed."""
        return 0 if self.base is None else int(ffi.cast("uintptr_t", self.base))

    @classmethod
    def of(cls, fd: int, size: int, *, writable: bool, prefault: bool = False) -> SegmentMap:
        """Maps ``size`` bytes. Raises ShmDriverError."""
        mapped = cls(None, size, os.fstat(fd).st_ino)
        out = ffi.new("void **")
        if lib.shmd_segment_map(fd, 0, size, int(writable), int(prefault), out) != 0:
            raise ShmDriverError(last_error())
        mapped.base = out[0]
        return mapped

    def view(self, ctype: str) -> Any:
        """The mapping as a pointer of a C type. Raises ShmDriverError once closed."""
        if self.base is None:
            raise ShmDriverError("this segment is not mapped any more")
        return ffi.cast(ctype, self.base)

    def close(self) -> None:
        """Unmaps; a second time does nothing."""
        if self.base is not None:
            lib.shmd_segment_unmap(self.base, self.size)
            self.base = None


def open_segment(name: str, *, writable: bool) -> tuple[int, int]:
    """Descriptor and size of an existing object.

    Raises FileNotFoundError, LayoutMismatch (no regular file, or not this user's), ShmDriverError
    (it cannot be opened now).
    """
    size = ffi.new("uint64_t *")
    fd: int = lib.shmd_segment_open(name.encode(), int(writable), size)
    if fd >= 0:
        return fd, int(size[0])
    text = last_error()
    found = _status(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such shared-memory object", name)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
        raise ShmDriverError(text)
    raise LayoutMismatch(text, segment=name)


def is_absent(name: str) -> bool | None:
    """Whether nothing has this name; None: that cannot be told."""
    try:
        return _status(name) is None
    except OSError:
        return None


def is_same_object(name: str, opened: os.stat_result) -> bool:
    """Whether a name leads to an object that is open, and is the only one that does. Raises OSError."""
    found = _status(name)
    if found is None or opened.st_nlink != 1:
        return False
    return (found.st_ino, found.st_dev) == (opened.st_ino, opened.st_dev)


def is_whole(name: str, mapped: SegmentMap) -> bool | None:
    """Whether a mapped object has all its bytes, allocated; None: its name is gone, or another object's."""
    found = _status(name)
    if found is None or found.st_ino != mapped.inode:
        return None
    return found.st_size == mapped.size and found.st_blocks * BLOCK_BYTES >= mapped.size


def make_whole(name: str, mapped: SegmentMap) -> None:
    """Gives a truncated object of ours its size and its memory back, and maps it again in place.

    What stood in the missing pages is zeros. Raises ShmDriverError, OSError.
    """
    fd, _ = open_segment(name, writable=True)
    try:
        if os.fstat(fd).st_ino != mapped.inode:
            raise ShmDriverError(f"{name} is not the object any more that this driver made")
        os.ftruncate(fd, mapped.size)
        os.posix_fallocate(fd, 0, mapped.size)
        if lib.shmd_segment_renew(fd, mapped.base, mapped.size, 1) != 0:
            raise ShmDriverError(last_error())
    finally:
        os.close(fd)


def lock_memory(*maps: SegmentMap) -> str:
    """Locks the pages of mappings in memory, until they are unmapped.

    Returns "" when all are locked, else how many are not, why, and what to do.
    """
    refused = [
        (mapped.size, last_error()) for mapped in maps if lib.shmd_segment_lock(mapped.base, mapped.size) != 0
    ]
    if not refused:
        return ""
    return (
        f"shm.mlock: {len(refused)} of {len(maps)} segments ({sum(size for size, _ in refused)} bytes) "
        f"are not locked in memory: {refused[0][1]}, or set shm.mlock = false"
    )
