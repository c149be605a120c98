"""The authority segments of one instance, and which of them a tool opens.

Several may stand there: of several users, or of one user while a driver takes over from another.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.observe.objects import SHM_FOLDER
from shmdriver.os_errors import last_error
from shmdriver.trust import ANY_OWNER, user_name

__all__ = ["FoundAuthority", "authorities", "chosen", "passed_over"]

_ROOM = 16


class FoundAuthority(NamedTuple):
    """One authority segment. ``life``: 1 a driver shows that it lives, 0 none does, negative: not known."""

    name: str
    owner: int
    inode: int
    boot_id: int
    life: int
    is_complete: bool


def authorities(instance: str, owner: int = ANY_OWNER) -> list[FoundAuthority]:
    """Those of ``owner``, by default of all whom this process trusts; those with life first, then the newest.

    Raises ShmDriverError when /dev/shm cannot be listed.
    """
    room = _ROOM
    while True:
        found = ffi.new("shmd_found_t[]", room)
        count = int(lib.shmd_authorities_find(instance.encode(), owner, found, room))
        if count < 0:
            raise ShmDriverError(last_error())
        if count <= room:
            break
        room = 2 * count
    return [
        FoundAuthority(
            name=bytes(ffi.string(each.name)).decode(),
            owner=int(each.owner),
            inode=int(each.inode),
            boot_id=int(each.boot_id),
            life=int(each.life),
            is_complete=bool(each.is_complete),
        )
        for each in found[0:count]
    ]


def passed_over() -> str:
    """What this thread's last call of :func:`authorities` has passed over, and why; "" for nothing."""
    return bytes(ffi.string(lib.shmd_authorities_notes())).decode(errors="replace")


def chosen(instance: str, owner: int = ANY_OWNER) -> FoundAuthority | None:
    """The one that a tool opens, which is the one that a client connects to. None: there is none.

    Raises ShmDriverError when it is not this user's and one of another user could be meant as well, and as
    :func:`authorities`.
    """
    found = authorities(instance, owner)
    if not found or found[0].owner == os.geteuid():
        return found[0] if found else None
    equals = [each for each in found if bool(each.life) == bool(found[0].life)]
    if len({each.owner for each in equals}) > 1:
        paths = ", ".join(f"{SHM_FOLDER}{each.name} (of {user_name(each.owner)})" for each in equals)
        raise ShmDriverError(
            f"instance {instance!r} has drivers of several users: {paths}; say which one is meant: "
            f"--owner {user_name(found[0].owner)}, in Python owner={user_name(found[0].owner)!r}"
        )
    return found[0]
