"""Client: a process's address of a driver, and the connection behind it. connect and embedded make one."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, TypeVar

from shmdriver import errors, names
from shmdriver._native import lib
from shmdriver.client import exiting
from shmdriver.client.arguments import choice, shard_of, size
from shmdriver.client.attach import AttachSpec, acquire
from shmdriver.client.attempts import Attempts
from shmdriver.client.boundary import boundary, public
from shmdriver.client.consumer import Consumer
from shmdriver.client.coroutines import AsyncClosing, coroutine_of
from shmdriver.client.link import Deadline, Link
from shmdriver.client.log import tell, tell_apart, tell_of
from shmdriver.client.producer import Producer
from shmdriver.client.reattach import ConsumerComeback, ProducerComeback
from shmdriver.late import LATE_IMPORT
from shmdriver.stopping import ends_in_order
from shmdriver.trust import owner_text

if TYPE_CHECKING:
    from shmdriver.client.queue import Queue
    from shmdriver.driver.config import Config
    from shmdriver.driver.embedded import EmbeddedDriver
    from shmdriver.observe import LeaseStatus, StreamStatus

__all__ = ["Client", "aconnect", "connect", "embedded"]

_Made = TypeVar("_Made", Producer, Consumer)

_NAME_BYTES_MAX = int(lib.SHMD_NAME_BYTES) - 1
_INSTANCE_VARIABLE = "SHMDRIVER_DRIVER_INSTANCE"
_ARENA_DERIVED = 2**64 - 1
_INLINE_MAX_DERIVED = 488  # up to here a max_message goes into the slots, with no arena
_ARRAY_HEAD_BYTES = 512

_DELIVERY = {
    "reliable": lib.SHMD_DELIVERY_RELIABLE,
    "lossy": lib.SHMD_DELIVERY_LOSSY,
    "latest": lib.SHMD_DELIVERY_LATEST,
}
_START = {"newest": lib.SHMD_START_NEWEST, "oldest": lib.SHMD_START_OLDEST}
_WAIT = {"adaptive": lib.SHMD_WAIT_ADAPTIVE, "spin": lib.SHMD_WAIT_SPIN, "sleep": lib.SHMD_WAIT_SLEEP}
_PACE = {"auto": lib.SHMD_PACE_AUTO, "eager": lib.SHMD_PACE_EAGER}
_SLOW = {
    None: lib.SHMD_SLOW_DEFAULT,
    "block": lib.SHMD_SLOW_BLOCK,
    "evict": lib.SHMD_SLOW_EVICT,
    "refuse": lib.SHMD_SLOW_REFUSE,
}


def _abandon(made: Producer | Consumer) -> None:
    made._abandon()


@public
class Client(AsyncClosing):
    """The address of a driver instance, connected at first use.

    Pass it to a child process in any way: there it connects afresh. Threads may share it; the
    producers and consumers that it makes belong to one thread and one process each. Leaving its
    ``with`` block closes them (after an exception other than ``sys.exit(0)``: aborts).
    """

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_closed",
        "_first",
        "_handles",
        "_maker_pid",
        "_queues",
        "heartbeat_cpus",
        "instance",
        "name",
        "owner",
        "reconnect",
        "timeout",
    )

    instance: str
    name: str | None
    timeout: float | None
    reconnect: bool
    heartbeat_cpus: tuple[int, ...] | None
    owner: str | None

    def __init__(
        self,
        instance: str,
        *,
        name: str | None = None,
        timeout: float | None = 5.0,
        reconnect: bool = False,
        maker_pid: int = 0,
        heartbeat_cpus: tuple[int, ...] | None = None,
        owner: str | None = None,
    ) -> None:
        self.instance = instance
        self.name = name
        self.owner = owner
        self.timeout = timeout
        self.reconnect = reconnect
        self._maker_pid = maker_pid or os.getpid()  # whose name it has; other processes add theirs
        self.heartbeat_cpus = heartbeat_cpus
        self._first: dict[int, Link] = {}  # by fork generation: each leads to the newest
        self._attempts: dict[int, Attempts] = {}  # likewise
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
        attach_timeout: float | None = 5.0,
    ) -> Producer:
        """Attaches as the one producer of a stream: bytes and arrays, or with ``dtype`` records.

        ``max_message`` (bytes) and ``slots`` (messages) suffice to size it, ``slot_bytes`` and ``arena``
        (bytes) override what is derived. ``min_consumers``: no room before that many reliable consumers
        are attached. ``slow_consumer``: what becomes of one that holds the producer back.
        ``timestamps``: every message carries its publish time, and tools show latencies. How many consumers
        the stream admits is no argument: its profile's ``max_consumers`` in the driver's configuration (16 by
        default, at most 64). Raises AttachRejected (SchemaMismatch), AttachTimeout (after ``attach_timeout``
        seconds; None: never), DriverUnavailable; TypeError, ValueError (an argument that is none).
        """
        spec = AttachSpec(self, stream, dtype, is_producer=True)
        kind, options = spec.dtype, spec.options
        if kind is not None and slot_bytes is None and max_message is None:
            slot_bytes = -(-(lib.SHMD_SLOT_HEADER_BYTES + kind.itemsize) // 64) * 64
            arena = 0 if arena is None else arena
        largest = size("max_message", max_message, 0, errors.MESSAGE_BYTES_MAX)
        if largest > _INLINE_MAX_DERIVED and arena is None:
            # An array of max_message bytes fits with its head.
            largest = min(largest + _ARRAY_HEAD_BYTES, errors.MESSAGE_BYTES_MAX)
        options.max_message = largest
        options.slots = size("slots", slots, 0, lib.SHMD_SLOTS_MAX)
        options.slot_bytes = size("slot_bytes", slot_bytes, 0, lib.SHMD_SLOT_BYTES_MAX)
        options.arena_bytes = size("arena", arena, _ARENA_DERIVED, 2**62)
        options.min_consumers = size("min_consumers", min_consumers, 0, lib.SHMD_GATE_MAX)
        options.slow_consumer = choice("slow_consumer", slow_consumer, _SLOW)
        options.flags = (
            (lib.SHMD_ATTACH_CREATE if create else 0)
            | (0 if wakeups else lib.SHMD_ATTACH_NO_WAKEUPS)
            | (lib.SHMD_ATTACH_TIMESTAMPS if timestamps else 0)
        )
        handle, link = acquire(spec, attach_timeout, waits=self.reconnect)
        if kind is None:
            made = Producer(handle, link, stream)
        else:
            with LATE_IMPORT:
                from shmdriver.client.record_producer import RecordProducer

            made = RecordProducer(handle, link, stream, kind)
        if self.reconnect:
            made._comeback = ProducerComeback(spec)
        tell_of(stream, "INFO", "attached as its producer, epoch %d", made.epoch)
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
        pace: Literal["auto", "eager"] = "auto",
        attach_timeout: float | None = 5.0,
    ) -> Consumer:
        """Attaches as a consumer of a stream, which need not have a producer yet.

        ``delivery``: reliable (holds the producer back, gets everything), lossy (may be overrun; gaps are
        counted), latest (always the newest). ``follow``: goes on with the next producer after an end.
        ``shard=(k, n)``: only the messages with ``seq % n == k``, so that n consumers share the work; the
        others are passed over and hold nobody back; a shard that joins others of the same n begins where the
        slowest of them stands. ``wait``: how it waits for messages (spin never sleeps). ``pace``: a reliable
        consumer that has read all of a fast flow holds still for up to 2 microseconds, so that its producer
        gets ahead (auto), or never does (eager).
        ``start="oldest"``: begins with what the ring still has, also within ``grace_ms`` of a clean end; an
        aborted end is not joined. Once this has returned, a reliable consumer misses nothing. A stream admits
        16 consumers, or as many as its profile's ``max_consumers`` says. Raises as :meth:`producer`.
        """
        spec = AttachSpec(self, stream, dtype, is_producer=False)
        options = spec.options
        options.delivery = choice("delivery", delivery, _DELIVERY)
        options.start = choice("start", start, _START)
        options.wait = choice("wait", wait, _WAIT)
        options.pace = choice("pace", pace, _PACE)
        if shard is not None:
            options.shard, options.shards = shard_of(shard)
        options.flags = (lib.SHMD_ATTACH_CREATE if create else 0) | (lib.SHMD_ATTACH_FOLLOW if follow else 0)
        handle, link = acquire(spec, attach_timeout, waits=self.reconnect)
        made = Consumer(handle, link, stream, delivery, spec.dtype, shard)
        if self.reconnect:
            if delivery != "latest":
                options.start = lib.SHMD_START_OLDEST  # from now on: as little as possible is missed
            made._comeback = comeback = ConsumerComeback(spec)
            comeback.note_base(made)
        tell_of(stream, "INFO", "attached as a %s consumer", delivery)
        return self._keep(made)

    aproducer = coroutine_of(producer, _abandon)
    aconsumer = coroutine_of(consumer, _abandon)

    def queue(self, name: str, maxsize: int = 0, *, max_bytes: int = 2 << 20) -> Queue:
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

        with Instance(self.instance, self.owner) as instance:
            return tuple(instance.streams())

    def leases(self) -> tuple[LeaseStatus, ...]:
        """Who may use which stream, as it is now."""
        with LATE_IMPORT:
            from shmdriver.observe import Instance

        with Instance(self.instance, self.owner) as instance:
            return tuple(instance.leases())

    def on_event(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Has ``callback`` called, in a thread of its own, with every DriverEvent from now on.

        They are those of the driver's present incarnation, also after it was adopted, but not of one that
        follows a shutdown or ``--fresh``. The last one of an embedded driver that died is ``driver_lost``.
        Returns the function that stops it.
        """
        with LATE_IMPORT:
            from shmdriver.client.events import listen

        return listen(self._connected(), callback)

    @property
    def client_id(self) -> int:
        """This connection's id, never used twice by a driver instance."""
        return int(lib.shmd_client_id(self._connected().native))

    @property
    def boot_id(self) -> int:
        """Which incarnation of the instance it is connected to; an adopting driver keeps it."""
        return self._connected().boot_id

    @property
    def driver_alive(self) -> bool:
        """False once the driver's death is proved; a death that cannot be proved counts as alive.

        Messages flow without a driver.
        """
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
        self._end(aborted=not ends_in_order(kind, error))

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.instance, self.name, self.timeout, self.reconnect)
        return _at, (*arguments, self._maker_pid, self.heartbeat_cpus, self.owner)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._link else "not connected"
        return f"<Client of instance {self.instance!r}, {state}>"

    # ---- inside

    @property
    def _link(self) -> Link | None:
        """The newest connection of this process; None before there is one, and in a child that was forked."""
        link = self._first.get(lib.shmd_fork_generation())
        while link is not None and link.successor is not None:
            link = link.successor
        return link if link is not None and link.native is not None else None

    def _connected(self, timeout: float | None = None) -> Link:
        """The connection of this process, made when there is none (in ``timeout`` seconds; None: its own).

        Threads that come at once get the same one: which object it is ``setdefault`` decides, and its
        C side connects once. Nothing here is locked, so a signal handler or finaliser may come at any time.
        """
        own = math.inf if self.timeout is None else self.timeout
        timeout = own if timeout is None else min(timeout, own)
        link = self._link
        if link is None and not self._closed:
            made = self._new_link()
            link = self._first.setdefault(made.generation, made)
            link.open(timeout, waits=self.reconnect)
        if self._closed:
            if link is not None:
                link.close()
            exiting.stay_if_daemon()
            raise errors.HandleClosed(f"instance {self.instance!r}: this client is closed; connect again")
        assert link is not None
        if link.closed:
            return self._relink(link, timeout, forced=True)
        if self.reconnect and not link.driver_alive():
            try:
                link = self._relink(link, timeout)
            except errors.DriverUnavailable:
                pass  # the old connection says so in its own words
        return link

    @property
    def _attempts_here(self) -> Attempts:
        """What attaches handles of this process anew."""
        return self._attempts.setdefault(lib.shmd_fork_generation(), Attempts())

    def _new_link(self) -> Link:
        return Link(
            self.instance,
            self._own_name(),
            reconnect=self.reconnect,
            heartbeat_cpus=self.heartbeat_cpus,
            owner=self.owner,
        )

    def _own_name(self) -> str | None:
        """What tools call this process' client. A child that it was passed to adds its own name."""
        name = self.name
        if name is None or os.getpid() == self._maker_pid:
            return name
        process = sys.modules.get("multiprocessing.process")
        own = process.current_process().name if process else "MainProcess"
        own_name = f"{name}/{os.getpid() if own == 'MainProcess' else own}"
        return own_name.encode()[:_NAME_BYTES_MAX].decode("utf-8", "ignore")

    def _relink(self, old: Link, timeout: float, *, forced: bool = False) -> Link:
        """A connection to the next incarnation of the driver; handles of the old one keep theirs.

        The old one is returned when its driver was adopted, unless ``forced`` (it was expired). Raises
        DriverUnavailable, AttachTimeout, AttachRejected.
        """
        while True:
            made = old.candidates.setdefault(0, self._new_link())
            try:
                made.open(timeout)
                break
            except errors.HandleClosed:  # another thread found that its driver was adopted
                old.candidates.pop(0, None)
                if self._closed:
                    raise
        if made.boot_id == old.boot_id and not forced and old.successor is None:
            old.candidates.pop(0, None)
            made.close()  # adopted: the old connection is as good as ever
            return old
        old.successor = made
        self._first[made.generation] = made  # the old one goes with its last handle
        tell_apart(
            "WARNING", "instance %r: connected anew, to a driver of boot %x", self.instance, made.boot_id
        )
        if self._closed:
            made.close()
        return made

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

    def _end(self, *, aborted: bool) -> None:
        link = self._link
        if not self._closed and not aborted and link is not None:
            for queue in list(self._queues):
                queue._end()
        self._closed = True  # from now on; what follows is done again by a second call, if it was interrupted
        for handle in list(self._handles):
            if not handle.closed and handle._link.usable:
                if aborted and isinstance(handle, Producer):
                    handle.abort()
                else:
                    handle.close()
        first = self._first.get(lib.shmd_fork_generation())
        for opened in (link, first):
            if opened is not None:
                opened.close()


def _cpus_of(heartbeat_cpus: Iterable[SupportsIndex] | None) -> tuple[int, ...] | None:
    """In order, each once. Raises ConfigError, TypeError."""
    if heartbeat_cpus is None:
        return None
    if not isinstance(heartbeat_cpus, Iterable):
        raise TypeError(f"heartbeat_cpus={heartbeat_cpus!r}: expected CPU numbers, as [0, 1], or None")
    asked = list(heartbeat_cpus)
    cpus = [-1 if isinstance(cpu, bool) or not hasattr(cpu, "__index__") else index(cpu) for cpu in asked]
    bad = [cpu for cpu, number in zip(asked, cpus, strict=True) if not 0 <= number < lib.SHMD_CPUS_MAX]
    if bad or not cpus:
        found = f"{bad[0]!r} among the CPUs" if bad else "no CPU at all"
        raise errors.ConfigError(
            f"heartbeat_cpus: {found}; expected one or more numbers from 0 to {lib.SHMD_CPUS_MAX - 1}, or "
            "None for all that this process may use",
            key="heartbeat_cpus",
            source="connect(heartbeat_cpus=...)",
        )
    return tuple(sorted(set(cpus)))


@boundary
def connect(
    instance: str | None = None,
    *,
    name: str | None = None,
    timeout: float | None = 5.0,
    reconnect: bool = False,
    heartbeat_cpus: Iterable[SupportsIndex] | None = None,
    owner: str | int | None = None,
) -> Client:
    """Connects to the driver of ``instance`` (default: $SHMDRIVER_DRIVER_INSTANCE, else "default").

    ``name`` is what tools call this client (a child process that it is passed to adds its own name);
    ``timeout`` (seconds; None: no end) is how long to wait for a driver's answer; with ``reconnect`` it waits
    that long for one to start, too, and this client, its producers and its consumers attach anew by
    themselves after a revocation and to the next incarnation of the driver; ``reattachments`` of each says
    when, and what was lost. Each call of theirs may raise AttachRejected then: the driver refuses to attach
    that handle anew. ``heartbeat_cpus``: the CPUs of the C threads that beat for this client and make its
    ``fileno()`` readable; None: all that this process may use. They run under SCHED_OTHER and need no GIL,
    whatever the calling thread runs under. ``owner``: the user whose driver is meant, by name or number, and
    nobody else's; None: this user's, else one of root, of the system (the owner of
    ``/run/shmdriver/INSTANCE``) or of a user in $SHMDRIVER_TRUST_OWNERS (with commas). Raises
    DriverUnavailable, AttachTimeout, AttachRejected (no room, or a driver died at it), ConfigError (a bad
    name, a bad CPU, an owner that is no user), ShmDriverError (none of these CPUs may be used); TypeError,
    ValueError (a timeout that is no number of seconds).
    """
    if instance is None:
        instance = os.environ.get(_INSTANCE_VARIABLE) or "default"
        source = _INSTANCE_VARIABLE
    else:
        source = "connect(instance=...)"
    problem = names.instance_problem(instance)
    if problem:
        raise errors.ConfigError(problem, key="driver.instance", source=source)
    problem = names.client_problem(name)
    if problem:
        raise errors.ConfigError(problem, key="name", source="connect(name=...)")
    Deadline(timeout)  # refuses what is none
    client = Client(
        instance,
        name=name,
        timeout=timeout,
        reconnect=reconnect,
        heartbeat_cpus=_cpus_of(heartbeat_cpus),
        owner=owner_text(owner),
    )
    link = client._connected()
    tell("INFO", "instance %r: connected to its driver, boot %x", instance, link.boot_id)
    return client


aconnect = coroutine_of(connect)


def embedded(
    instance: str | None = None,
    *,
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> AbstractContextManager[Client]:
    """A client with a driver inside: ``with shmdriver.embedded() as client``, the driver in a thread.

    ``instance`` is a private name unless given; children reach the driver by the client. ``config``: a
    mapping as a TOML file makes it (``{"shm": {"max_bytes": "64 MiB"}}``), or the path of such a file. On
    exit the client closes, then the driver stops and leaves nothing in /dev/shm. Both ends of the block wait
    for the driver: an asyncio program enters it before its loop, or in a worker thread. Entering raises
    ConfigError, DriverAlreadyRunning, ShmDriverError.
    """
    return _Embedded(instance, config)


class _Embedded(AbstractContextManager["Client"]):
    """What embedded() returns. Its EmbeddedDriver owns the driver: when it is dropped, the thread ends."""

    def __init__(self, instance: str | None, config: Any) -> None:
        self._instance = instance
        self._config = config
        self._generation = lib.shmd_fork_generation()
        self._driver: EmbeddedDriver | None = None
        self._client: Client | None = None

    def __enter__(self) -> Client:
        with LATE_IMPORT:
            from shmdriver.driver.embedded import EmbeddedDriver

        driver = self._driver = EmbeddedDriver(self._instance, self._config)
        driver.start()
        try:
            client = self._client = connect(driver.instance, owner=os.geteuid())
        except BaseException:
            driver.stop()
            raise
        return client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, driver = self._client, self._driver
        if driver is None or self._generation != lib.shmd_fork_generation():
            return
        try:
            if client is not None:
                client._end(aborted=not ends_in_order(kind, error))
        finally:
            driver.stop()


def _at(
    instance: str,
    name: str | None,
    timeout: float | None,
    reconnect: bool,
    maker_pid: int,
    heartbeat_cpus: tuple[int, ...] | None,
    owner: str | None,
) -> Client:
    return Client(
        instance,
        name=name,
        timeout=timeout,
        reconnect=reconnect,
        maker_pid=maker_pid,
        heartbeat_cpus=heartbeat_cpus,
        owner=owner,
    )
