"""Whether a process's cgroup is frozen, and which files thaw it: cgroup v2, and the freezer of v1.

A process in a frozen cgroup lives and runs nothing; /proc/PID/stat shows it as sleeping (v2) or blocked (v1).
Called by ``process_status``. What cannot be read is told, and is never taken for "not frozen".
"""

from __future__ import annotations

import shlex
from typing import Final, NamedTuple

from shmdriver._native import lib
from shmdriver.os_errors import errno_text
from shmdriver.procfs import Hierarchy, hierarchies, read_small

__all__ = ["Freezer", "freezer_in", "freezer_of"]

_FROZEN: Final = {"frozen 1", "FROZEN", "FREEZING"}


class Freezer(NamedTuple):
    """``cgroup``: the folder of the frozen cgroup, "" when none is known.

    ``thaw``: the shell command that thaws it, "" when what froze it cannot be seen here. ``why``: what
    hinders the answer, "" when nothing does; of a frozen one: why ``thaw`` may not be all that is needed.
    """

    cgroup: str = ""
    thaw: str = ""
    why: str = ""


def freezer_of(pid: int) -> Freezer:
    """What freezes the process ``pid``, which this /proc shows."""
    try:
        membership = read_small(f"/proc/{pid}/cgroup").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return Freezer()  # a kernel without cgroups, or the process has gone
    except OSError as error:
        return Freezer(why=f"/proc/{pid}/cgroup cannot be read ({errno_text(error, lib.SHMD_CALL_FILE)})")
    return freezer_in(membership)


def freezer_in(membership: str) -> Freezer:
    """What freezes a process with this /proc/PID/cgroup. It may be frozen in two hierarchies at once."""
    frozen: list[str] = []
    thaws: list[str] = []
    above: list[str] = []
    whys: list[str] = []
    for hierarchy in hierarchies(membership, "freezer"):
        version = "v1 freezer" if hierarchy.is_v1 else "v2"
        if not hierarchy.is_seen:
            whys.append(f"its cgroup {hierarchy.path} ({version}) is not mounted here")
            continue
        try:
            found, thaw, unread = _frozen(hierarchy)
        except OSError as error:
            told = errno_text(error, lib.SHMD_CALL_FILE)
            whys.append(f"its cgroup {hierarchy.path} ({version}) cannot be read ({told})")
            continue
        frozen += found
        thaws += thaw
        whys += unread
        if not (thaw or unread):
            above += [f"a cgroup above {each} froze it, too, and cannot be seen here" for each in found]
    if not frozen:
        return Freezer(why="; ".join(whys))
    whys += above if thaws else above[1:]  # the first one is ``cgroup``
    return Freezer(frozen[0], " && ".join(thaws), "; ".join(whys))


def _frozen(hierarchy: Hierarchy) -> tuple[list[str], list[str], list[str]]:
    """The folder of the cgroup that is frozen, when one is; the commands that thaw it; what cannot be told.

    Raises OSError when the process's own cgroup cannot be read.
    """
    if hierarchy.is_v1:
        state, switch, thaw, word = "freezer.state", "freezer.self_freezing", "freezer.state", "THAWED"
    else:
        state, switch, thaw, word = "cgroup.events", "cgroup.freeze", "cgroup.freeze", "0"
    own = hierarchy.folders[0]
    try:
        text = read_small(f"{own}/{state}").decode()
    except FileNotFoundError:
        own.stat()  # that there is such a cgroup
        text = ""  # the root of all has no such file: it cannot be frozen
    switched, unread = [], []
    for folder in hierarchy.folders:
        try:
            if read_small(f"{folder}/{switch}").strip() == b"1":
                switched.append(folder)
        except FileNotFoundError:
            pass  # the root of all, again
        except OSError as error:
            unread.append(f"{folder}/{switch} cannot be read ({errno_text(error, lib.SHMD_CALL_FILE)})")
    if switched:
        commands = [f"echo {word} > {shlex.quote(f'{folder}/{thaw}')}" for folder in switched]
        return [str(switched[0])], commands, unread
    if _FROZEN.isdisjoint(text.splitlines()):
        return [], [], unread
    return [str(own)], [], unread  # none of those that were read: a cgroup above the mounted one, if all were
