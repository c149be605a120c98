"""What ``shmdriver doctor`` finds of instances: drivers, runtime folders, links, and what others planted.

Nothing is changed, and nothing of an owner who is not trusted is opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Final

from shmdriver._native import lib
from shmdriver.errors import DriverUnavailable, ShmDriverError
from shmdriver.hints import command
from shmdriver.observe.check import Check, bytes_text
from shmdriver.observe.instance import Instance
from shmdriver.observe.links import linked_segments
from shmdriver.observe.objects import SHM_FOLDER, SharedObject, default_instance, segments_of, shared_objects
from shmdriver.observe.records import DriverStatus
from shmdriver.runtime_folder import find, notes
from shmdriver.trust import ANY_OWNER, is_trusted, user_name

__all__ = ["INSTANCE_CHECKS"]

_SHOWN: Final = 8
_PLACES: Final = {
    int(lib.SHMD_PLACE_NAMED): "of SHMDRIVER_RUNTIME_DIR",
    int(lib.SHMD_PLACE_SYSTEM): "of the system",
    int(lib.SHMD_PLACE_USER): "of the user",
    int(lib.SHMD_PLACE_XDG): "of XDG_RUNTIME_DIR",
    int(lib.SHMD_PLACE_SHM): "in /dev/shm, for want of a better place",
}


def _known(named: int) -> tuple[list[tuple[str, int]], list[SharedObject]]:
    """Instances and owners that this process trusts; the objects of everybody else, and what is no file."""
    trusted: dict[tuple[str, int], bool] = {}
    foreign = []
    for each in shared_objects():
        key = each.instance, each.owner
        if key not in trusted:
            trusted[key] = is_trusted(*key, named)
        if not (trusted[key] and each.is_plain):
            foreign.append(each)
    return sorted(key for key, is_known in trusted.items() if is_known), foreign


def _label(instance: str, owner: int) -> str:
    return instance if owner == os.geteuid() else f"{instance} (of {user_name(owner)})"


def _instances(named: int) -> Check:
    stale: dict[str, int] = {}
    living: list[str] = []
    unseen: dict[str, ShmDriverError] = {}
    not_serving: dict[str, DriverStatus] = {}
    lost_lock: list[str] = []
    again: list[str] = []
    for name, owner in _known(named)[0]:
        label, driver = _label(name, owner), None
        try:
            with Instance(name, owner) as view:
                driver = view.driver()
        except DriverUnavailable:
            pass  # without an authority there is no driver
        except ShmDriverError as error:
            unseen[label] = error
            continue
        if driver is None or not driver.alive:
            stale[label] = sum(segments_of(name, owner).values())
            again.append(command("run", instance=name))
            continue
        living.append(label)
        if driver.status not in ("running", "starting"):
            not_serving[label] = driver
        if "lost_lock" in driver.degraded:
            lost_lock.append(label)
    found = f"{len(living)} with a driver" + (f" ({', '.join(living)})" if living else "")
    found += "".join(f"; {name}: {driver.explanation}" for name, driver in not_serving.items())
    advice = [f"{name}: {driver.advice}" for name, driver in not_serving.items()]
    if lost_lock:
        found += f"; lost their lock: {', '.join(lost_lock)}"
        advice.append(
            f"{', '.join(lost_lock)}: something else stands in the place of their lock, so that a second "
            "driver could start: look who changes the runtime folder, stop the driver and start it again"
        )
    if stale:
        found += f"; without one: {', '.join(stale)} ({bytes_text(sum(stale.values()))})"
        gone = command("gc", instance=None)
        advice.append(
            f"start the driver again and it adopts them: {', '.join(again)}; or remove them: {gone}; each as "
            "the user whose they are"
        )
    else:
        found += ", none stale"
    if unseen:
        found += "; cannot be looked at: " + ", ".join(f"{name} ({why})" for name, why in unseen.items())
        advice.append("look as the user, and with the version of shmdriver, that made them")
    return Check("instances", "warn" if advice else "ok", found, "; ".join(advice))


def _runtime_folder(named: int) -> Check:
    """Of the default instance, and of each other one that has a driver here."""
    names = dict.fromkeys([default_instance(), *(name for name, _ in _known(named)[0])])
    found, passed_over = [], ""
    for name in names:
        for folder in find(name, None if named == ANY_OWNER else named):
            with folder:
                found.append(f"{_label(name, folder.owner)}: {folder.path} ({_PLACES[folder.place]})")
        passed_over = notes() or passed_over
    text = "; ".join(found) or f"instance {default_instance()!r} has none yet: its driver makes it"
    if not passed_over:
        return Check("runtime folder", "ok", text)
    return Check("runtime folder", "warn", f"{text}; passed over: {passed_over}", _FOLDER_ADVICE)


_FOLDER_ADVICE = (
    "nothing has to be done while drivers start and clients find them; SHMDRIVER_RUNTIME_DIR names a folder "
    "for both"
)


def _foreign_objects(named: int) -> Check:
    """What strangers put under names of segments. It is never opened, and never removed."""
    trusted, foreign = _known(named)
    if not foreign:
        return Check("foreign objects", "ok", f"none under names of segments in {SHM_FOLDER}")
    ours = {name for name, owner in trusted if owner == os.geteuid()}
    odd = [each for each in foreign if not each.is_plain or each.instance in ours]
    owners = Counter(user_name(each.owner) for each in foreign)
    by_owner = ", ".join(f"{count} of {owner}" for owner, count in owners.most_common(_SHOWN))
    found = f"under names of segments, and left alone: {by_owner}"
    if not odd:
        return Check("foreign objects", "ok", found)
    paths = ", ".join(f"{SHM_FOLDER}/{each.name}" for each in odd[:_SHOWN])
    found += f"; no file, or under the name of an instance of this user: {paths}"
    found += ", ..." if len(odd) > _SHOWN else ""
    advice = "they harm nobody; look what made them, and remove them as root or as their owner"
    return Check("foreign objects", "warn", found, advice)


def _hard_links(_: int) -> Check:
    name = "hard links"
    found, unread = linked_segments()
    untold = f"; {unread} files of others cannot be read" if unread else ""
    if not found:
        return Check(name, "ok", f"no segment has another name{untold}")
    size = sum({each.inode: each.bytes for each in found}.values())
    paths = ", ".join(each.path for each in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    advice = (
        "they keep the memory of what has ended, and can be read: find who made them (a process that may "
        "write the segments, or any where the sysctl fs.protected_hardlinks is 0), and remove them"
    )
    text = f"{len(found)} names of linked segments ({bytes_text(size)}): {paths}{untold}"
    return Check(name, "warn", text, advice)


INSTANCE_CHECKS: Final[tuple[Callable[[int], Check], ...]] = (
    _instances,
    _runtime_folder,
    _foreign_objects,
    _hard_links,
)
