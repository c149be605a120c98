"""What a simulation replaces of the world: the clock, processes and their deaths, and the driver's own death.

A killed driver is an exception out of an arbitrary line of the driver's code, or out of the middle of one of the
core's calls. Between that line and the next start nothing of the old driver runs: what its ``except`` and ``finally``
would still remove stays, and what the kernel closes with a process is closed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import posix_ipc

from shmdriver._native import ffi, lib
from shmdriver.driver import admission, adoption, authority, boot, clients, control, epochs, events, leases, memory
from shmdriver.driver import oversight, segments, shm, streams
from shmdriver.driver import driver as driver_module
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.shm import SegmentMap
from shmdriver.errors import Code, Reason

MS = 1_000_000
TRACED = frozenset(
    module.__file__ or ""
    for module in (admission, adoption, authority, boot, clients, epochs, events, leases, memory, segments, shm, streams)
) | {str(Path(authority.__file__).with_name(name)) for name in ("tenure.py", "desk.py", "driver.py", "leasewatch.py")}
WITH_LIB = (admission, adoption, authority, boot, clients, control, driver_module, epochs, events, leases, memory)


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


class Task:
    """A process in the kernel's eyes: a pid, a start time, and a descriptor that fires when it is dead."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_time = pid * 7
        self.alive = True
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def die(self) -> None:
        self.alive = False
        os.eventfd_write(self.fd, 1)


class Native:
    """The core as the driver sees it. Counts calls that change tables, and may kill the driver at one of them."""

    def __init__(self, kernel: Kernel) -> None:
        self.__dict__.update({name: getattr(lib, name) for name in dir(lib)})
        for name in ("shmd_word_store", "shmd_word_store_seq_cst", "shmd_event_publish", "shmd_epoch_join",
                     "shmd_epoch_leave", "shmd_epoch_seal", "shmd_control_advance", "shmd_segment_complete"):  # fmt: skip
            self.__dict__[name] = self._counted(kernel, name, getattr(lib, name), getattr(self, f"_{name}", None))

    @staticmethod
    def _counted(kernel: Kernel, name: str, native: Any, half: Any) -> Any:
        def call(*args: Any) -> Any:
            if kernel.calls_left > 0:
                kernel.calls_left -= 1
                if kernel.calls_left == 0:
                    if half is not None:
                        half(*args)
                    kernel.crash(f"inside {name}")
            return native(*args)

        return call

    # What stands in memory when the core is killed in the middle of a call.

    @staticmethod
    def _shmd_event_publish(writer: Any, event: Any) -> None:
        """Committed, head not stored; the writer itself goes down with its driver."""
        base = kernel_of().base
        head = int(base.event_head)
        lib.shmd_event_publish(writer, event)
        base.event_head = head

    @staticmethod
    def _shmd_epoch_join(hot: Any, _data: Any, gates: Any, _geometry: Any, gate: int, reliable: int, *_rest: Any) -> None:
        if reliable:
            hot.gate_mask |= 1 << gate

    @staticmethod
    def _shmd_epoch_leave(hot: Any, gate: int) -> None:
        hot.gate_mask &= ~(1 << gate)

    @staticmethod
    def _shmd_epoch_seal(hot: Any, data: Any, _ring: Any, geometry: Any, clean: int, proved: int) -> None:
        if int(hot.state) & 0xFF == lib.SHMD_EPOCH_OPEN and not clean and not proved:
            hot.state = int(geometry.epoch) << 8 | lib.SHMD_EPOCH_SEALING

    @staticmethod
    def _shmd_control_advance(reader: Any) -> None:
        """The slot is free, the cursor not published."""
        base = kernel_of().base
        cursor = int(base.control_cursor)
        lib.shmd_control_advance(reader)
        base.control_cursor = cursor


_current: list[Kernel] = []


def kernel_of() -> Kernel:
    return _current[-1]


class Kernel:
    """One simulated machine. ``with kernel.installed():`` puts it under the driver."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tasks: dict[int, Task] = {}
        self.base: Any = None  # the authority's header, while one is mapped
        self.lines_left = 0
        self.calls_left = 0
        self.where = ""
        self.killed = False
        self._handed_out: list[int] = []
        self._maps: list[SegmentMap] = []
        self._native = Native(self)

    # -- processes

    def spawn(self) -> Task:
        pid = 2_000_000 + len(self.tasks)
        task = self.tasks[pid] = Task(pid)
        return task

    def prove_identity(self, pid: int, start_time: int, _namespace: int) -> int:
        task = self.tasks.get(pid)
        if task is None or not task.alive or task.start_time != start_time:
            raise Rejection(Reason.UNKNOWN_CLIENT, f"there is no process {pid}", Code.INVALID_PARAMS)
        fd = os.dup(task.fd)
        self._handed_out.append(fd)
        return fd

    def proc(self, path: str) -> Any:
        """As far as control.py asks /proc: whether a process exists."""
        task = self.tasks.get(int(path.rsplit("/", 1)[1]))
        return SimpleNamespace(exists=lambda: task is not None and task.alive)

    # -- the driver's death

    def arm(self, *, lines: int = 0, calls: int = 0) -> None:
        """The driver dies when it has run so many lines, or at that call that changes a table."""
        self.lines_left, self.calls_left = lines, calls

    @property
    def armed(self) -> bool:
        return self.lines_left > 0 or self.calls_left > 0

    def crash(self, where: str) -> None:
        self.where, self.killed = where, True
        self.lines_left = self.calls_left = 0
        sys.settrace(None)
        raise Crash(where)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The driver runs; lines are counted while it is to die."""
        if self.lines_left > 0:
            sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in TRACED else None

    def _on_line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line" and self.lines_left > 0:
            self.lines_left -= 1
            if self.lines_left == 0:
                self.crash(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        return self._on_line

    def bury(self) -> None:
        """What the kernel does when the driver's process is gone: unmap, close, unlock."""
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()
        for fd in list(segments._lock_fds):
            segments._lock_fds.discard(fd)
            os.close(fd)
        own = {task.fd for task in self.tasks.values()}
        for fd in set(self._handed_out) - own:
            path = f"/proc/self/fd/{fd}"
            if os.path.lexists(path) and "eventfd" in os.readlink(path):
                os.close(fd)
        self._handed_out.clear()
        self.killed = False

    def closed(self) -> list[int]:
        """After an orderly close: the sizes of the mappings that the driver forgot to give back."""
        left = [mapped.size for mapped in self._maps if mapped.base is not None]
        self.bury()
        return left

    # -- seams

    @contextmanager
    def installed(self) -> Iterator[None]:
        unlink, mapping = posix_ipc.unlink_shared_memory, SegmentMap.of

        def unlink_unless_killed(name: str) -> None:
            if self.killed:
                raise posix_ipc.ExistentialError
            unlink(name)

        def tracked(fd: int, size: int, *, writable: bool, prefault: bool = False) -> SegmentMap:
            mapped = mapping(fd, size, writable=writable, prefault=prefault)
            self._maps.append(mapped)
            return mapped

        ipc = SimpleNamespace(
            **{name: getattr(posix_ipc, name) for name in ("SharedMemory", "O_CREX", "ExistentialError")},
            unlink_shared_memory=unlink_unless_killed,
        )
        seams = [
            (clients, "prove_identity", self.prove_identity),
            (control, "Path", self.proc),
            (shm, "posix_ipc", ipc),
            (authority, "EVENT_SLOTS", 256),
            (oversight, "LOW_MEMORY_SHARE", 0.0),  # the machine's own memory is none of the simulation's
            (SegmentMap, "of", staticmethod(tracked)),
            *((module, "lib", self._native) for module in WITH_LIB if hasattr(module, "lib")),
        ]
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in seams]
        _current.append(self)
        for owner, name, value in seams:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
            _current.pop()
            for task in self.tasks.values():
                os.close(task.fd)


def address(pointer: Any) -> int:
    """A cdata pointer of shmdriver._native as a number."""
    return int(ffi.cast("uintptr_t", pointer))
