"""Collecting: what the drivers of an instance left is removed, where none lives any more.

Called by ``shmdriver gc``, by embedded drivers as they start, and by tests.
"""

from __future__ import annotations

import os
import random
import re

from shmdriver import runtime_folder
from shmdriver.driver.authority_file import find_authorities, refuse_old_layout
from shmdriver.driver.claim import Claim, claimed
from shmdriver.driver.creation import segment_names_of
from shmdriver.driver.segment_names import own_segments
from shmdriver.driver.shm import MOUNT, unlink_segment
from shmdriver.errors import ShmDriverError

__all__ = ["collect", "collect_dead_embedded"]

COLLECTOR_TURNS = 5  # what is left now is collected another time
EMBEDDED_MAX = (
    16  # instances that one start looks at: with many it takes a choice, and the next ones the rest
)
_EMBEDDED = re.compile(r"shmd\.(embedded-\d+-[0-9a-f]+)\.[0-9a-f]{32}\.(?:authority|control|data|gates)")


def collect(instance: str) -> list[str]:
    """Removes everything of this user's instance whose driver is provably gone; the names removed.

    Claims the instance first, as a driver does: with a living one nothing happens and DriverAlreadyRunning is
    raised. An authority of another layout version is refused (LayoutMismatch), never deleted. The authority
    goes last, and then the runtime folder, so that an interrupted collection can be repeated.
    """
    refuse_old_layout(instance)
    names = own_segments(
        instance, "control", "data", "gates"
    )  # before the claim: what comes later is another's
    if not names and not find_authorities(instance) and not _has_folder(instance):
        return []
    return claimed(instance, lambda claim: _remove(claim, names), patience=COLLECTOR_TURNS)


def _has_folder(instance: str) -> bool:
    found = False
    for folder in runtime_folder.find(instance, os.geteuid()):
        folder.close()
        found = True
    return found


def _remove(claim: Claim, names: list[str]) -> list[str]:
    try:
        for file in claim.former:  # those with hard links are ours only if a table names them
            names = [*names, *segment_names_of(file)]
        removed = [name for name in dict.fromkeys(names) if unlink_segment(name)]
        removed += [file.name for file in claim.former if file.still_named() and unlink_segment(file.name)]
        claim.settle()
        claim.lock.remove()
    finally:
        claim.close()
        claim.lock.release()
    return removed


def collect_dead_embedded() -> list[str]:
    """Removes what a few embedded drivers left whose locks are free; the names removed.

    Raises OSError when /dev/shm cannot be listed.
    """
    names = os.listdir(MOUNT)  # noqa: PTH208 -- there may be thousands
    instances = {match[1] for name in names if (match := _EMBEDDED.fullmatch(name))}
    removed = []
    for instance in random.sample(sorted(instances), min(len(instances), EMBEDDED_MAX)):
        try:
            removed += collect(instance)
        except (ShmDriverError, OSError):
            continue  # it lives, or is not ours
    return removed
