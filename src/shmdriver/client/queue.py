"""Queue: the face of ``multiprocessing.Queue``, over one stream for each putting process.

Any number of processes put, one gets. Who made the queue holds it: it is attached to the lanes until somebody
gets, so that what was put is kept although its putter has ended and no getter has begun.

Streams of a queue: ``queue.<name>.<number>`` are its lanes, ``.get`` is produced by the getter (its lease is
what makes it the only one) and ``.keep`` by the holder.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import os
import queue as standard
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from shmdriver import errors, names
from shmdriver.client import directory
from shmdriver.client.holding import Holder
from shmdriver.client.lanes import Inlet, lane_name, loss, stream_name
from shmdriver.client.link import Deadline, register
from shmdriver.client.outlet import NOTHING, Outlet
from shmdriver.client.pickling import size_of

if TYPE_CHECKING:
    from shmdriver.client.client import Client

__all__ = ["Queue"]

_now_s = time.monotonic
MAX_BYTES = 8 << 20
MAX_BYTES_LEAST = 1 << 16
TURN_NS = 20_000_000
Encoded = tuple[bytes, list[memoryview]]


class Queue:
    """A queue of Python objects between processes, made by :meth:`Client.queue`. Threads may share it.

    Pass it to a child by fork, spawn or forkserver, or make it there again by name. ``put`` pickles at
    once; numpy arrays are copied once into shared memory and once out. One process gets; a second is refused.
    """

    abandon_turn = 0

    def __init__(self, client: Client, name: str, maxsize: int, max_bytes: int, *, holds: bool) -> None:
        problem = names.stream_problem(lane_name(name, 999))
        if problem:
            raise ValueError(f"queue {name!r}: {problem}")
        if not MAX_BYTES_LEAST <= max_bytes <= 2**40:
            raise ValueError(f"max_bytes={max_bytes}: expected {MAX_BYTES_LEAST} or more")
        self.name = name
        self._client = client
        self._maxsize = max(0, int(maxsize))
        self._max_bytes = max_bytes
        self._fresh()
        register(self)
        client._queues.add(self)
        if holds:
            self._hold()

    def _fresh(self) -> None:
        """As in a process that has neither put nor got."""
        self._put_lock = threading.Lock()
        self._get_lock = threading.Lock()
        self._inlet: Inlet | None = None
        self._outlet: Outlet | None = None  # the lanes that it reads, or holds
        self._holder: Holder | None = None
        self._overflow: deque[Encoded] = deque()
        self._failure: Exception | None = None  # of the feeder
        self._feeder: threading.Thread | None = None
        self._joins_feeder = True
        self._closed = False

    # ---- the face of multiprocessing.Queue

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Puts an object. Raises queue.Full when it is bounded and there is no room in ``timeout`` seconds.

        ``maxsize`` bounds what each process has put and nobody has got. Without it, what the lane has no room
        for waits in this process's memory. Raises ValueError when closed, and what pickling raises;
        LeaseRevoked, DriverUnavailable; with ``reconnect=True`` it goes on by itself, but for ObjectsLost.
        """
        lock = self._put_lock
        deadline = None if lock.acquire(False) else self._acquire(lock, block, timeout, standard.Full)
        try:
            if self._closed:
                raise self._is_closed()
            inlet = self._inlet
            if inlet is None:
                deadline = deadline or Deadline(timeout if block else 0)
                inlet = self._inlet = Inlet(
                    self._client, self.name, self._maxsize, self._max_bytes, self._patience(deadline)
                )
            head, buffers = inlet.encode(obj)
            if self._failure is not None:
                raise self._failed()
            if self._overflow:
                self._store(head, buffers)
            elif buffers or _now_s() >= inlet.look_at or not inlet.put_small(head):
                self._put_slow(inlet, head, buffers, deadline or Deadline(timeout if block else 0))
        finally:
            lock.release()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next object: in order of each putter. Raises queue.Empty when none came in ``timeout`` seconds.

        Raises AttachRejected in a second process that gets while the first one lives, ValueError when closed;
        ObjectsLost, LeaseRevoked, ProducerLost, DriverUnavailable: see docs/guide/sharing.md.
        """
        lock = self._get_lock
        deadline = None if lock.acquire(False) else self._acquire(lock, block, timeout, standard.Empty)
        try:
            if self._closed:
                raise self._is_closed()
            outlet = self._outlet
            if outlet is None or outlet.getter is None:
                outlet = self._begin_getting()
            found = outlet.take()
            if found is NOTHING:
                found = self._get_slow(outlet, deadline or Deadline(timeout if block else 0))
            return found
        finally:
            lock.release()

    def put_nowait(self, obj: object) -> None:
        """``put(obj, block=False)``."""
        self.put(obj, block=False)

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def qsize(self) -> int:
        """About how many objects were put and not got; the parts of a very large one count each."""
        return sum(self._waiting()) + len(self._overflow)

    def empty(self) -> bool:
        """Whether there was nothing to get a moment ago."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether a put of this process would have had to wait a moment ago."""
        if not self._maxsize:
            return False
        inlet = self._inlet
        if inlet is not None:
            return not inlet.has_room()
        return max(self._waiting(), default=0) >= self._maxsize

    def close(self) -> None:
        """This process puts and gets no more. What it has put is delivered. Twice is once."""
        if self._closed:
            return
        self._closed = True
        with self._put_lock:
            inlet = self._inlet
            if inlet is not None and not self._overflow:
                self._inlet = None
                inlet.close()
        with self._get_lock:
            outlet = self._outlet
            if outlet is not None and outlet.getter is not None:
                outlet.stop_getting()
                if self._holder is None:
                    self._outlet = None
                    outlet.close()

    def join_thread(self) -> None:
        """Waits until all that this process has put is in shared memory. ValueError before close()."""
        if not self._closed:
            raise ValueError(f"queue {self.name!r}: join_thread() before close()")
        feeder = self._feeder
        if feeder is not None:
            feeder.join()

    def cancel_join_thread(self) -> None:
        """This process may end although not all that it has put has gone into the lane: that is lost then."""
        self._joins_feeder = False

    # ---- putting

    def _put_slow(self, inlet: Inlet, head: bytes, buffers: list[memoryview], deadline: Deadline) -> None:
        inlet.look()
        if not self._maxsize:
            inlet.leave_if_over()
            if not inlet.has_room(size_of(head, buffers)):
                self._store(head, buffers)  # now, not after a part of it has gone in
                return
        try:
            inlet.put(head, buffers, self._patience(deadline))
        except errors.BackPressured:
            if self._maxsize:
                raise standard.Full from None
            self._store(head, buffers)

    def _patience(self, deadline: Deadline) -> Deadline:
        return deadline if self._maxsize else Deadline(0)

    def _store(self, head: bytes, buffers: list[memoryview]) -> None:
        """For the feeder, which begins now if there is none. The buffers are copied: they can change."""
        self._overflow.append((head, [memoryview(bytes(buffer)) for buffer in buffers]))
        if self._feeder is None:
            # No daemon: an interpreter that exits waits for it, as it does for multiprocessing's.
            self._feeder = threading.Thread(
                target=self._feed, name=f"shmdriver-queue-{self.name}", daemon=not self._joins_feeder
            )
            self._feeder.start()

    def _feed(self) -> None:
        inlet = self._inlet
        assert inlet is not None
        while True:
            with self._put_lock:
                if not self._overflow:
                    self._feeder = None
                    if self._closed:
                        self._inlet = None
                        inlet.close()
                    return
                head, buffers = self._overflow[0]
            try:
                inlet.put(head, buffers, Deadline(None))
            except errors.HandleClosed:
                return  # this process goes, and nobody else is there to read it
            except errors.ObjectsLost as error:
                self._failure = error  # the next put says so; the object goes by another lane
                continue
            except errors.ShmDriverError as error:
                with self._put_lock:
                    self._failure, self._feeder = error, None
                raise
            self._overflow.popleft()

    def _failed(self) -> Exception:
        """What the feeder met, once; then what its lane says."""
        error, self._failure = self._failure, None
        assert error is not None
        if not isinstance(error, errors.ObjectsLost):
            lost = len(self._overflow)
            self._overflow.clear()
            if lost:
                return loss(self.name, lost, f"they waited in this process's memory: {error}")
        return error

    # ---- getting, and holding until somebody gets

    def _get_slow(self, outlet: Outlet, deadline: Deadline) -> Any:
        while True:
            outlet.discover()
            slice_ns = deadline.slice_ns()
            if slice_ns != 0:
                outlet.wait(slice_ns)
            found = outlet.take()
            if found is not NOTHING:
                return found
            if slice_ns == 0:
                outlet.idle()
                raise standard.Empty
            if self._closed:
                raise self._is_closed()

    def _begin_getting(self) -> Outlet:
        """Becomes the one getter."""
        outlet = self._outlet or Outlet(self._client, self.name)
        try:
            outlet.begin_getting()
        except BaseException:
            if outlet is not self._outlet:
                outlet.close()
            raise
        self._outlet = outlet
        return outlet

    def _hold(self) -> None:
        """Holds what is put until somebody gets, if nobody holds it already."""
        reference = weakref.ref(self)

        def changed() -> None:
            queue = reference()
            if queue is not None:
                queue._look_for_a_getter()

        try:
            self._holder = Holder(self._client, self.name, changed)
        except errors.AttachRejected as error:
            if error.reason != errors.Reason.PRODUCER_EXISTS:
                raise
            return
        self._look_for_a_getter()

    def _look_for_a_getter(self) -> None:
        """Something about this queue's streams has changed: holds it, or lets it go to the getter."""
        if not self._get_lock.acquire(blocking=False):
            return  # this process gets, or looks already; its own turns discover lanes
        try:
            if self._client.closed or self._holder is None or self._holder.is_over:
                return
            outlet = self._outlet
            if outlet is not None and outlet.getter is not None:
                outlet.discover()
                return
            authority = self._client._connected().authority
            getter = directory.producer_pid(authority, stream_name(self.name, "get"))
            if outlet is None:
                self._outlet = None if getter else Outlet(self._client, self.name)
                return
            outlet.look()
            if not getter:
                outlet.discover()
            elif not outlet.hand_over(self._inlet_to_forward):
                self._outlet = None
        finally:
            self._get_lock.release()

    def _inlet_to_forward(self) -> Inlet:
        with self._put_lock:
            if self._inlet is None:
                self._inlet = Inlet(self._client, self.name, self._maxsize, self._max_bytes, Deadline(None))
            return self._inlet

    def _waiting(self) -> list[int]:
        """How much each lane has: of the own consumers, or as the tools see it."""
        if self._outlet is not None:
            with self._get_lock:
                if self._outlet is not None:
                    return self._outlet.waiting()
        prefix = stream_name(self.name, "")
        found = []
        for stream in self._client.streams():
            if stream.name.startswith(prefix) and stream.name[len(prefix) :].isdecimal():
                for epoch in stream.epochs:
                    lags = [gate.lag for gate in epoch.gates if gate.reliable and not gate.left]
                    found.append(min(lags, default=0))
        return found

    # ---- life

    def _acquire(
        self, lock: threading.Lock, block: bool, timeout: float | None, refusal: type[Exception]
    ) -> Deadline:
        deadline = Deadline(timeout if block else 0)
        rest_ns = deadline.rest_ns()
        if not lock.acquire(timeout=-1 if rest_ns is None else rest_ns / 1e9):
            raise refusal
        return deadline

    def _is_closed(self) -> ValueError:
        return ValueError(f"queue {self.name!r} is closed")

    def __reduce__(self) -> tuple[Any, ...]:
        return _elsewhere, (self._client, self.name, self._maxsize, self._max_bytes)

    def __repr__(self) -> str:
        gets = self._outlet is not None and self._outlet.getter is not None
        state = "closed" if self._closed else "getting" if gets else "open"
        return f"<Queue {self.name!r}, {state}>"

    def __del__(self) -> None:
        if not hasattr(self, "_holder"):
            return
        self._abandon()

    def _end(self) -> None:
        """The client closes: what waits in this process's memory goes first, if anybody reads it."""
        self._flush()
        self._closed = True

    def _flush(self) -> None:
        feeder = self._feeder
        while feeder is not None and feeder.is_alive() and self._joins_feeder and self._has_others():
            feeder.join(TURN_NS / 1e9)

    def _has_others(self) -> bool:
        authority = self._client._connected().authority
        ends = [directory.producer_pid(authority, stream_name(self.name, part)) for part in ("get", "keep")]
        return any(pid not in (0, os.getpid()) for pid in ends)

    def _abandon(self) -> None:
        """The process goes, or nobody has this object any more: what it has put stays for the getter."""
        holder, self._holder = self._holder, None
        link = self._client._link
        if self._client.closed or link is None or not link.usable:
            return
        self._flush()
        if holder is not None:
            holder.stop()
        for handle in (self._inlet, self._outlet, holder):
            if handle is not None:
                handle.close()
        self._inlet = self._outlet = None

    def _forked(self) -> None:
        self._fresh()  # the parent's lanes are the parent's
        register(self)


def _elsewhere(client: Client, name: str, maxsize: int, max_bytes: int) -> Queue:
    return Queue(client, name, maxsize, max_bytes, holds=False)
