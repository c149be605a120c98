"""Small files of /proc and /sys: the mounts that this process sees, and the cgroups of any process.

A cgroup's folder follows from the process's /proc/PID/cgroup and from this process's own mounts, because only
what is mounted here can be read here. Called by the driver's limits and by what observes. Nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "MOUNTINFO",
    "OWN_CGROUPS",
    "Hierarchy",
    "Mount",
    "controlling",
    "hierarchies",
    "mounts",
    "read_small",
    "small_text",
]

MOUNTINFO = "/proc/self/mountinfo"
OWN_CGROUPS = "/proc/self/cgroup"


def read_small(path: str) -> bytes:
    """All of a small file. Raises OSError. No exception leaves a descriptor without an owner."""
    with FileIO(path) as file:
        return file.readall()


def small_text(path: str) -> str:
    """All of a small file; "" when it cannot be read."""
    try:
        return read_small(path).decode("utf-8", "replace")
    except OSError:
        return ""


class Mount(NamedTuple):
    """A mount: where it is (``place``), and which folder of its file system is seen there (``root``)."""

    device: str
    root: str
    place: str
    kind: str
    options: tuple[str, ...]


def mounts(mountinfo: str) -> Iterator[Mount]:
    """The mounts of a /proc/PID/mountinfo, in its order: of several on one place the last one is seen."""
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, _, options) = head.split(), tail.split(" ", 2)
        root, place = (
            re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field) for field in fields[3:5]
        )
        yield Mount(
            fields[2], root, place, kind, tuple(dict.fromkeys([*fields[5].split(","), *options.split(",")]))
        )


class Hierarchy(NamedTuple):
    """Where a process is in one hierarchy of cgroups.

    ``path``: as /proc/PID/cgroup has it. ``folders``: its cgroup's, then its parents', up to the mounted one;
    empty when the hierarchy is not mounted here. ``is_seen``: False when its cgroup is none of those that are
    mounted here; ``folders`` then has the mounted one alone.
    """

    is_v1: bool
    path: str
    folders: tuple[Path, ...]
    is_seen: bool


@lru_cache(maxsize=1024)
def hierarchies(membership: str, controller: str) -> tuple[Hierarchy, ...]:
    """Those that may have ``controller``, v1's and the unified one, by a process's /proc/PID/cgroup.

    An answer is kept as long as this process lives, because each attach would read and parse all mounts
    otherwise. One that is unmounted later limits nothing, as its files cannot be read. A cgroup file system
    that is mounted later is not noticed: a poll of /proc/self/mountinfo would tell, but it takes a descriptor
    that is open for life. A forked child would share its notices, and a program may close it.
    """
    found = []
    seen = tuple(mounts(small_text(MOUNTINFO)))
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        is_v1 = controller in controllers.split(",")
        if not is_v1 and number != "0":
            continue
        places = [
            (Path(mount.place), _below(path, mount.root))
            for mount in seen
            if (mount.kind == "cgroup" and controller in mount.options if is_v1 else mount.kind == "cgroup2")
        ]
        place = next((each for each in places if each[1] is not None), places[0] if places else None)
        folders: tuple[Path, ...] = ()
        if place is not None:
            top, own = place[0], place[0] / (place[1] or "").lstrip("/")
            folders = tuple(each for each in (own, *own.parents) if each.is_relative_to(top))
        found.append(Hierarchy(is_v1, path, folders, is_seen=place is not None and place[1] is not None))
    return tuple(found)


def controlling(membership: str, controller: str) -> tuple[Hierarchy, ...]:
    """Of :func:`hierarchies` what limits by ``controller``: v1's if there is one, else the unified one."""
    found = hierarchies(membership, controller)
    return tuple(each for each in found if each.is_v1) or found


def _below(path: str, root: str) -> str | None:
    """A cgroup's path below what is mounted; None when it is not below: another namespace's path is shown."""
    if root == "/":
        return None if ".." in path.split("/") else path
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else None
