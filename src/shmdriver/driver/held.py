"""Descriptors whose locks say that this process drives: forked children close them (csrc/core/shmd_held.c).

No thread forks between the opening of such a descriptor and the moment from which on children close it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from shmdriver._native import lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["hold_opened", "let_go"]

_forking = threading.RLock()  # what a signal handler or a finaliser does meanwhile is the same thread's


def hold_opened(opens: Callable[[], int]) -> int:
    """What ``opens`` returns: a descriptor that children close from then on, or a negative number.

    Raises ShmDriverError, and what ``opens`` raises.
    """
    with _forking:
        fd = opens()
        if fd >= 0 and lib.shmd_held_add(fd) < 0:
            os.close(fd)
            raise ShmDriverError(last_error())
    return fd


def let_go(fd: int) -> None:
    """Closes it."""
    with _forking:
        lib.shmd_held_drop(fd)
        os.close(fd)


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release
)
