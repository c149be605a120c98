"""What a simulation replaces of the world: the clock, processes and their deaths, the driver's own death.

The driver dies at a *point*: one of its failpoints, one of its stores into a table, or the middle of one of
the core's calls. There a :class:`Crash` goes up through the driver's code, and from then on nothing that its
``except`` and ``finally`` would still remove is removed, and what the kernel closes with a process is closed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import posix_ipc

from shmdriver._native import ffi, lib
from shmdriver.driver import (
    admission,
    clients,
    connections,
    creation,
    driver,
    failpoints,
    instance_lock,
    oversight,
    shm,
)
from shmdriver.driver.authority import Authority
from shmdriver.driver.authority_file import AuthorityFile
from shmdriver.driver.memory import Completion, InlineMemory, Job
from shmdriver.driver.shm import SegmentMap
from shmdriver.liveness import Look, Verdict
from tests.simulation.door import Door, Network, Sleeper

MS = 1_000_000
POINTS = (
    "shmd_word_store",
    "shmd_word_store_seq_cst",
    "shmd_word_swap",
    "shmd_record_rewrite",
    "shmd_event_publish",
    "shmd_authority_changed",
    "shmd_epoch_join",
    "shmd_epoch_leave",
    "shmd_epoch_seal",
    "shmd_client_ring_advance",
    "shmd_segment_complete",
)


unlink_file, give_back = instance_lock._unlink, AuthorityFile._give_back


class Crash(BaseException):
    """The driver was killed here."""


class Clock:
    """Monotonic nanoseconds. ``slow_ns``: how much time the next reading but one has passed (a slow tick)."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000 * MS
        self.slow_ns = 0
        self._readings = 0

    def __call__(self) -> int:
        if self.slow_ns:
            self._readings += 1
            if self._readings > 1:
                self.now_ns, self.slow_ns, self._readings = self.now_ns + self.slow_ns, 0, 0
        return self.now_ns


class SlowMemory(InlineMemory):
    """Half of the jobs are done at once, as small ones are; others later, as by the helper thread."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._later: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        if self._rng.random() < 0.5:
            super().submit(job)
        else:
            self._later.append(job)

    def completions(self) -> Iterator[Completion]:
        if self._later and self._rng.random() < 0.3:
            super().submit(self._later.popleft())
        return super().completions()

    @property
    def pending(self) -> int:
        return len(self._later) + super().pending

    def close(self) -> None:
        while self._later:
            super().submit(self._later.popleft())


VEILS = (
    0,
    lib.SHMD_EVIDENCE_PROC_HIDDEN,
    lib.SHMD_EVIDENCE_TIME_NAMESPACE,
    lib.SHMD_EVIDENCE_PROC_FOREIGN,
    lib.SHMD_EVIDENCE_NAMESPACES,
)


NAMESPACES = (int(lib.shmd_pid_namespace()), int(lib.shmd_pid_namespace()) + 1)


class Task:
    """A process in the kernel's eyes: who it is, and a descriptor that fires when it is dead.

    ``veil``: what hinders a look at it (``SHMD_EVIDENCE_*``, one of VEILS); 0: nothing. ``image``: of the
    program that it runs; 0: not known.
    """

    def __init__(self, pid: int, rng: Random) -> None:
        self.veil = 0
        self.pid = pid
        self.inode = pid * 3
        self.start_time = pid * 7
        self.uid = rng.choice((1000, 1000, 1000, 1001))
        self.image = rng.choice((0, *[rng.getrandbits(64)] * 7))
        self.unseen_in = {namespace for namespace in NAMESPACES if rng.random() < 0.15}
        self.alive = True
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def pid_in(self, namespace: int) -> int:
        """Its number there; 0: it is in another PID namespace."""
        return 0 if namespace in self.unseen_in else self.pid + 500_000 * NAMESPACES.index(namespace)

    @property
    def is_reaped(self) -> bool:
        """Whether nothing of it is left; else it is a zombie, once dead."""
        return not self.alive and self.pid % 2 == 0

    def die(self) -> None:
        self.alive = False
        os.eventfd_write(self.fd, 1)


class Core:
    """The C core as the driver sees it: every call in ``POINTS`` is a point.

    ``_<name>``: the first part of that call, when a crash in its middle can be told from one before it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.__dict__.update({name: getattr(lib, name) for name in dir(lib)})
        self.kernel = kernel
        for name in POINTS:
            self.__dict__[name] = self._point(name, getattr(lib, name), getattr(self, f"_{name}", None))

    def _point(self, name: str, whole: Callable[..., Any], half: Callable[..., None] | None) -> Any:
        kernel = self.kernel

        def call(*args: Any) -> Any:
            kernel.passes()
            if kernel.points_left and kernel.counts_down():
                if half is not None:
                    half(*args)
                kernel.crash(f"{name}, half done" if half else f"before {name}")
            return whole(*args)

        return call

    def _shmd_event_publish(self, writer: Any, event: Any) -> None:
        """Committed, head not stored; the writer itself goes down with its driver."""
        head = int(self.kernel.base.event_head)
        lib.shmd_event_publish(writer, event)
        self.kernel.base.event_head = head

    @staticmethod
    def _shmd_epoch_join(
        hot: Any, _data: Any, _gates: Any, _geometry: Any, gate: int, reliable: int, *_: Any
    ) -> None:
        if reliable:
            hot.gate_mask |= 1 << gate

    @staticmethod
    def _shmd_epoch_leave(hot: Any, gate: int) -> None:
        hot.gate_mask &= ~(1 << gate)

    @staticmethod
    def _shmd_epoch_seal(hot: Any, _data: Any, _ring: Any, geometry: Any, clean: int, proved: int) -> None:
        if int(hot.state) & 0xFF == lib.SHMD_EPOCH_OPEN and not clean and not proved:
            hot.state = int(geometry.epoch) << 8 | lib.SHMD_EPOCH_SEALING


class Kernel:
    """One simulated machine. ``with kernel.installed():`` puts it under the driver."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.clock = Clock()
        self.network = Network(rng)
        self.tasks: list[Task] = []
        self.namespace = NAMESPACES[0]  # of the driver
        self.is_old = rng.random() < 0.3  # it has no SO_PEERPIDFD
        self.base: Any = None  # the authority's header as the driver maps it
        self.points_left = 0  # until the driver dies; 0: it lives
        self.is_short = self.is_full = False  # of descriptors: no pidfd can be opened now; no client let in
        self.seeing_since_ns = 0  # since when the driver finds descriptors for its looks
        self.blind_to: set[tuple[int, bytes]] = set()  # clients whose death the present driver cannot prove
        self.where = ""
        self.killed = False
        self._passed = 0  # points
        self._strikes: list[tuple[int, Callable[[], None]]] = []  # at which point, and what happens then
        self.crashes: Counter[str] = Counter()
        self._handed_out: list[int] = []
        self._maps: list[SegmentMap] = []

    # -- processes

    def spawn(self) -> Task:
        self.tasks.append(Task(2_000_000 + len(self.tasks), self.rng))
        return self.tasks[-1]

    def move(self) -> None:
        """The next driver runs in the other PID namespace."""
        self.namespace = NAMESPACES[1 - NAMESPACES.index(self.namespace)]

    def look_at_client(self, record: Any) -> Look:
        """As driver/identity.py has it, of simulated processes."""
        look = self._look(record)
        if look.verdict is Verdict.UNKNOWN and look.pidfd < 0 and not look.is_passing:
            self.blind_to.add((int(record.nonce), bytes(record.secret_sha256)))
        return look

    def _look(self, record: Any) -> Look:
        number = int(record.pid)
        if not number or int(record.pid_namespace) != self.namespace:
            return Look(Verdict.UNKNOWN, int(lib.SHMD_EVIDENCE_PID_NAMESPACE))
        task = next((task for task in self.tasks if task.pid_in(self.namespace) == number), None)
        if task is not None and task.veil == lib.SHMD_EVIDENCE_NAMESPACES:
            return Look(Verdict.UNKNOWN, task.veil)
        if task is None or task.is_reaped:
            return Look(Verdict.DEAD, int(lib.SHMD_EVIDENCE_NO_PROCESS))
        if self.is_short:
            return Look(Verdict.UNKNOWN, int(lib.SHMD_EVIDENCE_NO_DESCRIPTOR))
        if not task.alive:
            return Look(Verdict.DEAD, int(lib.SHMD_EVIDENCE_PIDFD))
        if not task.veil and task.start_time != int(record.start_time) != 0:
            return Look(Verdict.DEAD, int(lib.SHMD_EVIDENCE_OTHER_START))
        if task.veil or not record.start_time:
            veil = task.veil or int(lib.SHMD_EVIDENCE_NO_START_TIME)
            return Look(Verdict.UNKNOWN, veil, self.pidfd_of(task))
        return Look(Verdict.ALIVE, int(lib.SHMD_EVIDENCE_START_TIME), self.pidfd_of(task))

    def pidfd_of(self, task: Task) -> int:
        """A new descriptor of it, for the driver."""
        fd = os.dup(task.fd)
        self._handed_out.append(fd)
        return fd

    def descriptors_left(self, _fd: int) -> int:
        return -1 if self.is_full else 1000

    def run_short(self, is_short: bool) -> None:
        """Whether there are descriptors for pidfds from now on."""
        self.is_short, self.is_full = is_short, is_short and self.rng.random() < 0.5
        self.seeing_since_ns = 2**63 if is_short else self.clock.now_ns

    def unveil(self) -> None:
        """Nothing hinders a look any more."""
        self.run_short(False)
        for task in self.tasks:
            task.veil = 0

    # -- the driver's death

    def arm(self, points: int) -> None:
        """The driver dies at the n-th point from now; 0: it lives."""
        self.points_left = points

    def counts_down(self) -> bool:
        self.points_left -= 1
        return self.points_left == 0

    def crash(self, where: str) -> None:
        self.where, self.killed, self.points_left = where, True, 0
        self.crashes[where] += 1
        raise Crash(where)

    def strike(self, points: int, action: Callable[[], None]) -> None:
        """Something happens to a process while the driver is busy: at its n-th point from now."""
        self._strikes.append((self._passed + points, action))

    def passes(self) -> None:
        """The driver is at a point."""
        self._passed += 1
        while self._strikes and self._strikes[0][0] <= self._passed:
            self._strikes.pop(0)[1]()

    def _failpoint(self, name: bytes) -> None:
        self.passes()
        if self.points_left and self.counts_down():
            self.crash(name.decode())

    def bury(self) -> None:
        """What the kernel does when the driver's process is gone: unmap, close, unlock."""
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()
        lib.shmd_held_close()
        own = {task.fd for task in self.tasks}
        for fd in set(self._handed_out) - own:
            path = Path(f"/proc/self/fd/{fd}")
            if path.is_symlink() and "eventfd" in str(path.readlink()):
                os.close(fd)
        self._handed_out.clear()
        self.network.bury()
        self.blind_to.clear()
        self.killed, self.base = False, None

    def closed(self) -> list[int]:
        """After an orderly close: the sizes of the mappings that the driver forgot to give back."""
        left = [mapped.size for mapped in self._maps if mapped.base is not None]
        self.bury()
        return left

    # -- seams

    def _unlink(self, name: str) -> None:
        if self.killed:  # an `except` on the way up: the process that would have run it is dead
            raise posix_ipc.ExistentialError
        posix_ipc.unlink_shared_memory(name)

    def _unlink_file(self, folder_fd: int, name: str) -> None:
        if not self.killed:
            unlink_file(folder_fd, name)

    def _give_back(self, file: AuthorityFile) -> None:
        if not self.killed:
            give_back(file)

    @contextmanager
    def installed(self) -> Iterator[None]:
        mapping, meet = SegmentMap.of, Authority.__init__

        def tracked(fd: int, size: int, *, writable: bool, prefault: bool = False) -> SegmentMap:
            mapped = mapping(fd, size, writable=writable, prefault=prefault)
            self._maps.append(mapped)
            return mapped

        def met(table: Authority, *args: Any) -> None:
            meet(table, *args)
            self.base = table.base

        ipc = SimpleNamespace(**{**vars(posix_ipc), "unlink_shared_memory": self._unlink})
        core = Core(self)
        seams: list[tuple[Any, str, Any]] = [
            (clients, "look_at_client", self.look_at_client),
            (connections, "descriptors_left", self.descriptors_left),
            (driver, "Door", lambda _authority, _gid, sleeper: Door(self, sleeper)),
            (driver, "Sleeper", lambda *_, **__: Sleeper(self)),
            (shm, "posix_ipc", ipc),
            (instance_lock, "_unlink", self._unlink_file),
            (AuthorityFile, "_give_back", lambda file: self._give_back(file)),
            (failpoints, "_hit", self._failpoint),
            (creation, "EVENT_SLOTS", 256),
            (oversight, "LOW_MEMORY_SHARE", 0.0),  # the machine's own memory is none of the simulation's
            (admission, "shortage", lambda *_, **__: ""),  # nor are its limits
            (SegmentMap, "of", staticmethod(tracked)),
            (Authority, "__init__", met),
        ]
        modules = [module for name, module in sys.modules.items() if name.startswith("shmdriver.driver.")]
        seams += [
            (module, "lib", core) for module in modules if hasattr(module, "lib") and module is not failpoints
        ]
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in seams]
        for owner, name, value in seams:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
            self.network.unmap_all()
            for task in self.tasks:
                os.close(task.fd)


def address(pointer: Any) -> int:
    """A cdata pointer of shmdriver._native as a number."""
    return int(ffi.cast("uintptr_t", pointer))
