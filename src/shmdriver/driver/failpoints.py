"""Named places where a test build kills or stops this process; in every other build they are nothing.

The C core has the same by a macro (csrc/shmd_failpoint.h), and counts and acts for both.
"""

from __future__ import annotations

from shmdriver._native import lib

__all__ = ["failpoint"]

_hit = getattr(lib, "shmd_failpoint", None)


def failpoint(name: str) -> None:
    """This place is passed, between two stores that somebody else can tell apart."""
    if _hit is not None:
        _hit(name.encode())
