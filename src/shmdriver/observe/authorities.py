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

__all__ = ["FoundAuthority", "authorities", "chosen"]

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

    Raises ShmDriverError when /dev/shm cannot be listed, or an old driver's segments are in the way.
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


def chosen(instance: str, owner: int = ANY_OWNER) -> FoundAuthority | None:
    """The one that a tool opens: this user's own before those of others. None: there is none.

    Raises ShmDriverError when those of two other users could be meant, and as :func:`authorities`.
    """
    found = authorities(instance, owner)
    own = [each for each in found if each.owner == os.geteuid()]
    if own:
        return own[0]
    owners = dict.fromkeys(each.owner for each in found)
    if len(owners) > 1:
        paths = ", ".join(f"{SHM_FOLDER}{each.name} (of {user_name(each.owner)})" for each in found)
        raise ShmDriverError(
            f"instance {instance!r} is driven by several users: {paths}; say which one is meant: "
            f"--owner {user_name(found[0].owner)}, in Python owner={user_name(found[0].owner)!r}"
        )
    return found[0] if found else None
