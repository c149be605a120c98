"""Hard links to segments: they keep its memory, and make it readable, when the driver has removed its name.

Read by ``shmdriver doctor``. Nothing is changed.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from shmdriver._native import lib
from shmdriver.names import SEGMENT
from shmdriver.observe.objects import SHM_FOLDER

__all__ = ["LinkedSegment", "linked_segments"]

_BLOCK_BYTES: Final = 512  # of st_blocks
_MAGICS: Final = {
    int(lib.shmd_magic(kind))
    for kind in (
        lib.SHMD_SEGMENT_AUTHORITY,
        lib.SHMD_SEGMENT_CONTROL,
        lib.SHMD_SEGMENT_DATA,
        lib.SHMD_SEGMENT_GATES,
    )
}


class LinkedSegment(NamedTuple):
    """One name of a segment that has several, or that is none of the driver's."""

    path: str
    bytes: int
    inode: int


def linked_segments() -> tuple[list[LinkedSegment], int]:
    """Names in /dev/shm and its folders of segments that are linked; how many files cannot be read.

    When the driver has removed its own name of a segment, only the magic tells what a link leads to.
    """
    found, unread = [], 0
    for folder, _, names in os.walk(SHM_FOLDER):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 -- there may be thousands
            try:
                status = os.lstat(path)
                is_at_home = SEGMENT.fullmatch(name) is not None and folder == str(SHM_FOLDER)
                if not stat.S_ISREG(status.st_mode) or (is_at_home and status.st_nlink == 1):
                    continue
                if status.st_size and _begins_with_magic(path):
                    found.append(LinkedSegment(path, status.st_blocks * _BLOCK_BYTES, status.st_ino))
            except FileNotFoundError:
                continue
            except OSError:
                unread += 1
    return found, unread


def _begins_with_magic(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return int.from_bytes(os.pread(fd, 8, 0), "little") in _MAGICS
    finally:
        os.close(fd)
