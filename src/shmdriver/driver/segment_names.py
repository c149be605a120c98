"""The names of segments: ``/shmd.INSTANCE.<32 hex>.KIND``, with 128 random bits in each.

Nobody can take a name before the driver draws it. The instance in a name helps tools to list; it proves
nothing. What belongs to an instance's boot stands in its authority's tables.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final, Literal, TypeVar

from shmdriver.driver.shm import MOUNT, object_path
from shmdriver.names import SEGMENT

__all__ = ["DRAWS", "Kind", "draw", "is_name_of", "new_name", "own_segments"]

_Made = TypeVar("_Made")
Kind = Literal["authority", "control", "data", "gates"]
DRAWS: Final = 8  # of names, when others stand there already: with 128 random bits one is enough


def new_name(instance: str, kind: Kind) -> str:
    """A POSIX name that nobody knows yet."""
    return f"/shmd.{instance}.{os.urandom(16).hex()}.{kind}"


def is_name_of(name: str, instance: str, *kinds: Kind) -> bool:
    """Whether a POSIX name has the form of this instance's segments of these kinds."""
    match = SEGMENT.fullmatch(name[1:]) if name.startswith("/") else None
    return match is not None and match["instance"] == instance and match["kind"] in kinds


def draw(
    instance: str, kind: Kind, make: Callable[[str], _Made], tell: Callable[[str], None]
) -> tuple[str, _Made]:
    """Makes an object by ``make(name)`` under a name that is free; that name, and what was made.

    A foreign object under a name that was drawn is left alone, told, and passed over.
    Raises what ``make`` raises; FileExistsError when ``DRAWS`` names were taken.
    """
    for _ in range(DRAWS - 1):
        name = new_name(instance, kind)
        try:
            return name, make(name)
        except FileExistsError:
            tell(f"{object_path(name)} is there already and is none of ours: left alone, another name drawn")
    name = new_name(instance, kind)
    return name, make(name)


def own_segments(instance: str, *kinds: Kind) -> list[str]:
    """POSIX names of this instance's segments of these kinds that may be this user's, sorted.

    These are regular files of this user with one name. All else under such a name is somebody else's doing:
    it is never opened for writing and never removed. Raises OSError.
    """
    names = []
    prefix = f"shmd.{instance}."
    for name in os.listdir(MOUNT):  # noqa: PTH208 -- there may be thousands, and this is part of every start
        if name.startswith(prefix) and is_name_of(f"/{name}", instance, *kinds):
            try:
                found = os.lstat(f"{MOUNT}/{name}")
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1:
                names.append(f"/{name}")
    return sorted(names)
