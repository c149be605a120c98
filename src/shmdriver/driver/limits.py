"""How much memory this process may still take, by every limit that would refuse it or kill it.

Read before memory is touched: the mount (bytes and inodes), the machine, the memory cgroups from the own one
up to the root (v1 and v2), RLIMIT_AS, RLIMIT_FSIZE. A limit that cannot be read restricts nothing. Nothing is
changed. Called by admission, by the helper thread for an attach that waits for memory to come back, by the
driver's start, and by ``shmdriver doctor``.

RLIMIT_MEMLOCK refuses nothing: memory that cannot be locked serves as well, unlocked. A driver with shm.mlock
warns at its start, with the numbers, when the limit is too small for all that streams may take.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shmdriver.os_errors import errno_hint
from shmdriver.procfs import OWN_CGROUPS, controlling, small_text

__all__ = [
    "MORE_INODES",
    "MOUNT",
    "SMALLER",
    "Limit",
    "ShmSpace",
    "cgroup_limits",
    "lock_shortage",
    "shortage",
]

MOUNT = "/dev/shm"  # noqa: S108 -- POSIX shared memory lives here on Linux
UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63
SMALLER = (
    "ask for less (slots, slot_bytes, arena, max_message; a queue: max_bytes=; all streams: "
    "profiles.<name>.slots and .arena)"
)
MORE_INODES = f"remove files there, or mount -o remount,nr_inodes=... {MOUNT}"
CAP_IPC_LOCK = 14
THREAD_BYTES = 16 << 20  # address space of the thread that makes large segments


@dataclass(frozen=True, slots=True)
class ShmSpace:
    """What the shared-memory mount holds: bytes, and inodes that are left (None: it does not count them)."""

    total: int
    free: int
    mount: str = MOUNT
    inodes: int | None = None

    @classmethod
    def now(cls) -> ShmSpace:
        """Raises OSError."""
        found = os.statvfs(MOUNT)
        return cls(
            total=found.f_blocks * found.f_frsize,
            free=found.f_bavail * found.f_frsize,
            inodes=found.f_favail if found.f_files else None,
        )

    @classmethod
    def known(cls) -> ShmSpace | None:
        """As ``now``; None when the mount cannot be looked at."""
        try:
            return cls.now()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: what may still be taken under it, of how many bytes, and how it is raised."""

    name: str
    free: int
    most: int
    remedy: str


def shortage(need: int, *, largest: int, pending: int = 0) -> str:
    """Which limit ``need`` more bytes would break, with its numbers and what to do; "" when none.

    ``largest``: bytes of the largest single file among them. ``pending``: bytes that are being taken already.
    """
    space = ShmSpace.known()
    for limit in _limits(space, need + pending):
        if need + pending > limit.free:
            left = max(limit.free - pending, 0)
            return f"{limit.name} leaves {left} bytes (of {limit.most}): {limit.remedy}"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if resource.RLIM_INFINITY != most < largest:
        return f"{errno_hint(errno.EFBIG)}, or {SMALLER}"
    inodes = space.inodes if space is not None else None
    if inodes is not None and inodes < 2:
        return f"{MOUNT} has {inodes} inodes left, and a stream takes 2: {MORE_INODES}"
    return ""


def lock_shortage(need: int) -> str:
    """Why RLIMIT_MEMLOCK would not let ``need`` more bytes be locked, with its numbers; "" when it does.

    A limit that cannot be read counts as no limit.
    """
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    status = dict(line.partition(":")[::2] for line in small_text("/proc/thread-self/status").splitlines())
    if most == resource.RLIM_INFINITY or not {"CapEff", "VmLck"} <= status.keys():
        return ""
    may_pass = int(status["CapEff"], 16) >> CAP_IPC_LOCK & 1
    left = most - (int(status["VmLck"].split()[0]) << 10)
    if may_pass or left >= need:
        return ""
    return (
        f"shm.mlock: RLIMIT_MEMLOCK leaves {max(left, 0)} bytes (of {most}), and streams may take {need} "
        f"(shm.max_bytes, by default half of {MOUNT}). Memory beyond it is used unlocked: raise it "
        "(LimitMEMLOCK= of the unit, ulimit -l), set shm.max_bytes lower, or set shm.mlock = false"
    )


def _limits(space: ShmSpace | None, need: int) -> Iterator[Limit]:
    if space is not None:
        larger = f"make the mount larger (mount -o remount,size=... {MOUNT}; containers: --shm-size)"
        yield Limit(MOUNT, space.free, space.total, f"{SMALLER}, or {larger}")
    margin = need // 64 + (1 << 20)  # the kernel's own tables for it count, too
    machine = _machine()
    if machine is not None:
        yield Limit("this machine's memory", machine[0] - margin, machine[1], f"{SMALLER}, or free some")
    for limit in cgroup_limits(need + margin):
        yield Limit(limit.name, limit.free - margin, limit.most, f"{SMALLER}, or {limit.remedy}")
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = small_text("/proc/self/statm").split() if most != resource.RLIM_INFINITY else []
    if pages:
        used = int(pages[0]) * resource.getpagesize()
        yield Limit("RLIMIT_AS", most - used - THREAD_BYTES, most, f"{SMALLER}, or raise it (ulimit -v)")


def _number(text: str, word: str) -> int | None:
    """Of a line of a word and a number, as memory.stat and /proc/meminfo (there in KiB) have them."""
    at = 0 if text.startswith(word) else text.find(f"\n{word}") + 1
    numbers = text[at + len(word) : at + len(word) + 40].lstrip(": ").split(maxsplit=1)
    return int(numbers[0]) if text.startswith(word, at) and numbers and numbers[0].isdecimal() else None


def _machine() -> tuple[int, int] | None:
    """Bytes that can be had, swap included, and all that there are; None: not known."""
    text = small_text("/proc/meminfo")
    free, most = _number(text, "MemAvailable"), _number(text, "MemTotal")
    if free is None or most is None:
        return None
    return (free + (_number(text, "SwapFree") or 0)) << 10, (most + (_number(text, "SwapTotal") or 0)) << 10


# ---- memory cgroups ----------------------------------------------------------------------------


def cgroup_limits(need: int = UNLIMITED) -> Iterator[Limit]:
    """Of the memory cgroups that this process is in, its own first; those without a limit are left out.

    ``need``: what can be reclaimed is only read where so many bytes do not fit at once.
    """
    for hierarchy in controlling(small_text(OWN_CGROUPS), "memory"):
        for folder in hierarchy.folders:
            yield from _limits_of(folder, need, is_v1=hierarchy.is_v1)


def _limits_of(folder: Path, need: int, *, is_v1: bool) -> Iterator[Limit]:
    names = ("memory.limit_in_bytes",) if is_v1 else ("memory.max", "memory.high")
    texts = {name: small_text(f"{folder}/{name}").strip() for name in names}
    limits = {name: text for name, text in texts.items() if text.isdecimal() and int(text) < UNLIMITED}
    if not limits:
        return
    usage = small_text(f"{folder}/memory.{'usage_in_bytes' if is_v1 else 'current'}").strip()
    if not usage.isdecimal():
        return
    for name, text in limits.items():
        most, free = int(text), int(text) - int(usage)
        if free < need:
            free += _reclaimable(folder, free, is_v1=is_v1)
        yield Limit(f"{folder}/{name}", free, most, f"raise {name} of that cgroup")


def _reclaimable(folder: Path, free: int, *, is_v1: bool) -> int:
    """Bytes of file pages and of swap that the kernel uses before it kills, beside what is ``free``."""
    stat = small_text(f"{folder}/memory.stat")
    prefix = "total_" if is_v1 and "\ntotal_active_file " in stat else ""
    files = sum(_number(stat, f"{prefix}{kind}_file") or 0 for kind in ("active", "inactive"))
    swap = (_number(small_text("/proc/meminfo"), "SwapFree") or 0) << 10
    names = ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")
    names = names if is_v1 else ("memory.swap.max", "memory.swap.current")
    most, used = (small_text(f"{folder}/{name}").strip() for name in names)
    if most.isdecimal() and used.isdecimal():
        own = int(most) - int(used) - (free if is_v1 else 0)  # v1 counts memory and swap together
        swap = min(swap, max(own, 0))
    return files + swap
