"""The authority segment of an instance that tools open: the one that clients choose, too."""

from __future__ import annotations

from typing import NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error
from shmdriver.trust import ANY_OWNER

__all__ = ["FoundAuthority", "chosen", "passed_over"]


class FoundAuthority(NamedTuple):
    """One authority segment."""

    name: str
    owner: int
    inode: int


def chosen(instance: str, owner: int = ANY_OWNER) -> FoundAuthority | None:
    """The one that a tool opens: of ``owner``, by default this user's own, else of whom this process trusts.

    None: there is none. Raises LayoutMismatch when a driver of the layout before is there, ShmDriverError
    when those of several other users could be meant, or when that cannot be told.
    """
    found = ffi.new("shmd_found_t *")
    code = int(lib.shmd_authority_choose(instance.encode(), owner, found))
    if code == lib.SHMD_E_LAYOUT:
        raise LayoutMismatch(last_error())
    if code < 0:
        raise ShmDriverError(last_error())
    if code == 0:
        return None
    return FoundAuthority(bytes(ffi.string(found.name)).decode(), int(found.owner), int(found.inode))


def passed_over() -> str:
    """What this thread's last call of :func:`chosen` has passed over, and why; "" for nothing."""
    return bytes(ffi.string(lib.shmd_authorities_notes())).decode(errors="replace")
