"""Descriptors whose locks say that this process drives: a child that is forked closes them at once.

A lock belongs to the open file description, which a fork shares. A child that kept one would hold the
instance, or show life, after its driver has died. No thread forks between the opening of such a descriptor
and the moment from which on children know of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["hold_opened", "let_go"]

_fds: set[int] = set()
_forking = threading.RLock()  # what a signal handler or a finaliser does meanwhile is the same thread's


def hold_opened(opens: Callable[[], int]) -> int:
    """What ``opens`` returns: a descriptor that children close from then on, or a negative number."""
    with _forking:
        fd = opens()
        if fd >= 0:
            _fds.add(fd)
    return fd


def let_go(fd: int) -> None:
    """Closes it."""
    with _forking:
        _fds.discard(fd)
        os.close(fd)


def _close_in_child() -> None:
    fds = tuple(_fds)
    _fds.clear()
    _forking.release()  # its only thread is the one that forked
    for fd in fds:
        os.close(fd)


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child)
