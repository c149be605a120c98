"""Memory work: allocating, filling, unmapping. Large pieces go to a helper thread, so that no tick waits.

A job touches memory, and no table but the note of the work in progress (work.py). Its result comes back as
a completion, which the driver handles in its own thread. Small jobs (up to 8 MiB) run at once; with
:class:`InlineMemory` all do, which makes tests and simulations deterministic. The helper thread runs its
jobs in order, so a job that follows an unmap finds its memory free.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.geometry import Geometry
from shmdriver.driver.limits import shortage
from shmdriver.driver.segment_names import Kind, draw
from shmdriver.driver.shm import (
    Modes,
    SegmentMap,
    ShmSpaceError,
    create_segment,
    is_whole,
    lock_memory,
    open_segment,
    unlink_segment,
)
from shmdriver.driver.undo import UndoneOnError
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["Completion", "EpochMemory", "InlineMemory", "MemoryThread", "Provision", "Unmap", "left_marks"]

INLINE_BYTES_MAX = 8 << 20
RING_OFFSET = -(-lib.SHMD_DATA_HEADER_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


class EpochMemory:
    """An epoch's two segments as the driver has them mapped: data read-only, gates writable."""

    __slots__ = ("data", "gates", "maps", "ring", "unlocked")

    def __init__(self, data_map: SegmentMap, gates_map: SegmentMap) -> None:
        self.maps = (data_map, gates_map)
        self.unlocked = ""  # what shm.mlock could not do
        self.data = data_map.view("shmd_data_t *")
        self.gates = gates_map.view("shmd_gates_t *")
        self.ring = data_map.view("unsigned char *") + RING_OFFSET

    @property
    def size(self) -> int:
        """Bytes of both."""
        return sum(mapped.size for mapped in self.maps)

    def damage(self, addresses: Collection[int]) -> str:
        """Which of its segments is mapped at one of these addresses: "data", "gates" or ""."""
        for kind, mapped in zip(("data", "gates"), self.maps, strict=True):
            if mapped.address in addresses:
                return kind
        return ""

    def missing(self, data_name: str, gates_name: str) -> list[tuple[str, bool]]:
        """The names whose objects are not what was made: (name, whether the name itself is gone)."""
        found = []
        for name, mapped in zip((data_name, gates_name), self.maps, strict=True):
            whole = is_whole(name, mapped)
            if not whole:
                found.append((name, whole is None))
        return found

    @classmethod
    def open(cls, data_name: str, gates_name: str, data_bytes: int, gates_bytes: int) -> EpochMemory:
        """Maps segments that exist, sizes as the authority says.

        Raises FileNotFoundError, LayoutMismatch (they are not what was made), ShmDriverError (they cannot be
        opened or mapped, which says nothing of them).
        """
        with ExitStack() as undo:
            data = _map_existing(data_name, data_bytes, writable=False)
            undo.callback(data.close)
            gates = _map_existing(gates_name, gates_bytes, writable=True)
            undo.callback(gates.close)
            memory = cls(data, gates)
            undo.pop_all()
        return memory

    def close(self) -> None:
        """Unmaps both."""
        for mapped in self.maps:
            mapped.close()


@dataclass(slots=True)
class Provision:
    """Makes an epoch's segments, complete with their magics. A failure leaves none behind."""

    instance: str
    geometry: Geometry
    boot_id: int
    stream_id: int
    epoch: int
    now_ns: int
    schema: str
    modes: Modes
    subject: Any = None  # the driver's own: what waits for the memory
    noted: AbstractContextManager[None] = field(default_factory=nullcontext)  # around the work (work.py)
    follows_unmaps: bool = False  # there was no room before them: the limits are read when they are done
    data_name: str = ""  # drawn as they are made
    gates_name: str = ""
    passed_over: list[str] = field(default_factory=list)  # in words: what stood under names that were drawn

    @property
    def size(self) -> int:
        """Bytes that it allocates."""
        return self.geometry.data_bytes + self.geometry.gates_bytes

    @property
    def is_long(self) -> bool:
        """Whether no tick should wait for it."""
        return self.follows_unmaps or self.size > INLINE_BYTES_MAX

    def run(self) -> EpochMemory:
        """Raises ShmSpaceError, ShmDriverError, OSError."""
        with UndoneOnError() as undo, self.noted:
            if self.follows_unmaps:
                self._check_limits()
            memory = self._make()
            undo.callback(self._remove)
            undo.callback(memory.close)
        return memory

    def _check_limits(self) -> None:
        text = shortage(self.size, largest=self.geometry.data_bytes)  # those after it have counted it
        if text:
            text = f"this epoch needs {self.size} bytes, and {text}"
            raise ShmSpaceError(text, need=self.size)

    def _make(self) -> EpochMemory:
        native = self.geometry.native(
            boot_id=self.boot_id, stream_id=self.stream_id, epoch=self.epoch, now_ns=self.now_ns
        )
        with ExitStack() as undo:
            undo.callback(self._remove)
            data = self._data(native)
            undo.callback(data.close)
            gates = self._gates(native)
            undo.callback(gates.close)
            failpoint("provision.gates")
            memory = EpochMemory(data, gates)
            if self.modes.mlock:
                memory.unlocked = lock_memory(*memory.maps)
            undo.pop_all()
        return memory

    def _remove(self) -> None:
        for name in filter(None, (self.data_name, self.gates_name)):
            unlink_segment(name)

    def _draw(self, kind: Kind, size: int) -> tuple[str, int]:
        return draw(
            self.instance, kind, lambda name: create_segment(name, size, self.modes), self.passed_over.append
        )

    def _data(self, native: Any) -> SegmentMap:
        size = self.geometry.data_bytes
        self.data_name, fd = self._draw("data", size)
        try:
            head = SegmentMap.of(fd, lib.SHMD_DATA_HEADER_BYTES, writable=True)
            schema = ffi.new("char[]", self.schema.encode()) if self.schema else ffi.NULL
            try:
                failpoint("provision.data_blank")
                if lib.shmd_data_init(head.base, size, native, schema) != 0:
                    raise ShmDriverError(last_error())
                lib.shmd_segment_complete(head.base)
            finally:
                head.close()
            mapped = SegmentMap.of(fd, size, writable=False)
        finally:
            os.close(fd)
        failpoint("provision.data")
        return mapped

    def _gates(self, native: Any) -> SegmentMap:
        size = self.geometry.gates_bytes
        self.gates_name, fd = self._draw("gates", size)
        try:
            mapped = SegmentMap.of(fd, size, writable=True, prefault=True)
        finally:
            os.close(fd)
        if lib.shmd_gates_init(mapped.base, size, native) != 0:
            text = last_error()
            mapped.close()
            raise ShmDriverError(text)
        lib.shmd_segment_complete(mapped.base)
        return mapped


@dataclass(slots=True)
class Unmap:
    """Gives memory back whose names are gone already."""

    memory: EpochMemory

    @property
    def size(self) -> int:
        """Bytes that it frees, if nobody else has them mapped."""
        return self.memory.size

    @property
    def is_long(self) -> bool:
        """Whether no tick should wait for it."""
        return self.size > INLINE_BYTES_MAX

    def run(self) -> None:
        """Unmaps."""
        self.memory.close()


Job = Provision | Unmap


@dataclass(slots=True)
class Completion:
    """A job that is done: its result, or the exception that it raised."""

    job: Job
    result: EpochMemory | None
    error: Exception | None

    def abandon(self) -> None:
        """Removes what was made: nobody waits for it any more, and no record names it."""
        if isinstance(self.job, Provision) and self.result is not None:
            unlink_segment(self.job.data_name)
            unlink_segment(self.job.gates_name)
            self.result.close()


class InlineMemory:
    """Runs every job at once, in the caller's thread, and hands back the completions in order."""

    def __init__(self) -> None:
        self._done: deque[Completion] = deque()

    def submit(self, job: Job) -> None:
        """Runs the job; its completion is there at once."""
        done = _complete(job)
        try:
            self._done.append(done)
        except BaseException:
            done.abandon()
            raise

    def completions(self) -> Iterator[Completion]:
        """What is done, one by one: what its taker does not come to is handed back by the next call."""
        while self._done:
            yield self._done.popleft()

    @property
    def pending(self) -> int:
        """Jobs not handed back yet."""
        return len(self._done)

    @property
    def is_unmapping(self) -> bool:
        """Whether memory is still to come back: a job with ``follows_unmaps`` runs after that."""
        return False

    def close(self) -> None:
        """Nothing to stop."""


class MemoryThread(InlineMemory):
    """Runs small jobs at once and large ones in one helper thread, started with the first of them.

    ``wake`` is called in that thread after each job.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._wake = wake
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._running = 0
        self._unmaps = 0  # of them
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Runs the job, or queues it for the helper thread."""
        if not job.is_long:
            super().submit(job)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shmdriver-memory", daemon=True)
            self._thread.start()
        self._running += 1
        self._unmaps += isinstance(job, Unmap)
        self._jobs.put(job)

    def completions(self) -> Iterator[Completion]:
        """What is done, as above."""
        for completion in super().completions():
            if completion.job.is_long:
                self._running -= 1
                self._unmaps -= isinstance(completion.job, Unmap)
            yield completion

    @property
    def pending(self) -> int:
        """Jobs not handed back yet."""
        return self._running + super().pending

    @property
    def is_unmapping(self) -> bool:
        """As above."""
        return self._unmaps > 0

    def close(self) -> None:
        """Ends the thread after what is queued."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._done.append(_complete(job))
            self._wake()


def _complete(job: Job) -> Completion:
    done = Completion(job, None, None)  # before the job runs: its result has an owner
    try:
        done.result = job.run()
    except Exception as error:
        done.error = error
    return done


def left_marks(gates_name: str, gates_bytes: int, gate_count: int) -> frozenset[int]:
    """The leases that say in these gates that they have drained the epoch; none when the gates are lost, too.

    Raises ShmDriverError.
    """
    try:
        mapped = _map_existing(gates_name, gates_bytes, writable=False)
    except (FileNotFoundError, LayoutMismatch):
        return frozenset()
    try:
        gates = mapped.view("shmd_gates_t *")
        return frozenset(int(lib.shmd_gate_left(gates, gate)) for gate in range(gate_count))
    finally:
        mapped.close()


def _map_existing(name: str, size: int, *, writable: bool) -> SegmentMap:
    fd, found = open_segment(name, writable=writable)
    try:
        if found != size:
            raise LayoutMismatch(f"{name} has {found} bytes, the directory says {size}", segment=name)
        return SegmentMap.of(fd, size, writable=writable)
    finally:
        os.close(fd)
