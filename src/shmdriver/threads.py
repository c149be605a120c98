"""Refuses to work where gevent or eventlet replaced Python's threads by greenlets of one thread.

This package waits in C: for messages, and for the driver's answers. A greenlet that waits so stops all others
of its thread, also those that would end the wait. So the client and the embedded driver refuse to work there.
"""

from __future__ import annotations

import _thread
import select
from types import BuiltinFunctionType

from shmdriver.errors import ShmDriverError

__all__ = ["check_threads"]


def check_threads(*, for_driver: bool = False) -> None:
    """Raises ShmDriverError where threads, or what else a driver waits with, are not Python's own."""
    # A name that this version of Python lacks is not replaced: `len`, a builtin function, stands in for it.
    replaced = [
        f"{function.__module__}.{function.__qualname__}"
        for name in ("start_new_thread", "start_joinable_thread")
        if not isinstance(function := getattr(_thread, name, len), BuiltinFunctionType)
    ]
    if for_driver and not hasattr(select, "epoll"):
        replaced.append("select without epoll")
    if for_driver:
        from queue import SimpleQueue  # a client does without it

        if SimpleQueue.__module__ != "_queue":
            replaced.append(f"{SimpleQueue.__module__}.SimpleQueue")
    if replaced:
        raise ShmDriverError(
            f"Python's threads were replaced in this process (found {', '.join(replaced)}), as gevent's "
            "monkey.patch_all() does it. shmdriver waits in C, which would stop all greenlets for ever. "
            "Patch without threads, monkey.patch_all(thread=False, select=False, queue=False), or use "
            "shmdriver in a process of its own"
        )
