"""The segments of an instance: their names, the lock that decides who may write them, and collecting them.

The lock is an ``flock`` on the authority object, held for the driver's whole life. Whoever has it may
build, adopt or remove everything of the instance; nobody else makes, sizes or removes any of its segments.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import threading
from pathlib import Path

from shmdriver._native import ffi, lib
from shmdriver.driver.shm import (
    MOUNT,
    Modes,
    SegmentMap,
    ShmSpace,
    is_absent,
    make_object,
    object_path,
    set_modes,
    unlink_segment,
)
from shmdriver.errors import DriverAlreadyRunning, LayoutMismatch, ShmDriverError
from shmdriver.hints import command
from shmdriver.liveness import Verdict, look_at_driver, pid_text
from shmdriver.os_errors import errno_text
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = [
    "InstanceLock",
    "ShmSpace",
    "authority_name",
    "collect",
    "control_name",
    "epoch_names",
    "epoch_objects",
    "lock_authority",
    "refuse_foreign",
]

_EPOCH_NAME = re.compile(r"shmd\.(?P<instance>[^.]+)\.(?P<boot>[0-9a-f]{16})\.\d+\.\d+\.(?:data|gates)")
LOCK_TURNS = 100
LOCK_TURN_S = 0.01
COLLECTOR_TURNS = 5  # what is left now is collected another time

# ---- names -------------------------------------------------------------------------------------


def authority_name(instance: str) -> str:
    """POSIX name of the authority object."""
    return f"/shmd.{instance}.authority"


def control_name(instance: str) -> str:
    """POSIX name of the control object."""
    return f"/shmd.{instance}.control"


def epoch_names(instance: str, boot_id: int, stream_id: int, epoch: int) -> tuple[str, str]:
    """POSIX names of an epoch's data and gates objects."""
    stem = f"/shmd.{instance}.{boot_id:016x}.{stream_id}.{epoch}"
    return f"{stem}.data", f"{stem}.gates"


def epoch_objects(instance: str, boot_id: int | None = None) -> list[str]:
    """POSIX names of the epoch objects that exist for an instance (and one boot id), sorted."""
    names = []
    prefix = f"shmd.{instance}."
    for name in os.listdir(MOUNT):  # noqa: PTH208 -- there may be thousands, and this is part of every start
        match = _EPOCH_NAME.fullmatch(name) if name.startswith(prefix) else None
        if match and match["instance"] == instance and (boot_id is None or int(match["boot"], 16) == boot_id):
            names.append(f"/{name}")
    return sorted(names)


# ---- the lock ----------------------------------------------------------------------------------

_lock_fds: set[int] = set()


def _close_locks_in_child() -> None:
    # An flock belongs to the open file description, which a fork shares: a child that kept it would
    # hold the instance after its driver died.
    for fd in _lock_fds:
        os.close(fd)
    _lock_fds.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


class InstanceLock:
    """The exclusive flock on an authority object, and the object's descriptor."""

    __slots__ = ("_pid", "fd", "instance", "name")

    def __init__(self, instance: str, fd: int) -> None:
        self.instance = instance
        self.name = authority_name(instance)
        self.fd = fd
        self._pid = os.getpid()
        _lock_fds.add(fd)

    @property
    def size(self) -> int:
        """Bytes of the object as it stands."""
        return os.fstat(self.fd).st_size

    def mapping(self, size: int, *, writable: bool, prefault: bool = False) -> SegmentMap:
        """Maps the locked object, by a file description of its own.

        A mapping holds its description, and with it the lock: one of the locked description would go on
        holding it in every child that the driver's process has forked, long after the driver's death.
        """
        keep_standard_descriptors()
        fd = os.open(f"/proc/self/fd/{self.fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            return SegmentMap.of(fd, size, writable=writable, prefault=prefault)
        finally:
            os.close(fd)

    def still_named(self) -> bool:
        """Whether the name still leads to the locked object, and is the only one that does."""
        return _names(self.name, os.fstat(self.fd))

    def release(self) -> None:
        """Gives the lock up, in the process that took it; elsewhere and a second time nothing."""
        if self.fd >= 0 and os.getpid() == self._pid:
            _lock_fds.discard(self.fd)
            os.close(self.fd)
        self.fd = -1


def lock_authority(instance: str, modes: Modes, *, patience: int = LOCK_TURNS) -> InstanceLock:
    """Takes the instance's lock, making an empty authority object when there is none.

    ``patience``: how often to try again while a holder whose driver is not proved alive has it.
    Raises DriverAlreadyRunning naming the holder, LayoutMismatch for something that is no regular
    file of ours, ShmDriverError.
    """
    name = authority_name(instance)
    for turn in range(LOCK_TURNS):  # each turn: others made or unlinked the object meanwhile
        fd = _open_or_create(name)
        if fd is None:
            continue
        try:
            _check_ours(name, os.fstat(fd))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(name, os.fstat(fd)):
                if os.fstat(fd).st_size == 0:
                    _set_modes_or_remove(fd, name, modes)
                return InstanceLock(instance, fd)
        except BlockingIOError:
            try:
                (pid, told, look), is_passing = _holder(fd), not _names(name, os.fstat(fd))
            finally:
                os.close(fd)
            if is_passing:  # of an object without a name: a client that makes sure that nobody drives it
                continue
            # Unless a driver is proved alive: it is being made or collected, or clients make sure that nobody
            # drives it. All of that takes milliseconds.
            if look is not Verdict.ALIVE and turn < (LOCK_TURNS if pid == 0 else patience) - 1:
                threading.Event().wait(LOCK_TURN_S)  # flock has no timeout of its own
                continue
            raise DriverAlreadyRunning(
                f"a driver of instance {instance!r} runs already"
                + (f" ({told})" if told else "")
                + f": use it, stop it with {command('shutdown', instance=instance)}, or choose another name",
                instance=instance,
                pid=pid,
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise ShmDriverError(
        f"{name} was made and removed {LOCK_TURNS} times while locking it: other drivers are racing"
    )


def _open_or_create(name: str) -> int | None:
    keep_standard_descriptors()
    try:
        return os.open(object_path(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise LayoutMismatch(
                f"{object_path(name)} is no regular file; somebody planted it. Remove it and start again",
                segment=name,
            ) from error
        text = errno_text(error, lib.SHMD_CALL_DRIVE)
        raise ShmDriverError(f"cannot open {object_path(name)}: {text}") from error
    try:
        return make_object(name)
    except FileExistsError:
        return None


def _set_modes_or_remove(fd: int, name: str, modes: Modes) -> None:
    """Of a locked object without bytes: no driver that cannot start leaves one behind."""
    try:
        set_modes(fd, name, modes, write_group=False)
    except BaseException:
        unlink_segment(name)
        raise


def _check_ours(name: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise LayoutMismatch(
            f"{object_path(name)} is no regular file; somebody planted it. Remove it and start again",
            segment=name,
        )
    if found.st_uid != os.geteuid():
        raise ShmDriverError(
            f"{object_path(name)} belongs to uid {found.st_uid}, and this driver runs as uid {os.geteuid()}: "
            "run it as that user, or choose another instance name"
        )
    if found.st_nlink > 1:
        raise LayoutMismatch(
            f"{object_path(name)} has {found.st_nlink} hard links; expected 1. Remove the others and start "
            "again",
            segment=name,
        )


def _names(name: str, locked: os.stat_result) -> bool:
    try:
        found = Path(object_path(name)).lstat()
    except FileNotFoundError:
        return False
    return (found.st_ino, found.st_dev) == (locked.st_ino, locked.st_dev) and locked.st_nlink == 1


def _holder(fd: int) -> tuple[int, str, Verdict]:
    """Of the driver that a complete authority object names: pid (else 0), the same in words, and a look."""
    size = os.fstat(fd).st_size
    if size < ffi.sizeof("shmd_authority_t"):
        return 0, "", Verdict.UNKNOWN
    mapped = SegmentMap.of(fd, ffi.sizeof("shmd_authority_t"), writable=False)
    try:
        if lib.shmd_header_check(mapped.base, size, lib.SHMD_SEGMENT_AUTHORITY, 0, 0, 0) != 0:
            return 0, "", Verdict.UNKNOWN
        authority = mapped.view("shmd_authority_t *")
        pid, namespace = int(authority.driver_pid), int(authority.driver_pid_namespace)
        return pid, pid_text(pid, namespace), look_at_driver(authority).verdict
    finally:
        mapped.close()


# ---- collecting --------------------------------------------------------------------------------


def collect(instance: str) -> list[str]:
    """Removes everything of an instance whose driver is provably gone; the names removed.

    Takes the instance's lock first: with a living driver nothing happens and DriverAlreadyRunning is
    raised. Where the authority object is gone, an empty one is made for that: only the lock keeps a driver
    from starting meanwhile. An authority of a wrong magic or layout version is refused (LayoutMismatch),
    never deleted. The authority object goes last, so that an interrupted collection can be repeated.
    """
    had_authority = not is_absent(authority_name(instance))  # what cannot be told is told by the opening
    others = control_name(instance), *epoch_objects(instance)
    if not had_authority and all(is_absent(name) for name in others):
        return []
    lock = lock_authority(instance, Modes(), patience=COLLECTOR_TURNS)
    try:
        refuse_foreign(lock)
        names = [*epoch_objects(instance), control_name(instance), lock.name]
        removed = [name for name in names if unlink_segment(name)]
    finally:
        lock.release()
    return removed if had_authority else [name for name in removed if name != lock.name]


def refuse_foreign(lock: InstanceLock) -> bool:
    """Whether the locked authority is complete; False when it was left half made.

    Raises LayoutMismatch when it has a magic that is not ours, or another layout version.
    """
    size = lock.size
    if size < ffi.sizeof("shmd_header_t"):
        return False
    mapped = lock.mapping(min(size, lib.SHMD_DATA_HEADER_BYTES), writable=False)
    try:
        header = mapped.view("shmd_header_t *")
        magic, version = int(header.magic), int(header.layout_version)
        if magic == 0:
            return False
        if magic != lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY):
            raise LayoutMismatch(
                f"{lock.name} begins with {magic:#018x}, which is no authority segment of shmdriver "
                f"(expected {int(lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY)):#018x}). It is left as it is: "
                "look "
                f"what made {object_path(lock.name)}, and remove it by hand if it is garbage",
                segment=lock.name,
                found=magic,
                expected=int(lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY)),
            )
        if version != lib.SHMD_LAYOUT_VERSION:
            raise LayoutMismatch(
                f"{lock.name} has layout version {version}, and this build speaks "
                f"{lib.SHMD_LAYOUT_VERSION}. It is "
                "left as it is: stop its clients and let the version that made it shut down or collect it",
                segment=lock.name,
                found=version,
                expected=int(lib.SHMD_LAYOUT_VERSION),
            )
        return True
    finally:
        mapped.close()
