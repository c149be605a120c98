"""The names of objects and of instances in /dev/shm, and whose they are. Nothing is opened.

A name is drawn at random, and says of which instance a segment claims to be. Only ENOENT says that something
is absent. What cannot be listed is an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from shmdriver.errors import ShmDriverError
from shmdriver.names import SEGMENT, nearest
from shmdriver.os_errors import explained
from shmdriver.trust import ANY_OWNER, is_trusted

__all__ = [
    "SHM_FOLDER",
    "SharedObject",
    "default_instance",
    "instance_names",
    "instances_with_segments",
    "others_hint",
    "segments_of",
    "shared_objects",
]

SHM_FOLDER: Final = Path("/dev/shm")  # noqa: S108  where POSIX shared memory stands on Linux


class SharedObject(NamedTuple):
    """One object in /dev/shm whose name is that of a segment."""

    name: str
    instance: str
    kind: str  # authority, control, data or gates
    owner: int
    bytes: int
    is_plain: bool  # a regular file, as every segment is


def shared_objects(instance: str | None = None) -> Iterator[SharedObject]:
    """The objects under names of segments, of one instance or of all. Raises OSError."""
    try:
        names = os.listdir(SHM_FOLDER)  # noqa: PTH208 -- there may be thousands
    except FileNotFoundError:
        return
    except OSError as error:
        raise explained(error) from None
    for name in names:
        match = SEGMENT.fullmatch(name)
        if match is None or instance not in (None, match["instance"]):
            continue
        try:
            found = os.lstat(f"{SHM_FOLDER}/{name}")
        except FileNotFoundError:
            continue
        is_plain = stat.S_ISREG(found.st_mode)
        yield SharedObject(name, match["instance"], match["kind"], found.st_uid, found.st_size, is_plain)


def instance_names(named: int = ANY_OWNER) -> tuple[str, ...]:
    """Names of the instances that have an authority segment of an owner whom this process trusts.

    ``named``: the owner whom the user names. Raises OSError, ShmDriverError.
    """
    found = {(each.instance, each.owner) for each in shared_objects() if each.kind == "authority"}
    return tuple(sorted({instance for instance, owner in found if is_trusted(instance, owner, named)}))


def segments_of(instance: str, owner: int) -> dict[str, int]:
    """Names (as /dev/shm shows them) and bytes of the segments of one owner's instance. Raises OSError."""
    found = shared_objects(instance)
    return {each.name: each.bytes for each in found if each.is_plain and each.owner == owner}


def instances_with_segments(owner: int) -> list[str]:
    """Every instance of that owner that has a segment, with or without an authority. Raises OSError."""
    return sorted({each.instance for each in shared_objects() if each.is_plain and each.owner == owner})


def default_instance() -> str:
    """The instance that is meant when none is named: SHMDRIVER_DRIVER_INSTANCE, else ``default``."""
    return os.environ.get("SHMDRIVER_DRIVER_INSTANCE") or "default"


def others_hint(name: str, named: int = ANY_OWNER) -> str:
    """A hint at the instances that there are, "" when there are none, or they cannot be listed."""
    try:
        others = [each for each in instance_names(named) if each != name]
    except (OSError, ShmDriverError):
        return ""
    near = nearest(name, others)
    return f"; did you mean {near!r}?" if near else f"; there are: {', '.join(others)}" if others else ""
