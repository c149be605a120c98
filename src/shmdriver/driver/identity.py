"""What a client is, whose Hello it is, and whether the process of a client lives.

Who a client is the kernel says: user, process and pidfd of the process that has connected. A Hello under a
former id needs that client's secret beside it. A pidfd is of a process and not of a program: it does not fire
at exec, and from then on the process's Hellos show another image. So such a Hello proves that whoever was
registered by the former image is gone.

A record keeps pid and start time as the driver read them, and the namespaces of that driver. A successor in
the same ones proves the dead by these alone, before anybody says Hello to it. Pid 0 is of a process in
another PID namespace: only its pidfd proves its death, and a successor has that with the next Hello.

``peer`` is a ``shmd_peer_t *``, what the kernel says; ``hello`` a private copy of a ``shmd_hello_t``, what
the client says; ``process`` the inode of a pidfd: one number for all pidfds of a process, and for those of no
other process; 0: not known.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import select
from typing import Any

from shmdriver._native import lib
from shmdriver.driver.authority import publish_word, record_state, rewrite_record, text_of
from shmdriver.driver.client_segment import ClientSegment
from shmdriver.liveness import Look, Verdict, look_at_process, pid_text

__all__ = [
    "DESCRIPTORS_EACH",
    "RESERVED_DESCRIPTORS",
    "Client",
    "contradiction",
    "describe",
    "descriptors_left",
    "digest_of",
    "has_fired",
    "is_of",
    "look_at_client",
    "look_of",
    "name_process",
]

DESCRIPTORS_EACH = 2  # of a client: its connection and its pidfd
RESERVED_DESCRIPTORS = 64  # what the driver itself needs beside those of clients, which leave so many free


class Client:
    """One client record, and the pidfd that proves its process dead (-1: it cannot be proved).

    ``process``: the same number for all pidfds of its process, and for no other process; 0: not known.
    ``control``: its control segment; None: lost, or given back.
    """

    __slots__ = ("activity", "control", "index", "pidfd", "process", "record")

    def __init__(self, record: Any, index: int) -> None:
        self.record = record
        self.index = index
        self.pidfd, self.process = -1, 0
        self.control: ClientSegment | None = None
        # The time of its last sign of life, and what its leases had read and written when it was silent then.
        self.activity: tuple[int, dict[int, dict[int, tuple[int, ...]]]] | None = None

    @property
    def client_id(self) -> int:
        """Never given twice."""
        return int(self.record.client_id)

    @property
    def state(self) -> int:
        """``SHMD_CLIENT_*``."""
        return record_state(self.record)

    @property
    def pid(self) -> int:
        """As a driver read it; 0: of another PID namespace."""
        return int(self.record.pid)

    @property
    def label(self) -> str:
        """Name and pid, for texts. The number of a process elsewhere is not known, so its user is told."""
        name = text_of(self.record.name)
        who = pid_text(self.pid, int(self.record.pid_namespace))
        if self.pid == 0:
            who = f"a process of another PID namespace, uid {self.record.uid}"
        return f"{name!r} ({who})" if name else who


def digest_of(hello: Any) -> bytes:
    """What the record keeps of a client's secret."""
    return hashlib.sha256(bytes(hello.secret)).digest()


def is_of(record: Any, process: int, peer: Any) -> bool | None:
    """Whether the client of a record and a peer are the same process; None: that cannot be told."""
    if process and peer.pidfd_inode:
        return bool(process == peer.pidfd_inode)
    found = peer.process
    if 0 in (record.pid, found.pid, found.pid_namespace) or record.pid_namespace != found.pid_namespace:
        return None
    if record.pid != found.pid:
        return False
    if 0 in (record.start_time, found.start_time) or record.time_namespace != found.time_namespace:
        return None
    return bool(record.start_time == found.start_time)


def contradiction(record: Any, process: int, label: str, hello: Any, peer: Any) -> str:
    """Why a Hello is not of the client of this record, although it names it; "" when it is."""
    if digest_of(hello) != bytes(record.secret_sha256):
        return "its secret is another one"
    if peer.uid != record.uid:
        return f"it comes from uid {peer.uid}, and that client's is {record.uid}"
    if is_of(record, process, peer) is False:
        return f"it comes from another process (pid {peer.process.pid}) than that of {label}"
    if hello.image != record.image:
        return "its process has begun another program since (exec)"
    return ""


def name_process(record: Any, process: Any) -> None:
    """Names a client's process as this driver sees it, whose namespaces are not those of the former one.

    A driver that is killed in between leaves pid 0: not known.
    """
    state = record_state(record)
    rewrite_record(record, state)
    record.pid = 0
    record.pid_namespace, record.time_namespace = process.pid_namespace, process.time_namespace
    record.start_time = process.start_time
    record.pid = process.pid
    publish_word(record, state, reuse=True)


def look_at_client(record: Any) -> Look:
    """Looks at the process that a client record names. ``pidfd`` fires when it ends.

    A pidfd counts also when the look is UNKNOWN. Whoever has the number now, its end proves that the client
    has ended: a number is given to another only after that.
    """
    if int(record.pid) == 0:
        return Look(Verdict.UNKNOWN, int(lib.SHMD_EVIDENCE_PID_NAMESPACE))
    highest = descriptors_left(0)  # asked for while there is no descriptor yet that could be lost
    look = look_at_process(
        int(record.pid),
        int(record.start_time),
        int(record.pid_namespace),
        int(record.time_namespace),
        keeps_pidfd=True,
    )
    if look.pidfd >= 0 and look.pidfd > highest:
        os.close(look.pidfd)  # the driver's own work comes first
        return Look(Verdict.UNKNOWN, int(lib.SHMD_EVIDENCE_NO_DESCRIPTOR))
    return look


def look_of(peer: Any, pidfd: int) -> Look:
    """What the kernel has said of a peer, as a look at it; ``pidfd`` was the peer's."""
    if pidfd >= 0:
        return Look(Verdict.ALIVE, int(lib.SHMD_EVIDENCE_START_TIME), pidfd)
    is_passing = peer.pidfd_error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) and peer.process.pid != 0
    evidence = lib.SHMD_EVIDENCE_NO_DESCRIPTOR if is_passing else lib.SHMD_EVIDENCE_NO_PIDFD
    return Look(Verdict.UNKNOWN, int(evidence))


def descriptors_left(fd: int) -> int:
    """How many more descriptors clients may take when ``fd`` is the newest one; negative: not even that."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if limit == resource.RLIM_INFINITY else limit - RESERVED_DESCRIPTORS - fd - 1


def has_fired(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def describe(client: Client | None) -> str:
    """A client for texts, known or not."""
    return client.label if client else "a client that is gone"
