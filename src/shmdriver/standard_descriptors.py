"""No descriptor of ours is ever 0, 1 or 2: one of these that is closed is opened on /dev/null first.

The kernel gives the lowest free number. Without this, a segment could become the stdout of a process
that runs with stdout closed, and each line that the program prints would be written into it. The C
core does the same before it opens anything.
"""

from __future__ import annotations

import sys

from shmdriver._native import lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["keep_standard_descriptors", "open_standard_streams"]


def keep_standard_descriptors() -> None:
    """Opens the closed ones of 0, 1 and 2 on /dev/null. Call it before a descriptor is opened.

    Raises ShmDriverError when /dev/null cannot be opened.
    """
    if lib.shmd_keep_standard_descriptors() != 0:
        raise ShmDriverError(last_error())


def open_standard_streams() -> None:
    """For a program of ours: also gives Python's streams, which are None when Python starts without them.

    Raises ShmDriverError.
    """
    keep_standard_descriptors()
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 -- stays open
            setattr(sys, name, stream)
