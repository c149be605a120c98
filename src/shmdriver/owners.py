"""Owners: what has a descriptor, a mapping or a native handle before it is acquired.

A signal handler may raise between the return of a C call and the assignment of its result. So Python makes
an empty owner first, whose destructor is a C function that never waits, and the C call writes into it
(csrc/core/shmd_owner.c).
"""

from __future__ import annotations

from functools import partial
from operator import is_
from typing import Any

from shmdriver._native import ffi, lib

__all__ = ["descriptor", "keeping", "view"]


def descriptor() -> Any:
    """The owner of a file descriptor, empty (-1): closes it."""
    return ffi.gc(ffi.new("int *", -1), lib.shmd_descriptor_close)


def view() -> Any:
    """The owner of a read-only mapping, empty: unmaps it."""
    return ffi.gc(ffi.new("shmd_view_t *"), lib.shmd_view_drop)


def keeping(pointer: Any, owner: Any) -> Any:
    """``pointer`` as an object that keeps ``owner``: its destructor refers to that, and does nothing."""
    return ffi.gc(pointer, partial(is_, owner))
