"""Consumers in event loops: fileno() for any selector, and asyncio on top of it.

The C core makes an eventfd readable while a consumer has something to read (csrc/shmd_notifier.c). All
that is awaited is that fd: fetching never waits, and nothing is awaited between a fetch and its result,
so that whoever is cancelled has fetched nothing.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from shmdriver._native import lib
from shmdriver.client.arguments import limit_of
from shmdriver.client.boundary import clear_frames, public
from shmdriver.client.hotpath import ConsumerCore
from shmdriver.client.link import Deadline
from shmdriver.errors import ConcurrentUseError, EndOfStream
from shmdriver.os_errors import system_error
from shmdriver.owners import descriptor

if TYPE_CHECKING:
    import asyncio

    from shmdriver.client.batches import Batch
    from shmdriver.client.consumer import Consumer
    from shmdriver.client.message import Message

__all__ = ["EventLoopReading", "silence"]

_Fetched = TypeVar("_Fetched")
_AT_ONCE_NS = 1  # no wait, but a consumer whose own views fill the ring is told so
_SOON_NS = 20_000  # what comes that soon is waited for here: arming an fd and being woken takes longer
_MISSES_MAX = 2  # after so many looks in vain, the next 2**2 waits go without one
_LOOK_AFTER_S = 5.0  # a first producer that does not come is warned about
_ORPHAN_LOOK_AFTER_S = 1.0  # with reconnect=True: whether another driver serves


@public
class EventLoopReading(ConsumerCore):
    """What a Consumer is to event loops."""

    __slots__ = ("_is_ahead", "_is_awaited", "_misses", "_waits_unlooked")

    def __init__(self) -> None:
        self._is_ahead = False  # the last awaited fetch did not wait
        self._is_awaited = False
        self._misses = 0  # looks in vain, one after the other
        self._waits_unlooked = 0  # waits that still go without a look

    def fileno(self) -> int:
        """An fd that is readable while there is something to read: messages, an end, a revocation.

        For ``select``, ``selectors``, asyncio, uvloop, trio. After it was readable, ``read(timeout=0)`` may
        still return None: it was wanted only so that the gate advances, or an epoch began. A closed
        consumer's fd stays readable, so that whoever waits for it reads and is told. Raises OSError.
        """
        if not self._settles:
            _open_fd(cast("Consumer", self))
        return self._fd

    @overload
    async def aread(self, timeout: None = None) -> Message: ...

    @overload
    async def aread(self, timeout: float) -> Message | None: ...

    async def aread(self, timeout: float | None = None) -> Message | None:
        """:meth:`read` for asyncio. A task that is cancelled in it has taken no message."""
        message = self._take()
        if message is not None:
            return message
        try:
            return await _read(cast("Consumer", self), timeout)
        except BaseException as error:
            clear_frames(error)
            del self
            raise

    @overload
    async def aread_batch(self, limit: int | None = None, timeout: None = None) -> Batch: ...

    @overload
    async def aread_batch(self, limit: int | None = None, timeout: float = ...) -> Batch | None: ...

    async def aread_batch(self, limit: int | None = None, timeout: float | None = None) -> Batch | None:
        """:meth:`read_batch` for asyncio."""
        try:
            return await _read_batch(cast("Consumer", self), limit, timeout)
        except BaseException as error:
            clear_frames(error)
            del self
            raise

    def abatches(self, limit: int | None = None) -> AsyncIterator[Batch]:
        """:meth:`batches` for ``async for``."""
        return AsyncBatches(cast("Consumer", self), limit)

    def __aiter__(self) -> AsyncIterator[Message]:
        return AsyncMessages(cast("Consumer", self))

    @property
    def _fd(self) -> int:
        """The eventfd, once fileno() was asked for; else -1."""
        return -1 if self._event is None else int(self._event[0])

    def _watch_again(self) -> None:
        """Another native handle feeds the same fd."""
        if self._settles:
            lib.shmd_guarded_watch(self._handle, self._fd, 0)

    def _close_fd(self) -> None:
        event = self._event
        if event is not None:
            lib.shmd_descriptor_close(event)
            self._event = None
            self._settles = 0


def _open_fd(consumer: Consumer) -> None:
    """Makes an eventfd that the C core feeds for ``consumer`` from now on; the consumer owns it."""
    handle = consumer._open_handle
    event = consumer._event
    if event is None:
        event = descriptor()
        if lib.shmd_descriptor_open_event(event) != 0:
            raise system_error()
        consumer._event = event  # before the C core has it: the core never feeds an fd that is closed
    # While it waits for a driver there is nothing to watch: the next read has the fd told by its attempt.
    is_away = consumer._is_away
    code = 0 if is_away else lib.shmd_guarded_watch(handle, event[0], consumer.buffered > 0)
    if is_away:
        os.eventfd_write(event[0], 1)
    if code < 0:
        consumer._close_fd()
        raise consumer._failure(code)
    consumer._settles = 1  # before the last message of a run is handed out, the fd is told


def silence(consumer: Consumer) -> Any:
    """Has its fd not be readable: without a lease nobody feeds it. An owned copy, for who is to tell it."""
    try:
        os.eventfd_read(consumer._fd)
    except BlockingIOError:
        pass
    copy = descriptor()
    if lib.shmd_descriptor_copy(consumer._fd, copy) != 0:
        raise system_error()
    return copy


class AsyncMessages:
    """The iterator behind ``async for message in consumer``."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        message = self._consumer._take()
        if message is not None:
            return message
        try:
            fetched = await _read(self._consumer, None)
        except BaseException as error:
            clear_frames(error)
            del self
            if isinstance(error, EndOfStream):
                raise StopAsyncIteration from None
            raise
        assert fetched is not None
        return fetched


class AsyncBatches:
    """The iterator behind :meth:`Consumer.abatches`. It keeps no batch: none holds its place longer."""

    __slots__ = ("_consumer", "_limit")

    def __init__(self, consumer: Consumer, limit: int | None) -> None:
        limit = limit_of(limit)
        self._consumer = consumer
        self._limit = limit

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        try:
            batch = await _read_batch(self._consumer, self._limit, None)
        except BaseException as error:
            clear_frames(error)
            del self
            if isinstance(error, EndOfStream):
                raise StopAsyncIteration from None
            raise
        assert batch is not None
        return batch


async def _read(consumer: Consumer, timeout: float | None) -> Message | None:
    await _be_fair(consumer)
    if consumer._comeback is not None:
        consumer.fileno()  # one that has an fd never waits for a driver (reattach.py)
    message = _at_once(consumer, consumer._fetch)
    if message is not None:
        return message
    until = Deadline(timeout)
    while message is None and await _arrival(consumer, until):
        message = consumer._fetch(_AT_ONCE_NS)
    return message


async def _read_batch(consumer: Consumer, limit: int | None, timeout: float | None) -> Batch | None:
    limit = limit_of(limit)
    reader = consumer._record_reader()
    if consumer.buffered:
        return reader.from_rows(consumer, limit)
    await _be_fair(consumer)
    consumer._check_open()
    if consumer._comeback is not None:
        consumer.fileno()  # as there
    batch = _at_once(consumer, partial(reader.fetch, consumer, limit))
    until = Deadline(timeout)
    while batch is None and await _arrival(consumer, until):
        consumer._check_open()
        batch = reader.fetch(consumer, limit, _AT_ONCE_NS)
    consumer._pending = 0
    return batch


def _at_once(consumer: Consumer, fetch: Callable[[int], _Fetched | None]) -> _Fetched | None:
    """What is there, or comes within a moment where that is worth a look."""
    wait_ns = look_ns(consumer)
    found = fetch(wait_ns)
    if wait_ns == _SOON_NS:
        note_look(consumer, found=found is not None)
    if found is not None:
        consumer._is_ahead = True
    return found


def look_ns(consumer: EventLoopReading) -> int:
    """How long to look before a wait: a moment while that finds something, as between two that answer."""
    if consumer._waits_unlooked == 0:
        return _SOON_NS
    consumer._waits_unlooked -= 1
    return _AT_ONCE_NS


def note_look(consumer: EventLoopReading, *, found: bool) -> None:
    """Looks in vain become fewer, for loops of quiet streams; not rare: two that answer must meet again."""
    consumer._misses = 0 if found else min(consumer._misses + 1, _MISSES_MAX)
    consumer._waits_unlooked = 0 if found else 1 << consumer._misses


async def _be_fair(consumer: Consumer) -> None:
    """Lets the loop's other tasks run after a fetch that did not wait: a fast stream must not starve them."""
    if consumer._is_ahead:
        from asyncio import sleep

        consumer._is_ahead = False
        await sleep(0)


async def _arrival(consumer: Consumer, until: Deadline) -> bool:
    """Waits until there is something to read. False when that is not so at the deadline."""
    import asyncio

    if consumer._is_awaited:
        raise ConcurrentUseError(
            f"stream {consumer.stream!r}: another task waits for this consumer; give each task its own"
        )
    consumer._idle()
    left = _LOOK_AFTER_S if consumer._comeback is None else _ORPHAN_LOOK_AFTER_S
    left = min(left, until.rest_s())
    if left <= 0:
        return False
    loop = asyncio.get_running_loop()
    fd = consumer.fileno()
    arrived: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(left, _set, arrived)
    loop.add_reader(fd, _arrive, loop, fd, arrived)
    consumer._is_awaited = True
    try:
        await arrived
    finally:
        consumer._is_awaited = False
        loop.remove_reader(fd)
        timer.cancel()
    return True


def _arrive(loop: asyncio.AbstractEventLoop, fd: int, arrived: asyncio.Future[None]) -> None:
    loop.remove_reader(fd)  # it stays readable until the task has read
    _set(arrived)


def _set(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
