"""Descriptors whose locks say that this process drives: a child that is forked closes them at once.

A lock belongs to the open file description, which a fork shares. A child that kept one would hold the
instance, or show life, after its driver has died.
"""

from __future__ import annotations

import os

__all__ = ["hold", "let_go"]

_fds: set[int] = set()


def hold(fd: int) -> int:
    """Children close this descriptor from now on; the same descriptor."""
    _fds.add(fd)
    return fd


def let_go(fd: int) -> None:
    """Closes it."""
    _fds.discard(fd)
    os.close(fd)


def _close_in_child() -> None:
    for fd in _fds:
        os.close(fd)
    _fds.clear()


os.register_at_fork(after_in_child=_close_in_child)
