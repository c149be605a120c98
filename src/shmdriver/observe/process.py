"""What the kernel knows of a process: proved by the one look (liveness.py), described from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import FileIO
from typing import Final

from shmdriver._native import ffi, lib
from shmdriver.liveness import Look, Verdict, look_at_process

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
# After these /proc shows the process that is meant.
_SHOWN: Final = (
    lib.SHMD_EVIDENCE_START_TIME,
    lib.SHMD_EVIDENCE_NO_START_TIME,
    lib.SHMD_EVIDENCE_TIME_NAMESPACE,
    lib.SHMD_EVIDENCE_ZOMBIE,
)


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process, as far as it can be looked at.

    ``state`` is one of running, sleeping, stopped (by SIGSTOP or ^Z), traced (a debugger holds it),
    zombie (dead, not yet waited for), gone, reused (the pid belongs to a younger process), blocked
    in the kernel, idle, elsewhere (another PID namespace), unknown (it cannot be proved alive or dead).
    ``why`` says what hinders the proof when state is elsewhere or unknown, "" otherwise.
    """

    pid: int
    state: str
    command: str = ""
    why: str = ""

    @property
    def dead(self) -> bool:
        """Whether the process is proved to be over."""
        return self.state in ("zombie", "gone", "reused")

    @property
    def unknown(self) -> bool:
        """Whether it can be proved neither alive nor dead. Treat it as alive."""
        return self.state in ("elsewhere", "unknown")

    @property
    def frozen(self) -> bool:
        """Whether the process lives but cannot run until somebody lets it."""
        return self.state in ("stopped", "traced")

    @property
    def label(self) -> str:
        """Its pid, for texts: one of another PID namespace is said to be that."""
        if self.pid == 0:
            return "pid not known"
        return f"pid {self.pid} in another PID namespace" if self.state == "elsewhere" else f"pid {self.pid}"

    def __str__(self) -> str:
        return f"{self.state} (cannot be proved: {self.why})" if self.unknown else self.state


@cache
def own_namespace() -> int:
    """Inode of the PID namespace of the calling process."""
    return int(lib.shmd_pid_namespace())


@cache
def _own_time_namespace() -> int:
    own = ffi.new("shmd_process_t *")
    lib.shmd_process_self(own)
    return int(own.time_namespace)


def process_status(
    pid: int, start_time: int = 0, namespace: int | None = None, time_namespace: int | None = None
) -> ProcessStatus:
    """State of the process ``pid``.

    ``start_time`` (clock ticks since boot) tells a reused pid from the process that is meant;
    ``namespace`` (inode; None: ours) says in which PID namespace the pid was valid, ``time_namespace``
    (inode; None: ours) where its start time was read. What is 0 is not known, and then not compared.
    """
    if pid <= 0:
        return ProcessStatus(pid, "gone")
    namespace = own_namespace() if namespace is None else namespace
    time_namespace = _own_time_namespace() if time_namespace is None else time_namespace
    look = look_at_process(pid, start_time, namespace, time_namespace)
    if look.verdict is Verdict.DEAD:
        return _dead(pid, look)
    if look.evidence == lib.SHMD_EVIDENCE_PID_NAMESPACE:
        return ProcessStatus(pid, "elsewhere", why=look.text)
    letter, command = _shown(pid) if look.evidence in _SHOWN else ("", "")
    if look.verdict is Verdict.UNKNOWN and not (start_time == 0 and letter):
        return ProcessStatus(pid, "unknown", command, look.text)
    # A zombie whose pidfd has not fired has threads that run: only its main thread has ended.
    return ProcessStatus(pid, _STATES.get(letter, "running") if letter != "Z" else "running", command)


def _dead(pid: int, look: Look) -> ProcessStatus:
    if look.evidence == lib.SHMD_EVIDENCE_OTHER_START:
        return ProcessStatus(pid, "reused", _shown(pid)[1])
    return ProcessStatus(pid, "zombie" if look.evidence == lib.SHMD_EVIDENCE_PIDFD else "gone")


def _shown(pid: int) -> tuple[str, str]:
    """State's letter and command as /proc shows them, "" when it does not."""
    try:
        text = _read(f"/proc/{pid}/stat").decode("utf-8", "replace")
    except OSError:
        return "", ""
    name, _, rest = text.partition("(")[2].rpartition(")")
    return rest.split()[0], _command(pid) or name


def _read(path: str) -> bytes:
    """A small file of /proc, without the buffers that ``open`` makes."""
    with FileIO(path) as file:
        return file.read(1 << 16) or b""


def _command(pid: int) -> str:
    try:
        raw = _read(f"/proc/{pid}/cmdline")
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
