"""Descriptors whose locks say that this process drives: forked children close them (csrc/core/shmd_held.c).

No thread forks between the opening of such a descriptor and the moment from which on children close it.
"""

from __future__ import annotations

import os
import threading

from shmdriver._native import lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["hold", "let_go", "no_fork"]

no_fork = threading.RLock()  # what a signal handler or a finaliser does meanwhile is the same thread's


def hold(fd: int) -> int:
    """Children close this descriptor from now on; the same descriptor. Inside ``no_fork``, with its opening.

    Raises ShmDriverError.
    """
    if lib.shmd_held_add(fd) < 0:
        raise ShmDriverError(last_error())
    return fd


def let_go(fd: int) -> None:
    """Closes it."""
    with no_fork:
        lib.shmd_held_drop(fd)
        os.close(fd)


os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=no_fork.release)
