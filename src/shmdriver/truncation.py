"""Surviving segments that somebody truncates: installs the C core's handler of SIGBUS in this process.

The driver, the tools and every client of Python call it before they map anything. It is idempotent. Where
``SHMDRIVER_TRUNCATION_GUARD`` is ``off`` it does nothing. See docs/SECURITY.md.
"""

from __future__ import annotations

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["damaged_addresses", "guard_truncation"]


def guard_truncation() -> bool:
    """Whether this process survives a truncation from now on; False: it was switched off.

    A process that blocks SIGBUS, or whose later handler of it does not call the one before, is not protected.
    """
    installed = int(lib.shmd_guard_truncation())
    if installed < 0:
        raise ShmDriverError(last_error())
    return bool(installed)


def damaged_addresses() -> set[int]:
    """Where mappings of this process begin whose segments somebody truncated, as far as it has met that."""
    cursor = ffi.new("uint64_t *")
    found = set()
    while (base := lib.shmd_segment_next_damaged(cursor)) != ffi.NULL:
        found.add(int(ffi.cast("uintptr_t", base)))
    return found
