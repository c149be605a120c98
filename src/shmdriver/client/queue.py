"""Queue: the face of ``multiprocessing.Queue``, over one stream for each putting process.

Any number of processes put, one gets. The process that made the queue holds it: it is attached to the lanes
until somebody gets, so that what was put is kept although its putter has ended and no getter has begun.

Streams of a queue: ``queue.<name>.<number>`` are its lanes, ``.get`` is produced by the getter (its lease is
what makes it the only one) and ``.keep`` by the holder.

Locks. ``_put_lock`` is for the lane that this process puts into, ``_get_lock`` for those that it reads. Both
are held for one step, never over pickling. A step may be a long wait in C, which ends when another thread
wants the lock (turns.py). A signal's handler or a finaliser may put while its own thread is inside; what it
puts is left in ``_overflow`` then. What is there goes into the lane first, moved by the feeder thread.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import os
import queue as standard
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmdriver import errors, names
from shmdriver.client import directory, exiting, pickling
from shmdriver.client.arguments import size, whole
from shmdriver.client.attempts import news
from shmdriver.client.boundary import boundary, clear_frames
from shmdriver.client.holding import Holder
from shmdriver.client.lanes import Inlet, lane_name, loss, stream_name
from shmdriver.client.link import FOREVER_SLICE_NS, TRY_AGAIN_NS, Deadline, nap, register
from shmdriver.client.outlet import NOTHING, Outlet
from shmdriver.client.turns import NAP_NS, Call, GivingWay, Turns

if TYPE_CHECKING:
    from shmdriver.client.client import Client

__all__ = ["Queue"]

_now_s = time.monotonic
_loads = pickling.decode
MAX_BYTES = 2 << 20
MAX_BYTES_LEAST = 1 << 16
MAX_BYTES_MOST = 1 << 40
# Of a wait in which nothing comes; the next is twice as long, up to FOREVER_SLICE_NS. For what nobody tells:
# objects lost with their putter's memory, the end of the getter's lease alone, an error of the feeder.
FIRST_SLICE_NS = 50_000_000
# Of a putter behind the overflow, up to TRY_AGAIN_NS only: the feeder and the getter make room, and neither
# of them tells it.
OVERFLOW_SLICE_NS = 1_000_000
KEEPER_LOOK_S = 1.0
Encoded = tuple[bytes, list[memoryview]]


class _ClosedError(ValueError, OSError):
    """What multiprocessing.Queue raises: a ValueError, and from empty() an OSError."""


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
        self.name = name
        self._client = client
        self._maxsize = max(0, whole("maxsize", maxsize))
        self._max_bytes = size("max_bytes", max_bytes, MAX_BYTES, MAX_BYTES_MOST, MAX_BYTES_LEAST)
        self._fresh()
        register(self)
        client._queues.add(self)
        if holds:
            self._hold()

    def _fresh(self) -> None:
        """As in a process that has neither put nor got."""
        self._put_lock: Any = threading.RLock()
        self._get_lock: Any = threading.RLock()
        self._feeding: Any = threading.RLock()  # for starting and ending the feeder, and the first lane
        self._encoders = [pickling.Encoder().encode]  # those that nobody uses just now
        self._inlet: Inlet | None = None
        self._outlet: Outlet | None = None  # the lanes that it reads, or holds
        self._holder: Holder | None = None
        self._forwarder: Inlet | None = None  # of a holder that hands over
        self._overflow: deque[Encoded] = deque()
        self._moving: Iterator[bool] | None = None  # the first of them, as it goes into the lane
        self._failure: Exception | None = None  # of the feeder
        self._feeder: threading.Thread | None = None
        self._put_turns = Turns()
        self._get_turns = Turns()
        self._keeper_look_at = 0.0
        self._joins_feeder = True
        self._closed = False

    # ---- the face of multiprocessing.Queue

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Puts an object. Raises queue.Full when it is bounded and there is no room in ``timeout`` seconds.

        ``maxsize`` bounds how many objects this process has put and nobody has got. What the lane has no
        room for waits in this process's memory. Raises ValueError when closed, and what pickling raises;
        LeaseRevoked, DriverUnavailable; with ``reconnect=True`` it goes on by itself, but for ObjectsLost.
        """
        inlet: Any
        lock = head = buffers = encoders = encode = inlet = None  # as boundary(), which costs a call
        try:
            deadline = None if timeout is None else Deadline(timeout)
            if self._closed:
                raise self._is_closed()
            encoders = self._encoders
            try:
                encode = encoders.pop()
            except IndexError:  # another thread has it, or an object that is just being pickled and puts, too
                encode = pickling.Encoder().encode
            head, buffers = encode(obj)
            encoders.append(encode)
            lock = self._put_lock
            if lock._is_owned():
                self._overflow.append((head, [memoryview(bytes(buffer)) for buffer in buffers]))
                return  # by a handler or a finaliser: the call that it interrupted sees to it
            try:  # as `with lock`, which costs more
                is_put = False
                if lock.acquire(False):  # else another thread is inside, perhaps for long
                    inlet = self._inlet
                    is_put = (
                        inlet is not None
                        and not (buffers or self._overflow)
                        and _now_s() < inlet.look_at
                        and inlet.put_small(head)
                    )
                    lock.release()
            except BaseException:
                try:
                    lock.release()  # the first call here: at the end of any, a handler may raise again
                except RuntimeError:
                    pass  # it was not taken, or is released
                raise
            if not is_put:
                self._put_slow(head, buffers, Deadline(0) if not block else deadline or Deadline(None))
            if self._overflow:
                self._see_to_feeder()
        except BaseException as error:
            self._see_to_feeder()  # what a handler has put meanwhile
            clear_frames(error)
            lock = head = buffers = encoders = encode = inlet = None
            del self, obj
            raise

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next object, in the order in which puts ended. Queue.Empty: none came in ``timeout`` seconds.

        Raises AttachRejected in a second process that gets while the first one lives, ValueError when closed;
        ObjectsLost, LeaseRevoked, ProducerLost, DriverUnavailable: see docs/guide/sharing.md.
        """
        lock: Any
        outlet: Any
        lock = outlet = found = None  # as boundary(), which costs a call
        try:
            deadline = None if timeout is None else Deadline(timeout)
            found, has_looked = NOTHING, False
            lock = self._get_lock
            if lock._is_owned():  # in a signal's handler, or a finaliser
                with lock:
                    found = self._getting().take()
            else:
                try:  # as `with lock`, which costs more
                    if lock.acquire(False):  # else another thread is inside, perhaps for long
                        outlet = self._outlet
                        if self._closed or outlet is None or outlet.getter is None:
                            outlet = self._getting()
                        found = outlet.take()
                        has_looked = True
                        lock.release()
                except BaseException:
                    try:
                        lock.release()  # the first call here: at the end of any, a handler may raise again
                    except RuntimeError:
                        pass  # it was not taken, or is released
                    raise
            if found is NOTHING:
                deadline = Deadline(0) if not block else deadline or Deadline(None)
                found = self._get_slow(deadline, has_looked)
            if found.__class__ is bytearray:
                return pickling.decode_with_buffers(found)
            return _loads(found)
        except BaseException as error:
            clear_frames(error)
            lock = outlet = found = None
            del self
            raise

    def put_nowait(self, obj: object) -> None:
        """``put(obj, block=False)``."""
        self.put(obj, block=False)

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    @boundary
    def qsize(self) -> int:
        """About how many objects were put and not got.

        Of another process's, the parts of a very large one count each, unless this process gets or holds.
        """
        with self._put_turns.call(), self._put_lock:  # the feeder moves nothing meanwhile
            found = self._waiting() + len(self._overflow)
        self._see_to_feeder()
        return found

    @boundary
    def empty(self) -> bool:
        """Whether there was nothing to get a moment ago. Raises OSError when closed."""
        if self._closed:
            raise self._is_closed()
        return self.qsize() == 0

    @boundary
    def full(self) -> bool:
        """Whether a put of this process would have had to wait a moment ago."""
        return bool(self._maxsize) and self._own_unread() >= self._maxsize

    @boundary
    def close(self) -> None:
        """This process puts and gets no more. What it has put is delivered. Twice is once."""
        if self._closed:
            return
        self._closed = True
        with self._put_turns.call(), self._put_lock:
            if not self._overflow:
                self._close_inlet()
        with self._get_turns.call(), self._get_lock:
            outlet = self._outlet
            if outlet is not None and outlet.getter is not None:
                outlet.stop_getting()
                if self._holder is None:
                    self._outlet = None
                    outlet.close()

    def join_thread(self) -> None:
        """Waits until all that this process has put is in shared memory. AssertionError before close()."""
        if not self._closed:
            raise AssertionError(f"queue {self.name!r}: join_thread() before close()")
        feeder = self._feeder
        if feeder is not None and self._joins_feeder:
            feeder.join()

    def cancel_join_thread(self) -> None:
        """This process may end although not all that it has put has gone into the lane: that is lost then."""
        self._joins_feeder = False

    # ---- putting

    def _put_slow(self, head: bytes, buffers: list[memoryview], deadline: Deadline) -> None:
        if self._inlet is None:
            self._make_inlet()
        behind_ns, giving_way = OVERFLOW_SLICE_NS, GivingWay()
        with self._put_turns.call() as call:
            while True:
                with self._put_lock:
                    is_put = self._put_inside(head, buffers, deadline, call)
                if is_put:
                    return
                left_ns = deadline.slice_ns()
                if left_ns == 0:
                    break
                if self._overflow:
                    self._see_to_feeder()  # a handler may have put meanwhile
                    nap(min(left_ns, behind_ns))
                    behind_ns = min(2 * behind_ns, TRY_AGAIN_NS)
                else:
                    giving_way.nap(left_ns)
        raise standard.Full

    def _put_inside(self, head: bytes, buffers: list[memoryview], deadline: Deadline, call: Call) -> bool:
        """Puts, after a wait. False: it is full, and the time is over or another thread may want the lock."""
        slice_ns = FIRST_SLICE_NS
        while not self._has_put(head, buffers):
            call.waits_until(deadline.end_ns)
            word, inlet = self._put_turns.word(), self._inlet  # the word before the look at who asks (H3)
            left_ns, rest_ns = deadline.slice_ns(), self._put_turns.rest_ns()
            if self._overflow or inlet is None or left_ns == 0 or rest_ns == 0:
                return False
            if not inlet.await_room(1, min(slice_ns, left_ns, rest_ns), word):
                return False
            slice_ns *= 2
        return True

    def _has_put(self, head: bytes, buffers: list[memoryview]) -> bool:
        """Puts, or leaves it to the feeder; False: that many objects are unread that it is to wait."""
        with self._put_lock:
            if self._closed:
                raise self._is_closed()
            if self._failure is not None:
                raise self._failed()
            inlet = self._inlet
            if inlet is not None:
                inlet.look()
                inlet.leave_if_over()
                if self._maxsize and inlet.unread() + len(self._overflow) >= self._maxsize:
                    return False
                if not self._overflow and inlet.put(head, buffers):
                    return True
            # The buffers are copied: they can change.
            self._overflow.append((head, [memoryview(bytes(buffer)) for buffer in buffers]))
            if inlet is not None:
                inlet.tell_waiting()
            return True

    def _own_unread(self) -> int:
        """How many objects of this process nobody has got."""
        if self._put_lock._is_owned():
            return len(self._overflow)
        with self._put_turns.call(), self._put_lock:
            inlet: Inlet | None = self._inlet
            found = (0 if inlet is None else inlet.unread()) + len(self._overflow)
        self._see_to_feeder()
        return found

    def _make_inlet(self) -> None:
        """Takes a lane; one that is to put meanwhile, by a signal's handler, leaves it to the feeder."""
        if self._feeding._is_owned():
            return
        with self._feeding:
            if self._inlet is None:
                made = Inlet(self._client, self.name, self._maxsize, self._max_bytes)
                with self._put_turns.call(), self._put_lock:
                    self._inlet = made
                    if self._closed and not self._overflow:
                        self._close_inlet()

    def _close_inlet(self) -> None:
        inlet, self._inlet = self._inlet, None
        if inlet is not None:
            inlet.close()

    # ---- the feeder

    def _see_to_feeder(self) -> None:
        """Starts the feeder, a daemon, if there is overflow and no feeder. At exit, _flush() goes on."""
        if not self._overflow or self._feeder is not None:
            return  # a feeder looks again after it has said that it ends
        if self._feeding._is_owned() or self._put_lock._is_owned():
            return  # the call that was interrupted looks again
        with self._feeding:
            if self._overflow and self._feeder is None:
                feeder = threading.Thread(target=self._feed, name=f"shmdriver-queue-{self.name}", daemon=True)
                self._feeder = feeder
                feeder.start()

    def _feed(self) -> None:
        me = threading.current_thread()
        while self._feeder is me:
            try:
                if self._move():
                    continue
            except errors.HandleClosed:
                return  # this process goes, and nobody else is there to read it
            except errors.ObjectsLost as error:
                self._failure = error  # the next put says so; the object goes by another lane
                continue
            except errors.ShmDriverError as error:
                self._failure = error  # the next put says so, and what of the overflow is lost
                self._feeder = None
                return
            with self._feeding:
                if not self._overflow:
                    self._feeder = None
            with self._feeding:  # anew: a finaliser may have put in this very thread
                if self._overflow and self._feeder is None:
                    self._feeder = me

    def _move(self) -> bool:
        """One step of moving the overflow into the lane, and a wait for room if need be. False: all is in."""
        if self._inlet is None and self._overflow:
            self._make_inlet()
        with self._put_turns.call(), self._put_lock:
            inlet = self._inlet
            if inlet is None:
                return False
            if not self._overflow:
                if self._closed:
                    self._close_inlet()
                return False
            has_moved = self._move_first(inlet)
            if not has_moved:
                word = self._put_turns.word()  # before the looks at who asks (H3)
                # A putter that waits behind the overflow may need less room than that.
                slice_ns = TRY_AGAIN_NS if self._put_turns.are_several else FOREVER_SLICE_NS
                inlet.await_room(inlet.needs, min(slice_ns, self._put_turns.rest_ns()), word)
        if not has_moved:
            self._look_for_readers()
            nap(NAP_NS)
        return True

    def _move_first(self, inlet: Inlet) -> bool:
        """Whether a step was made, or there was no room for one."""
        if self._moving is None:
            self._moving = inlet.steps(*self._overflow[0])
        inlet.more_waits = len(self._overflow) > 1
        try:
            is_over = next(self._moving, True)
        except BaseException:
            self._moving = None
            raise
        finally:
            inlet.more_waits = False
        if is_over:
            self._moving = None
            self._overflow.popleft()
        return is_over

    def _look_for_readers(self) -> None:
        """Whoever made the queue has dropped it, and nobody gets yet: holds what it puts itself."""
        now_s = _now_s()
        if self._holder is None and now_s >= self._keeper_look_at and not self._is_read():
            self._hold()
        self._keeper_look_at = max(self._keeper_look_at, now_s + KEEPER_LOOK_S)

    def _failed(self) -> Exception:
        """What the feeder met, once; then what its lane says."""
        error, self._failure = self._failure, None
        assert error is not None
        if not isinstance(error, errors.ObjectsLost):
            lost = len(self._overflow)
            self._overflow.clear()
            self._moving = None
            if lost:
                return loss(self.name, lost, f"they waited in this process's memory: {error}")
        return error

    # ---- getting, and holding until somebody gets

    def _getting(self) -> Outlet:
        """The lanes, of which this process becomes the one getter."""
        if self._closed:
            raise self._is_closed()
        outlet = self._outlet
        if outlet is not None and outlet.getter is not None:
            return outlet
        outlet = outlet or Outlet(self._client, self.name)
        try:
            outlet.begin_getting(holds=self._holder is not None and not self._holder.is_over)
        except BaseException:
            if outlet is not self._outlet:
                outlet.close()
            raise
        self._outlet = outlet
        return outlet

    @property
    def _gets(self) -> bool:
        """Whether this process is the queue's getter."""
        outlet = self._outlet
        return outlet is not None and outlet.getter is not None

    def _get_slow(self, deadline: Deadline, has_looked: bool) -> Any:
        """One thread waits inside for all of them, and for each until its deadline."""
        giving_way = GivingWay()
        with self._get_turns.call(deadline.end_ns):
            while True:
                with self._get_lock:
                    found = self._get_inside(deadline, has_looked)
                has_looked = False
                if found is not NOTHING:
                    return found
                left_ns = deadline.slice_ns()
                if left_ns == 0:
                    break
                giving_way.nap(left_ns)
        raise standard.Empty

    def _get_inside(self, deadline: Deadline, has_looked: bool) -> Any:
        """The next object, after a wait; NOTHING: the time is over, or another thread wants the lock."""
        slice_ns = FIRST_SLICE_NS
        while True:
            words = [self._get_turns.word(), news()]  # before the looks at what they tell of (H3)
            outlet = self._getting()
            found = NOTHING if has_looked else outlet.take()
            has_looked = False
            if found is not NOTHING:
                return found
            left_ns, rest_ns = deadline.slice_ns(), self._get_turns.rest_ns()
            if left_ns == 0:
                outlet.idle()
            if left_ns == 0 or rest_ns == 0:
                return NOTHING
            has_come = outlet.wait(min(slice_ns, left_ns, rest_ns), words)
            slice_ns = FIRST_SLICE_NS if has_come else 2 * slice_ns

    def _hold(self) -> None:
        """Holds what is put until somebody gets, if nobody holds it already."""
        try:
            self._holder = Holder(self._client, self)
        except errors.AttachRejected as error:
            if error.reason != errors.Reason.PRODUCER_EXISTS:
                raise
            return
        self._look_for_a_getter()

    def _look_for_a_getter(self) -> bool:
        """Something about this queue's streams has changed: holds it, or lets it go to the getter.

        Whether it is to be called again soon, because the getter had no room for all that it hands over.
        """
        if not self._get_lock.acquire(blocking=False):
            return True  # this process gets, or looks already
        try:
            if self._client.closed or self._holder is None or self._holder.is_over:
                return False
            outlet = self._outlet
            if outlet is not None and outlet.getter is not None:
                outlet.discover()
                return False
            authority = self._client._connected().authority
            is_got_from = directory.has_producer(authority, stream_name(self.name, "get"))
            if outlet is None:
                self._outlet = None if is_got_from else Outlet(self._client, self.name)
                return False
            outlet.look()
            if not is_got_from:
                outlet.discover()
                return False
            if not outlet.hand_over(self._inlet_to_forward):
                return True
            self._outlet = None
            forwarder, self._forwarder = self._forwarder, None
            if forwarder is not None:
                forwarder.close()
            return False
        finally:
            self._get_lock.release()

    def _inlet_to_forward(self) -> Inlet:
        if self._forwarder is None:
            self._forwarder = Inlet(self._client, self.name, 0, self._max_bytes, is_stamped=False)
        return self._forwarder

    def _waiting(self) -> int:
        """How many objects the lanes have: as the own ends count them, else as the tools do."""
        known: dict[str, tuple[int, int]] = {}  # by lane: up to which epoch, and how many objects
        outlet, inlet = self._outlet, self._inlet
        try:
            if outlet is not None:
                known = outlet.waiting()
            elif inlet is not None and not inlet.producer.closed:
                known = {inlet.lane: (inlet.producer.epoch, inlet.unread())}
        except errors.HandleClosed:
            pass  # another thread has just closed it
        prefix = stream_name(self.name, "")
        found = sum(count for _, count in known.values())
        if outlet is not None and not outlet.is_behind(known):
            return found
        for stream in self._client.streams():
            if stream.name.startswith(prefix) and stream.name[len(prefix) :].isdecimal():
                seen = known.get(stream.name, (0, 0))[0]
                for epoch in stream.epochs:
                    lags = [gate.lag for gate in epoch.gates if gate.reliable and not gate.left]
                    found += min(lags, default=0) if epoch.epoch > seen else 0
        return found

    # ---- life

    def _is_closed(self) -> ValueError:
        exiting.stay_if_daemon()
        return _ClosedError(f"queue {self.name!r} is closed")

    def __reduce__(self) -> tuple[Any, ...]:
        return _elsewhere, (self._client, self.name, self._maxsize, self._max_bytes)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "getting" if self._gets else "open"
        return f"<Queue {self.name!r}, {state}>"

    def __del__(self) -> None:
        # Its feeder has gone, so that nothing waits in memory. A finaliser does not wait.
        for part in ("_inlet", "_forwarder", "_outlet", "_holder"):
            end = getattr(self, part, None)
            if end is not None:
                end.abandon()

    def _end(self) -> None:
        """The client closes: what waits in this process's memory goes first, if anybody reads it."""
        self._flush()
        self._closed = True

    def _flush(self) -> None:
        """Moves the overflow into the lane while anybody may read it, and says what is lost then."""
        try:
            while self._overflow and self._joins_feeder and self._failure is None and self._is_read():
                self._move()
        except errors.ShmDriverError as error:
            self._failure = error
        if self._overflow and self._joins_feeder:
            why = self._failure or "nobody reads this queue, or holds it"
            count = len(self._overflow)
            warnings.warn(
                f"queue {self.name!r}: {count} objects that this process has put are lost: {why}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _is_read(self) -> bool:
        """Whether another process gets from it or holds it."""
        authority = self._client._connected().authority
        streams = (stream_name(self.name, part) for part in ("get", "keep"))
        ends = (directory.holder_of_stream(authority, stream) for stream in streams)
        return any(end is not None and end.pid != os.getpid() for end in ends)

    def _abandon(self) -> None:
        """The process goes: what it has put stays for the getter."""
        link = self._client._link
        if self._client.closed or link is None or not link.usable:
            return
        self._flush()
        self._closed = True
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.stop()
        for handle in (self._inlet, self._forwarder, self._outlet, holder):
            if handle is not None:
                handle.close()
        self._inlet = self._forwarder = self._outlet = None

    def _forked(self) -> None:
        self._fresh()  # the parent's lanes are the parent's
        register(self)


def _elsewhere(client: Client, name: str, maxsize: int, max_bytes: int) -> Queue:
    return Queue(client, name, maxsize, max_bytes, holds=False)
