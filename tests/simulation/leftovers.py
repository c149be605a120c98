"""Names of a simulation's instances, and what one that was killed has left in /dev/shm.

The name says whose it is: pid, start time, PID and time namespace. So its owner's end can be proved.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from shmdriver._native import ffi, lib
from shmdriver.driver.collect import collect
from shmdriver.liveness import Verdict, look_at_process
from tests.driver_rig import start_time_of

SHM = Path("/dev/shm")
OWNED = re.compile(r"shmd\.(sim-(\d+)-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+))\..+")


def instance_of(pid: int) -> str:
    """The instance that this process simulates under."""
    own = ffi.new("shmd_process_t *")
    lib.shmd_process_self(own)
    return f"sim-{pid}-{start_time_of(pid):x}-{own.pid_namespace:x}-{own.time_namespace:x}"


@cache  # once a process: a simulation starts thousands of worlds
def own_instance(pid: int) -> str:
    """``instance_of``, for the calling process; collects what dead ones have left."""
    collect_dead()
    return instance_of(pid)


def collect_dead() -> list[str]:
    """Removes the segments and folders of simulations whose processes are proved gone; segments' names."""
    dead = {
        owner[0]: owner[1]
        for name in os.listdir(SHM)  # noqa: PTH208 -- names, not paths
        if (owner := OWNED.fullmatch(name))
        and is_gone(int(owner[2]), *(int(number, 16) for number in owner.groups()[2:]))
    }
    for instance in set(dead.values()):
        collect(instance)
    for name in dead:
        (SHM / name).unlink(missing_ok=True)  # what is not as a driver leaves it
    return sorted(dead)


def is_gone(pid: int, started: int, pid_namespace: int, time_namespace: int) -> bool:
    """Whether it is proved."""
    return look_at_process(pid, started, pid_namespace, time_namespace).verdict is Verdict.DEAD
