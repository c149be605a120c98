"""How much of /dev/shm the demo's instances take, and the most that they ever took."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["LIMIT_BYTES", "STREAM_BYTES", "ShmMeter", "free_bytes"]

LIMIT_BYTES = 48 << 20  # containers have 64 MiB
STREAM_BYTES = LIMIT_BYTES - (4 << 20)  # what is left beside a driver's own tables
_FOLDER = Path("/dev/shm")  # where POSIX shared memory stands on Linux
_INTERVAL_S = 0.02


def free_bytes() -> int:
    """What /dev/shm has left."""
    state = os.statvfs(_FOLDER)
    return state.f_bavail * state.f_frsize


class ShmMeter:
    """Looks at the segments of instances whose names begin with ``prefix``, many times a second."""

    def __init__(self, prefix: str) -> None:
        self._pattern = f"shmd.{prefix}*"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shm-meter", daemon=True)
        self.peak_bytes = 0

    def now_bytes(self) -> int:
        """What they take now."""
        total = 0
        for path in _FOLDER.glob(self._pattern):
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue  # unlinked meanwhile
            if found.st_uid == os.geteuid():
                total += found.st_blocks * 512
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            self.now_bytes()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
