"""Names of a simulation's instances, and what one that was killed has left in /dev/shm.

The name says whose it is: pid, start time and PID namespace, so that it can be proved that its owner is gone.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from shmdriver._native import ffi, lib

SHM = Path("/dev/shm")
OWNED = re.compile(r"shmd\.simulation-(\d+)-(\d+)-(\d+)\..+")


def start_time(pid: int) -> int | None:
    """When that process began, in clock ticks since boot; None when that cannot be known."""
    found = ffi.new("uint64_t *")
    return int(found[0]) if lib.shmd_process_start_time(pid, found) == 0 else None


def instance_of(pid: int) -> str:
    """The instance that this process simulates under."""
    return f"simulation-{pid}-{start_time(pid)}-{int(lib.shmd_pid_namespace())}"


@cache  # once a process: a simulation starts thousands of worlds
def own_instance(pid: int) -> str:
    """``instance_of``, for the calling process; collects what dead ones have left."""
    collect_dead()
    return instance_of(pid)


def collect_dead() -> list[str]:
    """Removes the segments of simulations whose processes are proved gone; their names."""
    removed = []
    for name in sorted(os.listdir(SHM)):  # noqa: PTH208 -- names, not paths
        owner = OWNED.fullmatch(name)
        if owner and is_gone(*(int(number) for number in owner.groups())):
            (SHM / name).unlink(missing_ok=True)
            removed.append(name)
    return removed


def is_gone(pid: int, started: int, namespace: int) -> bool:
    """Whether it is proved: a pid of another namespace proves nothing, nor does one that /proc hides."""
    if namespace != lib.shmd_pid_namespace():
        return False
    found = start_time(pid)
    if found is not None:
        return found != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
