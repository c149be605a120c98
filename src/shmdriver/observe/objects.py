"""The names of objects and of instances in /dev/shm. Nothing is opened.

Only ENOENT says that something is absent. What cannot be listed is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from shmdriver.names import nearest
from shmdriver.os_errors import explained

__all__ = ["SEGMENT", "SHM_FOLDER", "default_instance", "instance_names", "others_hint", "shared_objects"]

SHM_FOLDER: Final = Path("/dev/shm")  # noqa: S108  where POSIX shared memory stands on Linux
SEGMENT: Final = re.compile(
    r"shmd\.(?P<instance>[A-Za-z0-9][A-Za-z0-9_-]{0,40})\.(?:[0-9a-f]{16}\.\d+\.\d+\.)?[a-z]+"
)


def shared_objects() -> list[str]:
    """The names in /dev/shm. Raises OSError when they cannot be listed."""
    try:
        return os.listdir(SHM_FOLDER)  # noqa: PTH208 -- there may be thousands
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explained(error) from None


def instance_names() -> tuple[str, ...]:
    """Names of all instances that have an authority segment on this machine. Raises OSError."""
    found = (name.split(".") for name in shared_objects())
    return tuple(sorted(each[1] for each in found if each[::2] == ["shmd", "authority"]))


def default_instance() -> str:
    """The instance that is meant when none is named: SHMDRIVER_DRIVER_INSTANCE, else ``default``."""
    return os.environ.get("SHMDRIVER_DRIVER_INSTANCE") or "default"


def others_hint(name: str) -> str:
    """A hint at the instances that there are, "" when there are none, or they cannot be listed."""
    try:
        others = instance_names()
    except OSError:
        return ""
    near = nearest(name, others)
    return f"; did you mean {near!r}?" if near else f"; there are: {', '.join(others)}" if others else ""
