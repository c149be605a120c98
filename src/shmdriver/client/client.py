"""Client: a process's address of a driver, and the connection behind it. connect and embedded make one."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from shmdriver import errors, names
from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.client._raise import failure_of, last_error
from shmdriver.client.consumer import Consumer
from shmdriver.client.link import Deadline, Link, wait_for_a_driver
from shmdriver.client.producer import Producer
from shmdriver.client.reattach import ConsumerComeback, ProducerComeback, Recipe
from shmdriver.late import LATE_IMPORT

if TYPE_CHECKING:
    from shmdriver.client.queue import Queue
    from shmdriver.observe import LeaseStatus, StreamStatus

__all__ = ["Client", "connect", "embedded"]

_Made = TypeVar("_Made", Producer, Consumer)

_INSTANCE_VARIABLE = "SHMDRIVER_DRIVER_INSTANCE"
_ARENA_DERIVED = 2**64 - 1
_INLINE_MAX_DERIVED = 488  # up to here a max_message goes into the slots, with no arena
_ARRAY_HEAD_BYTES = 512
_U32_MAX = 2**32 - 1

_DELIVERY = {
    "reliable": lib.SHMD_DELIVERY_RELIABLE,
    "lossy": lib.SHMD_DELIVERY_LOSSY,
    "latest": lib.SHMD_DELIVERY_LATEST,
}
_START = {"newest": lib.SHMD_START_NEWEST, "oldest": lib.SHMD_START_OLDEST}
_WAIT = {"adaptive": lib.SHMD_WAIT_ADAPTIVE, "spin": lib.SHMD_WAIT_SPIN, "sleep": lib.SHMD_WAIT_SLEEP}
_SLOW = {
    None: lib.SHMD_SLOW_DEFAULT,
    "block": lib.SHMD_SLOW_BLOCK,
    "evict": lib.SHMD_SLOW_EVICT,
    "refuse": lib.SHMD_SLOW_REFUSE,
}


class Client:
    """The address of a driver instance, connected at first use.

    Pass it to a child process in any way: there it connects afresh. Threads may share it; the
    producers and consumers that it makes belong to one thread and one process each. Leaving its
    ``with`` block closes them (after an exception: aborts).
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_handles",
        "_link",
        "_queues",
        "instance",
        "name",
        "reconnect",
        "timeout",
    )

    instance: str
    name: str | None
    timeout: float
    reconnect: bool

    def __init__(
        self, instance: str, *, name: str | None = None, timeout: float = 5.0, reconnect: bool = False
    ) -> None:
        self.instance = instance
        self.name = name
        self.timeout = timeout
        self.reconnect = reconnect
        self._link: Link | None = None
        self._handles: weakref.WeakSet[Producer | Consumer] = weakref.WeakSet()
        self._queues: weakref.WeakSet[Queue] = weakref.WeakSet()
        self._closed = False

    def producer(
        self,
        stream: str,
        *,
        dtype: Any = None,
        max_message: int | None = None,
        slots: int | None = None,
        slot_bytes: int | None = None,
        arena: int | None = None,
        create: bool = True,
        min_consumers: int = 0,
        slow_consumer: Literal["block", "evict", "refuse"] | None = None,
        wakeups: bool = True,
        timestamps: bool = False,
        attach_timeout: float = 5.0,
    ) -> Producer:
        """Attaches as the one producer of a stream: bytes and arrays, or with ``dtype`` records.

        ``max_message`` (bytes) and ``slots`` (messages) suffice to size it, ``slot_bytes`` and ``arena``
        (bytes) override what is derived. ``min_consumers``: no room before that many reliable consumers
        are attached. ``slow_consumer``: what becomes of one that holds the producer back.
        ``timestamps``: every message carries its publish time, and tools show latencies. Raises
        AttachRejected (SchemaMismatch), AttachTimeout (after ``attach_timeout`` seconds), DriverUnavailable.
        """
        self._check_stream(stream)
        options = ffi.new("shmd_producer_options *")
        kind, schema, keep = self._schema(dtype, options)
        if kind is not None and slot_bytes is None and max_message is None:
            slot_bytes = -(-(lib.SHMD_SLOT_HEADER_BYTES + kind.itemsize) // 64) * 64
            arena = 0 if arena is None else arena
        if max_message is not None and max_message > _INLINE_MAX_DERIVED and arena is None:
            max_message += _ARRAY_HEAD_BYTES  # an array of max_message bytes fits with its head
        options.max_message = _size("max_message", max_message, 0, _U32_MAX)
        options.slots = _size("slots", slots, 0, lib.SHMD_SLOTS_MAX)
        options.slot_bytes = _size("slot_bytes", slot_bytes, 0, lib.SHMD_SLOT_BYTES_MAX)
        options.arena_bytes = _size("arena", arena, _ARENA_DERIVED, 2**62)
        options.min_consumers = _size("min_consumers", min_consumers, 0, lib.SHMD_GATE_MAX)
        options.slow_consumer = _choice("slow_consumer", slow_consumer, _SLOW)
        options.flags = (
            (lib.SHMD_ATTACH_CREATE if create else 0)
            | (0 if wakeups else lib.SHMD_ATTACH_NO_WAKEUPS)
            | (lib.SHMD_ATTACH_TIMESTAMPS if timestamps else 0)
        )
        recipe = Recipe(
            self,
            lib.shmd_producer_attach,
            "shmd_producer **",
            lib.shmd_guarded_producer_free,
            stream,
            options,
            schema,
            keep,
        )
        handle, link = self._attach(recipe, attach_timeout, waits=self.reconnect)
        if kind is None:
            made = Producer(handle, link, stream)
        else:
            with LATE_IMPORT:
                from shmdriver.client.record_producer import RecordProducer

            made = RecordProducer(handle, link, stream, kind)
        if self.reconnect:
            made._comeback = ProducerComeback(recipe)
        return self._keep(made)

    def consumer(
        self,
        stream: str,
        *,
        delivery: Literal["reliable", "lossy", "latest"] = "reliable",
        start: Literal["newest", "oldest"] = "newest",
        dtype: Any = None,
        follow: bool = False,
        shard: tuple[int, int] | None = None,
        create: bool = True,
        wait: Literal["adaptive", "spin", "sleep"] = "adaptive",
        attach_timeout: float = 5.0,
    ) -> Consumer:
        """Attaches as a consumer of a stream, which need not have a producer yet.

        ``delivery``: reliable (holds the producer back, gets everything), lossy (may be overrun; gaps are
        counted), latest (always the newest). ``follow``: goes on with the next producer after an end.
        ``shard=(k, n)``: only the messages with ``seq % n == k``, so that n consumers share the work; the
        others are passed over and hold nobody back; a shard that joins others of the same n begins where the
        slowest of them stands. ``wait``: how it waits for messages (spin never sleeps).
        Once this has returned, a reliable consumer misses nothing. Raises as :meth:`producer`.
        """
        self._check_stream(stream)
        options = ffi.new("shmd_consumer_options *")
        kind, schema, keep = self._schema(dtype, options)
        options.delivery = _choice("delivery", delivery, _DELIVERY)
        options.start = _choice("start", start, _START)
        options.wait = _choice("wait", wait, _WAIT)
        if shard is not None:
            options.shard, options.shards = _shard(shard)
        options.flags = (lib.SHMD_ATTACH_CREATE if create else 0) | (lib.SHMD_ATTACH_FOLLOW if follow else 0)
        recipe = Recipe(
            self,
            lib.shmd_consumer_attach,
            "shmd_consumer **",
            lib.shmd_guarded_consumer_free,
            stream,
            options,
            schema,
            keep,
        )
        handle, link = self._attach(recipe, attach_timeout, waits=self.reconnect)
        made = Consumer(handle, link, stream, delivery, kind, shard)
        if self.reconnect:
            if delivery != "latest":
                options.start = lib.SHMD_START_OLDEST  # from now on: as little as possible is missed
            made._comeback = comeback = ConsumerComeback(recipe)
            comeback.note_base(made)
        return self._keep(made)

    def queue(self, name: str, maxsize: int = 0, *, max_bytes: int = 8 << 20) -> Queue:
        """A queue of Python objects with the face of ``multiprocessing.Queue``: many processes put, one gets.

        ``maxsize`` (objects; 0: no limit) and ``max_bytes`` (of shared memory) bound what each putting
        process has put and nobody has got. Whoever calls this first holds what is put until somebody gets.
        Raises AttachRejected, AttachTimeout, DriverUnavailable, ValueError (a bad name or size).
        """
        with LATE_IMPORT:
            from shmdriver.client.queue import Queue

        return Queue(self, name, maxsize, max_bytes, holds=True)

    def streams(self) -> tuple[StreamStatus, ...]:
        """The streams of this instance, their epochs, producers and consumers, as they are now."""
        with LATE_IMPORT:
            from shmdriver.observe import Instance

        with Instance(self.instance) as instance:
            return tuple(instance.streams())

    def leases(self) -> tuple[LeaseStatus, ...]:
        """Who may use which stream, as it is now."""
        with LATE_IMPORT:
            from shmdriver.observe import Instance

        with Instance(self.instance) as instance:
            return tuple(instance.leases())

    def on_event(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Has ``callback`` called, in a thread of its own, with every DriverEvent from now on.

        They are those of the driver's present incarnation, also after it was adopted, but not of one that
        follows a shutdown or ``--fresh``. Returns the function that stops it.
        """
        with LATE_IMPORT:
            from shmdriver.client.events import listen

        return listen(self._connected(), callback)

    @property
    def client_id(self) -> int:
        """This connection's id, never used twice by a driver instance."""
        with self._connected().used() as native:
            return int(lib.shmd_client_id(native))

    @property
    def boot_id(self) -> int:
        """Which incarnation of the instance it is connected to; an adopting driver keeps it."""
        return self._connected().boot_id

    @property
    def driver_alive(self) -> bool:
        """Whether the driver lives, as far as it can be proved. Messages flow without it."""
        return self._connected().driver_alive()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Closes its producers (cleanly) and consumers, and says goodbye. Twice is once."""
        self._end(aborted=False)

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(aborted=kind is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _at, (self.instance, self.name, self.timeout, self.reconnect)

    def __repr__(self) -> str:
        state = (
            "closed" if self._closed else "connected" if self._link and self._link.usable else "not connected"
        )
        return f"<Client of instance {self.instance!r}, {state}>"

    # ---- inside

    def _connected(self, timeout: float | None = None) -> Link:
        """The connection of this process, made when there is none (in ``timeout`` seconds; None: its own)."""
        timeout = self.timeout if timeout is None else min(timeout, self.timeout)
        if self._closed:
            raise errors.HandleClosed(f"instance {self.instance!r}: this client is closed; connect again")
        link = self._link
        if link is None or not link.usable:
            if link is not None:
                self._handles = weakref.WeakSet()  # the parent's
            self._link = link = Link(
                self.instance, self.name, timeout, waits=self.reconnect, reconnect=self.reconnect
            )
        elif self.reconnect and not link.driver_alive():
            try:
                link = self._relink(link, timeout)
            except errors.DriverUnavailable:
                pass  # the old connection says so in its own words
        return link

    def _relink(self, old: Link, timeout: float, *, forced: bool = False) -> Link:
        """A connection to the next incarnation of the driver; handles of the old one keep theirs.

        The old one is returned when its driver was adopted, unless ``forced`` (it was expired). Raises
        DriverUnavailable, AttachTimeout, AttachRejected.
        """
        link = Link(self.instance, self.name, timeout, reconnect=self.reconnect)
        if link.boot_id == old.boot_id and not forced:
            link.close()  # adopted: the old connection is as good as ever
            return old
        self._link = link
        return link

    def _attach(self, recipe: Recipe, timeout: float, *, waits: bool) -> tuple[Any, Link]:
        """A native handle, and the connection that it belongs to; ``waits``: also for a driver to come."""
        deadline = Deadline(timeout)
        out = ffi.new(recipe.out_type)
        while True:
            link = self._connected(deadline.rest_s())
            if self.reconnect and not waits and not link.driver_alive():
                raise errors.DriverUnavailable(last_error(), instance=self.instance)
            recipe.options.timeout_ns = deadline.rest_ns()
            with link.used() as native:
                code = recipe.call(native, recipe.stream.encode(), recipe.options, out)
            if code == 0:
                return ffi.gc(out[0], recipe.free), link  # freed when no thread can have it any more
            if code == lib.SHMD_E_REVOKED and self.reconnect:
                code = self._join_anew(link, deadline.rest_s())
            if code == lib.SHMD_E_DRIVER_UNAVAILABLE and waits and deadline.slice_ns() > 0:
                wait_for_a_driver(deadline)
            elif code not in (0, lib.SHMD_E_INTERRUPTED):
                raise self._attach_failure(code, recipe, link, timeout)

    def _join_anew(self, forgotten: Link, timeout: float) -> int:
        """Connects in place of a client that was silent for too long: 0, or that there is no driver."""
        try:
            self._relink(forgotten, timeout, forced=True)
        except errors.DriverUnavailable:
            return int(lib.SHMD_E_DRIVER_UNAVAILABLE)
        return 0

    def _keep(self, made: _Made) -> _Made:
        """Has ``made`` closed with this client. Raises HandleClosed if another thread has closed it."""
        self._handles.add(made)
        if self._closed:
            made.close()
            self._connected()
        return made

    def _attach_failure(self, code: int, recipe: Recipe, link: Link, timeout: float) -> Exception:
        stream, schema = recipe.stream, recipe.schema
        if code == lib.SHMD_E_INVALID:
            text = f"stream {stream!r}: {last_error()}"
            return errors.AttachRejected(text, code=errors.Code.INVALID_PARAMS, stream=stream)
        return failure_of(
            code,
            stream=stream,
            instance=self.instance,
            doing="attaching",
            timeout_s=timeout,
            schema=schema,
            stream_schema=directory.schema_by_name(link.authority, stream) if schema else None,
        )

    def _schema(self, dtype: Any, options: Any) -> tuple[Any, str | None, Any]:
        """The dtype, its canonical text (into ``options``), and what keeps that text's memory."""
        if dtype is None:
            options.schema = ffi.NULL
            return None, None, None
        with LATE_IMPORT:
            from shmdriver.client.records import as_dtype, schema_of

        kind = as_dtype(dtype)
        schema = schema_of(kind)
        keep = ffi.new("char[]", schema.encode())
        options.schema = keep
        return kind, schema, keep

    def _check_stream(self, stream: str) -> None:
        problem = names.stream_problem(stream)
        if problem:
            raise errors.AttachRejected(
                problem, code=errors.Code.INVALID_PARAMS, reason=errors.Reason.BAD_NAME, stream=stream
            )

    def _end(self, *, aborted: bool) -> None:
        if self._closed:
            return
        link = self._link
        for queue in [] if aborted or link is None or not link.usable else list(self._queues):
            queue._end()
        self._closed = True
        if link is None or not link.usable:
            return
        for handle in list(self._handles):
            if not handle.closed:
                if aborted and isinstance(handle, Producer):
                    handle.abort()
                else:
                    handle.close()
        link.close()


def connect(
    instance: str | None = None, *, name: str | None = None, timeout: float = 5.0, reconnect: bool = False
) -> Client:
    """Connects to the driver of ``instance`` (default: $SHMDRIVER_DRIVER_INSTANCE, else "default").

    ``name`` is what tools call this client; ``timeout`` (seconds) is how long to wait for a driver;
    with ``reconnect`` it waits that long for one to start, too, and this client, its producers and its
    consumers attach anew by themselves after a revocation and to the next incarnation of the driver;
    ``reattachments`` of each says when, and what was lost. Raises DriverUnavailable, AttachTimeout,
    ConfigError (a bad name).
    """
    if instance is None:
        instance = os.environ.get(_INSTANCE_VARIABLE) or "default"
        source = _INSTANCE_VARIABLE
    else:
        source = "connect(instance=...)"
    problem = names.instance_problem(instance)
    if problem:
        raise errors.ConfigError(problem, key="driver.instance", source=source)
    if name is not None and not 0 < len(name.encode()) < lib.SHMD_NAME_BYTES:
        raise errors.ConfigError(
            f"client name {name!r}: expected 1 to {lib.SHMD_NAME_BYTES - 1} bytes",
            key="name",
            source="connect(name=...)",
        )
    client = Client(instance, name=name, timeout=timeout, reconnect=reconnect)
    client._connected()
    return client


@contextmanager
def embedded(instance: str | None = None, *, config: Any = None) -> Iterator[Client]:
    """A client with a driver inside: ``with shmdriver.embedded() as client``, the driver in a thread.

    ``instance`` is a private name unless given; children reach the driver by the client. On exit the
    client closes, then the driver stops and leaves nothing in /dev/shm.
    """
    with LATE_IMPORT:
        from shmdriver.driver.embedded import EmbeddedDriver

    generation = lib.shmd_fork_generation()
    driver = EmbeddedDriver(instance, config)
    driver.start()
    try:
        with connect(driver.instance) as client:
            yield client
    finally:
        if generation == lib.shmd_fork_generation():
            driver.stop()


def _at(instance: str, name: str | None, timeout: float, reconnect: bool) -> Client:
    return Client(instance, name=name, timeout=timeout, reconnect=reconnect)


def _size(argument: str, value: int | None, default: int, limit: int) -> int:
    if value is None:
        return default
    if not 0 <= value <= limit:
        raise ValueError(f"{argument}={value}: expected 0 to {limit}")
    return int(value)


def _shard(shard: tuple[int, int]) -> tuple[int, int]:
    try:
        index, count = (int(number) for number in shard)
    except (TypeError, ValueError):
        raise TypeError(f"shard={shard!r}: expected (k, n), as (0, 4) for the first of four") from None
    if not 0 <= index < count <= lib.SHMD_GATE_MAX:
        raise ValueError(f"shard={shard!r}: expected (k, n) with 0 <= k < n <= {int(lib.SHMD_GATE_MAX)}")
    return index, count


def _choice(argument: str, value: str | None, known: dict[Any, int]) -> int:
    try:
        return known[value]
    except (KeyError, TypeError):
        near = names.nearest(str(value), [name for name in known if name])
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{argument}={value!r}: expected one of {', '.join(repr(name) for name in known if name)}{hint}"
        ) from None
