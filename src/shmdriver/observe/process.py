"""What the kernel knows of a process: proved by the one look (liveness.py), described from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from shmdriver._native import ffi, lib
from shmdriver.liveness import Look, Verdict, look_at_process
from shmdriver.observe.freezer import Freezer, freezer_of
from shmdriver.os_errors import errno_text
from shmdriver.procfs import read_small

_ELSEWHERE: Final = "a process of another PID namespace"  # whose number the kernel does not tell
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
    frozen (its cgroup is), zombie (dead, not yet waited for), gone, reused (the pid belongs to a younger
    process), blocked in the kernel, idle, alive (what it does cannot be read), elsewhere (another PID
    namespace), unknown (it cannot be proved alive or dead). ``why`` says what hinders the proof when state is
    elsewhere or unknown, and what hinders the look at its state or its cgroups otherwise (of a frozen one: at
    another cgroup); "" when nothing does. ``cgroup``:
    the folder of the cgroup that is frozen. ``thaw``: the shell command that thaws it, "" when what froze it
    cannot be seen here. ``uncompared``: why the number may have passed to another process, which must not be
    killed in its place; "" when start time and namespaces were compared. ``uid``: its user, of one elsewhere
    that has no number here (pid 0).
    """

    pid: int
    state: str
    command: str = ""
    why: str = ""
    cgroup: str = ""
    thaw: str = ""
    uncompared: str = ""
    uid: int = -1

    @property
    def dead(self) -> bool:
        """Whether the process is proved to be over."""
        return self.state in ("zombie", "gone", "reused")

    @property
    def unknown(self) -> bool:
        """Whether it can be proved neither alive nor dead. Treat it as alive."""
        return self.state in ("elsewhere", "unknown")

    @property
    def frozen(self) -> bool | None:
        """Whether the process lives but cannot run until somebody lets it; None: it cannot be told."""
        return self.state in ("stopped", "traced", "frozen") or (None if self.why else False)

    @property
    def resume(self) -> str:
        """What lets it run again, "" when nothing is known to hold it."""
        if self.state == "frozen":
            place = "at or above" if self.why else "above"
            above = (
                f"the cgroup {place} {self.cgroup}, where that can be seen (docker unpause, systemctl thaw)"
            )
            what = f"its cgroup: `{self.thaw}`" if self.thaw else above
            return f"thaw {what}{f'; {self.doubt}' if self.why else ''}"
        if self.state == "traced":
            return "let its debugger continue it, or detach it"
        return f"let it run again: {self.kill('CONT')}" if self.state == "stopped" else ""

    @property
    def mistakable(self) -> str:
        """Why its number may be another process's here; "" when that was compared."""
        return self.why if self.unknown else self.uncompared

    def kill(self, name: str) -> str:
        """The command that sends it a signal; what to do instead where its number may be another's."""
        if self.mistakable:
            return f"SIG{name}, sent where its process can be seen ({self.mistakable})"
        return f"`kill -{name} {self.pid}`"

    @property
    def doubt(self) -> str:
        """What cannot be told of it, and why; "" when nothing."""
        if not self.why:
            return ""
        unsure = {"frozen": "that may not be all that froze it", "alive": "it may be stopped or frozen"}
        known = "it cannot be proved alive or dead" if self.unknown else "its cgroup may be frozen"
        return f"{unsure.get(self.state, known)}: {self.why}"

    @property
    def label(self) -> str:
        """Its pid, for texts: one of another PID namespace is said to be that."""
        if self.pid == 0:
            return f"{_ELSEWHERE}, uid {self.uid}" if self.state == "elsewhere" else "pid not known"
        return f"pid {self.pid} in another PID namespace" if self.state == "elsewhere" else f"pid {self.pid}"

    def __str__(self) -> str:
        if self.unknown:
            return f"{self.state} (cannot be proved: {self.why})"
        if self.state == "frozen":
            return f"frozen by cgroup {self.cgroup}"
        return f"{self.state} ({self.doubt})" if self.why else self.state


@cache
def own_namespace() -> int:
    """Inode of the PID namespace of the calling process."""
    return int(lib.shmd_pid_namespace())


@cache
def _own_time_namespace() -> int:
    own = ffi.new("shmd_process_t *")
    lib.shmd_process_self(own)
    return int(own.time_namespace)


def process_of_client(record: Any) -> ProcessStatus:
    """State of a client's process, by a copy of its record (``shmd_client_record_t *``)."""
    if record.pid == 0:
        why = bytes(ffi.string(lib.shmd_evidence_text(lib.SHMD_EVIDENCE_PID_NAMESPACE))).decode()
        return ProcessStatus(0, "elsewhere", why=why, uid=int(record.uid))
    return process_status(
        int(record.pid), int(record.start_time), int(record.pid_namespace), int(record.time_namespace)
    )


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
    letter, command, why = _shown(pid) if look.evidence in _SHOWN else ("", "", "")
    if look.verdict is Verdict.UNKNOWN and not (start_time == 0 and letter):
        return ProcessStatus(pid, "unknown", command, look.text)
    uncompared = "" if look.verdict is Verdict.ALIVE else look.text
    if why:
        return ProcessStatus(pid, "alive", why=why, uncompared=uncompared)
    freezer = freezer_of(pid) if letter else Freezer()
    if freezer.cgroup:
        return ProcessStatus(pid, "frozen", command, freezer.why, freezer.cgroup, freezer.thaw, uncompared)
    # A zombie whose pidfd has not fired has threads that run: only its main thread has ended.
    state = _STATES.get(letter, "running") if letter != "Z" else "running"
    return ProcessStatus(pid, state, command, freezer.why, uncompared=uncompared)


def _dead(pid: int, look: Look) -> ProcessStatus:
    if look.evidence == lib.SHMD_EVIDENCE_OTHER_START:
        return ProcessStatus(pid, "reused", _shown(pid)[1])
    return ProcessStatus(pid, "zombie" if look.evidence == lib.SHMD_EVIDENCE_PIDFD else "gone")


def _shown(pid: int) -> tuple[str, str, str]:
    """State's letter and command as /proc shows them, "" when it does not; why it may have more of them."""
    try:
        text = read_small(f"/proc/{pid}/stat").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return "", "", ""
    except OSError as error:
        return "", "", f"/proc/{pid}/stat cannot be read ({errno_text(error, lib.SHMD_CALL_FILE)})"
    name, _, rest = text.partition("(")[2].rpartition(")")
    return rest.split()[0], _command(pid) or name, ""


def _command(pid: int) -> str:
    try:
        raw = read_small(f"/proc/{pid}/cmdline")
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
