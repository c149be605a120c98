"""What the kernel knows of a process: read from /proc, never guessed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Final

from shmdriver._native import lib

_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "blocked in the kernel",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "gone",
    "I": "idle",
}
_START_TIME_FIELD: Final = 19  # field 22 of /proc/PID/stat, counted from the state (field 3)


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process as /proc shows it.

    ``state`` is one of running, sleeping, stopped (by SIGSTOP or ^Z), traced (a debugger holds it),
    zombie (dead, not yet waited for), gone, reused (the pid belongs to a younger process), blocked
    in the kernel, idle, elsewhere (another PID namespace: /proc here cannot tell).
    """

    pid: int
    state: str
    command: str = ""

    @property
    def dead(self) -> bool:
        """Whether the process is certainly over."""
        return self.state in ("zombie", "gone", "reused")

    @property
    def frozen(self) -> bool:
        """Whether the process lives but cannot run until somebody lets it."""
        return self.state in ("stopped", "traced")

    def __str__(self) -> str:
        return self.state


@cache
def own_namespace() -> int:
    """Inode of the PID namespace of the calling process."""
    return int(lib.shmd_pid_namespace())


def process_status(pid: int, start_time: int = 0, namespace: int = 0) -> ProcessStatus:
    """State of the process ``pid``.

    ``start_time`` (clock ticks since boot; 0: do not compare) tells a reused pid from the process
    that is meant; ``namespace`` (inode; 0: ours) says in which PID namespace the pid was valid.
    """
    if pid <= 0:
        return ProcessStatus(pid, "gone")
    if namespace not in (0, own_namespace()):
        return ProcessStatus(pid, "elsewhere")
    try:
        text = _read(f"/proc/{pid}/stat").decode("utf-8", "replace")
    except OSError:
        return ProcessStatus(pid, "gone")
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if start_time and int(fields[_START_TIME_FIELD]) != start_time:
        return ProcessStatus(pid, "reused", _command(pid) or name)
    return ProcessStatus(pid, _STATES.get(fields[0], fields[0]), _command(pid) or name)


def _read(path: str) -> bytes:
    """A small file of /proc, in a third of the time that a file object takes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _command(pid: int) -> str:
    try:
        raw = _read(f"/proc/{pid}/cmdline")
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
