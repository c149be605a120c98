"""Whether a process lives: one look, with its evidence. The driver, the clients and the tools all ask here.

The look itself is C (``shmd_process_look``). A look that fails says UNKNOWN, never DEAD. Whoever would free
something treats UNKNOWN as alive.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from shmdriver.owners import descriptor

__all__ = ["Look", "Verdict", "driver_of", "look_at_driver", "look_at_process", "pid_text"]

_PASSING = int(lib.SHMD_EVIDENCE_NO_DESCRIPTOR)


class Verdict(IntEnum):
    """What is known of a process."""

    UNKNOWN = lib.SHMD_PROCESS_UNKNOWN
    ALIVE = lib.SHMD_PROCESS_ALIVE
    DEAD = lib.SHMD_PROCESS_DEAD


class Look(NamedTuple):
    """What one look found. ``pidfd`` (-1: none) is the caller's: it fires when the process ends."""

    verdict: Verdict
    evidence: int  # SHMD_EVIDENCE_*
    pidfd: int = -1

    @property
    def text(self) -> str:
        """The evidence in words."""
        return str(ffi.string(lib.shmd_evidence_text(self.evidence)).decode())

    @property
    def is_passing(self) -> bool:
        """Whether a later look may find more: there was no descriptor left."""
        return self.evidence == _PASSING


def look_at_process(
    pid: int, start_time: int, pid_namespace: int, time_namespace: int, *, keeps_pidfd: bool = False
) -> Look:
    """Looks at the process that these numbers name; 0: that one is not known.

    ``keeps_pidfd``: the caller closes ``Look.pidfd``. A dead process has none.
    """
    process = ffi.new("shmd_process_t *", (pid, start_time, pid_namespace, time_namespace))
    evidence, pidfd = ffi.new("uint32_t *"), descriptor()
    verdict = Verdict(lib.shmd_process_look(process, pidfd if keeps_pidfd else ffi.NULL, evidence))
    look = Look(verdict, int(evidence[0]), int(pidfd[0]))
    pidfd[0] = -1  # it is the caller's now
    return look


def pid_text(pid: int, pid_namespace: int) -> str:
    """``pid 7``, and where that number means something when that is not this PID namespace."""
    return str(ffi.string(lib.shmd_pid_text(pid, pid_namespace)).decode())


def driver_of(authority: Any) -> tuple[int, int, int, int]:
    """What identifies the driver that an authority names: the arguments of ``look_at_process``."""
    return (
        int(authority.driver_pid),
        int(authority.driver_start_time),
        int(authority.driver_pid_namespace),
        int(authority.driver_time_namespace),
    )


def look_at_driver(authority: Any, authority_fd: int = -1) -> Look:
    """Looks at the driver of an authority, and for its sign of life when ``authority_fd`` leads to it."""
    evidence = ffi.new("uint32_t *")
    verdict = Verdict(lib.shmd_driver_look(authority, authority_fd, evidence))
    return Look(verdict, int(evidence[0]))
